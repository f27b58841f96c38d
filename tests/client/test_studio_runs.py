"""Runs of the studio, without a page: a fake server that misbehaves on request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import grpc
import numpy as np
import pytest

from brats_ldm_client import AsyncClient, BratsLDMError, DeadlineExceeded, InvalidRequest, ServerUnavailable
from brats_ldm_client.studio.form import How
from brats_ldm_client.studio.generating import generate
from brats_ldm_client.studio.runs import Asked, State, watch
from brats_ldm_client.studio.server import ServerWatch
from brats_ldm_client.studio.sessions import Session, Studio
from brats_ldm_client.studio.views import View
from brats_ldm_client.studio.walking import walk
from support.fake_triton import DIGEST, Served
from support.serving import PATIENCE, wait_until

BUSY = "[BUSY retry_after=1] 8 rows wait, and no more than 8 may"
FAST = How("ddim", 4)


def run(views: Callable[[Studio, Session], AsyncIterator[View]], served: Served) -> list[View]:
    async def all_of_them() -> list[View]:
        return [view async for view in views(Studio({"url": served.url}), Session())]

    return asyncio.run(asyncio.wait_for(all_of_them(), PATIENCE))


def states(served: Served, asked: list[Asked], stop_at: int | None = None) -> list[tuple[State, ...]]:
    """What `watch` gives; it is stopped once each row has done `stop_at` steps."""

    async def all_of_them() -> list[tuple[State, ...]]:
        stop, seen = asyncio.Event(), []
        async with (
            AsyncClient(served.url, retry_seconds=0) as client,
            aclosing(watch(client, asked, stop, interval=0.01)) as moments,
        ):
            async for moment in moments:
                seen.append(moment)
                if stop_at is not None and min(state.step(0) for state in moment) >= stop_at:
                    stop.set()
        return seen

    return asyncio.run(asyncio.wait_for(all_of_them(), PATIENCE))


def test_states_from_first_to_last(served: Served) -> None:
    served.triton.stream_behave = lambda step, context: time.sleep(0.05)
    seen = states(served, [Asked((3, 4), FAST, preview_every=1)])
    steps = [moment[0].steps_done for moment in seen]
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert steps[-1] == 8
    assert len(set(steps)) > 2
    [last] = seen[-1]
    assert last.phase == "done"
    assert last.generation is not None
    assert last.generation.seeds.tolist() == [3, 4]


def test_several_run_together_and_one_may_fail(served: Served) -> None:
    def behave(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds == [2]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "[INVALID row=0] no such seed")

    served.triton.behave = behave
    last = states(served, [Asked((seed,), FAST) for seed in (1, 2, 3)])[-1]
    assert [state.phase for state in last] == ["done", "failed", "done"]
    assert isinstance(last[1].error, InvalidRequest)


def test_stop_cancels_what_runs_and_keeps_what_is_done(served: Served) -> None:
    hold = threading.Event()
    served.triton.stream_behave = lambda step, context: hold.wait(10) if step > 2 else None
    slow, quick = Asked((1,), How("ddim", 100), preview_every=1), Asked((2,), How("ddim", 2), preview_every=1)
    last = states(served, [slow, quick], stop_at=2)[-1]
    assert last[0].phase == "stopped"
    assert last[0].step(0) == 2
    # On a busy machine the quick one may not be quite done either.
    wait_until(lambda: [1] in served.triton.cancelled, "the slow one was not cancelled")
    hold.set()


def test_closing_the_states_cancels_the_request(served: Served) -> None:
    """As when the tab of the browser is closed."""
    hold = threading.Event()
    served.triton.stream_behave = lambda step, context: hold.wait(10) if step > 1 else None

    async def leave() -> None:
        async with AsyncClient(served.url, retry_seconds=0) as client:
            async for moment in watch(client, [Asked((1,), FAST, preview_every=1)], asyncio.Event()):
                if moment[0].step(0):
                    break

    asyncio.run(asyncio.wait_for(leave(), PATIENCE))
    served.triton.wait_cancelled(1)
    hold.set()


def test_a_busy_server_is_asked_again_when_it_said(served: Served) -> None:
    refusals = [BUSY, BUSY]

    def behave(seeds: list[int], context: grpc.ServicerContext) -> None:
        if refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, refusals.pop())

    served.triton.behave = behave
    seen = states(served, [Asked((1,), FAST)])
    waiting = [moment[0] for moment in seen if moment[0].phase == "busy"]
    assert waiting
    assert isinstance(waiting[0].error, ServerUnavailable)
    assert seen[-1][0].phase == "done"
    assert seen[-1][0].error is None
    assert len(served.triton.received) == 3


def test_one_can_stop_while_the_server_is_busy(served: Served) -> None:
    served.triton.behave = lambda seeds, context: context.abort(grpc.StatusCode.UNAVAILABLE, BUSY.replace("1", "9"))

    async def stop_when_busy() -> State:
        stop = asyncio.Event()
        async with AsyncClient(served.url, retry_seconds=0) as client:
            async for [state] in watch(client, [Asked((1,), FAST)], stop, 0.01):
                if state.phase == "busy":
                    stop.set()
        return state

    began = time.monotonic()
    assert asyncio.run(stop_when_busy()).phase == "stopped"
    assert time.monotonic() - began < 8, "it did not wait for the server"


@pytest.mark.parametrize(("count", "steps", "every", "decoder"), [(64, 50, 5, "latent"), (64, 1000, 1, "tiny")])
def test_streams_are_small_enough_for_all_their_previews(count: int, steps: int, every: int, decoder: str) -> None:
    """The server's bound, in its own words: answers due, times the bytes of one, are at most max_preview_mb."""
    latents = np.zeros((count, 64, 64), np.float32)
    parts = Asked(tuple(range(count)), How("ddim", steps), every, decoder, latents).split()
    assert [seed for part in parts for seed in part.seeds] == list(range(count))
    row = 64 * 64 * 4 + (240 * 240 * 4 if decoder == "tiny" else 0)
    for part in parts:
        rows = len(part.seeds)
        assert part.latents is not None
        assert len(part.latents) == rows
        assert rows == 1 or rows * (steps // every) * rows * row <= 64 * 2**20


def test_views_of_a_run(served: Served) -> None:
    served.triton.stream_behave = lambda step, context: time.sleep(0.1)
    views = run(lambda studio, session: generate(studio, session, (1, 2), FAST, 1, "latent"), served)
    assert [view.running for view in views] == [True] * (len(views) - 1) + [False]
    assert views[-1].finished
    assert "2 synthetic slices in" in views[-1].words
    assert any('data-kind="preview"' in str(view.pictures) for view in views)
    assert str(views[-1].pictures).count('data-kind="image"') == 2
    assert any("step" in view.progress and "of 4" in view.progress for view in views)


def test_a_walk_starts_from_noise_between_that_of_two_seeds(served: Served) -> None:
    """The fake server's start noise of a seed is a plane of that value."""
    views = run(lambda studio, session: walk(studio, session, 1, 2, [0.0, 0.5, 1.0], FAST), served)
    assert views[-1].finished
    latents = [tensors["latent"][:, 0] for tensors in served.triton.received if "latent" in tensors]
    np.testing.assert_allclose(np.concatenate(latents)[:, 0, 0], [1.0, 1.5, 2.0], rtol=1e-6)


def test_other_weights_than_before_are_mentioned(served: Served) -> None:
    async def twice() -> list[View]:
        studio, session = Studio({"url": served.url}), Session()
        last = []
        for digest in (DIGEST, DIGEST, "sha256:" + "cd" * 32):
            served.triton.digest = digest
            last.append([view async for view in generate(studio, session, (1,), FAST, 1, "latent")][-1])
        return last

    assert ["other weights" in view.words for view in asyncio.run(twice())] == [False, False, True]


def test_the_server_is_watched_through_a_restart(served: Served) -> None:
    async def seen() -> list[str]:
        watching = ServerWatch(lambda: AsyncClient(served.url, retry_seconds=0, connect_timeout=2))
        task = asyncio.create_task(watching.run())
        found = []
        for away in (False, True, False):
            if away:
                await asyncio.to_thread(served.stop)
            elif found:
                served.start()
            while not (state := watching.state()).seen or (state.error is not None) != away:
                await asyncio.sleep(0.05)
            found.append(type(state.error).__name__ if state.error else str(state.info and state.info.model_digest))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    assert asyncio.run(asyncio.wait_for(seen(), PATIENCE)) == [DIGEST, "ServerUnavailable", DIGEST]


def test_an_older_server_does_not_tell_its_queue(served: Served) -> None:
    def behave(seeds: list[int], context: grpc.ServicerContext) -> None:
        if "queue" in served.triton.asked[-1]:
            words = "unexpected inference output 'queue' for model 'mri_ldm'"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)

    served.triton.behave = behave

    async def look() -> tuple[object, object]:
        watching = ServerWatch(lambda: AsyncClient(served.url, retry_seconds=0))
        watching.state()
        task = asyncio.create_task(watching.run())
        while not watching.state().seen:
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        state = watching.state()
        return state.error, state.info and state.info.model_digest

    assert asyncio.run(asyncio.wait_for(look(), PATIENCE)) == (None, DIGEST)


def test_a_frozen_server_is_noticed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its requests may take ten minutes."""
    monkeypatch.setattr("brats_ldm_client.studio.server._PATIENCE", 0.5)
    frozen = threading.Event()
    served.triton.behave = lambda seeds, context: (frozen.wait(10), None)[1]

    async def look() -> BratsLDMError | None:
        watching = ServerWatch(lambda: AsyncClient(served.url, retry_seconds=0))
        watching.state()
        task = asyncio.create_task(watching.run())
        while not watching.state().seen:
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return watching.state().error

    error = asyncio.run(asyncio.wait_for(look(), PATIENCE))
    frozen.set()
    assert isinstance(error, DeadlineExceeded)
