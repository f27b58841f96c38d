"""Any traffic, in calls of any number of steps: every job answers as if alone, once, whatever else is going on."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_ldm.batcher import Batcher
from mri_ldm.samplers import SAMPLERS, sampler_table
from mri_ldm.stepping import SingleSteps, Stepper
from support.batching import SCHEDULE, Recorder, Spec, fake_decode, fake_denoise, make_job, path, several

specs = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(SAMPLERS),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["leading", "log_snr", "karras"]),
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
        _, *how = spec
        return path(spec, linear=not sampler_table(SCHEDULE, *how).stochastic)

    serve_and_check(several(most, unrolled=5), traffic, max_rows, 2, expected)


def of_tiny_decoder(spec: Spec) -> bool:
    """Whether that decoder makes the image of a row."""
    return spec[0] % 2 == 1


def serve_and_check(steppers: list[Stepper], traffic, max_rows: int, decode_batch: int, expected) -> None:
    """Let jobs come and go; each has to end once, with the latents, images and previews that `expected` gives a row."""

    def decode(latents):
        assert 1 <= len(latents) <= decode_batch
        return fake_decode(latents)

    clock = [0]
    batcher = Batcher(
        steppers, decode, max_rows_in_flight=max_rows, max_rows_waiting=100, decode_batch=decode_batch,
        tiny_decode=lambda latents: -decode(latents), tiny_decode_batch=decode_batch,
    )  # fmt: skip
    arrivals = sorted(traffic, key=lambda job: job[0])
    recorders = []
    while arrivals or any(batcher.rows):
        while arrivals and arrivals[0][0] <= clock[0]:
            _, rows, leave_at, wants_image, every = arrivals.pop(0)
            recorder = Recorder(clock, leave_at)
            recorders.append((recorder, rows, wants_image, every))
            tiny = [of_tiny_decoder(spec) for spec in rows]
            job = make_job(recorder, rows, decode=wants_image, preview_every=[every] * len(rows), tiny=tiny)
            batcher.submit(job)
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
                signs = np.array([-1 if of_tiny_decoder(spec) else 1 for spec in rows], np.float32)
                assert np.array_equal(recorder.images, signs[:, None, None, None] * fake_decode(latents))
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
