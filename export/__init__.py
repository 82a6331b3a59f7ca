"""From a checkpoint to a verified bundle: `python -m export MODEL`."""

import runtime  # noqa: F401 - before onnxruntime, whose reports it switches off
