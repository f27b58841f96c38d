"""Generates images: samplers, noise, the batcher, and the code between them and Triton."""
