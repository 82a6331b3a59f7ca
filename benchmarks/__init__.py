"""Scripts that measure, and their records in results/.

Each script runs from the repository's root as `python benchmarks/latency.py` or `python -m
benchmarks.latency`. Its first lines say what it measures and what always holds. What the scripts
share is in common.py (options, records, tables), timing.py (medians, spread, interleaved runs),
machine.py (processor and commit) and models.py (the models that are timed).
"""
