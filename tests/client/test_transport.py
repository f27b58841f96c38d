"""Clients without a server: a transport in its place."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest

from brats_ldm_client import (
    AsyncClient,
    Client,
    Generation,
    InvalidRequest,
    Progress,
    Request,
    Rows,
    ServerError,
    ServerInfo,
    ServerUnavailable,
    WeightsChanged,
)
from brats_ldm_client.testing import DIGEST, FakeTransport
from support.common import ROOT


def test_generate_splits_and_retries_as_with_a_server(tmp_path: Path) -> None:
    transport = FakeTransport(errors=[ServerUnavailable("full"), None, ServerUnavailable("full")])
    with Client(transport=transport, rows_per_request=2) as client:
        generation = client.generate(5, seed=3, steps=20, return_latents=True)
    assert generation.images.shape == (5, 240, 240)
    assert generation.latents is not None
    assert generation.seeds.tolist() == [3, 4, 5, 6, 7]
    assert {record["steps"] for record in generation.provenance} == {20}
    assert len(transport.requests) == 5
    assert (tmp_path / "slice_seed000000003.png") in generation.save(tmp_path)


def test_an_image_depends_on_its_seed_alone() -> None:
    with Client(transport=FakeTransport()) as client:
        first, second = client.generate([7, -1]), client.generate([-1])
    np.testing.assert_array_equal(first.images[1], second.images[0])
    assert not np.array_equal(first.images[0], first.images[1])
    assert 0 <= first.images.min() < first.images.max() <= 1


def test_images_of_the_users_own() -> None:
    transport = FakeTransport(image=lambda seed: np.full((240, 240), seed, np.float32))
    with Client(transport=transport) as client:
        assert [float(image.image[0, 0]) for image in client.iter_images(range(3))] == [0, 1, 2]


def test_errors_end_a_run_as_a_servers_do() -> None:
    with Client(transport=FakeTransport(errors=[ServerError("boom")])) as client:
        with pytest.raises(ServerError, match="boom"):
            client.generate(1)
        assert len(client.generate(1)) == 1


def test_errors_of_the_transport_itself_are_not_hidden() -> None:
    with Client(transport=FakeTransport(errors=[KeyError("bug")])) as client, pytest.raises(KeyError, match="bug"):
        client.generate(1)


def test_a_stream() -> None:
    with Client(transport=FakeTransport()) as client:
        *progress, last = client.stream([4, 5], steps=6, preview_every=2)
        assert [event.step.tolist() for event in progress if isinstance(event, Progress)] == [[2, 2], [4, 4], [6, 6]]
        assert progress[0].previews.shape == (2, 64, 64)
        assert isinstance(last, Generation)
        assert last.latents is None
        (only,) = client.stream([4], preview_every=0)
        np.testing.assert_array_equal(only.images[0], last.images[0])


def test_info_and_ready() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        assert client.info().model_digest == DIGEST
        assert client.is_ready()
        assert client.wait_until_ready() is None
        checksum = client.wait_until_ready(deep=True)
        assert client.wait_until_ready(checksum=checksum) == checksum
        with pytest.raises(ServerUnavailable, match="not sha256:1"):
            client.wait_until_ready(checksum="sha256:1")


def test_weights_that_change() -> None:
    transport = FakeTransport()
    with Client(transport=transport, rows_per_request=1, concurrency=1) as client:
        images = client.iter_images(range(9))
        next(images)
        transport.model_digest = "sha256:other"
        with pytest.raises(WeightsChanged, match="sha256:other"):
            list(images)


def test_the_async_client() -> None:
    async def run() -> None:
        async with AsyncClient(transport=FakeTransport(errors=[ServerUnavailable("full")])) as client:
            generation = await client.generate(9, seed=0)
            images = [image async for image in client.iter_images(range(9))]
            events = [event async for event in client.stream([0], steps=2)]
            assert (await client.info()).model_digest == DIGEST
            assert await client.is_ready()
            assert await client.wait_until_ready(deep=True)
        np.testing.assert_array_equal(generation.images, [image.image for image in images])
        np.testing.assert_array_equal(events[-1].images[0], generation.images[0])
        with pytest.raises(InvalidRequest, match="closed"):
            await client.generate(1)

    asyncio.run(run())


def test_a_slow_transport_does_not_hold_the_event_loop() -> None:
    others = threading.Event()

    class Slow(FakeTransport):
        def info(self) -> ServerInfo:
            assert others.wait(10), "nothing else runs meanwhile"
            return super().info()

        def generate(self, request: Request) -> Rows:
            assert others.wait(10), "nothing else runs meanwhile"
            return super().generate(request)

    async def other() -> None:
        others.set()

    async def last(events: AsyncGenerator[Progress | Generation, None]) -> Progress | Generation:
        return [event async for event in events][-1]

    async def run() -> None:
        async with AsyncClient(transport=Slow()) as client:
            for slow in (
                client.info(),
                client.is_ready(),
                client.wait_until_ready(deep=True),
                last(client.stream([1])),
            ):
                others.clear()
                result, _ = await asyncio.gather(slow, other())
                assert result

    asyncio.run(run())


def test_leaving_the_loop_and_closing() -> None:
    client = Client(transport=FakeTransport(), rows_per_request=1)
    for _ in client.iter_images(range(1000)):
        break
    client.close()
    with pytest.raises(InvalidRequest, match="closed"):
        client.iter_images([1])


def test_the_example_of_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference" / "client.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "FakeTransport" in block)
    exec(code, {})
    images, requests = capsys.readouterr().out.split()
    assert code.rstrip().endswith(f"# {images} images, {requests} requests")
