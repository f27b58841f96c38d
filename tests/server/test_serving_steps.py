"""A real tritonserver with `unet_steps`: the same answers in calls of any number of steps, previews and company."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from benchmarks.harness.wire import counts
from brats_ldm_client import Client, Generation, Progress
from export.onnx.run import cpu_session
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import NoiseSchedule, advance, sampler_table
from server.process import TritonServer
from support.serving import gauge, infer, wait_until, wait_until_idle

pytestmark = pytest.mark.slow

# Float32 in two orders of operations, over tens of steps, on latents of unit order; an estimate divides by alpha.
TOLERANCE = 1e-4
ROWS = {
    "seed": [1, 2, 3, 4, 5],
    "steps": [12, 5, 3, 20, 7],
    "sampler": ["unipc", "dpmpp_2m", "ddim", "dpmpp_3m", "ddpm"],
    "timestep_grid": ["leading", "log_snr", "karras", "leading", "log_snr"],
}
"""Rows that end within a call, at its end, before it; and one that an unrolled network leaves to the other."""


def written(repository: Path, into: Path, steps_per_call: int) -> Path:
    """A copy with that many steps in a call, in the profiles for CPUs."""
    shutil.copytree(repository, into)
    zero = '{ key: "steps_per_call" value: { string_value: "0" } }'
    for config in into.glob("mri_ldm*/config.pbtxt"):
        text = config.read_text()
        assert zero in text
        config.write_text(text.replace(zero, zero.replace('"0"', f'"{steps_per_call}"')))
    return into


def answers(server: TritonServer) -> dict[str, np.ndarray]:
    """The answers of a server to all rows together, to one row alone, and the previews of one row."""
    raw = triton.InferenceServerClient(server.grpc_url)
    together = infer(raw, **ROWS)
    alone = infer(raw, seed=[4], steps=[20], sampler=["dpmpp_3m"])
    with Client(server.grpc_url) as client:
        events = list(client.stream([4], steps=20, sampler="dpmpp_3m", preview_every=3))
    *previews, last = events
    assert isinstance(last, Generation)
    assert [int(event.step[0]) for event in previews if isinstance(event, Progress)] == [3, 6, 9, 12, 15, 18]
    return {
        "images": together.as_numpy("image"),
        "latents": together.as_numpy("final_latent"),
        "alone": alone.as_numpy("final_latent"),
        "streamed": last.images,
        "previews": np.concatenate([event.previews for event in previews if isinstance(event, Progress)]),
    }


@pytest.fixture(scope="module")
def server(steps_repository: Path) -> Iterator[TritonServer]:
    with TritonServer(steps_repository, profile="cpu") as server:
        server.probe()
        yield server


@pytest.fixture(scope="module")
def served(server: TritonServer) -> dict[str, np.ndarray]:
    return answers(server)


def test_calls_have_as_many_steps_as_the_repository_says(server: TritonServer) -> None:
    """The first four rows need 3, 1, 1 and 4 calls of five steps, at most together; the stochastic one 7 of one."""
    raw = triton.InferenceServerClient(server.grpc_url)

    def counted() -> dict[str, int]:
        return {network: counts(raw, network).calls for network in ("unet", "unet_steps")}

    def calls() -> dict[str, int]:
        wait_until_idle(server)
        made = gauge(server, "mri_ldm_unet_calls_total")
        wait_until(lambda: sum(counted().values()) >= made, "Triton has not counted all calls")
        return counted()

    before, steps = calls(), gauge(server, "mri_ldm_steps_total")
    infer(raw, **ROWS)
    after = calls()
    assert gauge(server, "mri_ldm_steps_total") - steps == sum(ROWS["steps"])
    assert after["unet"] - before["unet"] == 7
    assert 4 <= after["unet_steps"] - before["unet_steps"] <= 3 + 1 + 1 + 4


def test_company_and_previews_change_nothing(served: dict[str, np.ndarray]) -> None:
    """Up to what ONNX Runtime makes of a very narrow network in batches of other sizes."""
    np.testing.assert_allclose(served["alone"][0], served["latents"][3], atol=1e-5)
    np.testing.assert_allclose(served["streamed"][0], served["images"][3, 0], atol=1e-4)


def test_one_step_a_call_of_the_same_file_gives_the_same_bits(steps_repository, server, served, tmp_path) -> None:
    """One row at a time: with several, each server may choose other calls for a row."""
    raw = triton.InferenceServerClient(server.grpc_url)
    rows = [{name: [values[place]] for name, values in ROWS.items()} for place in range(len(ROWS["seed"]))]
    latents = [infer(raw, **row).as_numpy("final_latent") for row in rows]
    with TritonServer(written(steps_repository, tmp_path / "single", 1), profile="cpu") as single:
        single.probe()
        raw = triton.InferenceServerClient(single.grpc_url)
        for row, several in zip(rows, latents, strict=True):
            assert np.array_equal(infer(raw, **row).as_numpy("final_latent"), several)
        one = answers(single)
    for name in ("alone", "streamed", "previews"):
        assert np.array_equal(one[name], served[name]), name


def test_it_is_the_recurrence_of_the_samplers(small_snapshot, steps_repository, served) -> None:
    session = cpu_session(steps_repository / "unet" / "1" / "model.onnx")
    schedule = NoiseSchedule(**asdict(small_snapshot.config.noise_schedule))
    for place, (seed, steps, sampler, grid) in enumerate(zip(*ROWS.values(), strict=True)):
        table = sampler_table(schedule, sampler, steps, 0.0, grid)
        x = standard_normal(seed, 0)[None]
        h = g = np.zeros_like(x)
        for i in range(steps):
            eps = session.run(["pred"], {"latent": x, "timesteps": table.timesteps[None, i : i + 1]})[0]
            x, h, g = advance(table.coefficients[i : i + 1], x, eps, h, g, standard_normal(seed, i + 1)[None])
        np.testing.assert_allclose(served["latents"][place], x[0], atol=TOLERANCE)


def test_the_profile_torch_takes_any_number_of_steps_and_draws_the_noise(steps_repository, served) -> None:
    """Every row goes through `unet_steps`, the stochastic one too, in calls of up to 25 steps."""
    with TritonServer(steps_repository, profile="torch") as server:
        server.probe()
        raw = triton.InferenceServerClient(server.grpc_url)
        before = counts(raw, "unet").calls
        several = answers(server)
        wait_until_idle(server)
        assert counts(raw, "unet").calls == before
        steps, calls = (gauge(server, f"mri_ldm_{what}_total") for what in ("call_steps", "unet_calls"))
        assert steps > calls
    for name in ("latents", "alone", "previews"):
        np.testing.assert_allclose(several[name], served[name], atol=TOLERANCE)
