"""What runs a graph: onnxruntime or OpenVINO, and how a device chooses between them."""
