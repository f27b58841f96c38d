"""A long mixture of good, bad, cancelled and refused requests, with the memory of every process of the server."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tqdm import tqdm

from benchmarks.harness.machine import shared_bytes
from brats_ldm_client import Client, Generation, Progress, ServerUnavailable
from mri_ldm.request import RowParameters
from reliability.memory import anonymous_bytes
from server.channel import connect
from server.proc import children, model_of
from server.process import TritonServer
from support.serving import infer, start, wait_until_idle
from support.toy_pipeline import Reference, write_pipeline

THREADS = 6
ROWS = 5
"""Places in the step loop, and as many to wait: six clients with up to five rows each find them taken now and then."""
SAMPLES = 200
MB_PER_10_000 = 8.0
"""The most that a process may grow after the warm-up, per 10,000 requests. Seen: below 1 for models, below 4 for
tritonserver, up and down."""


@dataclass
class Soak:
    """Outcomes of the requests, and memory meanwhile: MB by process, and of /dev/shm, after `requests` requests."""

    counts: Counter[str] = field(default_factory=Counter)
    requests: list[int] = field(default_factory=list)
    megabytes: dict[str, list[float]] = field(default_factory=dict)

    def growth(self) -> dict[str, float]:
        """MB between the second and the last quarter of the samples; the first is the warm-up."""
        quarter = max(1, len(self.requests) // 4)
        return {
            name: float(np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter]))
            for name, values in self.megabytes.items()
        }


def write_repository(folder: Path) -> Path:
    """Toy networks, and a queue that is soon full."""
    repository = write_pipeline(folder)
    for model in ("mri_ldm", "mri_ldm_stream"):
        config = repository / model / "config.pbtxt"
        limits = r'("max_rows_(?:in_flight|waiting)" value: \{ string_value: )"\d+"'
        text, changed = re.subn(limits, rf'\g<1>"{ROWS}"', config.read_text())
        assert changed == 2
        config.write_text(text)
    return repository


def soak(repository: Path, requests: int, seed: int = 0) -> Soak:
    """`requests` requests of all kinds by six clients at once, on a new server of `write_repository`."""
    result, reference = Soak(), Reference(repository)
    with TritonServer(repository) as server, tqdm(total=requests, unit="request", disable=None, desc="soak") as bar:
        server.probe()
        clients = [_Client(server, reference, random.Random(f"{seed} {index}")) for index in range(THREADS)]
        shares = [requests // THREADS + (index < requests % THREADS) for index in range(THREADS)]
        threads = [
            threading.Thread(target=client.run, args=(share, result, bar), daemon=True)
            for client, share in zip(clients, shares, strict=True)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            done = result.counts.total()
            if done * SAMPLES >= len(result.requests) * requests:
                _sample(server, done, result)
            time.sleep(0.01)
        wait_until_idle(server)
        result.counts["processes lost"] = sum(not alive for alive in children(server.pid).values())
    return result


def plot(result: Soak, path: Path) -> Path:
    """Memory against requests done, a line for each process, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in sorted(result.megabytes.items(), key=lambda item: -item[1][-1]):
        axes.plot(result.requests, values, label=name, linewidth=1.2)
    axes.set(xlabel="requests done", ylabel="memory of its own, MB", ylim=(0, None), title="Memory under a mixed load")
    axes.legend(fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _sample(server: TritonServer, done: int, result: Soak) -> None:
    names = {server.pid: "tritonserver"} | {child: model_of(child) for child in children(server.pid)}
    sizes = {name: anonymous_bytes(process) for process, name in names.items()}
    sizes["/dev/shm"] = shared_bytes(server)
    result.requests.append(done)
    for name, size in sizes.items():
        result.megabytes.setdefault(name, []).append(size / 1e6)


class _Client:
    """Sends requests of random kinds, one after the other."""

    def __init__(self, server: TritonServer, reference: Reference, draw: random.Random) -> None:
        self.server, self.reference, self.draw = server, reference, draw
        self.kinds: dict[Callable[[], str], float] = {
            self._images: 0.5, self._stream: 0.15, self._leave_stream: 0.05, self._cancel: 0.1, self._bad_input: 0.2,
        }  # fmt: skip

    def run(self, requests: int, result: Soak, bar: tqdm[None]) -> None:
        url = self.server.grpc_url
        with Client(url, retry_seconds=0, timeout=60) as self.client, connect(url) as self.raw:
            for _ in range(requests):
                (kind,) = self.draw.choices(list(self.kinds), list(self.kinds.values()))
                try:
                    outcome = kind()
                except ServerUnavailable:
                    outcome = "refused, queue full"
                except (Exception, pytest.fail.Exception) as error:  # counted, told, and the others go on
                    outcome = f"requests lost: {type(error).__name__}: {str(error)[:200]}"
                result.counts[outcome] += 1
                bar.update()

    def _rows(self) -> tuple[list[int], int, np.ndarray]:
        """Seeds and steps, few enough that most images are known already; and the images."""
        seeds, steps = [self.draw.randrange(20) for _ in range(self.draw.randint(1, 5))], self.draw.choice((1, 4, 9))
        return seeds, steps, self.reference.rows([RowParameters(seed, steps, "ddim", 0.0) for seed in seeds])[1]

    def _judge(self, generation: Generation | Progress, images: np.ndarray) -> str:
        assert isinstance(generation, Generation)
        return "images" if np.array_equal(generation.images, images[:, 0]) else "images wrong"

    def _images(self) -> str:
        seeds, steps, images = self._rows()
        return self._judge(self.client.generate(seeds=seeds, steps=steps), images)

    def _stream(self) -> str:
        seeds, steps, images = self._rows()
        *_, last = self.client.stream(seeds=seeds, steps=steps, preview_every=self.draw.randint(0, 3))
        return self._judge(last, images)

    def _leave_stream(self) -> str:
        for _ in self.client.stream(self.draw.randint(1, 3), seed=1, steps=1000, preview_every=1):
            break
        return "cancelled"

    def _cancel(self) -> str:
        call, done, outcome = start(self.raw, seed=[1, 2], steps=[1000, 1000])
        time.sleep(self.draw.uniform(0, 0.05))
        call.cancel()
        assert done.wait(10), "a cancelled call hangs"
        (answer,) = outcome
        if isinstance(answer, triton.InferResult):  # this thread had to wait for a core until all steps were done
            latents, _ = self.reference.rows([RowParameters(seed, 1000, "ddim", 0.0) for seed in (1, 2)])
            return "images" if np.array_equal(answer.as_numpy("final_latent"), latents) else "images wrong"
        if "UNAVAILABLE" in str(answer):
            return "refused, queue full"
        assert "CANCELLED" in str(answer.status())
        return "cancelled"

    def _bad_input(self) -> str:
        bad = self.draw.choice([{"steps": [0]}, {"steps": [10**6]}, {"eta": [7.0]}, {"sampler": ["euler"]}])
        with pytest.raises(triton.InferenceServerException) as raised:
            infer(self.raw, seed=[1], **bad)
        assert "INVALID_ARGUMENT" in str(raised.value.status()), raised.value
        return "bad input told"
