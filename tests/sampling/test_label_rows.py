"""Rows with label maps and guidance beside rows without: each becomes what it is alone, bit for bit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_ldm.batcher import Batcher
from mri_ldm.conditioning import CONDITION_SHAPE, condition_of
from mri_ldm.errors import InvalidRequest
from mri_ldm.noise import standard_normal
from mri_ldm.request import RowParameters, parse_rows
from mri_ldm.samplers import advance, sampler_table
from mri_ldm.settings import read_settings
from mri_ldm.stepping import SeveralSteps, SingleSteps
from support.batching import SCHEDULE, Recorder, fake_decode, fake_denoise, fake_steps, make_job
from support.common import ROOT

SHARES = np.array([0.3, -0.5, 0.7, 0.1], np.float32)


def labelled_denoise(latents: np.ndarray, timesteps: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Of each row's latent, timestep and condition alone."""
    return np.tanh(fake_denoise(latents, timesteps) + np.einsum("c,ncij->nij", SHARES, conditions)[:, None])


def condition(key: int) -> np.ndarray | None:
    """0: none; otherwise one of a few."""
    if not key:
        return None
    return np.random.default_rng(key).random(CONDITION_SHAPE, np.float32)


def alone(seed: int, how: tuple, key: int, guidance: float) -> np.ndarray:
    """The final latent of one row, by the recurrence and eq. 6 of Ho & Salimans 2022 written down plainly."""
    table, none = sampler_table(SCHEDULE, *how), np.zeros((1, *CONDITION_SHAPE), np.float32)
    x, h, g = standard_normal(seed, 0)[None], np.zeros((1, 1, 64, 64), np.float32), np.zeros((1, 1, 64, 64), np.float32)
    seen = none if not key else condition(key)[None]
    for i in range(table.steps):
        e = labelled_denoise(x, table.timesteps[i : i + 1], seen)
        if guidance != 1:
            e0 = labelled_denoise(x, table.timesteps[i : i + 1], none)
            e = e0 + np.float32(guidance) * (e - e0)
        x, h, g = advance(table.coefficients[i : i + 1], x, e, h, g, standard_normal(seed, i + 1)[None])
    return x[0]


rows = st.tuples(
    st.integers(0, 99),
    st.tuples(st.sampled_from(["ddim", "dpmpp_2m"]), st.integers(1, 6), st.just(0.0)),
    st.integers(0, 3),
    st.sampled_from([1.0, 1.0, 2.5, 7.0]),
)
jobs = st.tuples(st.booleans(), st.integers(0, 8), st.lists(rows, min_size=1, max_size=4))


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs, min_size=1, max_size=6), st.integers(1, 8))
def test_mixed_rows_give_what_each_gives_alone(traffic, max_rows: int) -> None:
    sizes, clock, answers = [], [0], []

    def denoise(*inputs: np.ndarray) -> np.ndarray:
        assert len({len(tensor) for tensor in inputs}) == 1
        sizes.append(len(inputs[0]))
        return labelled_denoise(*inputs)

    batcher = Batcher(
        [SingleSteps(denoise, labels=True)], fake_decode, max_rows_in_flight=max_rows, clock=lambda: clock[0]
    )
    waiting = sorted(traffic, key=lambda job: job[1])
    while waiting or any(batcher.rows):
        while waiting and waiting[0][1] <= clock[0]:
            labelled, _, specs = waiting.pop(0)
            # A request has labels for all of its rows or for none, and only labelled rows have guidance.
            specs = [(s, how, key or 1, g) if labelled else (s, how, 0, 1.0) for s, how, key, g in specs]
            answers.append((specs, Recorder(clock)))
            conditions = np.stack([condition(key) for _, _, key, _ in specs]) if labelled else None
            guidance = [g for *_, g in specs]
            plain = [(seed, *how) for seed, how, *_ in specs]
            batcher.submit(make_job(answers[-1][1], plain, conditions=conditions, guidance=guidance))
        batcher.tick()
        clock[0] += 1
    for specs, recorder in answers:
        assert recorder.events == {"finished": 1}
        for latent, spec in zip(recorder.latents, specs, strict=True):
            np.testing.assert_array_equal(latent, alone(*spec))
    # A row with guidance takes two predictions, so the smallest call that can hold one has two.
    assert max(sizes) <= max(max_rows, 2)


def test_rows_with_guidance_are_batched_too() -> None:
    sizes: list[int] = []

    def denoise(*inputs: np.ndarray) -> np.ndarray:
        sizes.append(len(inputs[0]))
        return labelled_denoise(*inputs)

    batcher, recorder = Batcher([SingleSteps(denoise, labels=True)], fake_decode), Recorder([0])
    conditions, specs = np.stack([condition(1)] * 8), [(seed, "ddim", 20, 0.0) for seed in range(8)]
    batcher.submit(make_job(recorder, specs, conditions=conditions, guidance=[3.0] * 8))
    assert batcher.row_steps == 2 * 8 * 20
    while batcher.tick():
        pass
    assert recorder.events == {"finished": 1}
    assert max(sizes) == 16
    assert sum(sizes) == batcher.counters.steps == 2 * 8 * 20


def test_several_steps_in_a_call_see_the_labels_and_leave_guidance_to_single_steps() -> None:
    seen: list[np.ndarray] = []

    def steps(*inputs):
        *inputs, conditions = inputs
        seen.append(conditions)
        return fake_steps(*inputs)

    singly: list[np.ndarray] = []

    def denoise(latents, timesteps, conditions):
        singly.append(conditions)
        return labelled_denoise(latents, timesteps, conditions)

    steppers = [SeveralSteps(steps, 4, labels=True), SingleSteps(denoise, labels=True)]
    batcher, one, two, three = Batcher(steppers, fake_decode), Recorder([0]), Recorder([0]), Recorder([0])
    batcher.submit(make_job(one, [(1, "ddim", 3, 0.0)], conditions=condition(1)[None]))
    batcher.submit(make_job(two, [(2, "ddim", 3, 0.0)]))
    batcher.submit(make_job(three, [(3, "ddim", 3, 0.0)], conditions=condition(3)[None], guidance=[2.0]))
    while batcher.tick():
        pass
    rows_seen = {part.tobytes() for conditions in seen for part in conditions}
    assert rows_seen == {condition(1).tobytes(), np.zeros(CONDITION_SHAPE, np.float32).tobytes()}
    assert singly
    assert all(part[0].tobytes() == condition(3).tobytes() and not part[1].any() for part in singly)


def test_a_condition_is_that_of_training() -> None:
    import torch

    from training.conditioning import CHANNELS, condition_of_maps

    assert (CHANNELS, 64, 64) == CONDITION_SHAPE
    labels = np.random.default_rng(0).integers(0, 4, (3, 240, 240), np.uint8)
    labels[2] = 0
    expected = condition_of_maps(torch.from_numpy(labels)).numpy()
    for map_, wanted in zip(labels, expected, strict=True):
        np.testing.assert_array_equal(condition_of(map_[None], margin=8), wanted)
    assert expected[2, :3].max() == 0
    assert expected[2, 3].min() == 1


@pytest.fixture
def labelled(tmp_path):
    record = json.loads((ROOT / "model_repository" / "mri_ldm" / "1" / "model.json").read_text())

    def of(conditioning: str):
        (tmp_path / "model.json").write_text(json.dumps(record | {"conditioning": conditioning}))
        return read_settings({}, tmp_path)

    return of


def test_labels_of_a_request_are_checked(labelled) -> None:
    takes, seeds = labelled("labels"), np.array([[1], [2]])
    labels = np.zeros((2, 1, 240, 240), np.uint8)
    one, two = parse_rows({"seed": seeds, "labels": labels, "guidance": np.array([[1], [1.2]], np.float32)}, takes)
    assert (one.guidance, two.guidance) == (1.0, 1.2)
    assert set(two.record(takes)) - set(RowParameters(1, 1, "ddim", 0.0).record(takes)) == {"labels_sha256", "guidance"}
    labels[1, 0, 7, 9] = 4
    with pytest.raises(
        InvalidRequest, match=r"^row 1: labels hold 4 at \[7, 9\]; a label is one of 0 background, 1 oed"
    ):
        parse_rows({"seed": seeds, "labels": labels}, takes)
    with pytest.raises(InvalidRequest, match=r"labels has shape \[2, 1, 240, 239\]; it must be \[rows, 1, 240, 240\]"):
        parse_rows({"seed": seeds, "labels": labels[..., 1:]}, takes)
    for guidance in (0.5, 11, np.nan):
        tensors = {"seed": seeds, "labels": 0 * labels, "guidance": np.full((2, 1), guidance, np.float32)}
        with pytest.raises(InvalidRequest, match=rf"^row 0: guidance is {guidance:g}; it must lie in 1 \(off\) to 10"):
            parse_rows(tensors, takes)
    with pytest.raises(InvalidRequest, match=r"^row 0: guidance is 2, but there are no labels to follow"):
        parse_rows({"seed": seeds, "guidance": np.full((2, 1), 2, np.float32)}, takes)
    with pytest.raises(InvalidRequest, match="the weights of this server take none"):
        parse_rows({"seed": seeds, "labels": 0 * labels}, labelled("none"))
