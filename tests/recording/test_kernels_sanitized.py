"""The kernels under AddressSanitizer and UndefinedBehaviourSanitizer, on odd tensors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gradscope.recording import kernels

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "gradscope" / "recording" / "native"
CHECKS = "-fsanitize=address,undefined,float-cast-overflow,float-divide-by-zero"


def preloads() -> str:
    """What must be loaded first; without gcc or its sanitizers the test is skipped."""
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("needs gcc on Linux")
    found = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")  # it must find where C++ throws
    ]
    if not all(Path(library).is_absolute() for library in found):
        pytest.skip("this gcc comes without AddressSanitizer")
    return " ".join(found)


def run_odd_tensors(native, folder, *arguments):
    """Build the kernels with all checks and give them odd tensors, in a process of its own."""
    preloaded, library = preloads(), folder / "kernels.so"
    flags = [
        "-O1",
        "-g",
        "-fPIC",
        "-shared",
        "-DFOR_EACH_CPU=",
        CHECKS,
        "-fno-sanitize-recover=all",
    ]
    sources = [str(path) for path in sorted(native.glob("*.c"))]
    include = f"-I{sysconfig.get_paths()['include']}"
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    subprocess.run(
        ["gcc", *flags, *warnings, include, *sources, "-o", str(library), "-lm", "-ldl"], check=True
    )
    program = Path(__file__).with_name("odd_tensors.py")
    return subprocess.run(
        [sys.executable, str(program), str(library), kernels.compiled.__name__, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": preloaded,
            "PYTHONPATH": str(ROOT),
            "PYTHONMALLOC": "malloc",  # so that freed objects are noticed too
            "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks when it ends
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_odd_tensors_do_no_harm(tmp_path):
    """Neither a read nor a write beside a tensor, nor anything that C leaves undefined."""
    found = run_odd_tensors(NATIVE, tmp_path)
    assert found.returncode == 0, found.stderr[-4000:]
    assert found.stdout.endswith("done\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "sound", "broken", "message"),
    [
        ("reduce.c", "        to = work->numel;", "        to += 1;", "heap-buffer-overflow"),
        (
            "elements.h",
            "memcpy(&stored, data + i * (int64_t)sizeof stored, sizeof stored);",
            "stored = ((const STORED *)(const void *)data)[i];",
            "misaligned address",
        ),
        ("tensor.c", "        Py_INCREF(object);", "", "heap-use-after-free"),
        (
            "tensor.c",
            "numel *= seen->shape[i];",
            "numel *= seen->shape[seen->ndim - 1 - i];",
            "signed integer overflow",
        ),
    ],
)
def test_the_sanitizers_would_notice(file, sound, broken, message, tmp_path):
    """Kernels that read beyond a tensor, or own too little, or count too far, do not pass."""
    native = tmp_path / "native"
    shutil.copytree(NATIVE, native)
    text = (native / file).read_text()
    assert text.count(sound) == 1
    (native / file).write_text(text.replace(sound, broken))
    found = run_odd_tensors(native, tmp_path, "short")
    assert found.returncode != 0
    assert message in found.stderr
