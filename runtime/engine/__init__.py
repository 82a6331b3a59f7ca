"""Engines, which run graphs: onnxruntime and OpenVINO, and how a device chooses between them."""
