"""One HTML page for any folder of slices: `write_report`."""

from .write import write_report

__all__ = ["write_report"]
