"""Programs of torch.export, for machines with PyTorch and a GPU but no TensorRT. Knows nothing of ONNX."""
