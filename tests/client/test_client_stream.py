"""`stream` of both clients against a real gRPC server."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from brats_ldm_client import (
    BratsLDMError,
    Client,
    DeadlineExceeded,
    Generation,
    InvalidRequest,
    Progress,
    ProtocolError,
    ServerError,
    ServerUnavailable,
)
from support.fake_triton import Caller, Served


def test_progress_then_the_generation(caller: Caller, served: Served) -> None:
    *progress, last = caller.stream(2, seed=7, steps=6, preview_every=2, return_latents=True)
    assert [event.step.tolist() for event in progress] == [[2, 2], [4, 4], [6, 6]]
    assert all(isinstance(event, Progress) and event.total == 6 for event in progress)
    assert progress[0].previews.shape == (2, 8, 8)
    assert progress[0].previews[:, 0, 0].tolist() == [9, 10]
    assert isinstance(last, Generation)
    assert last.images[:, 0, 0].tolist() == [7, 8]
    assert last.latents is not None
    assert served.triton.asked == [["image", "provenance", "final_latent", "step", "preview"]]
    assert "triton_grpc_error" not in served.triton.metadata[0]


def test_without_previews(caller: Caller) -> None:
    (only,) = caller.stream([4], preview_every=0)
    assert np.all(only.images == 4)


def test_previews_as_images_where_the_server_decodes_them(caller: Caller, served: Served) -> None:
    *progress, _ = caller.stream([3, 4], steps=4, preview_every=2, preview_decoder="tiny")
    assert [event.source for event in progress] == ["tiny", "tiny"]
    assert progress[1].previews[:, 0, 0].tolist() == [7, 8]
    assert progress[1].images[:, 0, 0].tolist() == [14, 16]
    assert served.triton.received[0]["preview_decoder"].tolist() == [["tiny"], ["tiny"]]
    assert served.triton.asked[0][2:] == ["step", "preview", "preview_image", "preview_source"]
    first, _ = caller.stream([3], steps=1)
    assert (first.images, first.source) == (None, "latent")
    assert "preview_decoder" not in served.triton.received[1], "an older server does not know it"


def slow(step: int, context: grpc.ServicerContext) -> None:
    time.sleep(0.02)


def test_leaving_the_loop_cancels_the_work(caller: Caller, served: Served) -> None:
    served.triton.stream_behave = slow
    assert len(caller.stream([3], steps=900, take=2)) == 2
    served.triton.wait_cancelled(1)
    assert served.triton.cancelled == [[3]]


def test_a_bare_break_cancels_the_work(served: Served) -> None:
    served.triton.stream_behave = slow
    with Client(served.url) as client:
        for _ in client.stream(1, steps=900):
            break
        served.triton.wait_cancelled(1)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.UNAVAILABLE, ServerUnavailable),  # not tried again: the caller has seen events
    ],
)
def test_an_error_in_the_middle(
    caller: Caller, served: Served, code: grpc.StatusCode, kind: type[BratsLDMError]
) -> None:
    def fail(step: int, context: grpc.ServicerContext) -> None:
        if step == 3:
            context.abort(code, "unet gave up")

    served.triton.stream_behave = fail
    with pytest.raises(kind, match=r"mri_ldm_stream.*unet gave up"):
        caller.stream(1, steps=5)
    assert len(served.triton.received) == 1


def test_unavailable_before_the_first_event_is_tried_again(caller: Caller, served: Served) -> None:
    def full_twice(seeds: list[int], context: grpc.ServicerContext) -> None:
        if len(served.triton.received) <= 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "queue is full")

    served.triton.behave = full_twice
    assert len(caller.stream(1, steps=2)) == 3
    first, second, third = served.triton.seeds()
    assert first == second == third


def test_the_deadline(caller: Caller, served: Served) -> None:
    served.triton.behave = served.triton.stall
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        caller.stream(1, client={"timeout": 0.3})
    assert time.monotonic() - began < 5, "the server stalls for ten seconds"


def test_a_stream_that_ends_without_an_image(caller: Caller, served: Served) -> None:
    """tritonclient's sync stream calls nobody back then: a client that waits for a call waits for ever."""
    served.triton.stream_ends_early = True
    began = time.monotonic()
    with pytest.raises(ProtocolError, match="without an image"):
        caller.stream(1, steps=2)
    assert time.monotonic() - began < 10


def test_arguments_are_checked_when_called_not_when_iterated(served: Served) -> None:
    with Client(served.url) as client:
        for arguments in ({"n": 65}, {"n": 0}, {"n": 1, "preview_every": 0.5}, {"n": 1, "preview_decoder": 3}):
            with pytest.raises(InvalidRequest):
                client.stream(**arguments)
    assert served.triton.received == []


class Lost:
    """A stream that the server has ended before its request was written: grpc.aio has lost the reason."""

    def __aiter__(self) -> Lost:
        return self

    async def __anext__(self) -> None:
        raise InferenceServerException("Internal error from Core", "StatusCode.INTERNAL")

    def cancel(self) -> None:
        pass


def test_a_reason_that_grpc_loses_is_asked_for_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a wrong secret was called an internal error of the server, now and then."""
    streams = [Lost() for _ in range(3)]
    send = InferenceServerClient.stream_infer
    monkeypatch.setattr(
        InferenceServerClient,
        "stream_infer",
        lambda *arguments, **named: streams.pop() if streams else send(*arguments, **named),
    )
    asynchronous = Caller("async", served.url)
    assert len(asynchronous.stream([3], steps=2)) == 3
    assert streams == []
    streams += [Lost() for _ in range(100)]
    with pytest.raises(ServerError, match="Internal error from Core"):
        asynchronous.stream([3], steps=2)
    assert len(streams) == 90


def test_two_streams_of_one_client_side_by_side(served: Served) -> None:
    """tritonclient allows one stream a client; each of ours has its own."""
    with Client(served.url) as client:
        pairs = list(zip(client.stream([1], steps=3), client.stream([2], steps=3), strict=True))
    assert [float(generation.images[0, 0, 0]) for generation in pairs[-1]] == [1, 2]


def test_abandoned_streams_leave_no_thread(served: Served) -> None:
    """A cancelled stream of tritonclient's leaves gRPC's sending thread waiting on its queue for ever."""
    served.triton.stream_behave = lambda step, context: time.sleep(0.01)
    with Client(served.url) as client:
        for _ in client.stream(1, steps=3):
            break
        threads = client_threads()
        for _ in range(5):
            for _ in client.stream(1, steps=3):
                break
        deadline = time.monotonic() + 15
        while client_threads() > threads and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client_threads() <= threads


def client_threads() -> int:
    return sum("ThreadPoolExecutor" not in thread.name for thread in threading.enumerate())
