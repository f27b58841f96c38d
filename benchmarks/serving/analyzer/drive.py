"""Runs perf_analyzer as users do: many seeds, images checked bit by bit under load, the mean batch of the networks."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.analyzer.fetch import environment, fetch
from benchmarks.serving.contestants import SEEDS, ours
from benchmarks.serving.ours import Ours
from benchmarks.serving.setup import Bench
from benchmarks.serving.worker import Array
from benchmarks.wire import ask
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
    program = fetch(bench.work / "perf_analyzer")
    seeds = list(SEEDS[: min(SEEDS_USED, amount.analyzer_requests)])
    data = bench.work / "seeds.json"
    answers = _answers(server, seeds, amount.steps)
    write_text(data, json.dumps(input_data(seeds, amount.steps, another_image(answers))))
    if _run(program, _command(server, data, 1, 1), bench.work).returncode == 0:
        raise RuntimeError(
            "perf_analyzer took an image with one other bit: it does not compare, its figures say nothing"
        )
    write_text(data, json.dumps(input_data(seeds, amount.steps, answers)))
    points, words = [], []
    for concurrency in amount.analyzer_concurrency:
        requests = max(amount.analyzer_requests, concurrency)
        command = _command(server, data, concurrency, requests)
        profile = bench.work / f"profile-{concurrency}.json"
        before = _batches(server)
        done = _run(program, command, bench.work)
        words.append(f"$ perf_analyzer {shlex.join(command)}\n{done.stdout}{done.stderr}")
        write_text(report, "\n".join(words))
        if done.returncode:
            raise RuntimeError(f"perf_analyzer ended with exit status {done.returncode}: {done.stderr[:800]}")
        latencies = _latencies(profile)
        point = {"concurrency": concurrency, "requests": len(latencies), "seconds": latencies}
        points.append({**point, "mean_batch": _mean_batches(before, _batches(server))})
        bench.report(f"  concurrency {concurrency}: mean batch {points[-1]['mean_batch']}")
    return {"program": "perf_analyzer 2.51.0", "points": points}


def _run(program: Path, command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    for profile in folder.glob("profile-*.json"):
        profile.unlink()  # it refuses to write over one
    return subprocess.run(
        [str(program), *command],
        cwd=folder,
        env=environment(program.parent),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def another_image(answers: Mapping[str, Array]) -> dict[str, Array]:
    """The same answers but for the last bit of one pixel of each image."""
    image = answers["image"].copy()
    image[:, 0, 120, 120] = np.nextafter(image[:, 0, 120, 120], np.float32(1))
    return {**answers, "image": image}


def _answers(server: Ours, seeds: Sequence[int], steps: int) -> dict[str, Array]:
    """Every output of mri_ldm by its name, a row a seed, in one request: what is compared comes in requests of one."""
    feeds = {"seed": np.array(seeds, np.int64)[:, None], "steps": np.full((len(seeds), 1), steps, np.int32)}
    return {name: ask(server.raw, "mri_ldm", name, feeds) for name in OUTPUTS}


def input_data(seeds: Sequence[int], steps: int, answers: Mapping[str, Array]) -> dict[str, Any]:
    """Its input file: a row each request, and what must come back.

    perf_analyzer 2.51 compares outputs by their place, so none may be left out. A float's repr is exact.
    """
    expected = [
        {name: {"content": _values(array[row]), "shape": list(array.shape[1:])} for name, array in answers.items()}
        for row in range(len(seeds))
    ]
    return {"data": [{"seed": [seed], "steps": [steps]} for seed in seeds], "validation_data": expected}


def _values(array: Array) -> list[float] | list[str]:
    if array.dtype == np.object_:
        return [value.decode() for value in array.ravel()]
    return [float(value) for value in array.ravel()]


def _command(server: Ours, data: Path, concurrency: int, requests: int) -> list[str]:
    return [
        "-m", "mri_ldm", "-i", "grpc", "-u", server.server.grpc_url,
        "--input-data", data.name,
        "--concurrency-range", str(concurrency),
        "--request-count", str(requests),
        "--bls-composing-models", "unet,vae_decoder",
        "--percentile", "90",
        "--profile-export-file", f"profile-{concurrency}.json",
    ]  # fmt: skip


def _latencies(profile: Path) -> list[float]:
    """Seconds of each request, from its own record of timestamps (nanoseconds)."""
    (experiment,) = json.loads(profile.read_text())["experiments"]
    return [
        (request["response_timestamps"][-1] - request["timestamp"]) / 1e9
        for request in experiment["requests"]
        if request["response_timestamps"]
    ]


def _batches(server: Ours) -> dict[str, tuple[int, int]]:
    """Rows and calls so far, by network, in Triton's own statistics."""
    counts = {}
    for network in ("unet", "vae_decoder"):
        found = server.raw.get_inference_statistics(network, client_timeout=20).model_stats[0]
        counts[network] = found.inference_count, found.execution_count
    return counts


def _mean_batches(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> dict[str, float]:
    return {name: (rows - before[name][0]) / max(1, calls - before[name][1]) for name, (rows, calls) in after.items()}
