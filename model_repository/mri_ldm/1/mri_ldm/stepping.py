"""How rows take their steps: one in a call of `unet`, or several in a call of `unet_steps`. Imports no Triton."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .conditioning import CONDITION_SHAPE
from .job_queue import Array, Row
from .noise import standard_normal
from .samplers import IDENTITY, NOISE, advance_in_place

ROWS_AT_A_TIME = 16
"""Rows that the recurrence computes at a time, so that they stay in a core's cache."""
MOST_THREADS = 8
"""Most threads that draw noise."""
Denoise = Callable[..., Array]
"""(latents [n, 1, 64, 64], timesteps int32 [n], where it takes labels conditions [n, 4, 64, 64]) -> predicted noise
[n, 1, 64, 64], which may be written to"""


class CallSteps(Protocol):
    """Advances n rows by K steps of the recurrence `SamplerTable.linear`, in one call."""

    def __call__(
        self,
        state: Array,
        timesteps: NDArray[np.int32],
        coefficients: Array,
        seeds: NDArray[np.int64],
        draws: NDArray[np.int32],
        every_estimate: bool,
        *conditions: Array,
    ) -> Array | None:
        """Advances `state` in place; returns the estimates of all K steps [n, K, 1, 64, 64] if asked for.

        state: as in `Stepper.advance`; timesteps [n, K]; coefficients [n, K, 8]; step k of a row has the noise
        `standard_normal(seed, draw + k)`; conditions: [n, 4, 64, 64], where the network takes labels.
        """


class Stepper(Protocol):
    """One way to advance rows.

    most: steps of a row in one call, at most. computed: steps that every call computes; 0: as many as requested.
    """

    most: int
    computed: int

    def takes(self, row: Row) -> bool:
        """Whether it can advance this row; the answer is the same for all of its steps."""

    def advance(self, rows: Sequence[Row], state: Array, steps: int, previews: bool) -> Array | None:
        """Advance each row by `steps` steps, or as many as it has left, in place.

        state: latents and estimates [2, n, 1, 64, 64], or also the estimates before these [3, n, 1, 64, 64], where a
        row's sampler uses them. Returns the estimates after every step [n, >= steps, 1, 64, 64], at least where
        `previews` asks for them.
        """


class SingleSteps:
    """One step a call: the network predicts the noise, and the recurrence is computed here."""

    most = 1
    computed = 1

    def __init__(self, denoise: Denoise, labels: bool = False) -> None:
        """labels: whether the network takes conditions."""
        self._denoise, self._labels = denoise, labels
        self._spare: Array | None = None
        self._threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="noise")

    def takes(self, row: Row) -> bool:
        """Any row."""
        return True

    def advance(self, rows: Sequence[Row], state: Array, steps: int, previews: bool) -> Array | None:
        """As `Stepper.advance`. The noise of stochastic rows is drawn while the network computes."""
        latents, estimates = state[:2]
        coefficients = np.stack([row.table.coefficients[row.step] for row in rows])
        noise = self._start_drawing(rows, coefficients[:, NOISE])
        predicted = self._predict(rows, latents)
        if self._spare is None:
            self._spare = np.empty((2, ROWS_AT_A_TIME, *latents.shape[1:]), np.float32)
        advance_in_place(coefficients, state, predicted, noise(), self._spare)
        return estimates[:, None] if previews else None

    def _predict(self, rows: Sequence[Row], latents: Array) -> Array:
        """The noise of each row; with guidance g it is e0 + g (e1 - e0), from e1 with its labels and e0 without.

        This is eq. 6 of Ho & Salimans 2022 with g = 1 + w. Both are predicted in the same call.
        """
        timesteps = np.array([row.table.timesteps[row.step] for row in rows], np.int32)
        if not self._labels:
            return self._denoise(latents, timesteps)
        guided = [place for place, row in enumerate(rows) if row.predictions == 2]
        twice = [*range(len(rows)), *guided]
        predicted = self._denoise(
            latents[twice] if guided else latents, timesteps[twice], conditions_of(rows, len(guided))
        )
        predicted, without = predicted[: len(rows)], predicted[len(rows) :]
        for place, e0 in zip(guided, without, strict=True):
            predicted[place] = e0 + np.float32(rows[place].guidance) * (predicted[place] - e0)
        return predicted

    def _start_drawing(self, rows: Sequence[Row], scales: Array) -> Callable[[], dict[int, Array]]:
        """The noise of this step by place, for the rows whose sampler adds some; it is waited for when called."""
        places = np.flatnonzero(scales > 0).tolist()
        parts = [places[first :: self._threads] for first in range(min(self._threads, len(places)))]

        def draw(part: list[int]) -> dict[int, Array]:
            return {place: standard_normal(rows[place].seed, rows[place].step + 1) for place in part}

        drawn = [self._pool.submit(draw, part) for part in parts]
        return lambda: {place: z for part in drawn for place, z in part.result().items()}


def conditions_of(rows: Sequence[Row], more: int = 0) -> Array:
    """The conditions of the rows, [n + more, 4, 64, 64]; zeros for rows without labels, and for `more` rows."""
    conditions = np.zeros((len(rows) + more, *CONDITION_SHAPE), np.float32)
    for place, row in enumerate(rows):
        if row.condition is not None:
            conditions[place] = row.condition
    return conditions


class SeveralSteps:
    """Several steps a call, with the recurrence beside the network."""

    def __init__(self, call: CallSteps, most: int, *, unrolled: int = 0, labels: bool = False) -> None:
        """most: steps of a row in one call.

        unrolled: the fixed number of steps that the network computes; steps that are not needed change nothing, and it
        draws no noise. 0: any number of steps, with noise. labels: whether the network takes conditions.
        """
        self._call, self.most, self.computed, self._labels = call, most, unrolled, labels

    def takes(self, row: Row) -> bool:
        """No row with guidance, which needs two predictions a step; and an unrolled network only deterministic rows."""
        return row.predictions == 1 and not (self.computed and row.table.stochastic)

    def advance(self, rows: Sequence[Row], state: Array, steps: int, previews: bool) -> Array | None:
        """As `Stepper.advance`."""
        length = self.computed or steps
        timesteps = np.zeros((len(rows), length), np.int32)
        coefficients = np.empty((len(rows), length, len(IDENTITY)), np.float32)
        for place, row in enumerate(rows):
            count = min(steps, row.left)
            timesteps[place, :count] = row.table.timesteps[row.step : row.step + count]
            coefficients[place, :count] = row.table.linear[row.step : row.step + count]
            coefficients[place, count:] = IDENTITY
        seeds = np.array([row.seed for row in rows], np.int64)
        draws = np.array([row.step + 1 for row in rows], np.int32)
        conditions = [conditions_of(rows)] if self._labels else []
        return self._call(state, timesteps, coefficients, seeds, draws, previews, *conditions)
