"""ONNX files of the networks: write, read and run them."""
