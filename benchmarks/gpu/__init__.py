"""Latency, throughput and parity on a GPU. `make gpu` runs it; README.md of benchmarks says what each figure is."""
