"""`generate` of both clients against a real gRPC server that misbehaves on request."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import grpc
import numpy as np
import pytest

from brats_ldm_client import (
    PRESETS,
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ProtocolError,
    ServerError,
    ServerUnavailable,
    WeightsChanged,
)
from support.common import heeding_signals
from support.fake_triton import DIGEST, Caller, Served


def test_one_request(caller: Caller, served: Served) -> None:
    generation = caller("generate", 3, seed=5, steps=20, eta=0.5)
    assert generation.images.shape == (3, 24, 24)
    assert generation.images.dtype == np.float32
    assert generation.images[:, 0, 0].tolist() == [5, 6, 7]
    assert generation.seeds.tolist() == [5, 6, 7]
    assert (generation.steps, generation.sampler, generation.eta) == (20, "ddim", 0.5)
    assert generation.latents is None
    assert [record["seed"] for record in generation.provenance] == [5, 6, 7]
    assert generation.provenance[0]["model_digest"] == DIGEST
    assert generation.seconds > 0
    assert served.triton.seeds() == [[5, 6, 7]]
    assert served.triton.asked == [["image", "provenance"]]


def test_a_preset_is_sent_as_what_it_stands_for(caller: Caller, served: Served) -> None:
    draft = asdict(PRESETS["draft"])
    generation = caller("generate", 2, preset="draft")
    *_, streamed = caller.stream(2, preset="draft", preview_every=0)
    for made in (generation, streamed):
        assert {name: getattr(made, name) for name in draft} == draft
        assert all(draft.items() <= record.items() for record in made.provenance)
    assert all(draft.items() <= made.record.items() for made in caller.iter_images(range(2), preset="draft"))
    served.triton.received.clear()
    caller("generate", 1, preset="draft", decoder="full")
    caller.stream(1, preset="draft", decoder="full")
    assert [{"timestep_grid", "decoder"} & set(tensors) for tensors in served.triton.received] == [
        {"timestep_grid"}
    ] * 2
    with pytest.raises(InvalidRequest, match="preset 'fast' means"):
        caller("generate", 1, preset="fast", steps=20)
    with pytest.raises(InvalidRequest, match="preset 'fast' means"):
        caller.stream(1, preset="fast", sampler="ddim")
    assert len(served.triton.received) == 2, "what was refused is not sent"


def test_a_large_n_is_split_and_put_back_in_order_though_answers_come_in_any(caller: Caller, served: Served) -> None:
    def later_rows_first(seeds: list[int], context: grpc.ServicerContext) -> None:
        time.sleep(max(0.0, 0.2 - seeds[0] / 100))

    served.triton.behave = later_rows_first
    done: list[tuple[int, int]] = []
    came: list = []
    report = {"on_progress": lambda *event: done.append(event), "on_images": came.append}
    generation = caller("generate", 21, seed=0, client={"rows_per_request": 4}, **report)
    assert generation.images[:, 0, 0].tolist() == list(range(21))
    assert [record["seed"] for record in generation.provenance] == list(range(21))
    assert [seed for images in came for seed in images.images[:, 0, 0].tolist()] == list(range(21))
    assert sorted(len(seeds) for seeds in served.triton.seeds()) == [1, 4, 4, 4, 4, 4]
    assert done[-1] == (21, 21)
    assert done == sorted(done)


def test_concurrency_is_used_and_kept(caller: Caller, served: Served) -> None:
    now, peak, three = 0, 0, threading.Barrier(3)

    def count(seeds: list[int], context: grpc.ServicerContext) -> None:
        nonlocal now, peak
        with served.triton.lock:
            now += 1
            peak = max(peak, now)
        three.wait(10)
        time.sleep(0.05)  # for one more than there may be
        with served.triton.lock:
            now -= 1

    served.triton.behave = count
    caller("generate", 12, seed=0, client={"rows_per_request": 1, "concurrency": 3})
    assert peak == 3


def test_seeds_latents_and_final_latents(caller: Caller, served: Served) -> None:
    latents = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    client = {"rows_per_request": 2}
    generation = caller("generate", [9, -4, 9], latents=latents, return_latents=True, client=client)
    assert generation.seeds.tolist() == [9, -4, 9]
    np.testing.assert_array_equal(generation.latents, latents)
    assert "final_latent" in served.triton.asked[0]


def test_a_random_base_seed_is_chosen_once_and_kept_in_a_retry(caller: Caller, served: Served) -> None:
    served.triton.behave = fail_first(served, 1)
    generation = caller("generate", 2)
    first, second = served.triton.seeds()
    assert first == second == generation.seeds.tolist()


def fail_first(served: Served, times: int, text: str = "queue is full, try later") -> Any:
    """Behaviour: UNAVAILABLE for each chunk's first requests."""
    failures: dict[int, int] = {}

    def behave(seeds: list[int], context: grpc.ServicerContext) -> None:
        with served.triton.lock:
            failures[seeds[0]] = failures.get(seeds[0], 0) + 1
            fail = failures[seeds[0]] <= times
        if fail:
            context.abort(grpc.StatusCode.UNAVAILABLE, text)

    return behave


def test_unavailable_twice_then_success(caller: Caller, served: Served) -> None:
    served.triton.behave = fail_first(served, 2)
    generation = caller("generate", 4, seed=0, client={"rows_per_request": 2})
    assert generation.images[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert len(served.triton.received) == 6


def test_a_server_that_restarts_in_the_middle(caller: Caller, served: Served) -> None:
    """gRPC's own pauses before it dials again (1 s, 1.6 s, … 2 min) are shortened for this."""

    def restart() -> None:
        served.stop()
        time.sleep(0.5)
        served.triton.behave = lambda seeds, context: None
        served.start()

    restarting = threading.Thread(target=restart)

    def fall_over(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds[0] >= 4:
            with served.triton.lock:
                if not restarting.ident:
                    restarting.start()
            time.sleep(0.3)

    served.triton.behave = fall_over
    began = time.monotonic()
    generation = caller("generate", 12, seed=0, client={"rows_per_request": 2, "concurrency": 2})
    restarting.join()
    assert generation.images[:, 0, 0].tolist() == list(range(12))
    assert time.monotonic() - began < 5


def test_the_retries_end(caller: Caller, served: Served) -> None:
    served.triton.behave = fail_first(served, 10**6)
    with pytest.raises(ServerUnavailable, match="queue is full"):
        caller("generate", 1, client={"retry_seconds": 1.5})
    assert len(served.triton.received) >= 3


def test_a_request_that_the_server_keeps_cancelling(caller: Caller, served: Served) -> None:
    """A server that stops cancels what it holds: worth a retry, but not for ever."""
    served.triton.behave = lambda seeds, context: context.abort(grpc.StatusCode.CANCELLED, "stopping")
    with pytest.raises(Cancelled, match="stopping"):
        caller("generate", 1, client={"retry_seconds": 1})
    assert len(served.triton.received) > 1


def test_no_retry_where_it_is_of_no_use(caller: Caller, served: Served) -> None:
    served.triton.behave = fail_first(served, 1, "Request for unknown model: 'mri_ldm' is not found")
    with pytest.raises(ServerUnavailable, match="not loaded"):
        caller("generate", 1)
    assert len(served.triton.received) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.INTERNAL, ServerError),
    ],
)
def test_an_error_ends_the_run_and_cancels_the_other_requests(
    caller: Caller, served: Served, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    def one_fails(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds != [3]:
            served.triton.stall(seeds, context)
        while len(served.triton.received) < 4:
            time.sleep(0.01)
        context.abort(code, "steps=0: must be 1 to 1000")

    served.triton.behave = one_fails
    with pytest.raises(kind, match="1 to 1000"):
        caller("generate", 8, seed=0, client={"rows_per_request": 1})
    served.triton.wait_cancelled(3)
    assert len(served.triton.received) == 4


def test_the_deadline(caller: Caller, served: Served) -> None:
    served.triton.behave = served.triton.stall
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
        caller("generate", 1, client={"timeout": 0.3})
    assert time.monotonic() - began < 5, "the server stalls for ten seconds"
    served.triton.wait_cancelled(1)


def test_cancelling_the_task_cancels_the_work(served: Served) -> None:
    served.triton.behave = served.triton.stall

    async def run() -> None:
        async with AsyncClient(served.url, rows_per_request=1) as client:
            task = asyncio.create_task(client.generate(3))
            while len(served.triton.received) < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    served.triton.wait_cancelled(3)


def test_ctrl_c_cancels_the_work(served: Served) -> None:
    served.triton.behave = served.triton.stall
    program = (
        "import sys; from brats_ldm_client import Client\n"
        "try: Client(sys.argv[1], rows_per_request=1).generate(3)\n"
        "except KeyboardInterrupt: sys.exit(42)"
    )
    process = subprocess.Popen(heeding_signals([sys.executable, "-c", program, served.url]))
    try:
        deadline = time.monotonic() + 10
        while len(served.triton.received) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 42
    finally:
        process.kill()
    served.triton.wait_cancelled(3)


def test_closing_the_client_from_another_thread_ends_the_run(served: Served) -> None:
    served.triton.behave = served.triton.stall
    client = Client(served.url)
    threading.Timer(0.3, client.close).start()
    with pytest.raises(InvalidRequest, match="closed"):
        client.generate(1)


def test_a_closed_client_says_so(served: Served) -> None:
    client = Client(served.url)
    client.close()
    client.close()
    for call in (lambda: client.generate(1), client.info, lambda: client.stream(1)):
        with pytest.raises(InvalidRequest, match="closed"):
            call()


def test_a_missing_output_is_a_protocol_error(caller: Caller, served: Served) -> None:
    served.triton.omit = {"provenance"}
    with pytest.raises(ProtocolError, match="provenance"):
        caller("generate", 1)


def test_an_answer_larger_than_grpcs_default_limit(caller: Caller, served: Served) -> None:
    served.triton.size = 240
    assert caller("generate", 64, client={"rows_per_request": 64}).images.shape == (64, 240, 240)


def test_connection_refused_is_one_clear_error_at_once(caller: Caller) -> None:
    caller.url = "127.0.0.1:1"
    began = time.monotonic()
    for method in ("generate", "info"):
        with pytest.raises(ServerUnavailable, match="no Triton server answers at 127"):
            caller(method, *([1] if method == "generate" else []))
    with pytest.raises(ServerUnavailable, match="no Triton server"):
        caller.stream(1)
    assert time.monotonic() - began < 10, "lost connections are tried again for a minute"


def test_headers_are_sent(caller: Caller, served: Served) -> None:
    caller("generate", 1, client={"headers": {"x-token": "secret"}})
    assert served.triton.metadata[0]["x-token"] == "secret"


def test_servers_with_different_weights_are_not_mixed(caller: Caller, served: Served) -> None:
    def update(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds[0] == 2:
            served.triton.digest = "sha256:" + "cd" * 32

    served.triton.behave = update
    with pytest.raises(WeightsChanged, match=r"sha256:abab.* made the first images, and now sha256:cdcd"):
        caller("generate", 4, seed=0, client={"rows_per_request": 1, "concurrency": 1})
