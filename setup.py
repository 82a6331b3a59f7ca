"""Builds the native coder; everything else about the distribution is in pyproject.toml."""

import os
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "runtime.codec._coder",
            ["csrc/python/bindings.cpp"],
            depends=sorted(str(path) for path in Path("csrc").rglob("*.hpp")),
            cxx_std=17,
            # No -march=native: wheels run on other machines. SIMD kernels are chosen at run time.
            extra_compile_args=[] if os.name == "nt" else ["-O3", "-Wall", "-Wextra"],
        )
    ]
)
