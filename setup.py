"""Builds the native coder and encoder; all else of the distribution is in pyproject.toml."""

import os
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

HEADERS = sorted(
    str(path) for pattern in ("*.hpp", "*.ipp") for path in Path("csrc").rglob(pattern)
)


def extension(name: str, source: str) -> Pybind11Extension:
    """A module of C++17, with the same options on all machines."""
    return Pybind11Extension(
        name,
        [source],
        depends=HEADERS,
        cxx_std=17,
        # No -march=native: wheels run on other machines. SIMD kernels are chosen at run time.
        # -fno-trapping-math: GCC makes vector instructions of the loop in quantise.hpp only if
        # comparisons of floats need not raise exceptions. Results do not change.
        # -ffp-contract=off: images are resized with the same doubles on all machines.
        extra_compile_args=[]
        if os.name == "nt"
        else ["-O3", "-Wall", "-Wextra", "-fno-trapping-math", "-ffp-contract=off"],
    )


setup(
    ext_modules=[
        extension("runtime.codec._coder", "csrc/python/bindings.cpp"),
        extension("runtime.engine._encoder", "csrc/python/encoder_bindings.cpp"),
    ]
)
