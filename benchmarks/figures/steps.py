"""Several steps in a call of the network: what the loop costs beside it, and how many there should be, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.speed import Reader
from benchmarks.mixed_load.several import table


def choice(read: Reader) -> Iterator[str]:
    """Latency under mixed load on the simulated GPU, by the steps of a call."""
    yield from table(read("mixed_load")["several_steps"]).splitlines()
