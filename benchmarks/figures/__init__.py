"""The figures of README and other pages, each from the record of its run. Measures nothing."""
