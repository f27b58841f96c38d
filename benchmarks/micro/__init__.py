"""Small benchmarks of one thing each; every file says what it measures."""
