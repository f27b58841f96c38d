"""Orderly stop: SIGTERM to `python -m server` with work in flight."""

from __future__ import annotations

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brats_ldm_client import Client, Generation, Progress, ServerUnavailable
from reliability.launched import PATIENCE, Launched
from reliability.load import STEPS, count_wrong, in_peace
from server.channel import connect
from support.faulty_networks import order
from support.serving import infer, start, wait_for_rows, wait_until_refused

SEEDS = (1, 2, 3)


def drains(repository: Path, rounds: int = 1, requests: int = 4) -> dict[str, int | float]:
    """`rounds` stops of a server of `write_faulty(repository)`, each amid `requests` requests of both front models."""
    lost = wrong = refused = 0
    slowest = slowest_refusal = 0.0
    left = dict.fromkeys(("processes left", "regions left", "ports left"), 0)
    for _ in range(rounds):
        order(repository, "unet")
        with Launched(repository, "--grace=30") as launched, ThreadPoolExecutor(requests) as pool:
            known = in_peace(launched.grpc_url, SEEDS)
            order(repository, "unet", seconds=0.06)
            running = [pool.submit(_generate, launched.grpc_url, index % 2 == 1) for index in range(requests)]
            wait_for_rows(launched, requests * len(SEEDS))
            launched.process.send_signal(signal.SIGTERM)
            launched.wait_for("Draining")
            slowest_refusal = max(slowest_refusal, _refusal(launched.grpc_url))
            refused += 1
            for generation in running:
                lost += generation.exception() is not None
                wrong += 0 if generation.exception() else count_wrong(generation.result().images, known)
            slowest = max(slowest, _exit(launched))
        left = {name: left[name] + count for name, count in launched.left().items()}
    return {
        "stops": rounds,
        "requests in flight": rounds * requests,
        "requests lost": lost,
        "images wrong": wrong,
        "new requests refused": refused,
        "slowest refusal, s": round(slowest_refusal, 3),
        "slowest exit after the last row, s": round(slowest, 2),
        **left,
    }


def _generate(url: str, stream: bool) -> Generation:
    with Client(url, retry_seconds=0) as client:
        if not stream:
            return client.generate(seeds=SEEDS, steps=STEPS)
        *events, last = client.stream(seeds=SEEDS, steps=STEPS, preview_every=5)
        assert all(isinstance(event, Progress) for event in events)
        assert isinstance(last, Generation)
        return last


def _refusal(url: str) -> float:
    """Seconds until a new request is refused, with a hint when to come again."""
    with Client(url, retry_seconds=0) as client:
        refusal, took = wait_until_refused(lambda: client.generate(1, steps=1), ServerUnavailable)
    assert re.search(r"is stopping.* try again in about", str(refusal)), refusal
    assert refusal.retry_after > 0
    return took


def _exit(launched: Launched) -> float:
    """Seconds from now to the end of the launcher."""
    began = time.monotonic()
    assert launched.process.wait(PATIENCE) == 0, launched.printed
    return time.monotonic() - began


def grace_over(repository: Path, grace: float = 1.0) -> dict[str, int | float]:
    """A stop with a request that would take minutes: it is refused with DRAINING once the grace period is over."""
    order(repository, "unet", seconds=0.1)
    with Launched(repository, f"--grace={grace}") as launched, connect(launched.grpc_url) as raw:
        infer(raw, seed=[1], steps=[1])
        _, done, outcome = start(raw, seed=[1], steps=[1000])
        wait_for_rows(launched, 1)
        began = time.monotonic()
        launched.process.send_signal(signal.SIGTERM)
        assert done.wait(PATIENCE)
        answered = time.monotonic() - began
        refused = outcome[0].status() == "StatusCode.UNAVAILABLE" and outcome[0].message().startswith("[DRAINING ")
        took = _exit(launched)
    order(repository, "unet")
    return {
        "answer after SIGTERM, s": round(answered, 1),
        "other answers": int(not refused),
        "exit after the answer, s": round(took, 1),
        **launched.left(),
    }
