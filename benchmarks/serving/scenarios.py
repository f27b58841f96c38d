"""The scenarios on a CPU: single image, offline, layers, cost by rows, start and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.engine import Engine
from benchmarks.harness.machine import server_memory
from benchmarks.harness.timing import compare, in_turns, ratio, spread
from benchmarks.harness.wire import ask, image_feeds
from benchmarks.serving.analyzer.drive import analyze
from benchmarks.serving.bench import Bench
from benchmarks.serving.contestants import SEEDS, ours, ready
from benchmarks.serving.load import mixed, sweep
from benchmarks.serving.names import BASELINE, OURS
from benchmarks.serving.ours import Ours
from benchmarks.serving.presets import presets
from benchmarks.serving.worker import Array
from mri_ldm.request import RowParameters

LOADED_STEPS = 10
"""The server tries each number of rows three times before it settles. Fewer steps would not reach the largest."""


def functions(bench: Bench, out: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """By scenario; each returns what goes into its JSON."""
    scenarios: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "start": start, "layers": layers, "single": single, "offline": offline, "cost": cost, "load": sweep,
        "mixed": mixed, "presets": presets,
        "perf_analyzer": partial(analyze, report=out / f"{bench.weights}-perf_analyzer.txt"),
    }  # fmt: skip
    return {name: partial(scenario, bench) for name, scenario in scenarios.items()}


def single(bench: Bench) -> dict[str, Any]:
    """One image at a time, from the call to the array; ours several times a round, for its 90th percentile."""
    amount = bench.amount
    running, told = ready(bench, 1)
    bench.rest()
    often = {name: amount.requests if name.startswith(OURS) else 1 for name in running}
    seconds: dict[str, list[float]] = {name: [] for name in running}

    def requests(name: str) -> None:
        with bench.turn(name) as contestant:
            for number in range(often[name]):
                began = time.perf_counter()
                contestant.generate([SEEDS[number]], amount.steps)
                seconds[name].append(time.perf_counter() - began)

    in_turns({name: partial(requests, name) for name in running}, amount.rounds, amount.budget_s, bench.report)
    # The ratio compares rounds: of several requests in one, their mean.
    rounds = {name: np.reshape(times, (-1, often[name])).mean(1).tolist() for name, times in seconds.items()}
    result = compare(rounds, BASELINE)
    for name, times in seconds.items():
        result[name] |= {"seconds": times, **spread(times)}
    return {"baseline": BASELINE, "contestants": result, "told": told}


def offline(bench: Bench) -> dict[str, Any]:
    """Images a second when many are wanted: loops and batching servers in full batches, all requests at once."""
    amount = bench.amount
    running, told = ready(bench, amount.images)
    bench.rest()
    seeds = list(SEEDS[: amount.images])

    def call(name: str) -> None:
        with bench.turn(name) as contestant:
            contestant.generate(seeds, amount.steps)

    calls = {name: partial(call, name) for name in running}
    times = in_turns(calls, amount.offline_rounds, amount.budget_s, bench.report)
    result = compare(times, BASELINE)
    for values in result.values():
        values["images_per_s"] = amount.images / values["median"]
    return {"baseline": BASELINE, "images": amount.images, "contestants": result, "told": told}


def layers(bench: Bench) -> dict[str, Any]:
    """The networks alone, the engine in this process, and the same through each way to the server; same bits."""
    amount, server = bench.amount, ours(bench)
    engine = Engine(bench.repository())
    one, many = [SEEDS[0]], list(SEEDS[: amount.concurrent])

    def in_process(seeds: list[int]) -> Array:
        images = engine.generate([RowParameters(seed, amount.steps, "ddim", 0.0) for seed in seeds])[1]
        assert images is not None
        return images[:, 0]

    latent, timestep = np.zeros((1, 1, 64, 64), np.float32), np.array([500], np.int32)
    latent += np.linspace(-1, 1, 64, dtype=np.float32)

    def networks() -> None:
        for _ in range(amount.steps):
            engine.unet(latent, timestep)
        engine.decode(latent)

    at_one: dict[str, Callable[[], Any]] = {
        "networks alone": networks,
        "engine in process": lambda: in_process(one),
        "gRPC unary": lambda: server.generate(one, amount.steps),
        "gRPC stream": lambda: server.stream(one, amount.steps),
        "HTTP": lambda: server.http(one, amount.steps),
    }
    at_many: dict[str, Callable[[], Any]] = {
        "engine in process": lambda: in_process(many),
        "gRPC unary": lambda: server.generate(many, amount.steps),
    }
    checked = same_bits({name: call() for name, call in at_one.items() if call is not networks})  # and a warm-up
    same_bits({name: call() for name, call in at_many.items()})
    result = {"1": _taxes(in_turns(at_one, amount.rounds, report=bench.report))}
    result[str(amount.concurrent)] = _taxes(in_turns(at_many, amount.concurrent_rounds, report=bench.report))
    return {"same_bits": checked, "concurrent": result}


def same_bits(images: dict[str, Array]) -> list[str]:
    """The names, if all images are equal bit for bit; raises ValueError otherwise."""
    first, *others = images
    for name in others:
        if not np.array_equal(images[first], images[name]):
            raise ValueError(f"the images by '{first}' and by '{name}' differ")
    return [first, *others]


def _taxes(times: dict[str, list[float]]) -> dict[str, Any]:
    """tax: seconds of a layer over those of the engine in process."""
    engine = times["engine in process"]
    return {name: {**spread(layer), "seconds": layer, "tax": ratio(engine, layer)} for name, layer in times.items()}


def cost(bench: Bench) -> dict[str, Any]:
    """Seconds an image by the rows of a request: steps without decoding, and the decoder by the rows of its call."""
    amount, server = bench.amount, ours(bench)

    def steps(rows: int) -> Array:
        return ask(server.raw, "mri_ldm", "final_latent", image_feeds(range(rows), amount.cost_steps))

    # Requests of few rows are sent several times in a turn: a turn is long against what disturbs it.
    requests = {rows: max(1, amount.cost_rows_a_turn // rows) for rows in amount.cost_rows}

    def turn(rows: int) -> None:
        for _ in range(requests[rows]):
            steps(rows)

    def decode(rows: int) -> Array:
        return ask(server.raw, "vae_decoder", "image", {"latent": steps_of[:rows]})

    steps_of = steps(2)
    calls: dict[str, Callable[[], Any]] = {f"{rows} rows": partial(turn, rows) for rows in amount.cost_rows}
    calls |= {f"decoder, {rows} rows": partial(decode, rows) for rows in (1, 2)}
    decode(2)
    times = in_turns(calls, amount.cost_rounds, report=bench.report)
    decoder = {rows: spread(times[f"decoder, {rows} rows"])["median"] / rows for rows in (1, 2)}
    by_rows = {}
    for rows in amount.cost_rows:
        step = spread([taken / amount.cost_steps / requests[rows] for taken in times[f"{rows} rows"]])
        image = amount.steps * step["median"] / rows + decoder[min(rows, 2)]
        by_rows[rows] = {"step_s": step, "image_s": image}
    middle = float(np.median([values["image_s"] for values in by_rows.values()]))
    for values in by_rows.values():
        values["against_median"] = values["image_s"] / middle
    medians = [by_rows[rows]["step_s"]["median"] for rows in amount.cost_rows]
    slope, base = np.polyfit(amount.cost_rows, medians, 1, w=np.reciprocal(medians))  # relative errors count
    for rows, values in by_rows.items():
        values["fitted_step_s"] = float(base + slope * rows)
        values["fitted_image_s"] = amount.steps * values["fitted_step_s"] / rows + decoder[min(rows, 2)]
    model = {"step_base_s": float(base), "step_row_s": float(slope), "decode_s": decoder}
    return {"rows": by_rows, "model": model, "requests_a_turn": requests, "seconds_of_turns": times}


def start(bench: Bench) -> dict[str, Any]:
    """From the command to a ready server, and on to the first image; memory of its processes before and after load."""
    amount, repository, ready_s, image_s = bench.amount, bench.repository(), [], []
    for _ in range(amount.starts):
        began = time.perf_counter()
        server = Ours(repository)
        try:
            ready_s.append(time.perf_counter() - began)
            server.generate([SEEDS[0]], amount.steps)
            image_s.append(time.perf_counter() - began)
            bench.report(f"  ready after {ready_s[-1]:.1f} s, first image after {image_s[-1]:.1f} s")
            idle = server_memory(server.server)
            server.generate(list(SEEDS[: amount.concurrent]), LOADED_STEPS)
            loaded = server_memory(server.server)
        finally:
            server.close()
    return {"ready_s": spread(ready_s), "first_image_s": spread(image_s), "memory_mb": {"idle": idle, "loaded": loaded}}
