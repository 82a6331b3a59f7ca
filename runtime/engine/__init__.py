"""Engines, which run graphs (onnxruntime, OpenVINO, native), and how a device chooses one."""
