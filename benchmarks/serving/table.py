"""The recorded figures as a page of tables. Reads what `python -m benchmarks.serving` has written; measures nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.files import write_text

Record = dict[str, Any]
NAMES = {
    "bundle": "The bundle's networks, random weights",
    "demo": "Demo weights (small networks)",
    "small": "Tiny networks, to try the benchmark: the figures mean nothing",
}

KINDS = ("served", "simulated", "whole requests")


def read_records(folder: Path) -> dict[str, dict[str, Record]]:
    """weights -> scenario -> record."""
    found: dict[str, dict[str, Record]] = {}
    for weights in NAMES:
        for path in sorted(folder.glob(f"{weights}-*.json")):
            found.setdefault(weights, {})[path.stem.removeprefix(f"{weights}-")] = json.loads(path.read_text())
    return found


def write_table(folder: Path) -> Path:
    """table.md in `folder`, from the *.json beside it."""
    lines = ["# Figures of `make bench`", "", "Written by `python -m benchmarks.serving`; ../README.md explains them."]
    parts: dict[str, Callable[[Record], Iterable[str]]] = {
        "single": _single, "offline": _offline, "layers": _layers, "cost": _cost, "load": _load, "mixed": _mixed,
        "start": _start, "perf_analyzer": _analyzer,
    }  # fmt: skip
    for weights, records in read_records(folder).items():
        lines += ["", f"## {NAMES[weights]}"]
        for scenario, part in parts.items():
            record = records.get(scenario)
            if record is not None:
                lines += ["", *(part(record["result"]) if "result" in record else _failure(scenario, record))]
                lines += ["", _machine(record)]
    path = folder / "table.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _failure(scenario: str, record: Record) -> Iterator[str]:
    yield f"### {scenario}"
    yield ""
    yield f"Not measured: {record['error'].splitlines()[0]}"


def _machine(record: Record) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in machine["versions"])
    return (
        f"{machine['date']}, {record['seconds']:.0f} s; {machine['cores']} cores of {machine['processor']} "
        f"({', '.join(machine['instructions'])}), load at the start {machine['load'][0]}; {versions}; "
        f"`{record['command']}`, {record['steps']} steps."
    )


def _single(result: Record) -> Iterator[str]:
    yield "### One image, from the call to the array"
    yield ""
    yield from _contestants(result, ("p50, s", "p90, s"), lambda values: (values["median"], values["p90"]))


def _offline(result: Record) -> Iterator[str]:
    yield f"### {result['images']} images at once"
    yield ""
    yield from _contestants(
        result, ("images a second", "s an image"), lambda v: (v["images_per_s"], 1 / v["images_per_s"])
    )


def _contestants(result: Record, heads: Sequence[str], cells: Callable[[Record], tuple[float, float]]) -> Iterator[str]:
    rows = []
    for name, values in result["contestants"].items():
        faster = values["faster_than_baseline"]
        times = f"**{faster['median']:.2f}x** ({faster['min']:.2f} to {faster['max']:.2f})"
        error = result["told"][name].get("relative_error")
        rows.append(
            [name, *map(_number, cells(values)), f"{_number(values['min'])} to {_number(values['max'])}", values["n"],
             times, "" if error is None else f"{error:.0e}"]
        )  # fmt: skip
    rows.sort(key=lambda row: result["contestants"][row[0]]["median"], reverse=True)
    yield from markdown(["", *heads, "range, s", "n", "faster than the bundle's loop", "error of images"], rows)
    for name, told in result["told"].items():
        if "left_out" in told:
            yield ""
            yield f"Not measured: {name}: {told['left_out']}"


def _layers(result: Record) -> Iterator[str]:
    yield "### Layers, and what serving costs"
    yield ""
    rows = []
    for concurrent, layers in result["concurrent"].items():
        for name, values in layers.items():
            tax = values["tax"]
            around = f"{_number(values['min'])} to {_number(values['max'])}"
            over = f"{tax['median']:.3f} ({tax['min']:.3f} to {tax['max']:.3f})"
            rows.append([concurrent, name, _number(values["median"]), around, values["n"], over])
    yield from markdown(["images at once", "layer", "s", "range, s", "n", "over the engine in process"], rows)
    yield ""
    yield f"The same bits from: {', '.join(result['same_bits'])}."


def _cost(result: Record) -> Iterator[str]:
    yield "### Cost by rows"
    yield ""
    rows = [
        [
            count,
            f"{1e3 * values['step_s']['median']:.1f}",
            f"{1e3 * values['fitted_step_s']:.1f}",
            _number(values["image_s"]),
            f"{values['against_median']:.3f}",
        ]
        for count, values in result["rows"].items()
    ]
    yield from markdown(
        ["rows", "all rows one step on, ms", "a + b·rows, ms", "an image, s", "against the median"], rows
    )
    model = result["model"]
    decode = ", ".join(
        f"{1e3 * seconds:.0f} ms an image in calls of {rows}" for rows, seconds in model["decode_s"].items()
    )
    yield ""
    yield (
        f"Fitted: {1e3 * model['step_base_s']:.1f} ms + {1e3 * model['step_row_s']:.1f} ms a row; decoder: {decode}. "
        "The server chooses how many rows go together in a call, so a step of many rows is several calls."
    )


def _load(result: Record) -> Iterator[str]:
    yield "### Requests that come at random (Poisson)"
    yield ""
    rows = []
    for point in result["points"]:
        row: list[Any] = [f"{point['load']:.0%}"]
        for kind in KINDS:
            values = point[kind]
            row += [f"{_number(values[p])} ({values[f'{p}_over_alone']:.1f}x)" for p in ("p50", "p99")] + [values["n"]]
        rows.append(row)
    heads = [f"{name}, {kind}" for kind in KINDS for name in ("p50, s", "p99, s", "n")]
    yield from markdown(["load", *heads], rows)
    yield ""
    yield (
        f"Capacity {result['capacity_images_per_s']:.3g} images a second; in brackets multiples of an image on the "
        f"idle server ({_number(result['alone_s'])} s). The p99 of few requests is the slowest of them; simulated is "
        "the same batcher on a device with this machine's times, and whole requests in batches of "
        f"{result['rival_rows']} on the same."
    )


def _mixed(result: Record) -> Iterator[str]:
    from benchmarks.mixed_load.__main__ import table

    yield f"### 10, 25 and 50 steps mixed, at {result['load']:.0%} of what batching whole requests can do"
    yield ""
    yield table(result["records"])


def _start(result: Record) -> Iterator[str]:
    yield "### Start and memory"
    yield ""
    ready, image = result["ready_s"], result["first_image_s"]
    times = _number(ready["median"]), _number(image["median"])
    yield f"Ready after {times[0]} s, first image after {times[1]} s (n = {image['n']})."
    yield ""
    memory = result["memory_mb"]
    rows = [[name, memory["idle"][name]["rss"], memory["loaded"].get(name, {}).get("peak")] for name in memory["idle"]]
    yield from markdown(["process", "MB after one image", "MB, peak under load"], rows)


def _analyzer(result: Record) -> Iterator[str]:
    yield "### perf_analyzer"
    yield ""
    rows = []
    for point in result["points"]:
        p50, p90 = (float(np.quantile(point["seconds"], share)) for share in (0.5, 0.9))
        batches = point["mean_batch"]
        rows.append([point["concurrency"], point["requests"], _number(p50), _number(p90),
                     f"{batches['unet']:.2f}", f"{batches['vae_decoder']:.2f}"])  # fmt: skip
    yield from markdown(
        ["concurrency", "requests", "p50, s", "p90, s", "mean batch, unet", "mean batch, decoder"], rows
    )
    yield ""
    yield "Every image was that of its seed bit for bit; the report and the commands are in the text file beside this."


def markdown(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """A table; None is an empty cell."""
    yield f"| {' | '.join(map(str, head))} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join('' if value is None else str(value) for value in row)} |"


def _number(value: float) -> str:
    return f"{value:.3g}"
