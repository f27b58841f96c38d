"""Previews: the estimates of a job's rows after certain steps, even if such a step is in the middle of a call."""

from collections.abc import Mapping, Sequence

import numpy as np

from .job_queue import Array, Job, Row
from .slots import Slots


def previews_due(rows: Sequence[Row], counts: Sequence[int]) -> dict[Job, list[int]]:
    """For each job with previews in a call: the steps after which they are due. counts: steps of each row in it."""
    due: dict[Job, set[int]] = {}
    for row, count in zip(rows, counts, strict=True):
        if row.preview_every:
            after = {
                step - row.step for step in range(row.step + 1, row.step + count + 1) if not step % row.preview_every
            }
            due[row.job] = due.get(row.job, set()) | after
    return {job: sorted(steps) for job, steps in due.items() if steps}


def send_previews(
    due: Mapping[Job, Sequence[int]], rows: Sequence[Row], counts: Sequence[int], estimates: Array, slots: Slots
) -> None:
    """Tell the jobs' listeners how far all of their rows were after each step that is due.

    estimates: [n, K, 1, 64, 64], after each step of the call; the rows themselves are as they were before it.
    """
    places = {row: place for place, row in enumerate(rows)}
    for job, moments in due.items():
        for after in moments:
            steps = np.array([row.step for row in job.rows], np.int32)
            assert job.estimates is not None
            shown = job.estimates.copy()
            for row in job.rows:
                if (place := places.get(row)) is not None:
                    steps[row.index] += min(after, counts[place])
                    shown[row.index] = estimates[place, after - 1]
                elif row.slot >= 0:
                    shown[row.index] = slots.of(row)[1]
            job.listener.preview(steps, shown)
