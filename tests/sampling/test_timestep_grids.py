"""Where the steps lie: against diffusers' timesteps, and what holds for every grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_ldm.samplers import SAMPLERS, NoiseSchedule, sampler_table
from mri_ldm.timestep_grids import TIMESTEP_GRIDS, grid_timesteps, half_log_snr, nearest_timesteps, read_aligned

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195)
ALPHA_BARS = SCHEDULE.alpha_bars()
ALIGNED = ((999, 700, 400, 90), (999, 800, 620, 470, 320, 180, 60, 20))
STEPS = [1, 2, 3, 4, 5, 8, 10, 20, 50, 99, 333, 500, 999, 1000]


def timesteps(grid: str, steps: int) -> np.ndarray:
    return grid_timesteps(grid, steps, ALPHA_BARS, ALIGNED)


def test_the_leading_grid_is_the_bundles() -> None:
    assert timesteps("leading", 50)[:3].tolist() == [980, 960, 940]
    for steps in (1, 2, 10, 50, 333, 1000):
        grid = timesteps("leading", steps)
        assert (len(grid), grid[-1]) == (steps, 0)
        assert (np.diff(grid) == -(1000 // steps)).all()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("grid", TIMESTEP_GRIDS)
def test_every_grid_descends_within_the_schedule_at_any_number_of_steps(grid: str, steps: int) -> None:
    found = timesteps(grid, steps)
    assert (found.dtype, found.shape) == (np.int32, (steps,))
    assert (np.diff(found) < 0).all()
    assert 0 <= found[-1] <= found[0] <= 999
    assert grid == "leading" or found[0] == 999
    assert grid == "aligned" or steps == 1 or found[-1] == 0


@pytest.mark.parametrize("steps", [5, 8, 10, 12, 20])
@pytest.mark.parametrize(("grid", "option"), [("log_snr", "use_lu_lambdas"), ("karras", "use_karras_sigmas")])
def test_grids_are_those_of_diffusers(grid: str, option: str, steps: int) -> None:
    """Up to the rounding: where its timesteps fall together, ours lie side by side."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", **{option: True}
    )
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.numpy()
    # Up from the clean end, each timestep is at least one above the last.
    for place in range(steps - 2, -1, -1):
        expected[place] = max(expected[place], expected[place + 1] + 1)
    assert np.abs(timesteps(grid, steps) - expected).max() <= 1


@given(st.lists(st.floats(-6, 5), min_size=1, max_size=60), st.integers(1, 5))
def test_the_nearest_timesteps_are_distinct_and_near(lambdas: list[float], trained: int) -> None:
    schedule = NoiseSchedule(60 * trained, 0.0015, 0.0195).alpha_bars()
    found = nearest_timesteps(np.sort(lambdas), schedule)
    assert (np.diff(found) < 0).all()
    assert 0 <= found.min() <= found.max() < 60 * trained
    ideal = np.interp(-np.sort(lambdas), -half_log_snr(schedule), np.arange(60 * trained))
    # A timestep is moved by others that want the same place, and never by more than there are others.
    assert np.abs(found - ideal).max() <= len(lambdas)
    if len(lambdas) == 1:
        assert abs(found[0] - ideal[0]) <= 0.5


def test_log_snr_and_karras_are_even_in_their_own_measure() -> None:
    lambdas = half_log_snr(ALPHA_BARS)
    apart = np.diff(lambdas[timesteps("log_snr", 6)])
    assert apart == pytest.approx(np.full(5, apart.mean()), rel=0.05)
    powers = np.diff(np.exp(-lambdas[timesteps("karras", 6)]) ** (1 / 7))
    assert powers == pytest.approx(np.full(5, powers.mean()), rel=0.05)


def test_an_aligned_grid_is_the_stored_one_or_lies_between_its_points() -> None:
    assert timesteps("aligned", 4).tolist() == list(ALIGNED[0])
    assert timesteps("aligned", 8).tolist() == list(ALIGNED[1])
    # Twice as many intervals: every second point is a stored one.
    assert timesteps("aligned", 16)[::2].tolist() == list(ALIGNED[1])
    assert timesteps("aligned", 2).tolist() == list(ALIGNED[0][::2])
    # Between two points log sigma is halved: sigma is the geometric mean.
    sigma = np.exp(-half_log_snr(ALPHA_BARS))
    assert sigma[timesteps("aligned", 16)[1]] == pytest.approx(np.sqrt(sigma[999] * sigma[800]), rel=0.01)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", TIMESTEP_GRIDS)
def test_every_sampler_takes_every_grid(sampler: str, grid: str) -> None:
    """With the exact noise prediction of N(0, 0.5^2) data the trajectory ends near the data's deviation."""
    table = sampler_table(SCHEDULE, sampler, 250, 0.0, grid, ALIGNED)
    rng = np.random.default_rng(0)
    x, h, g = rng.standard_normal(20_000), 0.0, 0.0
    for t, (a, b, c, d, e, alpha, sigma) in zip(table.timesteps, table.coefficients.astype(float), strict=True):
        eps = sigma * x / (0.25 * ALPHA_BARS[t] + 1 - ALPHA_BARS[t])
        z = rng.standard_normal(len(x)) if d else 0.0
        x, h, g = a * x + b * eps + c * h + e * g + d * z, (x - sigma * eps) / alpha, h
    assert x.std() == pytest.approx(0.5, rel=0.06)


def test_what_is_no_grid_is_told() -> None:
    with pytest.raises(ValueError, match="'even': there is no such grid; the grids are leading, log_snr, karras, alig"):
        timesteps("even", 5)
    with pytest.raises(ValueError, match="'aligned': these weights have no aligned timesteps"):
        grid_timesteps("aligned", 5, ALPHA_BARS)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"4": [1]}, "must be a list of lists"),
        ([[9, 3], 5], "must be a list of lists"),
        ([[]], r"has \[\]; it must descend strictly within 0\.\.999"),
        ([[3, 3]], r"has \[3, 3\]; it must descend strictly"),
        ([[3, 9]], "must descend strictly"),
        ([[1000, 3]], "must descend strictly within"),
        ([[5, -1]], "must descend strictly within"),
        ([[5.0, 1]], "must descend strictly within"),
        ([[True]], "must descend strictly within"),
        ([[5, 1], [6, 2]], "two lists of the same length"),
    ],
)
def test_aligned_timesteps_are_checked_when_read(lists, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_aligned(lists, 1000)


def test_aligned_timesteps_that_are_right_are_read() -> None:
    assert read_aligned([list(grid) for grid in ALIGNED], 1000) == ALIGNED
    assert read_aligned([], 1000) == ()
