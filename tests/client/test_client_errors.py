import pytest
from tritonclient.utils import InferenceServerException

from brats_ldm_client import (
    AccessDenied,
    BratsLDMError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ServerError,
    ServerUnavailable,
)
from brats_ldm_client._error_map import map_error


def mapped(text: str, status: str | None) -> BratsLDMError:
    error = InferenceServerException(text, status and f"StatusCode.{status}")
    return map_error(error, url="host:8001", model="mri_ldm", timeout=7)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("UNAVAILABLE", ServerUnavailable),
        ("RESOURCE_EXHAUSTED", ServerUnavailable),
        ("INVALID_ARGUMENT", InvalidRequest),
        ("OUT_OF_RANGE", InvalidRequest),
        ("UNAUTHENTICATED", AccessDenied),
        ("PERMISSION_DENIED", AccessDenied),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", Cancelled),
        ("INTERNAL", ServerError),
        ("UNKNOWN", ServerError),
        ("UNIMPLEMENTED", ServerError),
        ("NOT_FOUND", ServerError),
    ],
)
def test_codes(status: str, kind: type[BratsLDMError]) -> None:
    error = mapped("some words", status)
    assert type(error) is kind
    assert "mri_ldm" in str(error)
    assert "host:8001" in str(error)
    assert "\n" not in str(error)


def test_a_web_server_is_no_triton() -> None:
    error = mapped("Received http2 header with status: 404", "UNIMPLEMENTED")
    assert type(error) is ServerUnavailable
    assert "no Triton server answers at host:8001 (Received http2 header with status: 404)" in str(error)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("queue is full, try again later", ServerUnavailable),
        ("server is overloaded", ServerUnavailable),
        ("steps=0 is not allowed: steps must be 1 to 1000", InvalidRequest),
        ("unexpected shape for input 'latent'", InvalidRequest),
        ("Deadline Exceeded", DeadlineExceeded),
        ("request was cancelled", Cancelled),
        ("unet failed: CUDA error", ServerError),
        ("[INVALID row=0] row 0: steps is 0; it must lie in 1..1000", InvalidRequest),
        ("[BUSY retry_after=2] the queue has room for 0 rows, not for 1: try again in about 2 s", ServerUnavailable),
        ("[CANCELLED] the request was cancelled", Cancelled),
        ("[DEADLINE] the deadline has passed", DeadlineExceeded),
        ("This protocol is restricted, expecting header 'triton-grpc-protocol-inference-key'", AccessDenied),
        ("[NETWORK_FAILED model=unet] model 'unet' has failed: invalid: expected another shape", ServerError),
        ("input byte size mismatch for input 'seed' for model 'mri_ldm_stream'. Expected 8, got 5", InvalidRequest),
        ("Server is stopping, scheduler for model has stopped accepting new inference requests", ServerUnavailable),
        ("GRPC server is shutting down and has stopped accepting new requests.", ServerUnavailable),
    ],
)
def test_messages_of_a_stream_without_a_code(text: str, kind: type[BratsLDMError]) -> None:
    assert type(mapped(text, None)) is kind


def test_messages_say_what_to_do() -> None:
    refused = mapped("failed to connect to all addresses; last error: UNKNOWN: Connection refused", "UNAVAILABLE")
    assert "port 8001" in str(refused)
    assert "try later" in str(mapped("full", "UNAVAILABLE"))
    assert "7 s" in str(mapped("Deadline Exceeded", "DEADLINE_EXCEEDED"))
    assert "log" in str(mapped("boom", "INTERNAL"))


def test_a_model_that_is_not_loaded_is_not_worth_a_retry() -> None:
    for status in ("UNAVAILABLE", "NOT_FOUND"):
        error = mapped("Request for unknown model: 'mri_ldm' is not found", status)
        assert isinstance(error, ServerUnavailable)
        assert not error.retryable
        assert "brats-ldm info" in str(error)
    stopping = mapped("Request for unknown model: 'mri_ldm' has no available versions", "UNAVAILABLE")
    assert isinstance(stopping, ServerUnavailable)
    assert stopping.retryable, "a server that stops unloads its models first; the next one has them"
    died = mapped("Stub process 'mri_ldm_0_0' is not healthy.", "INTERNAL")
    assert isinstance(died, ServerUnavailable)
    assert died.retryable
    busy = mapped("full", "UNAVAILABLE")
    assert isinstance(busy, ServerUnavailable)
    assert busy.retryable


def test_builtin_bases() -> None:
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(DeadlineExceeded, TimeoutError)


def test_the_server_says_when_to_come_again() -> None:
    hinted = mapped("[BUSY retry_after=12] the queue has room for 0 rows", "UNAVAILABLE")
    assert isinstance(hinted, ServerUnavailable)
    assert hinted.retryable
    assert hinted.retry_after == 12
    silent = mapped("try again later", "UNAVAILABLE")
    assert isinstance(silent, ServerUnavailable)
    assert silent.retry_after == 0
