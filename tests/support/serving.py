"""Talking to a served repository from tests, below the client library."""

import queue
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import tritonclient.grpc as triton

from benchmarks.harness.wire import Counts, counts

PATIENCE = 30.0
"""Seconds that a test waits for what takes a moment, so that it fails for a fault and not for a busy machine."""
Refusal = TypeVar("Refusal", bound=Exception)
# The metrics' word for the calls of some models together. Triton's count of vae_decoder_tiny has previews too.
NETWORK_CALLS = {"unet": ("unet",), "decoder": ("vae_decoder", "vae_decoder_tiny")}
TYPES = {"seed": np.int64, "steps": np.int32, "eta": np.float32, "latent": np.float32, "preview_every": np.int32}


def tensors(**values) -> list[triton.InferInput]:
    """Input tensors from lists with one value a row; arrays are taken as they are."""
    inputs = []
    for name, value in values.items():
        if name in ("sampler", "timestep_grid", "preview_decoder", "decoder"):
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


def stream(url: str, *outputs: str, **values) -> list[triton.InferResult | Exception]:
    """The answers of `mri_ldm_stream` to one request, up to the last."""
    answers: queue.Queue[triton.InferResult | Exception | None] = queue.Queue()

    def answered(result, error) -> None:
        answers.put(error or result)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            answers.put(None)

    with triton.InferenceServerClient(url) as raw:
        raw.start_stream(answered)
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        raw.async_stream_infer("mri_ldm_stream", tensors(**values), outputs=wanted, enable_empty_final_response=True)
        return list(iter(partial(answers.get, timeout=PATIENCE), None))


def metrics_text(server) -> str:
    """All metrics, in Prometheus' format."""
    text: bytes = urllib.request.urlopen(server.metrics_url, timeout=PATIENCE).read()
    return text.decode()


def scrape(server) -> dict[str, float]:
    """The metrics of the front models, summed over labels."""
    return front_metrics(metrics_text(server))


def front_metrics(text: str) -> dict[str, float]:
    """The same from the text of all metrics."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("mri_ldm_"):
            name = line.partition("{")[0]
            values[name] = values.get(name, 0) + float(line.split()[-1])
    return values


def gauge(server, name: str) -> float:
    """One of them."""
    return scrape(server)[name]


def wait_until_idle(server) -> float:
    """Seconds until no row is left in the server and all is counted."""
    started = time.monotonic()
    time.sleep(0.2)  # metrics are up to 0.1 s old
    wait_until(lambda: _idle(server), "rows are left in the server")
    return time.monotonic() - started


def wait_until(holds: Callable[[], bool], otherwise: str, patience: float = PATIENCE) -> None:
    """Returns once `holds` does; fails with the words `otherwise` when the seconds of `patience` are over."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def _idle(server) -> bool:
    """Triton's count of requests that reached the front models is never old, as ours may be."""
    text = metrics_text(server)
    reached = re.findall(r'^nv_inference_request_success{model="mri_ldm(?:_stream)?",.*} (\d+)$', text, re.MULTILINE)
    now = front_metrics(text)
    if now["mri_ldm_requests_total"] + now["mri_ldm_lookups_total"] < sum(map(int, reached)):
        return False
    ended = sum(now[f"mri_ldm_{how}_total"] for how in ("finished_requests", "errors", "cancelled_requests"))
    return not now["mri_ldm_rows_in_flight"] + now["mri_ldm_rows_waiting"] and now["mri_ldm_requests_total"] == ended


def triton_counted(raw, server) -> dict[str, Counts]:
    """Triton's own statistics of the UNet and the full decoder, once the server is idle and they have all calls."""
    wait_until_idle(server)
    now = scrape(server)
    there = {word: [*filter(raw.is_model_ready, models)] for word, models in NETWORK_CALLS.items()}

    def has_all() -> bool:
        counted = {word: sum(counts(raw, model).calls for model in models) for word, models in there.items()}
        return all(calls >= now[f"mri_ldm_{word}_calls_total"] for word, calls in counted.items())

    wait_until(has_all, "Triton has not counted all calls")
    return {network: counts(raw, network) for network in ("unet", "vae_decoder")}


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


def wait_for_rows(server, rows: int, where: str = "in_flight") -> None:
    """Returns once `rows` rows are in the step loop, or "waiting" for it. Their requests must last half a second."""
    time.sleep(0.2)  # metrics are up to 0.1 s old: rows of an earlier request would be taken for these
    wait_until(lambda: gauge(server, f"mri_ldm_rows_{where}") >= rows, "the rows have not arrived")


def wait_until_well(raw) -> None:
    """Until the networks answer again: a call that hung comes back in its own time."""
    wait_until(lambda: _answers(raw), "the model has not recovered")


def _answers(raw) -> bool:
    try:
        infer(raw, seed=[1], steps=[1])
    except triton.InferenceServerException:
        return False
    return True


def wait_until_refused(ask: Callable[[], object], kind: type[Refusal]) -> tuple[Refusal, float]:
    """The error of the first call of `ask` that fails, and its seconds: until a drain begins, requests are let in."""
    deadline = time.monotonic() + PATIENCE
    while (began := time.monotonic()) < deadline:
        try:
            ask()
        except kind as refusal:
            return refusal, time.monotonic() - began
    raise AssertionError("requests are still let in")


def assert_images_of_pytorch_and_of_onnx(served, raw, snapshot) -> None:
    """Fifty steps of the seeds 3 and 4 in float32, `served` by one runtime and by `raw`'s server with ONNX Runtime.

    Other kernels round otherwise by 1e-7 a call, which the steps add up. Seen: 3e-5.
    """
    from training.sample import generate

    ours, onnx = (infer(client, seed=[3, 4]) for client in (served, raw))
    images, latents = generate(snapshot, [3, 4], steps=50, batch=2)
    for expected in (latents, onnx.as_numpy("final_latent")):
        np.testing.assert_allclose(ours.as_numpy("final_latent"), expected, atol=2e-4)
    for expected in (images[:, None], onnx.as_numpy("image")):
        np.testing.assert_allclose(ours.as_numpy("image"), expected, atol=2e-4 * max(1, np.abs(images).max()))
