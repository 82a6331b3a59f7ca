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
            # -fno-trapping-math: GCC makes vector instructions of the loop in quantise.hpp only if
            # comparisons of floats need not raise exceptions. Results do not change.
            extra_compile_args=[]
            if os.name == "nt"
            else ["-O3", "-Wall", "-Wextra", "-fno-trapping-math"],
        )
    ]
)
