"""The latents and estimates of the rows that have started, in arrays that live as long as the rows.

A row has three: its latent, the last estimate and the one before it, which few samplers use.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from .job_queue import Array, Row
from .noise import LATENT_SHAPE


class Slots:
    """A place for each started row. The lowest free one is taken, so that rows of one call mostly lie side by side."""

    def __init__(self, rows: int) -> None:
        """rows: number of places at first, and the most rows of a `take`; more places are made when needed."""
        self._free = list(range(max(rows, 1)))
        self._state = _memory(len(self._free))
        self._copies = _memory(len(self._free))

    def start(self, row: Row) -> None:
        """Take a place for a row, with its job's latent and estimates of zero."""
        if not self._free:
            there = self._state.shape[1]
            self._free = list(range(there, 2 * there))
            self._state = np.concatenate([self._state, _memory(there)], axis=1)
        row.slot = heapq.heappop(self._free)
        self._state[0, row.slot] = row.job.latents[row.index]
        self._state[1:, row.slot] = 0

    def release(self, row: Row) -> None:
        """Free the row's place, if it has one."""
        if row.slot >= 0:
            heapq.heappush(self._free, row.slot)
            row.slot = -1

    def of(self, row: Row) -> Array:
        """Latent and estimate of a row that has a place, [2, 1, 64, 64]; a view."""
        return self._state[:2, row.slot]

    def take(self, rows: Sequence[Row]) -> Array:
        """Latents and estimates of rows that have a place, to be written to and `put` back.

        [3, n, 1, 64, 64] if any of the rows uses the earlier estimate, otherwise [2, n, 1, 64, 64].

        A view of the places if they are side by side and in order; otherwise copies, valid until the next call.
        """
        places = [row.slot for row in rows]
        depth = 3 if any(row.table.uses_earlier for row in rows) else 2
        if _side_by_side(places):
            return self._state[:depth, places[0] : places[0] + len(places)]
        copies = self._copies[:depth, : len(places)]
        for copy, state in zip(copies, self._state[:depth], strict=True):
            # With mode "raise" NumPy would copy once more, to leave `out` as it is where a place is out of bounds.
            np.take(state, places, axis=0, out=copy, mode="clip")
        return copies

    def put(self, rows: Sequence[Row], taken: Array) -> None:
        """Write the result of `take` back into the places."""
        places = [row.slot for row in rows]
        if not _side_by_side(places):
            self._state[: len(taken), places] = taken


def _memory(rows: int) -> Array:
    """Written to at once, so that the process has its full memory from the start. Later growth is then a leak."""
    return np.full((3, rows, *LATENT_SHAPE), np.nan, np.float32)


def _side_by_side(places: Sequence[int]) -> bool:
    return places == list(range(places[0], places[0] + len(places)))
