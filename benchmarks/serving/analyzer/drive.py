"""perf_analyzer as a scenario of the benchmark: images checked bit by bit under load, the mean batch of networks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.wire import ask
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
    data, profile = bench.work / "seeds.json", bench.work / "profile.json"
    answers = _answers(server, seeds, amount.steps)
    write_text(data, json.dumps(expecting(seeds, amount.steps, another_image(answers))))
    networks = tool.counts(server.raw, target.access)
    wrong = tool.command(target, tool.Load("concurrency", 1, 1), data, profile, networks)
    if tool.run(program, wrong, profile, TIMEOUT_S).returncode == 0:
        raise RuntimeError(
            "perf_analyzer took an image with one other bit: it does not compare, its figures say nothing"
        )
    write_text(data, json.dumps(expecting(seeds, amount.steps, answers)))
    points, words = [], []
    for concurrency in amount.analyzer_concurrency:
        load = tool.Load("concurrency", concurrency, max(amount.analyzer_requests, concurrency))
        arguments = tool.command(target, load, data, profile, networks)
        before = tool.counts(server.raw, target.access)
        done = tool.run(program, arguments, profile, TIMEOUT_S)
        words.append(f"$ perf_analyzer {shlex.join(arguments)}\n{done.stdout}{done.stderr}")
        write_text(report, "\n".join(words))
        tool.check(done)
        latencies = [request.seconds for request in tool.requests(tool.read_profile(profile))]
        point = {"concurrency": concurrency, "requests": len(latencies), "seconds": latencies}
        points.append({**point, "mean_batch": tool.mean_rows(before, tool.counts(server.raw, target.access))})
        bench.report(f"  concurrency {concurrency}: mean batch {points[-1]['mean_batch']}")
    return {"program": "perf_analyzer 2.51.0", "points": points}


def another_image(answers: Mapping[str, Array]) -> dict[str, Array]:
    """The same answers but for the last bit of one pixel of each image."""
    image = answers["image"].copy()
    image[:, 0, 120, 120] = np.nextafter(image[:, 0, 120, 120], np.float32(1))
    return {**answers, "image": image}


def _answers(server: Ours, seeds: Sequence[int], steps: int) -> dict[str, Array]:
    """Every output of mri_ldm by its name, a row a seed, in one request: what is compared comes in requests of one."""
    feeds = {"seed": np.array(seeds, np.int64)[:, None], "steps": np.full((len(seeds), 1), steps, np.int32)}
    return {name: ask(server.raw, tool.UNARY, name, feeds) for name in OUTPUTS}


def expecting(seeds: Sequence[int], steps: int, answers: Mapping[str, Array]) -> dict[str, Any]:
    """Its input file with what must come back.

    perf_analyzer 2.51 compares outputs by their place, so none may be left out. A float's repr is exact.
    """
    expected = [
        {name: {"content": _values(array[row]), "shape": list(array.shape[1:])} for name, array in answers.items()}
        for row in range(len(seeds))
    ]
    return {**tool.input_data(seeds, steps=steps), "validation_data": expected}


def _values(array: Array) -> list[float] | list[str]:
    if array.dtype == np.object_:
        return [value.decode() for value in array.ravel()]
    return [float(value) for value in array.ravel()]
