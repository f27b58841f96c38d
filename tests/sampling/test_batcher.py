"""Continuous batching with a fake denoiser: who shares a call, who leaves, what fails and what is refused."""

import gc
import weakref

import numpy as np
import pytest

from mri_ldm.batcher import Batcher
from mri_ldm.errors import Busy, Draining
from mri_ldm.stepping import SingleSteps
from support.batching import Recorder, alone, drain, fake_decode, fake_denoise, make_job, taking


def test_rows_of_many_requests_share_one_call() -> None:
    """Sixteen requests of twenty steps, all there at the start, take exactly twenty calls of sixteen rows.

    On a device where rows in a call are free, once the batcher knows that.
    """
    sizes, now = [], [0.0]
    device = taking(1.0, now)

    def denoise(latents, timesteps):
        sizes.append(len(latents))
        return device(latents, timesteps)

    clock = [0]
    batcher = Batcher([SingleSteps(denoise)], fake_decode, clock=lambda: now[0])
    batcher.submit(make_job(Recorder(clock), [(seed, "ddim", 9, 0.0) for seed in range(64)]))
    drain(batcher, clock)
    sizes.clear()
    for seed in range(16):
        batcher.submit(make_job(Recorder(clock), [(seed, "ddim", 20, 0.0)]))
    drain(batcher, clock)
    assert sizes == [16] * 20
    assert batcher.counters.steps == 64 * 9 + 320
    assert batcher.counters.images == 64 + 16


def test_a_late_request_joins_at_the_next_step_and_a_short_one_leaves_early() -> None:
    """On a device where rows in a call are free: by this machine's clock the batcher might let them take turns."""
    clock, now = [0], [0.0]
    batcher = Batcher([SingleSteps(taking(1.0, now))], fake_decode, clock=lambda: now[0])
    long, short = Recorder(clock), Recorder(clock)
    batcher.submit(make_job(long, [(1, "ddim", 50, 0.0)]))
    for _ in range(10):
        batcher.tick()
    batcher.submit(make_job(short, [(2, "dpmpp_2m", 5, 0.0)]))
    for _ in range(5):
        batcher.tick()
    assert short.events["finished"]
    assert not long.events
    drain(batcher, clock)
    assert long.events["finished"]


def test_a_client_that_leaves_is_gone_within_one_step() -> None:
    """By a clock of its own: asking may take long on a busy machine, and is then done less often."""
    clock, now = [0], [0.0]
    batcher = Batcher([SingleSteps(taking(1.0, now))], fake_decode, clock=lambda: now[0])
    gone, stays = Recorder(clock, leave_at=3), Recorder(clock)
    batcher.submit(make_job(gone, [(1, "ddim", 50, 0.0), (2, "ddim", 50, 0.0)]))
    batcher.submit(make_job(stays, [(3, "ddim", 50, 0.0)]))
    for clock[0] in range(4):
        batcher.tick()
    assert gone.events == {"cancelled": 1}
    assert batcher.rows == (1, 0)
    assert gone.cancelled_rows == 2
    drain(batcher, clock)
    assert np.array_equal(stays.latents[0], alone((3, "ddim", 50, 0.0)))


def test_who_has_gone_is_asked_every_second_although_asking_once_took_long() -> None:
    clock, now = [0], [0.0]

    class Busy(Recorder):
        asked = 0

        def gone(self) -> bool:
            self.asked += 1
            now[0] += 1.0 if self.asked == 1 else 0.0
            return super().gone()

    batcher, recorder = Batcher([SingleSteps(taking(0.01, now))], fake_decode, clock=lambda: now[0]), Busy(clock)
    batcher.submit(make_job(recorder, [(1, "ddim", 1000, 0.0)]))
    batcher.tick()
    clock[0], recorder.leave_at, left = 1, 1, now[0]
    while not recorder.events:
        batcher.tick()
    assert now[0] - left <= 1.02


def test_a_full_queue_refuses_and_takes_nothing() -> None:
    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode, max_rows_in_flight=2, max_rows_waiting=1)
    batcher.submit(make_job(Recorder(clock), [(1, "ddim", 2, 0.0), (2, "ddim", 2, 0.0)]))
    with pytest.raises(Busy, match="room for 1 rows, not for 2"):
        batcher.submit(make_job(Recorder(clock), [(3, "ddim", 2, 0.0), (4, "ddim", 2, 0.0)]))
    assert sum(batcher.rows) == 2
    drain(batcher, clock)
    batcher.submit(make_job(Recorder(clock), [(5, "ddim", 2, 0.0)] * 3))


def test_finished_rows_hold_their_place_until_they_are_decoded() -> None:
    """One-step rows finish faster than they are decoded; without the place they would pile up without bound."""
    clock = [0]
    batcher = Batcher(
        [SingleSteps(fake_denoise)], fake_decode, max_rows_in_flight=4, max_rows_waiting=100, decode_batch=1
    )
    for seed in range(50):
        batcher.submit(make_job(Recorder(clock), [(seed, "ddim", 1, 0.0)]))
    while batcher.tick():
        assert batcher.rows[0] <= 4


def test_a_failing_network_fails_the_rows_of_that_call_and_no_others() -> None:
    failing = True

    def denoise(latents, timesteps):
        if failing:
            raise RuntimeError("unet is broken")
        return fake_denoise(latents, timesteps)

    clock = [0]
    batcher = Batcher([SingleSteps(denoise)], fake_decode, max_rows_in_flight=1)
    first, second = Recorder(clock), Recorder(clock)
    batcher.submit(make_job(first, [(1, "ddim", 3, 0.0)]))
    batcher.submit(make_job(second, [(2, "ddim", 3, 0.0)]))
    batcher.tick()
    assert first.events == {"failed": 1}
    assert "unet is broken" in str(first.error)
    failing = False
    drain(batcher, clock)
    assert np.array_equal(second.latents[0], alone((2, "ddim", 3, 0.0)))


def test_a_failing_decoder_fails_its_jobs() -> None:
    def decode(latents):
        raise RuntimeError("vae_decoder is broken")

    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], decode, decode_batch=1)
    recorder = Recorder(clock)
    batcher.submit(make_job(recorder, [(1, "ddim", 2, 0.0), (2, "ddim", 2, 0.0)]))
    drain(batcher, clock)
    assert recorder.events == {"failed": 1}
    assert batcher.rows == (0, 0)


def test_each_decoder_has_chunks_of_its_own_rows_alone() -> None:
    """Whatever the order of the rows; and the places of decoded rows are free again."""
    chunks: list[tuple[str, int]] = []

    def decode(latents):
        chunks.append(("full", len(latents)))
        return fake_decode(latents)

    def tiny_decode(latents):
        chunks.append(("tiny", len(latents)))
        return -fake_decode(latents)

    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], decode, decode_batch=2, tiny_decode=tiny_decode, tiny_decode_batch=4)
    rows = [(seed, "ddim", 1, 0.0) for seed in range(9)]
    tiny = [False, True, True, False, True, True, False, True, False]
    recorder = Recorder(clock)
    batcher.submit(make_job(recorder, rows, tiny=tiny))
    drain(batcher, clock)
    signs = np.where(tiny, -1, 1).astype(np.float32)[:, None, None, None]
    assert np.array_equal(recorder.images, signs * fake_decode(np.stack([alone(row) for row in rows])))
    for name, rows_of_it, most in (("full", 4, 2), ("tiny", 5, 4)):
        sizes = [size for kind, size in chunks if kind == name]
        assert sum(sizes) == rows_of_it
        assert max(sizes) <= most
    assert batcher.rows == (0, 0)
    assert batcher.counters.decoder_calls == len(chunks)


def test_a_failing_tiny_decoder_leaves_the_rows_of_the_other_alone() -> None:
    def broken(latents):
        raise RuntimeError("vae_decoder_tiny is broken")

    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode, tiny_decode=broken)
    ill, well = Recorder(clock), Recorder(clock)
    batcher.submit(make_job(ill, [(1, "ddim", 2, 0.0)], tiny=[True]))
    batcher.submit(make_job(well, [(2, "ddim", 2, 0.0)]))
    drain(batcher, clock)
    assert (ill.events, well.events) == ({"failed": 1}, {"finished": 1})


def test_previews_come_when_due_and_change_nothing() -> None:
    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode)
    recorder = Recorder(clock)
    rows = [(1, "ddpm", 6, 0.0), (2, "ddim", 4, 0.0)]
    batcher.submit(make_job(recorder, rows, preview_every=[2, 0]))
    drain(batcher, clock)
    assert [steps[0] for steps, _ in recorder.previews] == [2, 4, 6]
    # The last estimate of a row is its result: no noise is left after the last step.
    np.testing.assert_allclose(recorder.previews[-1][1][0], recorder.latents[0], atol=1e-6)
    assert np.array_equal(recorder.latents, np.stack([alone(row) for row in rows]))


def test_stopping_fails_whoever_is_left() -> None:
    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode, max_rows_in_flight=1)
    recorders = [Recorder(clock) for _ in range(3)]
    for seed, recorder in enumerate(recorders):
        batcher.submit(make_job(recorder, [(seed, "ddim", 5, 0.0)]))
    batcher.tick()
    batcher.fail_all(Draining("stopping"))
    assert [recorder.events for recorder in recorders] == [{"failed": 1}] * 3
    assert batcher.rows == (0, 0)


def test_a_job_that_has_ended_is_forgotten_at_once() -> None:
    """Not when the garbage collector comes by: images are large."""
    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode)
    jobs = [make_job(Recorder(clock, leave_at), [(seed, "ddpm", 2, 0.0)] * 3) for seed, leave_at in ((1, None), (2, 1))]
    gone = [weakref.ref(job) for job in jobs]
    for job in jobs:
        batcher.submit(job)
    del job, jobs
    gc.disable()
    try:
        drain(batcher, clock)
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
