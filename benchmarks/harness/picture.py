"""Pictures of records, by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.markdown import Record
from training.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, ACCENT, OTHERS = "#1b6ca8", "#c0392b", "#b0b0b0"
"""Colours."""


@contextmanager
def figure_in(path: Path, size: tuple[float, float], dpi: int = 80) -> Iterator[Figure]:
    """A figure of `size` inches to draw in; then it is written as a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def errors(values: Sequence[Record]) -> list[list[float]]:
    """How far the range of each goes below its median, and above."""
    below = [max(0.0, value["median"] - value["min"]) for value in values]
    return [below, [max(0.0, value["max"] - value["median"]) for value in values]]
