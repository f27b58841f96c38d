"""A real tritonserver: right images, the same whatever else is going on, and a clear answer to everything else."""

import json
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import NoiseSchedule, advance, sampler_table

from brats_ldm_client import Client, Generation, InvalidRequest, Progress
from training.networks import build_autoencoder, build_unet
from training.sample import decode, sample_latents

# fp32 in two runtimes over 50 steps, on latents of unit order.
LATENT_TOLERANCE = 1e-4
TYPES = {"seed": np.int64, "steps": np.int32, "eta": np.float32, "latent": np.float32, "preview_every": np.int32}


@pytest.fixture
def client(small_server):
    with Client(small_server.grpc_url) as client:
        yield client


@pytest.fixture
def raw(small_server):
    with triton.InferenceServerClient(small_server.grpc_url) as raw:
        yield raw


def tensors(**values) -> list[triton.InferInput]:
    """Input tensors from lists with one value a row; arrays are taken as they are."""
    inputs = []
    for name, value in values.items():
        if name == "sampler":
            array = np.array([[text] for text in value], dtype=np.object_)
        elif isinstance(value, np.ndarray):
            array = value
        else:
            array = np.array(value, dtype=TYPES[name])[:, None]
        tensor = triton.InferInput(name, list(array.shape), triton.np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def infer(raw, *outputs: str, timeout: float = 60, **values) -> triton.InferResult:
    wanted = [triton.InferRequestedOutput(name) for name in outputs or ("image", "final_latent")]
    return raw.infer("mri_ldm", tensors(**values), outputs=wanted, client_timeout=timeout)


def gauge(server, name: str) -> float:
    """A metric, summed over the two front models."""
    text = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def wait_until_idle(server, seconds: float = 5) -> float:
    """Seconds until no row is left in the server."""
    started = time.monotonic()
    while gauge(server, "mri_ldm_rows_in_flight") + gauge(server, "mri_ldm_rows_waiting"):
        assert time.monotonic() - started < seconds, "rows are left in the server"
        time.sleep(0.02)
    return time.monotonic() - started


# --- right


def test_ddim_is_the_torch_loop_with_monais_scheduler(client, small_snapshot) -> None:
    served = client.generate(seeds=[0, 7, -3], steps=50, return_latents=True)
    unet = build_unet(small_snapshot.config.unet).eval()
    unet.load_state_dict(small_snapshot.unet)
    autoencoder = build_autoencoder(small_snapshot.config.autoencoder).eval()
    autoencoder.load_state_dict(small_snapshot.autoencoder)
    noise = torch.from_numpy(np.stack([standard_normal(seed, 0) for seed in (0, 7, -3)]))
    latents = sample_latents(unet, small_snapshot.config.noise_schedule, noise, steps=50)
    assert np.abs(latents.numpy()).max() > 0.5
    np.testing.assert_allclose(served.latents.reshape(latents.shape), latents.numpy(), atol=LATENT_TOLERANCE)
    images = decode(autoencoder, latents, small_snapshot.scale_factor)[:, 0].numpy()
    assert served.images.shape == (3, 240, 240)
    np.testing.assert_allclose(served.images, images, atol=2e-4 * max(1, np.abs(images).max()))


@pytest.mark.parametrize(("sampler", "steps", "eta"), [("ddim", 12, 0.6), ("ddpm", 25, 0.0), ("dpmpp_2m", 15, 0.0)])
def test_every_sampler_is_its_recurrence_over_torch(
    client, small_snapshot, sampler: str, steps: int, eta: float
) -> None:
    served = client.generate(seeds=[11], steps=steps, sampler=sampler, eta=eta, return_latents=True)
    unet = build_unet(small_snapshot.config.unet).eval()
    unet.load_state_dict(small_snapshot.unet)
    table = sampler_table(NoiseSchedule(1000, 0.0015, 0.0195), sampler, steps, eta)
    x, h = standard_normal(11, 0)[None], np.zeros((1, 1, 64, 64), np.float32)
    for i, t in enumerate(table.timesteps):
        with torch.no_grad():
            eps = unet(torch.from_numpy(x), torch.tensor([int(t)])).numpy()
        x, h = advance(table.coefficients[i : i + 1], x, eps, h, standard_normal(11, i + 1)[None])
    np.testing.assert_allclose(served.latents.reshape(x.shape), x, atol=LATENT_TOLERANCE * max(1, np.abs(x).max()))


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


def test_mixed_requests_share_unet_calls(client, raw, small_server) -> None:
    """Twelve clients with different steps and samplers: mean UNet batch above 1, and each answer as if alone."""
    cases = [(seed, 5 + 3 * (seed % 5), ("ddim", "ddpm", "dpmpp_2m")[seed % 3]) for seed in range(12)]

    def run(case: tuple[int, int, str]) -> np.ndarray:
        seed, steps, sampler = case
        return infer(raw, seed=[seed], steps=[steps], sampler=[sampler]).as_numpy("final_latent")

    expected = [run(case) for case in cases]
    wait_until_idle(small_server)
    before = raw.get_inference_statistics("unet").model_stats[0]
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(run, cases))
    after = raw.get_inference_statistics("unet").model_stats[0]
    rows = after.inference_count - before.inference_count
    calls = after.execution_count - before.execution_count
    assert rows == sum(steps for _, steps, _ in cases)
    assert rows / calls > 2, f"mean UNet batch {rows / calls:.2f}"
    assert all(np.array_equal(a, b) for a, b in zip(answers, expected, strict=True))


def test_a_large_request_is_split_and_put_together_in_order(client) -> None:
    many = client.generate(20, seed=100, steps=2)
    assert many.seeds.tolist() == list(range(100, 120))
    assert np.array_equal(many.images[13], client.generate(seeds=[113], steps=2).images[0])


# --- only what is asked for


def test_decoding_happens_only_for_an_image(raw) -> None:
    before = raw.get_inference_statistics("vae_decoder").model_stats[0].inference_count
    result = infer(raw, "final_latent", seed=[1], steps=[2])
    assert result.as_numpy("final_latent").shape == (1, 1, 64, 64)
    assert result.as_numpy("image") is None
    assert raw.get_inference_statistics("vae_decoder").model_stats[0].inference_count == before


def test_stream_reports_steps_and_previews_and_then_the_images(client) -> None:
    *progress, result = client.stream([1, 2], steps=9, preview_every=3)
    assert all(isinstance(event, Progress) for event in progress)
    assert isinstance(result, Generation)
    assert [event.step.tolist() for event in progress] == [[3, 3], [6, 6], [9, 9]]
    unary = client.generate([1, 2], steps=9, return_latents=True)
    assert np.array_equal(result.images, unary.images)
    # After the last step no noise is left: the estimate is the result.
    np.testing.assert_allclose(progress[-1].previews, unary.latents.reshape(2, 64, 64), atol=1e-5)


# --- bad input


NAN = np.full((1, 1, 64, 64), np.nan, np.float32)
BAD_INPUT = [
    ({"seed": [1], "steps": [0]}, r"steps is 0; it must lie in 1\.\.1000"),
    ({"seed": [1], "steps": [1001]}, "steps is 1001"),
    ({"seed": [1], "steps": [-7]}, "steps is -7"),
    ({"seed": [1], "sampler": ["euler"]}, "'euler'; it must be one of ddim, ddpm, dpmpp_2m"),
    ({"seed": [1], "sampler": [b"\xff"]}, "must be one of"),
    ({"seed": [1], "eta": [2.0]}, r"eta is 2; it must lie in 0\.\.1"),
    ({"seed": [1], "eta": [float("nan")]}, "eta is nan"),
    ({"seed": [1], "sampler": ["ddpm"], "eta": [0.5]}, "only ddim takes an eta"),
    ({"seed": [1], "latent": NAN}, "NaN or infinity"),
    ({"seed": [1], "latent": np.zeros((1, 1, 32, 32), np.float32)}, "unexpected shape for input 'latent'"),
    ({"seed": np.zeros((1, 2), np.int64)}, "unexpected shape for input 'seed'"),
    ({"seed": np.zeros((1, 1), np.int32)}, "data-type"),
    ({"seed": np.zeros((65, 1), np.int64)}, "<= 64"),
    ({"seed": [1, 2], "steps": [5]}, "batch size"),
    ({"seed": [1, 2], "steps": [5, 0]}, "row 1: steps is 0"),
    ({"steps": [5]}, "seed"),
]


@pytest.mark.parametrize(("values", "message"), BAD_INPUT, ids=[message[:28] for _, message in BAD_INPUT])
def test_bad_input_is_answered_for_that_request_alone(raw, values: dict, message: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        good = pool.submit(infer, raw, seed=[1], steps=[5])
        with pytest.raises(triton.InferenceServerException, match=message) as error:
            infer(raw, **values)
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert good.result().as_numpy("image").shape == (1, 1, 240, 240)


def test_the_client_names_bad_values_in_both_models(client) -> None:
    with pytest.raises(InvalidRequest, match="steps is 0"):
        client.generate(1, steps=0)
    with pytest.raises(InvalidRequest, match="must be one of ddim"):
        list(client.stream(1, sampler="euler"))


# --- leaving early


def start(raw, **values):
    """A request in the background; its future carries the outcome."""
    outcome: list = []
    done = threading.Event()

    def callback(result, error) -> None:
        outcome.append(error or result)
        done.set()

    outputs = [triton.InferRequestedOutput("final_latent")]
    call = raw.async_infer("mri_ldm", tensors(**values), callback, outputs=outputs)
    return call, done, outcome


def wait_for_rows(server, rows: int) -> None:
    deadline = time.monotonic() + 10
    while gauge(server, "mri_ldm_rows_in_flight") < rows:
        assert time.monotonic() < deadline, "the rows have not arrived"
        time.sleep(0.02)


def test_cancelled_rows_are_gone_within_a_step(raw, small_server) -> None:
    before = gauge(small_server, "mri_ldm_cancelled_rows_total")
    call, done, outcome = start(raw, seed=list(range(4)), steps=[1000] * 4)
    wait_for_rows(small_server, 4)
    call.cancel()
    took = wait_until_idle(small_server)
    assert took < 1, f"{took:.2f} s; 1000 steps would take many"
    assert done.wait(5)
    assert "CANCELLED" in str(outcome[0].status())
    assert gauge(small_server, "mri_ldm_cancelled_rows_total") - before == 4


def test_a_deadline_ends_the_rows(raw, small_server) -> None:
    before = gauge(small_server, "mri_ldm_cancelled_rows_total")
    with pytest.raises(triton.InferenceServerException) as error:
        infer(raw, seed=[1, 2], steps=[1000, 1000], timeout=0.3)
    assert "DEADLINE_EXCEEDED" in str(error.value.status())
    wait_until_idle(small_server, seconds=2)
    assert gauge(small_server, "mri_ldm_cancelled_rows_total") - before == 2


def test_leaving_a_stream_ends_its_rows(client, small_server) -> None:
    for event in client.stream(3, seed=1, steps=1000, preview_every=1):
        assert isinstance(event, Progress)
        break
    wait_until_idle(small_server, seconds=3)


def test_overload_is_answered_at_once_and_passes(raw, small_server) -> None:
    """64 rows in flight and 256 waiting fill the server; the next request must not queue."""
    calls = [start(raw, seed=list(range(64)), steps=[1000] * 64) for _ in range(5)]
    deadline = time.monotonic() + 20
    while gauge(small_server, "mri_ldm_rows_waiting") < 256:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    asked = time.monotonic()
    with pytest.raises(triton.InferenceServerException, match="the queue has room for 0 rows") as error:
        infer(raw, seed=[1], steps=[1])
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    assert time.monotonic() - asked < 1
    for call, _, _ in calls:
        call.cancel()
    wait_until_idle(small_server, seconds=20)
    assert infer(raw, seed=[1], steps=[1]).as_numpy("image") is not None


# --- what the metrics say, and the end


def test_metrics_count_what_was_done(raw, small_server) -> None:
    wait_until_idle(small_server)
    names = ("images", "steps", "unet_calls", "decoder_calls")
    before = [gauge(small_server, f"mri_ldm_{name}_total") for name in names]
    infer(raw, seed=[1, 2, 3], steps=[4, 4, 2])
    wait_until_idle(small_server)
    after = [gauge(small_server, f"mri_ldm_{name}_total") for name in names]
    # Rows of one request start together: four calls, of which the first two hold all three rows.
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 10, 4, 2]


def test_stopping_with_work_in_flight_answers_and_ends(small_repository) -> None:
    from server.process import TritonServer

    with TritonServer(small_repository, profile="cpu") as server, triton.InferenceServerClient(server.grpc_url) as raw:
        _, done, outcome = start(raw, seed=list(range(8)), steps=[1000] * 8)
        wait_for_rows(server, 8)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 8
        assert done.wait(5), "the request was never answered"
    assert isinstance(outcome[0], triton.InferenceServerException)
