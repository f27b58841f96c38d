"""`info`, `is_ready` and `wait_until_ready` of both clients."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from brats_ldm_client import ServerError, ServerUnavailable, TensorInfo
from support.fake_triton import DIGEST, Caller, Served


def test_info(caller: Caller, served: Served) -> None:
    info = caller("info")
    assert (info.url, info.name, info.version) == (served.url, "triton", "2.51.0")
    assert info.model_digest == DIGEST
    unary, stream = info.models
    assert (unary.name, stream.name) == ("mri_ldm", "mri_ldm_stream")
    assert unary.ready
    assert unary.max_batch_size == 64
    assert unary.inputs == (
        TensorInfo("seed", "INT64", (1,)),
        TensorInfo("sampler", "STRING", (1,), optional=True),
    )
    assert unary.outputs == (TensorInfo("image", "FP32", (1, 240, 240)),)
    assert unary.parameters == {"max_steps": "1000"}
    assert served.triton.asked == [["provenance"]], "no image: the server need not decode"
    assert served.triton.received[0]["steps"].tolist() == [[1]]


@pytest.mark.parametrize("newer", [False, True], ids=["2.51", "26.07"])
def test_info_without_a_model(caller: Caller, served: Served, newer: bool) -> None:
    served.triton.names_missing_models = newer
    served.triton.models = {"mri_ldm"}
    info = caller("info")
    assert [(model.name, model.ready) for model in info.models] == [("mri_ldm", True), ("mri_ldm_stream", False)]
    assert info.model_digest == DIGEST
    served.triton.models = set()
    info = caller("info")
    assert not any(model.ready for model in info.models)
    assert info.model_digest is None


@pytest.mark.parametrize("newer", [False, True], ids=["2.51", "26.07"])
def test_readiness(caller: Caller, served: Served, newer: bool) -> None:
    served.triton.names_missing_models = newer
    assert caller("is_ready") is True
    served.triton.models = {"mri_ldm"}
    assert caller("is_ready") is False
    with pytest.raises(ServerUnavailable, match=r"0\.3 s: model mri_ldm_stream is not ready"):
        caller("wait_until_ready", 0.3)
    threading.Timer(0.3, lambda: served.triton.models.add("mri_ldm_stream")).start()
    caller("wait_until_ready", 5)


def test_an_error_names_the_model_that_was_asked_for(caller: Caller, served: Served) -> None:
    served.triton.failing = {"mri_ldm_stream"}
    with pytest.raises(ServerError, match=r"^mri_ldm_stream at .* failed \(INTERNAL\): out of order"):
        caller("info")


def test_nobody_there(caller: Caller) -> None:
    caller.url = "127.0.0.1:1"
    assert caller("is_ready") is False
    with pytest.raises(ServerUnavailable, match="Connection refused"):
        caller("wait_until_ready", 0.3)


def test_deep_readiness_makes_an_image(caller: Caller, served: Served) -> None:
    """A pipeline says READY while the models that it calls are gone: only an image proves otherwise."""
    began = time.monotonic()

    def broken_at_first(seeds: list[int], context: grpc.ServicerContext) -> None:
        if time.monotonic() - began < 0.4:
            context.abort(grpc.StatusCode.INTERNAL, "unet: stub process is gone")

    served.triton.behave = broken_at_first
    with pytest.raises(ServerUnavailable, match="stub process"):
        caller("wait_until_ready", 0.1, deep=True)
    checksum = caller("wait_until_ready", 5, deep=True)
    assert served.triton.asked[-1] == ["image", "provenance"]
    assert caller("wait_until_ready", 5, checksum=checksum) == checksum
    served.triton.size += 1
    with pytest.raises(ServerUnavailable, match=f"not {checksum}"):
        caller("wait_until_ready", 0.3, deep=True, checksum=checksum)
    assert caller("wait_until_ready", 5) is None
