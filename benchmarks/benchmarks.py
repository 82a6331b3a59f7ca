"""Lets `python benchmarks/latency.py` import its siblings, as `benchmarks.common`.

Python then searches benchmarks/ itself and not the folder above it, so `import benchmarks` finds
this file, and `__path__` makes it the package. With `python -m benchmarks.latency`, and in
tests, Python finds the package and never this file. So nothing changes sys.path, it works
however the project is installed, and `benchmarks` is in no wheel.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]
