"""Continuous batching with a fake denoiser: every job answers as if alone, once, whatever else is going on."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mri_ldm.batcher import Batcher
from mri_ldm.line import Job, Overloaded
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import NoiseSchedule, advance, sampler_table
from mri_ldm.stepping import Denoise, SeveralSteps, SingleSteps, Stepper

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195)


def fake_denoise(latents: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """Row by row a function of that row's latent and timestep: mixing rows up cannot go unseen."""
    return np.tanh(0.8 * latents + timesteps.astype(np.float32)[:, None, None, None] / 700)


def taking(seconds: float, now: list[float]) -> Denoise:
    """`fake_denoise` of a device on which a call takes so long whatever its rows, by the clock `now`."""

    def denoise(latents: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        now[0] += seconds
        return fake_denoise(latents, timesteps)

    return denoise


def fake_steps(latents, estimates, timesteps, coefficients, seeds, draws, every_estimate):
    """What `unet_steps` computes, with `fake_denoise` as its network."""
    every = []
    for k in range(timesteps.shape[1]):
        a, b, c, d, e, f, g = (column.reshape(-1, 1, 1, 1) for column in coefficients[:, k].T)
        eps = fake_denoise(latents, timesteps[:, k])
        z = np.stack([standard_normal(int(seed), int(draw) + k) for seed, draw in zip(seeds, draws, strict=True)])
        latents, estimates = a * latents + b * eps + c * estimates + d * z, e * latents + f * eps + g * estimates
        every.append(estimates)
    return latents, estimates, np.stack(every, axis=1) if every_estimate else None


def several(most: int, unrolled: int = 0) -> list[Stepper]:
    """Several steps a call; unrolled, the network draws no noise, so that rows that need some go step by step."""
    return [SeveralSteps(fake_steps, most, unrolled=unrolled), SingleSteps(fake_denoise)]


def fake_decode(latents: np.ndarray) -> np.ndarray:
    return latents.repeat(2, axis=2).repeat(2, axis=3)


@dataclass
class Recorder:
    """A listener that remembers; `leave_at` is the tick at which the client goes away."""

    clock: list[int]
    leave_at: int | None = None
    events: Counter = field(default_factory=Counter)
    latents: np.ndarray | None = None
    images: np.ndarray | None = None
    error: Exception | None = None
    previews: list = field(default_factory=list)

    def late(self) -> bool:
        return False

    def gone(self) -> bool:
        return self.leave_at is not None and self.clock[0] >= self.leave_at

    def preview(self, steps, estimates) -> None:
        self.previews.append((steps, estimates))

    def finished(self, latents, images) -> None:
        self.events["finished"] += 1
        self.latents, self.images = latents.copy(), images

    def failed(self, error) -> None:
        self.events["failed"] += 1
        self.error = error

    def cancelled(self, rows: int) -> None:
        self.events["cancelled"] += 1
        self.cancelled_rows = rows


Spec = tuple[int, str, int, float]  # seed, sampler, steps, eta


def make_job(listener: Recorder, specs: list[Spec], **options) -> Job:
    tables = [sampler_table(SCHEDULE, sampler, steps, eta) for _, sampler, steps, eta in specs]
    latents = np.stack([standard_normal(seed, 0) for seed, *_ in specs])
    return Job(listener, [seed for seed, *_ in specs], tables, latents, **options)


def alone(spec: Spec, linear: bool = False) -> np.ndarray:
    """The final latent of one row by the recurrence written down plainly, or as `unet_steps` writes it."""
    return path(spec, linear)[-1][0]


def path(spec: Spec, linear: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Latent and estimate after every step."""
    seed, sampler, steps, eta = spec
    table = sampler_table(SCHEDULE, sampler, steps, eta)
    x, h = standard_normal(seed, 0)[None], np.zeros((1, 1, 64, 64), np.float32)
    states = []
    for i in range(steps):
        t, seeds, draws = table.timesteps[i : i + 1], np.array([seed]), np.array([i + 1])
        if linear:
            x, h, _ = fake_steps(x, h, t[None], table.linear[None, i : i + 1], seeds, draws, every_estimate=False)
        else:
            x, h = advance(table.coefficients[i : i + 1], x, fake_denoise(x, t), h, standard_normal(seed, i + 1)[None])
        states.append((x[0], h[0]))
    return states


def drain(batcher: Batcher, clock: list[int], limit: int = 10_000) -> None:
    while batcher.tick():
        clock[0] += 1
        assert clock[0] < limit, "the batcher does not come to an end"


specs = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["ddim", "ddpm", "dpmpp_2m"]),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5]),
)
jobs = st.tuples(
    st.integers(0, 12),  # tick of arrival
    st.lists(specs, min_size=1, max_size=5),
    st.none() | st.integers(0, 15),  # tick at which the client leaves
    st.booleans(),  # decode
    st.sampled_from([0, 0, 1, 2, 3]),  # preview every n steps
)


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 4))
def test_any_traffic_gives_each_job_its_own_answer(traffic, max_rows: int, decode_batch: int) -> None:
    calls = []

    def denoise(latents, timesteps):
        calls.append(len(latents))
        return fake_denoise(latents, timesteps)

    serve_and_check([SingleSteps(denoise)], traffic, max_rows, decode_batch, lambda spec: path(spec))
    assert not calls or max(calls) <= max_rows


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 9))
def test_the_answers_are_the_same_however_many_steps_a_call_has(traffic, max_rows: int, most: int) -> None:
    serve_and_check(several(most), traffic, max_rows, 2, lambda spec: path(spec, linear=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 5))
def test_an_unrolled_network_gives_the_same_and_leaves_stochastic_rows_to_the_other(traffic, max_rows, most) -> None:
    def expected(spec: Spec) -> list[tuple[np.ndarray, np.ndarray]]:
        _, sampler, steps, eta = spec
        return path(spec, linear=not sampler_table(SCHEDULE, sampler, steps, eta).stochastic)

    serve_and_check(several(most, unrolled=5), traffic, max_rows, 2, expected)


def serve_and_check(steppers: list[Stepper], traffic, max_rows: int, decode_batch: int, expected) -> None:
    """Let jobs come and go; each has to end once, with the latents, images and previews that `expected` gives a row."""

    def decode(latents):
        assert 1 <= len(latents) <= decode_batch
        return fake_decode(latents)

    clock = [0]
    batcher = Batcher(steppers, decode, max_rows_in_flight=max_rows, max_rows_waiting=100, decode_batch=decode_batch)
    arrivals = sorted(traffic, key=lambda job: job[0])
    recorders = []
    while arrivals or any(batcher.rows):
        while arrivals and arrivals[0][0] <= clock[0]:
            _, rows, leave_at, wants_image, every = arrivals.pop(0)
            recorder = Recorder(clock, leave_at)
            recorders.append((recorder, rows, wants_image, every))
            batcher.submit(make_job(recorder, rows, decode=wants_image, preview_every=[every] * len(rows)))
        batcher.tick()
        clock[0] += 1
        assert clock[0] < 1000

    for recorder, rows, wants_image, every in recorders:
        assert sum(recorder.events.values()) == 1, recorder.events
        states = [expected(spec) for spec in rows]
        check_previews(recorder.previews, states, every, complete=bool(recorder.events["finished"]))
        if recorder.events["finished"]:
            latents = np.stack([state[-1][0] for state in states])
            assert np.array_equal(recorder.latents, latents)
            assert (recorder.images is not None) == wants_image
            if wants_image:
                assert np.array_equal(recorder.images, fake_decode(latents))
        else:
            assert recorder.events["cancelled"]
            assert recorder.leave_at is not None


def check_previews(previews, states, every: int, complete: bool) -> None:
    """Each row is shown after every n-th of its steps, and whatever is shown is what it was after so many steps."""
    shown = [{int(steps[row]) for steps, _ in previews} for row in range(len(states))]
    for steps, estimates in previews:
        for row, done in enumerate(steps):
            assert np.array_equal(estimates[row], states[row][done - 1][1] if done else np.zeros_like(estimates[row]))
    if complete:
        for row, state in enumerate(states):
            assert shown[row] >= {step for step in range(1, len(state) + 1) if every and step % every == 0}
    assert every or not previews


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
    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode)
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


def test_a_full_queue_refuses_and_takes_nothing() -> None:
    clock = [0]
    batcher = Batcher([SingleSteps(fake_denoise)], fake_decode, max_rows_in_flight=2, max_rows_waiting=1)
    batcher.submit(make_job(Recorder(clock), [(1, "ddim", 2, 0.0), (2, "ddim", 2, 0.0)]))
    with pytest.raises(Overloaded, match="room for 1 rows, not for 2"):
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
    batcher.fail_all(Overloaded("stopping"))
    assert [recorder.events for recorder in recorders] == [{"failed": 1}] * 3
    assert batcher.rows == (0, 0)
