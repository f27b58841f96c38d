"""perf_analyzer as a scenario of the benchmark: images checked bit by bit under load, the mean batch of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.wire import ask, image_feeds
from benchmarks.serving.analyzer import tool
from benchmarks.serving.analyzer.fetch import fetch
from benchmarks.serving.bench import Bench
from benchmarks.serving.contestants import SEEDS, ours
from benchmarks.serving.ours import Ours
from benchmarks.serving.worker import Array
from training.files import write_text

SEEDS_USED = 16
OUTPUTS = ("image", "final_latent", "provenance")
TIMEOUT_S = 900.0


def analyze(bench: Bench, report: Path) -> dict[str, Any]:
    """perf_analyzer at each concurrency; its words go to `report`.

    Raises:
        FetchError: the program cannot be had.
        RuntimeError: it has failed, or a served image was not the one of its seed, bit for bit.
    """
    amount, server = bench.amount, ours(bench)
    target = tool.Target(server.server.grpc_url, access=server.server.access)
    program = fetch(bench.work / "perf_analyzer")
    seeds = list(SEEDS[: min(SEEDS_USED, amount.analyzer_requests)])
    answers = _answers(server, seeds, amount.steps)

    def run(load: tool.Load, expected: Mapping[str, Array]) -> tool.Run:
        content = expecting(seeds, amount.steps, expected)
        return tool.run(program, target, server.raw, load, content, bench.work, timeout_s=TIMEOUT_S)

    if run(tool.Load("concurrency", 1, 1), another_image(answers)).done.returncode == 0:
        raise RuntimeError(
            "perf_analyzer took an image with one other bit: it does not compare, its figures say nothing"
        )
    points, words = [], []
    for concurrency in amount.analyzer_concurrency:
        done = run(tool.Load("concurrency", concurrency, max(amount.analyzer_requests, concurrency)), answers)
        words.append(done.report)
        write_text(report, "\n".join(words))
        latencies = [request.seconds for request in done.requests()]
        point = {"concurrency": concurrency, "requests": len(latencies), "seconds": latencies}
        points.append({**point, "mean_batch": done.mean_rows()})
        bench.report(f"  concurrency {concurrency}: mean batch {points[-1]['mean_batch']}")
    return {"program": "perf_analyzer 2.51.0", "points": points}


def another_image(answers: Mapping[str, Array]) -> dict[str, Array]:
    """The same answers but for the last bit of one pixel of each image."""
    image = answers["image"].copy()
    image[:, 0, 120, 120] = np.nextafter(image[:, 0, 120, 120], np.float32(1))
    return {**answers, "image": image}


def _answers(server: Ours, seeds: Sequence[int], steps: int) -> dict[str, Array]:
    """Every output of mri_ldm by its name, a row a seed, in one request: what is compared comes in requests of one."""
    return {name: ask(server.raw, tool.UNARY, name, image_feeds(seeds, steps)) for name in OUTPUTS}


def expecting(seeds: Sequence[int], steps: int, answers: Mapping[str, Array]) -> dict[str, Any]:
    """Its input file with what must come back.

    perf_analyzer 2.51 compares outputs by their place, so none may be left out. A float's repr is exact.
    """
    expected = [
        {name: {"content": _values(array[row]), "shape": list(array.shape[1:])} for name, array in answers.items()}
        for row in range(len(seeds))
    ]
    return {**tool.input_data(seeds, steps=steps), "validation_data": expected}


def _values(array: Array) -> list[Any]:
    return [value.decode() if array.dtype == np.object_ else float(value) for value in array.ravel()]
