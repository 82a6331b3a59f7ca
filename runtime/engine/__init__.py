"""Engines, which run graphs: onnxruntime, OpenVINO and native, and how a device chooses between them."""
