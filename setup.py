"""The compiled part of the package; all else that the build needs stands in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("gradscope", "recording", "native")

setup(
    ext_modules=[
        Extension(
            "gradscope.recording._kernels",
            sorted(path.as_posix() for path in NATIVE.glob("*.c")),
            depends=sorted(path.as_posix() for path in NATIVE.glob("*.h")),
            extra_compile_args=["-O3", "-fvisibility=hidden"],
            py_limited_api=True,
            optional=True,  # without a C compiler the recorder uses torch's operations
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
