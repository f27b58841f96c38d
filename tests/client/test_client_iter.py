"""`iter_images` of both clients against a real gRPC server that misbehaves on request."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import closing
from dataclasses import asdict

import grpc
import numpy as np
import pytest

from brats_ldm_client import PRESETS, AsyncClient, Client, InvalidRequest, ServerError, ServerUnavailable
from support.fake_triton import DIGEST, Caller, Served


def test_images_come_in_the_order_of_the_seeds(caller: Caller, served: Served) -> None:
    def later_rows_first(seeds: list[int], context: grpc.ServicerContext) -> None:
        time.sleep(max(0.0, 0.2 - seeds[0] / 100))

    served.triton.behave = later_rows_first
    options = {"rows_per_request": 4}
    made = caller.iter_images(range(21), preset="fast", return_latents=True, client=options)
    assert [image.seed for image in made] == list(range(21))
    assert [float(image.image[0, 0]) for image in made] == list(range(21))
    assert made[20].image.shape == (24, 24)
    assert made[20].latent is not None
    assert made[20].latent.shape == (8, 8)
    record = made[20].record
    assert (asdict(PRESETS["fast"]) | {"seed": 20}).items() <= record.items()
    assert record["synthetic"] is True
    assert record["model_digest"] == DIGEST
    assert sorted(len(seeds) for seeds in served.triton.seeds()) == [1, 4, 4, 4, 4, 4]


def test_endless_seeds_are_taken_as_they_are_needed_and_leaving_cancels(caller: Caller, served: Served) -> None:
    three_is_here = threading.Event()  # a request that is cancelled before it arrives is none

    def stall_from_three(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds == [2]:
            three_is_here.wait(10)
        if seeds[0] >= 3:
            three_is_here.set()
            served.triton.stall(seeds, context)

    served.triton.behave = stall_from_three
    made = caller.iter_images(itertools.count(), take=3, client={"rows_per_request": 1, "concurrency": 2})
    assert [image.seed for image in made] == [0, 1, 2]
    served.triton.wait_cancelled(1)
    assert max(itertools.chain(*served.triton.seeds())) <= 4


def test_several_requests_are_in_flight(caller: Caller, served: Served) -> None:
    three = threading.Barrier(3)
    served.triton.behave = lambda seeds, context: three.wait(10) and None
    assert len(caller.iter_images(range(6), client={"rows_per_request": 1, "concurrency": 3})) == 6


def test_a_slow_reader_stops_the_requests(served: Served) -> None:
    """While the caller works on an image, at most the requests in flight are answered."""
    with Client(served.url, rows_per_request=1, concurrency=2) as client, closing(client.iter_images(range(50))) as it:
        next(it)
        time.sleep(0.3)
        assert len(served.triton.received) <= 4
        assert [image.seed for image in it] == list(range(1, 50))


def test_a_busy_server_gives_all_images(caller: Caller, served: Served) -> None:
    """It has room for two requests, and what it refuses is made later."""
    inside = threading.Semaphore(2)

    def two_at_once(seeds: list[int], context: grpc.ServicerContext) -> None:
        if not inside.acquire(blocking=False):
            context.abort(grpc.StatusCode.UNAVAILABLE, "[BUSY retry_after=1] no room")
        time.sleep(0.01)
        inside.release()

    served.triton.behave = two_at_once
    made = caller.iter_images(range(40), client={"rows_per_request": 1, "concurrency": 16})
    assert [image.seed for image in made] == list(range(40))


def test_an_error_comes_after_the_images_before_it(caller: Caller, served: Served) -> None:
    def fail_at_two(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds[0] == 2:
            context.abort(grpc.StatusCode.INTERNAL, "unet gave up")

    served.triton.behave = fail_at_two
    options = {"rows_per_request": 1, "concurrency": 1}
    assert [image.seed for image in caller.iter_images(range(4), take=2, client=options)] == [0, 1]
    with pytest.raises(ServerError, match="unet gave up"):
        caller.iter_images(range(4), client=options)


@pytest.mark.parametrize("seeds", [3, "123", [1.5], [2**70]])
def test_seeds_that_are_none(caller: Caller, seeds: object) -> None:
    with pytest.raises(InvalidRequest, match="seed"):
        caller.iter_images(seeds)


def test_no_seeds_are_no_images(caller: Caller) -> None:
    assert caller.iter_images([]) == []


def test_arguments_are_checked_when_called(served: Served) -> None:
    with Client(served.url) as client, pytest.raises(InvalidRequest, match="preset"):
        client.iter_images([1], preset="slow")


def test_an_error_of_the_seeds_ends_the_run(served: Served) -> None:
    def seeds():
        yield 1
        raise LookupError("no more")

    with Client(served.url) as client, pytest.raises(LookupError, match="no more"):
        list(client.iter_images(seeds()))


def test_two_runs_at_once_in_one_event_loop(served: Served) -> None:
    async def collect(client: AsyncClient, first: int) -> list[int]:
        return [image.seed async for image in client.iter_images(range(first, first + 9))]

    async def both() -> list[list[int]]:
        async with AsyncClient(served.url, rows_per_request=2) as client:
            return await asyncio.gather(collect(client, 0), collect(client, 100))

    assert asyncio.run(both()) == [list(range(9)), list(range(100, 109))]


def test_the_images_of_a_generation_are_slices(caller: Caller) -> None:
    generation = caller("generate", 3, seed=5)
    streamed = caller.iter_images([5, 6, 7])
    assert [image.seed for image in generation] == [5, 6, 7]
    for one, other in zip(generation, streamed, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.record == other.record


def test_a_server_that_never_has_room(caller: Caller, served: Served) -> None:
    served.triton.behave = lambda seeds, context: context.abort(grpc.StatusCode.UNAVAILABLE, "[BUSY] no room")
    with pytest.raises(ServerUnavailable, match="no room"):
        caller.iter_images(range(100), client={"retry_seconds": 1, "concurrency": 8})
    assert len(served.triton.received) < 20
