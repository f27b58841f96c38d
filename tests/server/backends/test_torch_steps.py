"""`unet_steps` of the profile "torch" below Triton: the recurrence over the small UNet against `samplers.py` in NumPy.

On the CPU, and with a GPU, `-m gpu`, there. test_torch_replays.py has what a stand-in for a GPU shows, and
test_torch_profile.py a server.
"""

from __future__ import annotations

import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.json_format import MessageToDict

from export.configs import parse_config
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import IDENTITY, advance, sampler_table
from support.common import ROOT
from support.sampler_steps import (
    ALL,
    FINALS,
    SAMPLERS,
    SCHEDULE,
    Feeds,
    assert_close,
    assert_same_bits,
    feeds_of,
    noise_alone,
    padded,
    resting,
    some_rows,
    some_steps,
)

pytestmark = pytest.mark.slow

STATE = ("latent", "estimate", "earlier_estimate")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def path(torch_repository: Path) -> Path:
    return torch_repository / "unet" / "1" / "model.pt2"


@pytest.fixture(scope="module")
def backend(torch_backend: SimpleNamespace) -> SimpleNamespace:
    return torch_backend


@pytest.fixture(scope="module")
def program(backend, path) -> Any:
    """`unet` alone."""
    return backend.torch_program.Program(path, CPU)


@pytest.fixture(scope="module")
def steps(backend, path) -> Any:
    """On the CPU."""
    return backend.torch_steps.Steps(path, CPU)


@pytest.fixture(scope="module")
def on_gpu(backend, path) -> Any:
    """With graphs of 1, 4 and 8 rows, and tables for 5 steps."""
    return backend.torch_steps.Steps(path, GPU, [1, 4, 8], room=5)


def in_single_calls(steps: Any, feeds: Feeds) -> Feeds:
    """A call for each step, each going on from the one before; the estimates of all."""
    answers: Feeds | None = None
    estimates = []
    for start, end in pairwise(range(feeds["timesteps"].shape[1] + 1)):
        answers = steps.run(ALL, some_steps(feeds, slice(start, end), answers))
        estimates.append(answers["estimates"])
    assert answers is not None
    return answers | {"estimates": np.concatenate(estimates, axis=1)}


@pytest.mark.parametrize("count", [1, 3, 7])
def test_steps_in_one_call_are_those_of_single_calls(count, steps) -> None:
    """Bit for bit: each operation is the same, at the same batch. The noise, too, goes on where it was."""
    feeds = feeds_of(*SAMPLERS, count=count, first=2)
    together = steps.run(ALL, feeds)
    assert_same_bits(together, in_single_calls(steps, feeds))
    assert np.array_equal(together["estimates"][:, -1], together["next_estimate"])


def noise_of(feeds: Feeds, step: int) -> np.ndarray[Any, Any]:
    pairs = zip(feeds["seed"][:, 0].tolist(), feeds["draw"][:, 0].tolist(), strict=True)
    return np.stack([standard_normal(seed, draw + step) for seed, draw in pairs])


def test_a_call_computes_the_linear_forms_of_the_samplers(steps, program) -> None:
    """Bit for bit on one machine: the network is the same, and neither NumPy nor PyTorch fuses a product and a sum."""
    feeds = feeds_of(*SAMPLERS, count=4)
    x, h, g, estimates = *(feeds[name] for name in STATE), []
    for step in range(4):
        eps = program({"latent": x, "timesteps": feeds["timesteps"][:, step, None]})
        a, b, c, d, e, p, q, r = (column.reshape(-1, 1, 1, 1) for column in feeds["coefficients"][:, step].T)
        z = noise_of(feeds, step)
        x, h, g = a * x + b * eps + c * h + e * g + d * z, p * x + q * eps + r * h, (1 - r) * h + r * g
        estimates.append(h)
    expected = dict(zip(FINALS, (x, h, g), strict=True)) | {"estimates": np.stack(estimates, axis=1)}
    assert_same_bits(steps.run(ALL, feeds), expected)


def test_a_call_computes_what_the_loop_of_mri_ldm_does(steps, program) -> None:
    """`advance` divides where the linear forms multiply: 1e-6 of the largest value a step, over ten steps."""
    feeds = feeds_of(*SAMPLERS, count=10)
    tables = [sampler_table(SCHEDULE, sampler, 10, 0.0) for sampler in SAMPLERS]
    x, h, g = (feeds[name] for name in STATE)
    for step in range(10):
        eps = program({"latent": x, "timesteps": feeds["timesteps"][:, step, None]})
        x, h, g = advance(np.stack([table.coefficients[step] for table in tables]), x, eps, h, g, noise_of(feeds, step))
    assert_close(steps.run(FINALS, feeds), dict(zip(FINALS, (x, h, g), strict=True)), 1e-5)


def test_stochastic_rows_get_the_noise_of_their_seed_and_draw(steps) -> None:
    feeds = noise_alone(rows=3, count=4)
    assert np.array_equal(steps.run(FINALS, feeds)["next_latent"], noise_of(feeds, 3))


def test_identity_is_that_of_the_samplers(backend) -> None:
    assert np.array_equal(backend.torch_recurrence.IDENTITY, IDENTITY)


def test_identity_keeps_latent_and_estimate_bitwise(steps) -> None:
    """Zeros with their signs, too, and beside a row that moves with noise."""
    feeds, still = resting()
    assert_same_bits(some_rows(steps.run(ALL, feeds), slice(1, 2)), still)
    assert_same_bits(steps.run(FINALS, padded(feeds, 2)), steps.run(FINALS, feeds))


def test_a_row_of_the_recurrence_depends_on_no_other(backend) -> None:
    """The network's last bits may depend on the batch on a CPU; the recurrence's do not, noise beside it or none."""
    rng = np.random.default_rng(0)
    state, eps, noise = (rng.standard_normal((n, 9, 1, 64, 64), np.float32) for n in (3, 1, 1))
    coefficients = rng.standard_normal((9, 1, 8), np.float32)
    coefficients[::2, :, 3], noise[:, ::2] = 0, 0

    def advanced(rows: slice) -> Any:
        columns = backend.torch_recurrence.columns_of(coefficients[rows])[0]
        arrays = (state[:, rows].copy(), eps[0, rows], noise[0, rows], columns)
        return backend.torch_recurrence.advance(*map(torch.from_numpy, arrays)).numpy()

    together = advanced(slice(None))
    for row in range(9):
        assert advanced(slice(row, row + 1)).tobytes() == together[:, row : row + 1].tobytes()


def test_a_row_of_a_call_is_what_it_is_alone(steps) -> None:
    feeds = feeds_of(*SAMPLERS, count=3)
    together = steps.run(ALL, feeds)
    for row in range(3):
        part = slice(row, row + 1)
        assert_close(steps.run(ALL, some_rows(feeds, part)), some_rows(together, part))


def test_only_what_is_asked_for_is_answered(steps) -> None:
    feeds = feeds_of("ddim", count=2)
    everything = steps.run(ALL, feeds)
    for asked in (["next_latent"], ["estimates"], ["next_estimate", "estimates"], []):
        assert_same_bits(steps.run(asked, feeds), {name: everything[name] for name in asked})


def test_noise_is_drawn_where_it_is_needed_alone(steps, backend, monkeypatch) -> None:
    drawn: list[tuple[int, int]] = []

    def draw(seed: int, draw: int) -> Any:
        drawn.append((seed, draw))
        return standard_normal(seed, draw)

    monkeypatch.setattr(backend.torch_recurrence, "standard_normal", draw)
    steps.run(FINALS, feeds_of("ddim", "dpmpp_2m", count=3))
    assert drawn == []
    steps.run(FINALS, feeds_of("ddim", "ddpm", count=3, first=7))  # the last step has none
    assert drawn == [(0, 9), (0, 10)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": np.zeros((2, 4, 8), np.float32)}, r"'coefficients' is .*\[2, 4, 8\]; .*\[B, 3, 8\]"),
        ({"coefficients": np.zeros((2, 3, 6), np.float32)}, r"'coefficients' is .*\[2, 3, 6\]; .*\[B, 3, 8\]"),
        ({"estimate": np.zeros((1, 1, 64, 64), np.float32)}, r"\[2, 1, 2, 2, 2, 2, 2\] rows"),
        ({"seed": np.zeros((2, 1), np.int32)}, "'seed' is int32"),
        ({"draw": np.array([[3], [-1]], np.int32)}, "draw is -1; it must be 0 or more"),
        (
            {"timesteps": np.zeros((2, 0), np.int32), "coefficients": np.zeros((2, 0, 8), np.float32)},
            "timesteps has no step",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_told(change, message, steps) -> None:
    feeds = feeds_of("ddim", "ddpm", count=3)
    with pytest.raises(ValueError, match=message):
        steps.run(FINALS, {**feeds, **change})
    del feeds["timesteps"]
    with pytest.raises(ValueError, match="'timesteps' is missing"):
        steps.run(FINALS, feeds)


@pytest.fixture
def config() -> dict[str, Any]:
    """As Triton hands it to the backend."""
    config = parse_config(ROOT / "export" / "unet_steps" / "configs" / "torch.pbtxt")
    return MessageToDict(config, preserving_proto_field_name=True)


def test_the_committed_config_fits(config, backend, torch_repository, path) -> None:
    backend.torch_loading.check_tensors(config, backend.torch_program.read_record(path))
    assert backend.torch_loading.parameters(config) == ([1, 2, 4, 8, 16, 32, 64], True)
    place = {"model_repository": str(torch_repository / "unet"), "model_version": "1", "model_instance_kind": "CPU"}
    assert isinstance(backend.torch_loading.load(config, place), backend.torch_steps.Steps)


def test_where_what_is_compiled_cannot_be_captured_the_message_names_it(config, backend, path, tmp_path, monkeypatch):
    def capture(*program: object, **how: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    (tmp_path / "1").mkdir()
    shutil.copyfile(path, tmp_path / "1" / "model.pt2")
    monkeypatch.setattr(backend.torch_loading, "Steps", capture)
    place = {"model_repository": str(tmp_path), "model_version": "1", "model_instance_kind": "CPU"}
    with pytest.raises(RuntimeError, match=r"capturing$"):
        backend.torch_loading.load(config, place)
    (tmp_path / "1" / "model.compiled.pt2").touch()
    with pytest.raises(RuntimeError, match=r"capturing; without .*model\.compiled\.pt2 the program runs operation by"):
        backend.torch_loading.load(config, place)


@pytest.mark.parametrize(
    ("side", "index", "change", "message"),
    [
        (
            "input",
            4,
            {"dims": ["-1", "6"]},
            r"declares inputs .*\[-1, 6\].*, and several steps a call have .*\[-1, 8\]",
        ),
        ("input", 3, {"dims": ["1"]}, r"declares inputs .*'timesteps', 'TYPE_INT32', \[1\].* have .*\[-1\]"),
        ("input", 5, {"data_type": "TYPE_INT32"}, "declares inputs .*'seed', 'TYPE_INT32'.* have .*'TYPE_INT64'"),
        ("output", 0, {"name": "pred"}, "declares outputs .*'pred'.* have .*'next_latent'"),
    ],
)
def test_a_config_that_does_not_fit_is_told(side, index, change, message, config, backend, path) -> None:
    config[side][index] |= change
    with pytest.raises(ValueError, match=message):
        backend.torch_loading.check_tensors(config, backend.torch_program.read_record(path))


def test_a_program_that_is_not_the_unets_is_told(config, backend, torch_repository) -> None:
    record = backend.torch_program.read_record(torch_repository / "vae_decoder" / "1" / "model.pt2")
    with pytest.raises(ValueError, match=r"runs unet's program, from latent .* to image .*: copy unet/1/model\.pt2"):
        backend.torch_loading.check_tensors(config, record)


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does(on_gpu, steps) -> None:
    """Within 1e-4 of the largest value over up to ten steps, and without noise of its own."""
    for rows, count in ((1, 1), (3, 4), (8, 5), (11, 10)):  # exact, padded, exact, and cut in rows and steps
        feeds = feeds_of(*(SAMPLERS * 4)[:rows], count=count)
        assert_close(on_gpu.run(ALL, feeds), steps.run(ALL, feeds), 1e-4)


@pytest.mark.gpu
def test_a_gpu_computes_the_same_bits_in_any_piece_place_and_company(on_gpu) -> None:
    """In graphs of one size: eight rows, and five beside what another call has left."""
    feeds = feeds_of(*(SAMPLERS * 3)[:8], count=7)
    together = on_gpu.run(ALL, feeds)
    assert_same_bits(in_single_calls(on_gpu, feeds), together)
    on_gpu.run(ALL, feeds_of(*["ddpm"] * 8, count=2))
    assert_same_bits(on_gpu.run(ALL, some_rows(feeds, slice(2, 7))), some_rows(together, slice(2, 7)))


@pytest.mark.gpu
def test_a_gpu_keeps_resting_rows_and_gets_the_noise_bitwise(on_gpu) -> None:
    feeds, still = resting()
    assert_same_bits(some_rows(on_gpu.run(ALL, feeds), slice(1, 2)), still)
    noisy = noise_alone(rows=8, count=7)
    assert np.array_equal(on_gpu.run(FINALS, noisy)["next_latent"], noise_of(noisy, 6))


@pytest.mark.gpu
def test_a_call_waits_for_the_gpu_once(on_gpu) -> None:
    feeds = feeds_of("ddim", "ddpm", "ddpm", count=5)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            on_gpu.run(ALL, feeds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(warning.message) for warning in caught) <= 1
