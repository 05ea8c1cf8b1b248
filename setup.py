"""The compiled part of the package; all else that the build needs stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "gradscope.recording._kernels",
            ["gradscope/recording/_kernels.c"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,  # without a C compiler the recorder uses torch's operations
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
