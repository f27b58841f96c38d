"""How far the exported networks and their images are from PyTorch in float32, in every precision and runtime."""
