"""`queue` and `start_noise` of both clients: what is asked without taking a step."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from brats_ldm_client import AsyncClient, Client, InvalidRequest, ProtocolError, QueueInfo
from brats_ldm_client.testing import FakeTransport
from support import fake_triton
from support.fake_triton import Caller, Served


def test_the_queue_of_both_models(caller: Caller, served: Served) -> None:
    unary, stream = caller("queue")
    assert unary == QueueInfo("mri_ldm", 3, 2, 90, 64, 256, draining=False, seconds_left=1.25)
    assert stream == QueueInfo("mri_ldm_stream", 3, 2, 90, 64, 256, draining=False, seconds_left=1.25)
    assert served.triton.asked == [["queue"], ["queue"]], "nothing that takes a step"


def test_a_queue_as_a_line() -> None:
    queue = QueueInfo("mri_ldm", 3, 2, 90, 64, 256, draining=True, seconds_left=None)
    assert str(queue) == "mri_ldm: 3 rows in flight and 2 waiting, at most 320; 90 steps left; stopping"


@pytest.mark.parametrize("told", [[], {"rows_in_flight": 1}, "full"])
def test_a_queue_that_cannot_be_read(caller: Caller, monkeypatch: pytest.MonkeyPatch, told: object) -> None:
    monkeypatch.setattr(fake_triton, "QUEUE", told)
    with pytest.raises(ProtocolError, match="output queue of mri_ldm is not"):
        caller("queue")


def test_the_noise_of_any_number_of_seeds(caller: Caller, served: Served) -> None:
    seeds = np.arange(70)[::-1]
    noise = caller("start_noise", seeds)
    assert noise.shape == (70, 8, 8)
    assert noise[:, 0, 0].tolist() == seeds.tolist()
    assert [len(part) for part in served.triton.seeds()] == [64, 6]
    assert served.triton.asked == [["start_latent"]] * 2
    with pytest.raises(InvalidRequest, match="seeds is empty"):
        caller("start_noise", [])


@pytest.mark.parametrize("ask", [("queue",), ("start_noise", [1])])
def test_an_older_server_is_named_as_such(caller: Caller, served: Served, ask: tuple[object, ...]) -> None:
    def refuse(seeds: list[int], context: grpc.ServicerContext) -> None:
        words = f"unexpected inference output '{served.triton.asked[-1][0]}' for model 'mri_ldm'"
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)

    served.triton.behave = refuse
    with pytest.raises(InvalidRequest, match=r"mri_ldm at .* does not know (queue|start_latent): that server is older"):
        caller(*ask)


def test_a_transport_in_place_of_a_server() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        assert [queue.model for queue in client.queue()] == ["mri_ldm", "mri_ldm_stream"]
        noise = client.start_noise([5, -1])
        assert noise.shape == (2, 64, 64)
        *progress, last = client.stream([1], steps=4, preview_decoder="tiny")
        assert [event.source for event in progress] == ["tiny"] * 4
        assert not np.array_equal(progress[0].images, progress[1].images)
        np.testing.assert_array_equal(progress[-1].images, last.images)

    async def run() -> np.ndarray:
        async with AsyncClient(transport=transport) as client:
            assert len(await client.queue()) == 2
            return await client.start_noise([5, -1])

    np.testing.assert_array_equal(asyncio.run(run()), noise)
