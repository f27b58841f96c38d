"""The GPU as a device of the benchmark: `python -m benchmarks.serving --device gpu`, or `make gpu`."""
