"""Failures of parts: networks that fail, hang or are missing, processes that are killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brats_ldm_client import BratsLDMError, Client
from reliability.launched import Launched
from reliability.load import Load, in_peace
from server.channel import connect
from support.faulty_networks import NETWORKS, order
from support.serving import infer, wait_until_well

FAULTS = {"error": {"error": "out of memory"}, "hang": {"seconds": 2.5}}
"""The orders for a network, by kind of fault; the repository has a network_timeout of 1 s."""
ANSWER_SECONDS = 8.0


def network_faults(repository: Path, url: str, rounds: int = 1) -> dict[str, int]:
    """`rounds` of every fault of each network of `write_faulty(repository, network_timeout=1)`, served at `url`.

    Requests of both front models meet each fault; one that asks for latents only must not mind what the decoder does.
    """
    counts: Counter[str] = Counter({"faults injected": 0, "images wrong": 0, "requests hung": 0})
    with connect(url) as raw:
        known = infer(raw, seed=[1], steps=[4]).as_numpy("image")
        for network in NETWORKS * rounds:
            for fault, orders in FAULTS.items():
                order(repository, network, **orders)
                counts["faults injected"] += 1
                counts.update(_meet(url, network, fault))
                order(repository, network)
                wait_until_well(raw)
                counts["images wrong"] += infer(raw, seed=[1], steps=[4]).as_numpy("image").tobytes() != known.tobytes()
    return dict(counts)


def _meet(url: str, network: str, fault: str) -> Counter[str]:
    """Three requests at once while the network is at fault; each error must name it."""
    asks: list[Callable[[Client], object]] = [
        lambda client: client.generate(seeds=[1, 2], steps=4),
        lambda client: list(client.stream(seeds=[3], steps=4)),
    ]
    counts: Counter[str] = Counter()

    def ask(call: Callable[[Client], object]) -> None:
        began = time.monotonic()
        try:
            with Client(url, retry_seconds=0, timeout=ANSWER_SECONDS) as client:
                call(client)
            raise AssertionError(f"an image came back although {network} was at fault ({fault})")
        except BratsLDMError as error:
            named = f"model '{network}'" in str(error)
            counts["errors that name the model" if named else f"other errors: {error}"] += 1
        counts["requests hung"] += time.monotonic() - began >= ANSWER_SECONDS

    with ThreadPoolExecutor(len(asks)) as pool:
        list(pool.map(ask, asks))
        if network == "vae_decoder":
            with connect(url) as raw:
                infer(raw, "final_latent", seed=[1], steps=[4], timeout=ANSWER_SECONDS)
            counts["others that went on"] += 1
    return counts


def kills(repository: Path, victims: Sequence[str]) -> dict[str, int | float]:
    """SIGKILL for each victim (`Launched.kill`) under load; the launcher must restart, the client must not notice."""
    seeds = range(6)
    slowest = 0.0
    with Launched(repository, f"--max-restarts={len(victims)}", "--health-interval=1") as launched:
        known = in_peace(launched.grpc_url, seeds)
        with Load(launched.grpc_url, seeds, known) as load:
            for count, victim in enumerate(victims, 1):
                _until_images(load, load.images + 4 * len(seeds))
                began = time.monotonic()
                launched.kill(victim)
                launched.wait_for("Ready again", count)
                slowest = max(slowest, time.monotonic() - began)
            _until_images(load, load.images + 4 * len(seeds))
        launched.processes |= {launched.server}
    return {
        "faults injected": len(victims),
        "restarts": launched.printed.count("Ready again"),
        "slowest restart, s": round(slowest, 1),
        "images": load.images,
        "images wrong": load.wrong,
        "requests lost": load.lost,
        **launched.left(),
    }


def _until_images(load: Load, images: int) -> None:
    deadline = time.monotonic() + 60
    while load.images < images:
        assert time.monotonic() < deadline, f"{load.images} of {images} images; errors: {load.errors}"
        time.sleep(0.02)
