"""What makes images: samplers, noise, the batcher, and what stands between them and Triton."""
