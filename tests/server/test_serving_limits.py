"""A real tritonserver under bad input and at its end: each request gets a clear answer, others go on."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton

from brats_ldm_client import InvalidRequest
from server.process import TritonServer
from support.serving import PATIENCE, gauge, infer, start, triton_counted, wait_for_rows

pytestmark = pytest.mark.slow

# --- bad input


NAN = np.full((1, 1, 64, 64), np.nan, np.float32)
BAD_INPUT = [
    ({"seed": [1], "steps": [0]}, r"steps is 0; it must lie in 1\.\.1000"),
    ({"seed": [1], "steps": [1001]}, "steps is 1001"),
    ({"seed": [1], "steps": [-7]}, "steps is -7"),
    ({"seed": [1], "sampler": ["euler"]}, "'euler'; it must be one of ddim, ddpm, dpmpp_2m, dpmpp_3m, unipc"),
    (
        {"seed": [1], "timestep_grid": ["aligned"]},
        "these weights have no aligned timesteps: give leading, log_snr or karras",
    ),
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
    ({"steps": [5]}, "seed is missing"),
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


# --- what the metrics say, and the end


def test_metrics_count_what_was_done(raw, small_server) -> None:
    """Images and steps are those asked for; calls are those that Triton itself has counted."""

    def counted() -> np.ndarray:
        executed = triton_counted(raw, small_server)
        names = ("images", "steps", "unet_calls", "decoder_calls")
        ours = [gauge(small_server, f"mri_ldm_{name}_total") for name in names]
        return np.array([*ours, *(network.calls for network in executed.values())])

    before = counted()
    infer(raw, seed=[1, 2, 3], steps=[4, 4, 2])
    images, steps, *calls = counted() - before
    assert (images, steps) == (3, 10)
    assert calls[:2] == calls[2:]


def test_stopping_with_work_in_flight_answers_and_ends(small_repository) -> None:
    with TritonServer(small_repository, profile="cpu") as server, triton.InferenceServerClient(server.grpc_url) as raw:
        server.probe()
        _, done, outcome = start(raw, seed=list(range(8)), steps=[1000] * 8)
        wait_for_rows(server, 8)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 12, "15 s are given to a server that does not end"
        assert done.wait(PATIENCE), "the request was never answered"
    # Either lets a client try again elsewhere; INTERNAL would end its run.
    assert outcome[0].status() in ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"), outcome
