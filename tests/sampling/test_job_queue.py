"""Who goes first, what is refused and when to come again; through the batcher, on a clock of their own."""

import pytest

from mri_ldm.batcher import Batcher
from mri_ldm.errors import Busy
from mri_ldm.stepping import SingleSteps
from support.batching import Recorder, drain, fake_decode, fake_denoise, make_job, taking


def test_a_full_queue_says_when_to_come_again() -> None:
    """Ten rows of 100 steps, one at a time, at 0.02 s a step: 20 s of work, of which 19 s are left after 50 steps."""
    now = [0.0]
    batcher = Batcher(
        [SingleSteps(taking(0.02, now))], fake_decode, max_rows_in_flight=1, max_row_steps=1000, clock=lambda: now[0]
    )
    batcher.submit(make_job(Recorder([0]), [(seed, "ddim", 100, 0.0) for seed in range(10)]))
    for _ in range(50):
        batcher.tick()
    refused = "holds 950 steps of work and takes 1000, so not 100 more .* try again in about 1 s"
    with pytest.raises(Busy, match=refused):
        batcher.submit(make_job(Recorder([0]), [(10, "ddim", 100, 0.0)]))
    with pytest.raises(Busy, match="room for 247 rows, not for 500: try again in about 19 s"):
        batcher.submit(make_job(Recorder([0]), [(seed, "ddim", 1, 0.0) for seed in range(500)]))


def test_an_empty_server_takes_a_job_of_any_length() -> None:
    clock = [0]
    batcher, recorder = Batcher([SingleSteps(fake_denoise)], fake_decode, max_row_steps=10), Recorder(clock)
    batcher.submit(make_job(recorder, [(1, "ddim", 20, 0.0)]))
    drain(batcher, clock)
    assert recorder.events["finished"]


def test_short_jobs_pass_long_ones_and_no_job_is_passed_for_ever() -> None:
    """A device that takes one row at a time, a long job, and one of two steps every third step: 2/3 of its time."""
    now, long = [0.0], Recorder([0])
    batcher = Batcher([SingleSteps(taking(1.0, now))], fake_decode, max_rows_in_flight=1, clock=lambda: now[0])
    batcher.submit(make_job(Recorder([0]), [(0, "ddim", 1, 0.0)]))
    batcher.tick()  # measures the second that a step takes
    batcher.submit(make_job(long, [(1, "ddim", 100, 0.0)], decode=False))
    short = [Recorder([0]) for _ in range(1000)]
    took = []
    for i, recorder in enumerate(short):
        batcher.submit(make_job(recorder, [(i, "ddim", 2, 0.0)], decode=False))
        arrived = now[0]
        while now[0] < arrived + 3:
            batcher.tick()
            if recorder.events and len(took) == i:
                took.append(now[0] - arrived)
        if long.events:
            break
    # Alone the long one takes 100 s, with two thirds of the device taken 300 s, and it may wait for at most 500 s.
    assert 250 < now[0] <= 500
    assert len(took) == len(short[: i + 1])
    assert max(took) <= 3
