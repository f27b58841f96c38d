"""A real tritonserver: right images, the same whatever else is going on, and a clear answer to everything else."""

import asyncio
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from brats_ldm_client import PRESETS, AsyncClient, Generation, Progress
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import SAMPLERS, NoiseSchedule, advance, sampler_table
from server.process import TritonServer
from support.faulty_networks import order, write_faulty
from support.serving import infer, triton_counted
from training.networks import build_autoencoder, build_unet
from training.sample import decode, sample_latents

pytestmark = pytest.mark.slow

# fp32 in two runtimes over 50 steps, on latents of unit order.
LATENT_TOLERANCE = 1e-4


# --- right


def test_ddim_is_the_torch_loop_with_monais_scheduler(client, small_snapshot) -> None:
    served = client.generate(seeds=[0, 7, -3], steps=50, return_latents=True)
    unet = build_unet(small_snapshot.config.unet).eval()
    unet.load_state_dict(small_snapshot.unet)
    autoencoder = build_autoencoder(small_snapshot.config.autoencoder).eval()
    autoencoder.load_state_dict(small_snapshot.autoencoder)
    noise = torch.from_numpy(np.stack([standard_normal(seed, 0) for seed in (0, 7, -3)]))
    latents = sample_latents(unet, small_snapshot.config.noise_schedule, noise, steps=50)
    assert 1 < np.abs(latents.numpy()).max() < 20
    np.testing.assert_allclose(served.latents.reshape(latents.shape), latents.numpy(), atol=LATENT_TOLERANCE)
    images = decode(autoencoder, latents, small_snapshot.scale_factor)[:, 0].numpy()
    assert served.images.shape == (3, 240, 240)
    np.testing.assert_allclose(served.images, images, atol=2e-4 * max(1, np.abs(images).max()))


@pytest.mark.parametrize(
    ("sampler", "steps", "eta"),
    [("ddim", 12, 0.6), ("ddpm", 25, 0.0), ("dpmpp_2m", 15, 0.0), ("dpmpp_3m", 15, 0.0), ("unipc", 8, 0.0)],
)
def test_every_sampler_is_its_recurrence_over_torch(
    client, small_snapshot, sampler: str, steps: int, eta: float
) -> None:
    served = client.generate(seeds=[11], steps=steps, sampler=sampler, eta=eta, return_latents=True)
    unet = build_unet(small_snapshot.config.unet).eval()
    unet.load_state_dict(small_snapshot.unet)
    schedule = NoiseSchedule(**asdict(small_snapshot.config.noise_schedule))
    table = sampler_table(schedule, sampler, steps, eta)
    x = standard_normal(11, 0)[None]
    h = g = np.zeros_like(x)
    for i, t in enumerate(table.timesteps):
        with torch.no_grad():
            eps = unet(torch.from_numpy(x), torch.tensor([int(t)])).numpy()
        x, h, g = advance(table.coefficients[i : i + 1], x, eps, h, g, standard_normal(11, i + 1)[None])
    np.testing.assert_allclose(served.latents.reshape(x.shape), x, atol=LATENT_TOLERANCE)


def test_a_given_latent_takes_the_place_of_the_seeds_noise(raw) -> None:
    by_seed = infer(raw, seed=[5], steps=[4])
    by_latent = infer(raw, seed=[99], steps=[4], latent=standard_normal(5, 0)[None])
    assert np.array_equal(by_seed.as_numpy("image"), by_latent.as_numpy("image"))


def test_defaults_are_fifty_ddim_steps(raw) -> None:
    plain = infer(raw, "image", "provenance", seed=[4])
    spelled = infer(raw, seed=[4], steps=[50], sampler=["ddim"], eta=[0.0])
    assert np.array_equal(plain.as_numpy("image"), spelled.as_numpy("image"))
    record = json.loads(plain.as_numpy("provenance")[0, 0])
    assert (record["seed"], record["steps"], record["sampler"], record["synthetic"]) == (4, 50, "ddim", True)


@pytest.mark.parametrize("name", ["fast", "standard"])
def test_a_preset_is_the_image_of_its_parts(client, name) -> None:
    """And the record says which they were: the server knows no presets."""
    parts = asdict(PRESETS[name])
    made = client.generate(seeds=[4], preset=name)
    assert np.array_equal(made.images, client.generate(seeds=[4], **parts).images)
    assert parts.items() <= made.provenance[0].items()


# --- the same, whatever else is going on


def test_a_seed_gives_the_same_bytes_in_every_company(client, raw) -> None:
    """Alone, in a batch of seven, at another slot, amid other traffic, and through the other model: bitwise."""
    parameters = {"steps": 10, "sampler": "ddpm"}
    alone = client.generate(seeds=[42], **parameters).images[0]
    batch = infer(raw, seed=[1, 2, 3, 42, 5, 6, 7], steps=[3, 50, 10, 10, 7, 1, 20],
                  sampler=["ddim", "ddpm", "dpmpp_2m", "ddpm", "ddim", "ddim", "dpmpp_2m"])  # fmt: skip
    assert np.array_equal(batch.as_numpy("image")[3, 0], alone)
    last = client.generate(seeds=[9, 8, 42], **parameters).images[2]
    assert np.array_equal(last, alone)
    *_, streamed = client.stream(seeds=[3, 42], preview_every=3, **parameters)
    assert np.array_equal(streamed.images[1], alone)

    def other(seed: int) -> None:
        infer(raw, seed=[seed, seed + 1], steps=[5 + seed % 7, 3], sampler=["ddim", "dpmpp_2m"])

    with ThreadPoolExecutor(6) as pool:
        noise = [pool.submit(other, seed) for seed in range(24)]
        amid = [client.generate(seeds=[42], **parameters).images[0] for _ in range(4)]
        for future in noise:
            future.result()
    assert all(np.array_equal(image, alone) for image in amid)


def test_mixed_requests_are_answered_as_if_alone(raw, small_server) -> None:
    """Twelve clients with different steps, samplers and grids at once, and not a row too many in the UNet."""
    grids = ("leading", "log_snr", "karras")
    cases = [(seed, 5 + 3 * (seed % 5), SAMPLERS[seed % 5], grids[seed % 3]) for seed in range(12)]

    def run(case: tuple[int, int, str, str]) -> np.ndarray:
        seed, steps, sampler, grid = case
        asked = {"seed": [seed], "steps": [steps], "sampler": [sampler], "timestep_grid": [grid]}
        return infer(raw, **asked).as_numpy("final_latent")

    expected = [run(case) for case in cases]
    before = triton_counted(raw, small_server)["unet"]
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(run, cases))
    after = triton_counted(raw, small_server)["unet"]
    assert after.rows - before.rows == sum(steps for _, steps, *_ in cases)
    assert all(np.array_equal(a, b) for a, b in zip(answers, expected, strict=True))


def test_requests_share_calls_where_a_call_costs_the_same_for_all(tmp_path) -> None:
    """Four clients of sixty steps each. On small networks nothing is gained by it, and the batcher may not do it."""
    repository = write_faulty(tmp_path / "repository")
    order(repository, "unet", seconds=0.02)
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: infer(raw, seed=[seed], steps=[60]), range(4)))
        unet = triton_counted(raw, server)["unet"]
    assert unet.rows == 240
    assert unet.calls < 180


def test_a_large_request_is_split_and_put_together_in_order(client) -> None:
    many = client.generate(20, seed=100, steps=2)
    assert many.seeds.tolist() == list(range(100, 120))
    assert np.array_equal(many.images[13], client.generate(seeds=[113], steps=2).images[0])


def test_the_async_client_and_http_give_the_same_image(client, small_server) -> None:
    expected = client.generate(seeds=[5], steps=3).images[0]

    async def generate() -> Generation:
        async with AsyncClient(small_server.grpc_url) as asynchronous:
            return await asynchronous.generate(seeds=[5], steps=3)

    assert np.array_equal(asyncio.run(generate()).images[0], expected)

    inputs = [
        {"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [5]},
        {"name": "steps", "datatype": "INT32", "shape": [1, 1], "data": [3]},
    ]
    body = json.dumps({"inputs": inputs, "outputs": [{"name": "image"}]}).encode()
    url = f"http://{small_server.http_url}/v2/models/mri_ldm/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        (output,) = json.load(response)["outputs"]
    assert np.array_equal(np.array(output["data"], np.float32).reshape(240, 240), expected)


# --- only what is asked for


def test_decoding_happens_only_for_an_image(raw, small_server) -> None:
    before = triton_counted(raw, small_server)["vae_decoder"]
    result = infer(raw, "final_latent", seed=[1], steps=[2])
    assert result.as_numpy("final_latent").shape == (1, 1, 64, 64)
    assert result.as_numpy("image") is None
    assert triton_counted(raw, small_server)["vae_decoder"] == before


def test_stream_reports_steps_and_previews_and_then_the_images(client) -> None:
    *progress, result = client.stream([1, 2], steps=9, preview_every=3)
    assert all(isinstance(event, Progress) for event in progress)
    assert isinstance(result, Generation)
    # Whether rows take their steps together is the server's choice: an event is due when one of them has done three.
    steps = np.array([event.step for event in progress])
    assert ((steps % 3 == 0).any(1) & (np.diff(steps, axis=0, prepend=0) >= 0).all(1)).all()
    assert all({3, 6, 9} <= set(row) for row in steps.T)
    assert steps[-1].tolist() == [9, 9]
    unary = client.generate([1, 2], steps=9, return_latents=True)
    assert np.array_equal(result.images, unary.images)
    # After the last step no noise is left: the estimate is the result.
    np.testing.assert_allclose(progress[-1].previews, unary.latents.reshape(2, 64, 64), atol=1e-5)
