"""The sampler tables against MONAI's and diffusers' schedulers, and against a problem with a known solution."""

import numpy as np
import pytest
import torch

from brats_ldm_client import PRESETS
from mri_ldm.samplers import NoiseSchedule, advance, left_out, sampler_table
from training.config import NoiseSchedule as TrainingSchedule
from training.sample import ddim_scheduler

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195)
SHAPE = (2, 1, 64, 64)
# The library computes in float32 step by step, the table holds the products rounded once.
TRAJECTORY_TOLERANCE = 1e-5


def fake_eps(x: np.ndarray, t: int) -> np.ndarray:
    """A smooth, bounded, nonlinear stand-in for the UNet: any misuse of x or t changes the result."""
    return np.tanh(0.8 * x + np.float32(t) / np.float32(700)).astype(np.float32)


def run_table(table, x: np.ndarray, noises: np.ndarray | None = None) -> np.ndarray:
    """The recurrence with `fake_eps` over a whole table."""
    h = np.zeros_like(x)
    for i, t in enumerate(table.timesteps):
        z = np.zeros_like(x) if noises is None else noises[i]
        x, h = advance(np.repeat(table.coefficients[i : i + 1], len(x), axis=0), x, fake_eps(x, int(t)), h, z)
    return x


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def test_alpha_bars_are_monais() -> None:
    expected = ddim_scheduler(TrainingSchedule(), 50).alphas_cumprod.numpy()
    np.testing.assert_allclose(SCHEDULE.alpha_bars(), expected, rtol=2e-5)


def test_grid_is_the_bundles() -> None:
    assert SCHEDULE.timesteps(50)[:3].tolist() == [980, 960, 940]
    for steps in (1, 2, 10, 50, 333, 1000):
        grid = SCHEDULE.timesteps(steps)
        assert len(grid) == steps
        assert grid[-1] == 0
        assert (np.diff(grid) == -(1000 // steps)).all()


def test_a_grid_that_leaves_out_the_noisiest_end_says_so() -> None:
    """300 steps start at 897 of 999, 600 at 599: fewer noise levels than were asked for, and nobody was told."""
    for steps in range(1, 1001):
        unused = set(range(1000)) - set(range(1000 // steps * steps))
        warning = left_out(SCHEDULE, steps)
        assert bool(warning) == bool(unused) == (1000 % steps != 0)
        left = "timestep" if len(unused) == 1 else f"{len(unused)} timesteps"
        assert not warning or f"leave out the noisiest {left};" in warning
    assert left_out(SCHEDULE, 300) == (
        "300 steps do not divide 1000: they start at timestep 897 and leave out the noisiest 100 timesteps; "
        "250 or 500 steps leave out none"
    )
    leading = [preset for preset in PRESETS.values() if preset.timestep_grid == "leading"]
    assert leading
    assert not any(left_out(SCHEDULE, preset.steps) for preset in leading)


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 250, 1000])
def test_ddim_trajectory_is_monais(steps: int, noise: np.ndarray) -> None:
    scheduler = ddim_scheduler(TrainingSchedule(), steps)
    x = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        x, _ = scheduler.step(torch.from_numpy(fake_eps(x.numpy(), int(t))), int(t), x)
    ours = run_table(sampler_table(SCHEDULE, "ddim", steps, 0.0), noise)
    np.testing.assert_allclose(ours, x.numpy(), atol=TRAJECTORY_TOLERANCE * max(1, np.abs(x.numpy()).max()))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_is_monais(eta: float, noise: np.ndarray) -> None:
    """MONAI draws its own noise, so its generator is replayed to give ours the same numbers."""
    steps = 50
    scheduler = ddim_scheduler(TrainingSchedule(), steps)
    generator = torch.Generator().manual_seed(7)
    x = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        eps = torch.from_numpy(fake_eps(x.numpy(), int(t)))
        x, _ = scheduler.step(eps, int(t), x, eta=eta, generator=generator)
    generator = torch.Generator().manual_seed(7)
    noises = np.stack([torch.randn(SHAPE, generator=generator).numpy() for _ in range(steps)])
    ours = run_table(sampler_table(SCHEDULE, "ddim", steps, eta), noise, noises)
    np.testing.assert_allclose(ours, x.numpy(), atol=2e-5 * np.abs(x.numpy()).max())


def test_ddpm_with_all_steps_is_monais_ddpm(noise: np.ndarray) -> None:
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(
        schedule="scaled_linear_beta",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
        variance_type="fixed_small",
    )
    generator = torch.Generator().manual_seed(7)
    x = torch.from_numpy(noise)
    for t in range(999, -1, -1):
        x, _ = scheduler.step(torch.from_numpy(fake_eps(x.numpy(), t)), t, x, generator=generator)
    generator = torch.Generator().manual_seed(7)
    noises = [torch.randn(SHAPE, generator=generator).numpy() for _ in range(999)]
    ours = run_table(sampler_table(SCHEDULE, "ddpm", 1000, 0.0), noise, np.stack([*noises, np.zeros_like(noise)]))
    # A thousand float32 steps on both sides.
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-4 * np.abs(x.numpy()).max())


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 20, 50])
def test_dpmpp_2m_trajectory_is_that_of_diffusers(steps: int, noise: np.ndarray) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", algorithm_type="dpmsolver++", solver_order=2,
        solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True,
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=SCHEDULE.timesteps(steps).tolist())
    x = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(fake_eps(x.numpy(), int(t))), t, x).prev_sample
    ours = run_table(sampler_table(SCHEDULE, "dpmpp_2m", steps, 0.0), noise)
    # diffusers interpolates log sigma in float32.
    np.testing.assert_allclose(ours, x.numpy(), atol=5e-5 * max(1, np.abs(x.numpy()).max()))


def gaussian_error(sampler: str, steps: int) -> float:
    """Error at t = 400 on data ~ N(0, 0.5^2), where the probability-flow ODE has the solution x ~ sqrt(variance).

    Towards t = 0 the grid's steps grow without bound in log signal-to-noise, where no method shows its order.
    """
    variance = 0.25 * SCHEDULE.alpha_bars() + 1 - SCHEDULE.alpha_bars()
    table = sampler_table(SCHEDULE, sampler, steps, 0.0)
    coefficients = table.coefficients.astype(np.float64)
    x, h = np.sqrt(variance[table.timesteps[0]]), 0.0
    for t, (a, b, c, _, alpha, sigma) in zip(table.timesteps, coefficients, strict=True):
        if t == 400:
            return abs(x - np.sqrt(variance[400]))
        eps = np.sqrt(1 - SCHEDULE.alpha_bars()[t]) * x / variance[t]
        x, h = a * x + b * eps + c * h, (x - sigma * eps) / alpha
    raise AssertionError("400 is not on the grid")


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1.0), ("dpmpp_2m", 2.0)])
def test_order_of_convergence(sampler: str, order: float) -> None:
    errors = [gaussian_error(sampler, steps) for steps in (25, 50, 100)]
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert measured == pytest.approx([order, order], abs=0.35), errors


def test_stochastic_sampling_keeps_the_variance() -> None:
    """With the exact noise prediction of N(0, 0.5^2) data, ancestral sampling must end with that deviation."""
    rng = np.random.default_rng(1)
    table = sampler_table(SCHEDULE, "ddpm", 1000, 0.0)
    x = rng.standard_normal(50_000)
    for t, (a, b, _, d, _, sigma) in zip(table.timesteps, table.coefficients.astype(np.float64), strict=True):
        alpha_bar = SCHEDULE.alpha_bars()[t]
        eps = sigma * x / (0.25 * alpha_bar + 1 - alpha_bar)
        x = a * x + b * eps + d * rng.standard_normal(len(x))
    assert x.std() == pytest.approx(0.5, rel=0.02)


def test_tables_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=r"steps is 0; it must lie in 1\.\.1000"):
        sampler_table(SCHEDULE, "ddim", 0, 0.0)
    with pytest.raises(ValueError, match="'euler'; it must be one of ddim, ddpm, dpmpp_2m"):
        sampler_table(SCHEDULE, "euler", 10, 0.0)


def test_a_row_does_not_see_its_neighbours(noise: np.ndarray) -> None:
    """Bitwise: a row advanced alone and in a batch of other samplers and steps."""
    tables = [sampler_table(SCHEDULE, *key) for key in (("ddim", 50, 0.0), ("ddpm", 10, 0.0), ("dpmpp_2m", 20, 0.0))]
    coefficients = np.stack([table.coefficients[5] for table in tables])
    x, eps, h, z = np.random.default_rng(2).standard_normal((4, 3, 1, 64, 64)).astype(np.float32)
    together = advance(coefficients, x, eps, h, z)
    for row in range(3):
        one = slice(row, row + 1)
        alone = advance(coefficients[one], x[one], eps[one], h[one], z[one])
        assert all(np.array_equal(a[one], b) for a, b in zip(together, alone, strict=True))
