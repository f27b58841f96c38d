"""Calls of `unet_steps` for the tests: rows of several samplers, their steps and rows cut out, and what bits are."""

from __future__ import annotations

from typing import Any

import numpy as np

from mri_ldm.samplers import IDENTITY, NoiseSchedule, sampler_table

FINALS = ("next_latent", "next_estimate", "next_earlier_estimate")
ALL = (*FINALS, "estimates")
SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0205)
SAMPLERS = ("ddim", "ddpm", "dpmpp_3m")
Feeds = dict[str, np.ndarray[Any, Any]]


def feeds_of(*samplers: str, count: int, first: int = 0) -> Feeds:
    """A row for each sampler, `count` steps of its ten from step `first` on; seeds and draws of rows differ."""
    rng = np.random.default_rng(1)
    tables = [sampler_table(SCHEDULE, sampler, 10, 0.0) for sampler in samplers]
    rows = len(samplers)
    return {
        "latent": rng.standard_normal((rows, 1, 64, 64), np.float32),
        "estimate": rng.standard_normal((rows, 1, 64, 64), np.float32),
        "earlier_estimate": rng.standard_normal((rows, 1, 64, 64), np.float32),
        "timesteps": np.stack([table.timesteps[first : first + count] for table in tables]),
        "coefficients": np.stack([table.linear[first : first + count] for table in tables]),
        "seed": np.arange(-1, rows - 1, dtype=np.int64)[:, None] * 2**62,
        "draw": np.arange(first + 1, first + 1 + rows, dtype=np.int32)[:, None],
    }


def some_steps(feeds: Feeds, steps: slice, answers: Feeds | None = None) -> Feeds:
    """The feeds of a call for some of the steps, which goes on from `answers`."""
    start = {name.removeprefix("next_"): answers[name] for name in FINALS} if answers else {}
    parts = {name: feeds[name][:, steps] for name in ("timesteps", "coefficients")}
    return {**feeds, **start, **parts, "draw": feeds["draw"] + np.int32(steps.start)}


def some_rows(feeds: Feeds, rows: slice) -> Feeds:
    return {name: array[rows] for name, array in feeds.items()}


def assert_same_bits(one: Feeds, other: Feeds) -> None:
    assert one.keys() == other.keys()
    for name, expected in other.items():
        assert one[name].shape == expected.shape
        assert one[name].tobytes() == expected.tobytes(), name


def padded(feeds: Feeds, count: int) -> Feeds:
    """With `count` more steps that are none."""
    rows = len(feeds["seed"])
    steps = np.concatenate([feeds["timesteps"], np.zeros((rows, count), np.int32)], axis=1)
    identity = np.broadcast_to(IDENTITY, (rows, count, 8))
    return {**feeds, "timesteps": steps, "coefficients": np.concatenate([feeds["coefficients"], identity], axis=1)}


def assert_close(one: Feeds, other: Feeds, tolerance: float = 1e-5) -> None:
    """`tolerance` of the largest value: by default for the network's last bits, which depend on the batch."""
    assert one.keys() == other.keys()
    for name, expected in other.items():
        np.testing.assert_allclose(one[name], expected, atol=tolerance * np.abs(expected).max())


def noise_alone(rows: int, count: int) -> Feeds:
    """Steps after each of which the latent is the noise of that step."""
    feeds = feeds_of(*["ddpm"] * rows, count=1)
    forms = np.broadcast_to(np.array([0, 0, 0, 1, 0, 0, 0, 0], np.float32), (rows, count, 8))
    return {**feeds, "timesteps": feeds["timesteps"].repeat(count, axis=1), "coefficients": forms}


def resting() -> tuple[Feeds, Feeds]:
    """Three steps of two rows, of which the second does not move, and what that one's answers are: what it was, every
    kind of number in it."""
    feeds = feeds_of("ddpm", "ddim", count=3)
    feeds["coefficients"][1] = IDENTITY
    state = ("latent", "estimate", "earlier_estimate")
    for place, name in enumerate(state):
        feeds[name][1, 0, place, :3] = [0.0, -0.0, 1e-45]
    estimates = np.stack([feeds["estimate"][1:]] * 3, axis=1)
    return feeds, {f"next_{name}": feeds[name][1:] for name in state} | {"estimates": estimates}
