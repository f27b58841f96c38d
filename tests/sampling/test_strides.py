"""Several steps a call in the batcher: who waits for whom, what a call is padded with, what is seen between calls."""

import numpy as np

from mri_ldm.batcher import Batcher
from mri_ldm.stepping import SeveralSteps, SingleSteps
from support.batching import Recorder, alone, drain, fake_decode, fake_denoise, fake_steps, make_job, path, several


class Device:
    """`unet_steps` on a device where a call takes `call` seconds and a step of it 1 ms, whatever the rows."""

    def __init__(self, call: float = 0.0005) -> None:
        self.call, self.now = call, [0.0]
        self.calls: list[tuple[int, int]] = []
        """Rows and steps of each call."""

    def __call__(self, state, timesteps, *more):
        self.calls.append(timesteps.shape)
        self.now[0] += self.call + 0.001 * timesteps.shape[1]
        return fake_steps(state, timesteps, *more)

    def batcher(self, most: int, unrolled: int = 0) -> Batcher:
        steppers = [SeveralSteps(self, most, unrolled=unrolled), SingleSteps(fake_denoise)]
        return Batcher(steppers, fake_decode, clock=lambda: self.now[0])

    def settled(self, most: int) -> Batcher:
        """A batcher that knows what its calls of 1 to 4 rows take."""
        batcher = self.batcher(most)
        for rows in (1, 2, 4):
            for seed in range(8):
                batcher.submit(make_job(Recorder([0]), [(seed, "ddim", 50, 0.0)] * rows, decode=False))
                drain(batcher, [0])
        self.now[0] += 1000  # nobody has come for a long time
        self.calls.clear()
        return batcher


def test_an_unrolled_network_takes_a_call_for_every_five_steps_and_pads_the_last() -> None:
    device = Device()
    batcher, recorder = device.batcher(5, unrolled=5), Recorder([0])
    batcher.submit(make_job(recorder, [(1, "dpmpp_3m", 12, 0.0)]))
    drain(batcher, [0])
    assert device.calls == [(1, 5)] * 3
    assert np.array_equal(recorder.latents[0], alone((1, "dpmpp_3m", 12, 0.0), linear=True))
    assert (batcher.counters.steps, batcher.counters.call_steps) == (12, 12)
    assert sum(batcher.counters.unet_calls) == 3


def test_a_newcomer_waits_for_at_most_one_call() -> None:
    device = Device()
    batcher = device.settled(10)
    batcher.submit(make_job(Recorder([0]), [(1, "ddim", 50, 0.0)]))
    batcher.tick()
    assert device.calls == [(1, 10)]
    batcher.submit(make_job(Recorder([0]), [(2, "ddim", 50, 0.0)]))
    batcher.tick()
    assert device.calls[1][0] == 2


def test_a_row_that_ends_soon_does_not_wait_for_the_others_and_they_share_calls() -> None:
    device = Device(call=0.0001)
    batcher = device.settled(10)
    long, short = Recorder([0]), Recorder([0])
    batcher.submit(make_job(long, [(1, "ddim", 50, 0.0)], decode=False))
    batcher.submit(make_job(short, [(2, "ddim", 3, 0.0)], decode=False))
    batcher.tick()
    assert short.events["finished"]
    assert not long.events
    assert device.calls[0][0] == 2


def test_stochastic_rows_of_an_unrolled_network_go_step_by_step_and_in_turn() -> None:
    device = Device()
    batcher = device.batcher(5, unrolled=5)
    noisy, plain = Recorder([0]), Recorder([0])
    batcher.submit(make_job(noisy, [(1, "ddpm", 10, 0.0)], decode=False))
    batcher.submit(make_job(plain, [(2, "ddim", 10, 0.0)], decode=False))
    drain(batcher, [0])
    assert device.calls == [(1, 5)] * 2
    assert np.array_equal(noisy.latents[0], alone((1, "ddpm", 10, 0.0)))
    assert np.array_equal(plain.latents[0], alone((2, "ddim", 10, 0.0), linear=True))


def test_previews_within_a_call_are_those_of_their_steps() -> None:
    batcher, recorder = Batcher(several(10), fake_decode), Recorder([0])
    specs = [(1, "ddpm", 20, 0.0), (2, "ddim", 7, 0.0)]
    batcher.submit(make_job(recorder, specs, preview_every=[4, 0]))
    drain(batcher, [0])
    assert [steps[0] for steps, _ in recorder.previews] == [4, 8, 12, 16, 20]
    for steps, estimates in recorder.previews:
        for row, spec in enumerate(specs):
            if steps[row]:
                assert np.array_equal(estimates[row], path(spec, linear=True)[steps[row] - 1][1])


def test_a_client_that_leaves_is_gone_before_the_next_call() -> None:
    device, clock = Device(), [0]
    batcher = device.settled(10)
    gone = Recorder(clock, leave_at=1)
    batcher.submit(make_job(gone, [(1, "ddim", 50, 0.0)]))
    batcher.tick()
    clock[0] = 1
    batcher.tick()
    assert gone.events == {"cancelled": 1}
    assert len(device.calls) == 1
    assert batcher.rows == (0, 0)


def test_a_refused_call_ends_its_rows_alone_and_their_places_are_free_again() -> None:
    def broken(*call):
        raise RuntimeError("unet_steps is broken")

    batcher = Batcher([SeveralSteps(broken, 5, unrolled=5), SingleSteps(fake_denoise)], fake_decode)
    fails, works = Recorder([0]), Recorder([0])
    batcher.submit(make_job(fails, [(1, "ddim", 10, 0.0)] * 3))
    batcher.submit(make_job(works, [(2, "ddpm", 10, 0.0)]))
    drain(batcher, [0])
    assert fails.events == {"failed": 1}
    assert np.array_equal(works.latents[0], alone((2, "ddpm", 10, 0.0)))


def test_more_rows_than_there_are_places_start_and_pause_and_all_end_right() -> None:
    """Later jobs that are due before: more rows have started than take a step at once."""
    device = Device()
    steppers = [SeveralSteps(device, 3)]
    batcher = Batcher(steppers, fake_decode, max_rows_in_flight=2, clock=lambda: device.now[0])
    samplers = ("ddim", "unipc", "ddim", "dpmpp_3m", "ddim")
    specs = [
        [(job, sampler, 40 - 7 * job, 0.0), (100 + job, "ddpm", 41 - 7 * job, 0.0)]
        for job, sampler in enumerate(samplers)
    ]
    recorders = []
    for rows in specs:
        recorders.append(Recorder([0]))
        batcher.submit(make_job(recorders[-1], rows, decode=False))
        batcher.tick()
    drain(batcher, [0])
    for recorder, rows in zip(recorders, specs, strict=True):
        assert np.array_equal(recorder.latents, np.stack([alone(spec, linear=True) for spec in rows]))


def test_a_call_is_followed_by_as_many_chunks_of_decoding_as_it_has_steps() -> None:
    """Two rows a chunk: with one chunk a call, images would wait for the decoder while it waits for calls."""
    device, recorder = Device(), Recorder([0])
    batcher = device.settled(10)
    batcher.submit(make_job(recorder, [(seed, "ddim", 10, 0.0) for seed in range(4)]))
    batcher.tick()
    assert device.calls == [(4, 10)]
    assert recorder.events["finished"]


def test_calls_whose_every_estimate_is_shown_have_fewer_steps_where_they_have_many_rows() -> None:
    device = Device()
    batcher = device.settled(25)
    rows = [(seed, "ddim", 50, 0.0) for seed in range(64)]
    batcher.submit(make_job(Recorder([0]), rows, decode=False, preview_every=[1] * 64))
    drain(batcher, [0])
    assert 64 < max(rows * steps for rows, steps in device.calls) <= 320


def test_an_unrolled_network_whose_every_estimate_is_shown_has_fewer_rows_in_a_call() -> None:
    device = Device()
    batcher = device.batcher(50, unrolled=50)
    recorder = Recorder([0])
    rows = [(seed, "ddim", 50, 0.0) for seed in range(16)]
    batcher.submit(make_job(recorder, rows, decode=False, preview_every=[25, *[0] * 15]))
    drain(batcher, [0])
    assert max(rows * steps for rows, steps in device.calls) <= 320
    assert sum(rows for rows, _ in device.calls) == 16
    assert [steps[0] for steps, _ in recorder.previews][-1] == 50
