"""The sampler tables against MONAI's and diffusers' schedulers, and against a problem with a known solution."""

import numpy as np
import pytest
import torch

from brats_ldm_client import PRESETS
from mri_ldm.samplers import NoiseSchedule, advance, advance_in_place, left_out, sampler_columns, sampler_table
from mri_ldm.timestep_grids import grid_timesteps
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
    h = g = np.zeros_like(x)
    for i, t in enumerate(table.timesteps):
        z = np.zeros_like(x) if noises is None else noises[i]
        x, h, g = advance(np.repeat(table.coefficients[i : i + 1], len(x), axis=0), x, fake_eps(x, int(t)), h, g, z)
    return x


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def test_alpha_bars_are_monais() -> None:
    expected = ddim_scheduler(TrainingSchedule(), 50).alphas_cumprod.numpy()
    np.testing.assert_allclose(SCHEDULE.alpha_bars(), expected, rtol=2e-5)


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


def multistep(order: int):
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="dpmsolver++", solver_order=order, solver_type="midpoint", final_sigmas_type="zero",
        lower_order_final=True,
    )  # fmt: skip


def unipc():
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(**BETAS, solver_order=2, solver_type="bh2", lower_order_final=True,
                                   final_sigmas_type="zero")  # fmt: skip


BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
IN_DIFFUSERS = {"dpmpp_2m": lambda: multistep(2), "dpmpp_3m": lambda: multistep(3), "unipc": unipc}


@pytest.mark.parametrize("grid", ["leading", "log_snr", "karras", "irregular"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 14, 15, 16, 20, 50, 250])
@pytest.mark.parametrize("sampler", IN_DIFFUSERS)
def test_trajectories_are_those_of_diffusers(sampler: str, steps: int, grid: str) -> None:
    """diffusers gets the exact noise levels, since it rounds its own to float32; its DPM-Solver rounds latents, too."""
    alpha_bars = SCHEDULE.alpha_bars()
    if grid == "irregular":
        timesteps = -np.sort(-np.random.default_rng(steps).choice(1000, steps, replace=False))
    else:
        timesteps = grid_timesteps(grid, steps, alpha_bars)
    scheduler = IN_DIFFUSERS[sampler]()
    scheduler.set_timesteps(num_inference_steps=steps)
    sigmas = np.sqrt(1 / alpha_bars[timesteps] - 1)
    scheduler.timesteps, scheduler.sigmas = torch.from_numpy(timesteps), torch.tensor([*sigmas, 0.0])
    noise = np.random.default_rng(0).standard_normal((2, 3))

    def eps_of(x: np.ndarray, t: int) -> np.ndarray:
        return np.tanh(0.8 * x + t / 700)

    expected = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        expected = scheduler.step(torch.from_numpy(eps_of(expected.numpy(), int(t))), t, expected).prev_sample
    a, b, c, _, e = sampler_columns(sampler, alpha_bars[timesteps])
    alpha, sigma = np.sqrt(alpha_bars[timesteps]), np.sqrt(1 - alpha_bars[timesteps])
    x, h, g = noise, 0.0, 0.0
    for i, t in enumerate(timesteps):
        eps = eps_of(x, int(t))
        x, h, g = a[i] * x + b[i] * eps + c[i] * h + e[i] * g, (x - sigma[i] * eps) / alpha[i], h
    tolerance = 1e-9 if sampler == "unipc" else 2e-5
    np.testing.assert_allclose(x, expected.numpy(), atol=tolerance * max(1, np.abs(x).max()))


@pytest.mark.parametrize("sampler", IN_DIFFUSERS)
def test_tables_are_the_columns_in_float32(sampler: str, noise: np.ndarray) -> None:
    """The served arithmetic against the same in float64."""
    table = sampler_table(SCHEDULE, sampler, 12, 0.0, "karras")
    columns = np.stack(sampler_columns(sampler, SCHEDULE.alpha_bars()[table.timesteps]), axis=1)
    np.testing.assert_array_equal(table.coefficients[:, :5], columns.astype(np.float32))
    x, h, g = noise.astype(np.float64), 0.0, 0.0
    for i, t in enumerate(table.timesteps):
        alpha_bar = SCHEDULE.alpha_bars()[t]
        a, b, c, _, e = columns[i]
        eps = np.tanh(0.8 * x + t / 700)
        x, h, g = a * x + b * eps + c * h + e * g, (x - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar), h
    np.testing.assert_allclose(run_table(table, noise), x, atol=2e-5 * np.abs(x).max())


def gaussian_error(sampler: str, steps: int) -> float:
    """Error at lambda = 2 on data ~ N(0, 0.5^2), where the probability-flow ODE has the solution x ~ sqrt(variance).

    Steps of equal length in lambda from -4 on, in float64.
    """
    alpha_bar = 1 / (1 + np.exp(-2 * np.linspace(-4, 2, steps + 1)))
    solution = np.sqrt(0.25 * alpha_bar + 1 - alpha_bar)
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    a, b, c, _, e = sampler_columns(sampler, alpha_bar)
    x, h, g = solution[0], 0.0, 0.0
    for i in range(steps):
        eps = sigma[i] * x / solution[i] ** 2
        x, h, g = a[i] * x + b[i] * eps + c[i] * h + e[i] * g, (x - sigma[i] * eps) / alpha[i], h
    return abs(x - solution[-1])


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 2), ("unipc", 3)])
def test_order_of_convergence(sampler: str, order: int) -> None:
    """dpmpp_3m has the order of its published formula: see `samplers._dpmpp_3m`."""
    errors = np.array([gaussian_error(sampler, steps) for steps in (80, 160, 320)])
    assert np.log2(errors[:-1] / errors[1:]) == pytest.approx([order, order], abs=0.15), errors


def test_more_estimates_leave_a_smaller_error() -> None:
    ddim, two, three, unipc = (gaussian_error(s, 40) for s in ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc"))
    assert ddim > 10 * two > 10 * three > 10 * unipc


def test_stochastic_sampling_keeps_the_variance() -> None:
    """With the exact noise prediction of N(0, 0.5^2) data, ancestral sampling must end with that deviation."""
    rng = np.random.default_rng(1)
    table = sampler_table(SCHEDULE, "ddpm", 1000, 0.0)
    x = rng.standard_normal(50_000)
    for t, (a, b, _, d, _, _, sigma) in zip(table.timesteps, table.coefficients.astype(np.float64), strict=True):
        alpha_bar = SCHEDULE.alpha_bars()[t]
        eps = sigma * x / (0.25 * alpha_bar + 1 - alpha_bar)
        x = a * x + b * eps + d * rng.standard_normal(len(x))
    assert x.std() == pytest.approx(0.5, rel=0.02)


def test_tables_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=r"steps is 0; it must lie in 1\.\.1000"):
        sampler_table(SCHEDULE, "ddim", 0, 0.0)
    with pytest.raises(ValueError, match="'euler'; it must be one of ddim, ddpm, dpmpp_2m, dpmpp_3m, unipc"):
        sampler_table(SCHEDULE, "euler", 10, 0.0)


def test_a_row_does_not_see_its_neighbours(noise: np.ndarray) -> None:
    """Bitwise: a row advanced alone and in a batch of other samplers and steps; without g where it uses none."""
    keys = (("ddim", 50, 0.0), ("ddpm", 10, 0.0), ("dpmpp_2m", 20, 0.0), ("dpmpp_3m", 20, 0.0), ("unipc", 9, 0.0))
    tables = [sampler_table(SCHEDULE, *key) for key in keys]
    assert [table.uses_earlier for table in tables] == [False] * 3 + [True] * 2
    coefficients = np.stack([table.coefficients[5] for table in tables])
    x, eps, h, g, z = np.random.default_rng(2).standard_normal((5, len(keys), 1, 64, 64)).astype(np.float32)
    x[0, 0, 0, 0], eps[0, 0, 0, 0], h[0, 0, 0, 0] = -0.0, -0.0, -0.0
    together = advance(coefficients, x, eps, h, g, z)
    for row, table in enumerate(tables):
        one = slice(row, row + 1)
        alone = advance(coefficients[one], x[one], eps[one], h[one], g[one], z[one])
        assert all(a[one].tobytes() == b.tobytes() for a, b in zip(together, alone, strict=True))
        if not table.uses_earlier:
            state = np.stack([x[one], h[one]])
            spare = np.empty((2, 1, 1, 64, 64), np.float32)
            advance_in_place(coefficients[one], state, eps[one].copy(), {0: z[row]}, spare)
            assert state.tobytes() == np.stack(alone[:2]).tobytes()
