"""perf_analyzer as a scenario of the benchmark: images checked bit by bit under load, the mean batch of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.wire import Array, ask, image_feeds
from benchmarks.serving.analyzer.fetch import fetch
from benchmarks.serving.analyzer.run import UNARY, AnalyzerError, Load, Run, Target, input_data, run
from benchmarks.serving.bench import Bench
from benchmarks.serving.contestants import SEEDS, ours
from training.files import write_text

SEEDS_USED = 16
OUTPUTS = ("image", "final_latent", "provenance", "png")
TIMEOUT_S = 900.0


def analyze(bench: Bench, report: Path) -> dict[str, Any]:
    """perf_analyzer at each concurrency; its words go to `report`.

    Raises:
        FetchError: the program cannot be had.
        AnalyzerError: it has failed, or a served image was not the one of its seed, bit for bit.
    """
    amount, server, program = bench.amount, ours(bench), fetch(bench.work / "perf_analyzer")
    target = Target(server.server.grpc_url, access=server.server.access)
    seeds = list(SEEDS[: min(SEEDS_USED, amount.analyzer_requests)])
    # A row a seed, in one request: what is compared comes in requests of one.
    answers = {name: ask(server.raw, UNARY, name, image_feeds(seeds, amount.steps)) for name in OUTPUTS}

    def compared(concurrency: int, requests: int, expected: Mapping[str, Array]) -> Run:
        content, load = expecting(seeds, amount.steps, expected), Load("concurrency", concurrency, requests)
        return run(program, target, server.raw, load, content, bench.work, timeout_s=TIMEOUT_S)

    if compared(1, 1, another_image(answers)).failure == "":
        raise AnalyzerError(
            "perf_analyzer took an image with one other bit: it does not compare, its figures say nothing"
        )
    points, words = [], []
    for concurrency in amount.analyzer_concurrency:
        result = compared(concurrency, max(amount.analyzer_requests, concurrency), answers)
        words.append(result.report)
        write_text(report, "\n".join(words))
        if result.failure:
            raise AnalyzerError(result.failure)
        seconds = [request.seconds for request in result.requests]
        points.append({"concurrency": concurrency, "requests": len(seconds), "seconds": seconds,
                       "mean_batch": result.mean_rows})  # fmt: skip
        bench.report(f"  concurrency {concurrency}: mean batch {result.mean_rows}")
    return {"program": "perf_analyzer 2.51.0", "points": points}


def another_image(answers: Mapping[str, Array]) -> dict[str, Array]:
    """The same answers but for the last bit of one pixel of each image."""
    image = answers["image"].copy()
    image[:, 0, 120, 120] = np.nextafter(image[:, 0, 120, 120], np.float32(1))
    return {**answers, "image": image}


def expecting(seeds: Sequence[int], steps: int, answers: Mapping[str, Array]) -> dict[str, Any]:
    """Its input file with what must come back.

    perf_analyzer 2.51 compares outputs by their place, so none may be left out. A float's repr is exact.
    """
    expected = [
        {name: {"content": _values(array[row]), "shape": list(array.shape[1:])} for name, array in answers.items()}
        for row in range(len(seeds))
    ]
    return {**input_data(seeds, steps=steps), "validation_data": expected}


def _values(array: Array) -> list[Any]:
    return [value.decode() if array.dtype == np.object_ else float(value) for value in array.ravel()]
