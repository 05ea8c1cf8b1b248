"""The compiled kernels may be missing, broken, strange or unwanted: recording goes on without."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import struct
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from gradscope.errors import GradscopeWarning
from gradscope.recording import kernels

ROOT = Path(__file__).resolve().parents[2]
NAME = kernels.compiled.__name__
PACKAGE, _, LAST = NAME.rpartition(".")

RECORDING = """
import json, torch, gradscope
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with gradscope.watch(model, optimizer, every=1) as scope:
    for _ in range(3):
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
table = scope.trace().to_pandas()
"""


def recorded():
    """Norms of a small recording, by torch's operations or the kernels as they are set now."""
    scope = {}
    exec(RECORDING, scope)
    return scope["table"].norm.tolist()


class Imports:
    """Answers the import of the kernels with a file, or an error."""

    def __init__(self, answer):
        self._answer = answer

    def find_spec(self, name, path=None, target=None):
        """What importlib asks each finder for."""
        if name != NAME:
            return None
        if isinstance(self._answer, Exception):
            raise self._answer
        return importlib.util.spec_from_file_location(name, self._answer)


def refusing(error):
    """A module in place of the kernels whose `configure` raises."""
    module = types.ModuleType(NAME)

    def configure(*args):
        raise error

    module.configure = configure
    return module


def load_again(monkeypatch):
    """Load the module that imports the kernels once more; it and the warnings that it gave."""
    monkeypatch.delattr(sys.modules[PACKAGE], LAST, raising=False)
    spec = importlib.util.spec_from_file_location("loaded_again", kernels.__file__)
    again = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec.loader.exec_module(again)
    return again, caught


def newer_exchange():
    """The capsule of a torch with version 2 of DLPack's exchange, and what must outlive it."""
    table = (ctypes.c_uint32 * 64)(2, 0)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    name = ctypes.create_string_buffer(b"dlpack_exchange_api")
    return new(ctypes.addressof(table), ctypes.cast(name, ctypes.c_char_p), None), (table, name)


def broken(fault, monkeypatch, tmp_path):
    """Bring a fault about; what must live as long as it does."""
    if fault in {"no torch api", "newer api", "no capsule"}:
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
        capsule, alive = newer_exchange()
        if fault != "no torch api":
            capsule = capsule if fault == "newer api" else 3
            monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", capsule, raising=False)
        return alive
    monkeypatch.delitem(sys.modules, NAME)
    if fault in {"refuses", "two lines"}:
        error = ImportError("first\nsecond") if fault == "two lines" else SystemError("bad call")
        monkeypatch.setitem(sys.modules, NAME, refusing(error))
        return None
    if fault == "no library":
        answer = tmp_path / f"{LAST}.abi3.so"
        answer.write_bytes(b"\x7fELF of another machine")
    else:
        answer = ImportError("undefined symbol: PyNothing")
    monkeypatch.setattr(sys, "meta_path", [Imports(answer), *sys.meta_path])
    return None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no torch api", "AttributeError: "),
        ("newer api", "ImportError: torch has version 2 of DLPack's exchange, 1 is known"),
        ("no capsule", "ValueError: "),
        ("refuses", "SystemError: bad call"),
        ("two lines", "ImportError: first second"),
        ("no library", "ImportError: "),
        ("wrong abi", "ImportError: undefined symbol: PyNothing"),
    ],
)
def test_kernels_that_cannot_be_used_are_left_alone(fault, reason, monkeypatch, tmp_path):
    """One warning of one line says why, and a recording gives the same norms without them."""
    expected = recorded()
    alive = broken(fault, monkeypatch, tmp_path)
    again, caught = load_again(monkeypatch)
    assert again.compiled is None
    (warning,) = caught
    assert warning.category is GradscopeWarning
    assert reason in str(warning.message)
    assert "\n" not in str(warning.message)
    monkeypatch.setattr(kernels, "compiled", again.compiled)
    assert recorded() == pytest.approx(expected, rel=1e-5)
    del alive


def test_kernels_of_another_version_refuse():
    """They are called otherwise, which may not be found out within a training."""
    known = (torch.Tensor, nn.Parameter, torch.Tensor.__dlpack_c_exchange_api__)
    with pytest.raises(ImportError, match="another version of gradscope"):
        kernels.compiled.configure(*known, kernels.CALLS + 1)
    kernels.compiled.configure(*known, kernels.CALLS)


def test_kernels_that_were_not_built_are_no_matter(monkeypatch):
    """Who installed without a C compiler was told then."""
    monkeypatch.setitem(sys.modules, NAME, None)
    again, caught = load_again(monkeypatch)
    assert again.compiled is None
    assert caught == []


def test_kernels_that_fit_are_used(monkeypatch):
    """Loaded once more without a fault, the tests above would find them."""
    again, caught = load_again(monkeypatch)
    assert again.compiled is kernels.compiled
    assert caught == []


def test_the_environment_switches_them_off():
    """GRADSCOPE_KERNELS=0: they are not even loaded, and the numbers are the same."""
    program = RECORDING + (
        "import sys; from gradscope.recording import kernels\n"
        f"print(json.dumps([kernels.compiled is None, {NAME!r} in sys.modules, *table.norm]))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env={**os.environ, "GRADSCOPE_KERNELS": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    off, loaded, *norms = json.loads(found.stdout)
    assert off
    assert not loaded
    assert norms == pytest.approx(recorded(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("configure", (torch.Tensor,)),
        ("configure", (3, 4, 5)),
        ("measure", ()),
        ("measure", (None, (), [], 1)),
        ("measure", (None, [1], [torch.ones(2)], 1)),
        ("measure", (None, [], [], 1, b"")),
        ("measure_one", (None, 1, 1, None, torch.ones(2))),
        ("measure_one", (None, 1, 1, None, None)),
        ("remember", (None, [1], [torch.ones(2)], [(1, 2)], 1)),
        ("remember", (None, [1], [torch.ones(2)], [3], 1)),
        ("change", (None, [1], [torch.ones(2)], [], 1)),
        ("dead_units", (None, 1, 1, 0, 16, [], None, torch.ones(2))),
        ("dead_units", (None, 1, 1, 7, 16, bytearray(), None, torch.ones(2))),
        ("dead_units", (None, 1, 1, -1, 16, bytearray(), None, torch.ones(2))),
        ("dead_units", (None, 1, 1, 0, 0, bytearray(), None, torch.ones(2))),
        ("dead_units", (None, 1, 1, 0, 256, bytearray(), None, torch.ones(2))),
    ],
)
def test_wrong_arguments_are_errors_of_python(name, arguments):
    """Never reads or writes of memory that is not there."""
    with pytest.raises((TypeError, IndexError, AttributeError, SystemError)):
        getattr(kernels.compiled, name)(*arguments)


@pytest.mark.parametrize("column", [-1, 64, 2**40])
@pytest.mark.parametrize("cells", [torch.zeros(64, 9), torch.zeros(64, 9).double(), torch.ones(3)])
def test_no_number_is_written_beside_the_cells(column, cells):
    """A column without room, or cells of another kind, end in an error and change nothing."""
    area = types.SimpleNamespace(cells=cells, numel=[0] * 64)
    before = cells.clone()
    with pytest.raises((IndexError, TypeError), match=r"cell"):
        kernels.compiled.measure(area, [column], [torch.ones(4)], 4)
    assert torch.equal(cells, before)


@pytest.mark.parametrize(
    "sample",
    [
        *((5, 1, 1, 4, 4), (2, 3, 2, 4, 4), (1, -1, 2, 4, 4), (1, 1, 2**62, 4, 4)),
        *((-1, 1, 1, 4, 4), (2, 1, 3, 4, 4), (1, 1, 4, 4, 8), (1, 1, 4, 3, 4), (1, 1, 4, 4, 0)),
    ],
)
def test_no_sample_reaches_beyond_its_tensor_or_its_copy(sample):
    """It counts as one that does not fit."""
    area = types.SimpleNamespace(cells=torch.zeros(8, 9), numel=[0] * 8)
    room = bytearray(struct.pack("5q", *sample)) + bytes(16)
    assert kernels.compiled.remember(area, [1], [torch.ones(4)], [room], 7) == [0]


@pytest.mark.parametrize("sample", [bytearray(39), b"", (1, 1, 1, 4, 4), None])
def test_a_sample_that_is_none_is_an_error(sample):
    """Nothing is read as one."""
    area = types.SimpleNamespace(cells=torch.zeros(8, 9), numel=[0] * 8)
    with pytest.raises(TypeError, match="sample"):
        kernels.compiled.remember(area, [1], [torch.ones(4)], [sample], 7)
