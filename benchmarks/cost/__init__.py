"""How time and memory grow, beside what one calibration predicts; `python -m benchmarks.cost`."""
