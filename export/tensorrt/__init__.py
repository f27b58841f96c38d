"""TensorRT plans: build them, compare them with the ONNX files, and check that they fit a machine."""
