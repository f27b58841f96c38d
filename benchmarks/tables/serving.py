"""serving/table.md: the records of `python -m benchmarks.serving` as a page of tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.markdown import (
    Lines,
    Reader,
    Record,
    around,
    cores,
    formatted,
    milliseconds,
    number,
    ranged,
    table,
    where_and_when,
)
from benchmarks.tables import gpu
from training.files import write_text

NAMES = {
    "bundle": "The bundle's networks, random weights",
    "demo": "Demo weights (small networks)",
    "small": "Tiny networks, to try the benchmark: the figures mean nothing",
}
SIMULATED_GPU = "simulated, as a GPU"
MIXED = {"bundle": "bundle's networks", "demo": "demo weights"}
KINDS = ("served", "simulated", "whole requests")


def read_records(folder: Path) -> dict[str, dict[str, Record]]:
    """weights -> scenario -> record; a GPU's are under gpu-weights."""
    records: dict[str, dict[str, Record]] = {}
    for weights in (*NAMES, *(f"gpu-{name}" for name in NAMES)):
        for path in sorted(folder.glob(f"{weights}-*.json")):
            records.setdefault(weights, {})[path.stem.removeprefix(f"{weights}-")] = json.loads(path.read_text())
    return records


def write_table(folder: Path) -> Path:
    """table.md in `folder`, from the *.json beside it."""
    path = folder / "table.md"
    write_text(path, "\n".join(_page(read_records(folder))) + "\n")
    return path


def _page(records: dict[str, dict[str, Record]]) -> Lines:
    yield "# Figures of `make bench` and `make gpu`"
    yield ""
    yield "Written by `python -m benchmarks.serving`; ../README.md explains them."
    for weights, by_scenario in records.items():
        on_gpu = weights.startswith("gpu-")
        yield from ["", f"## {'On a GPU: ' if on_gpu else ''}{NAMES[weights.removeprefix('gpu-')]}"]
        yield from ["", *gpu.sections(by_scenario)] if on_gpu else _scenarios(by_scenario)


def _scenarios(records: dict[str, Record]) -> Lines:
    for scenario, (title, part) in PARTS.items():
        if (record := records.get(scenario)) is not None:
            result = record.get("result", {})
            yield from ["", f"### {title.format_map(result) if result else scenario}", ""]
            yield from part(result) if result else [f"Not measured: {record['error'].splitlines()[0]}"]
            yield from ["", _machine(record)]


def _machine(record: Record) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in machine["versions"])
    return (
        f"{machine['date']}, {record['seconds']:.0f} s; {cores(record)} "
        f"({', '.join(machine['instructions'])}), load at the start {machine['load'][0]}; {versions}; "
        f"`{record['command']}`, {record['steps']} steps."
    )


def _single(result: Record) -> Lines:
    return _contestants(result, "p50, s | p90, s", "{median:.3g} | {p90:.3g}")


def _offline(result: Record) -> Lines:
    return _contestants(result, "images a second | s an image", "{images_per_s:.3g} | {image_s:.3g}")


def _contestants(result: Record, head: str, shown: str) -> Lines:
    rows = []
    for name, values in sorted(result["contestants"].items(), key=lambda item: -item[1]["median"]):
        faster, error = values["faster_than_baseline"], result["told"][name].get("relative_error")
        rows.append({
            **values, "name": name, "range": around(values), "error": "" if error is None else f"{error:.0e}",
            "faster": f"**{faster['median']:.2f}x** ({faster['min']:.2f} to {faster['max']:.2f})",
            "image_s": values["median"] / result.get("images", 1),
        })  # fmt: skip
    head = f" | {head} | range, s | n | faster than the bundle's loop | error of images"
    yield from formatted(head, f"{{name}} | {shown} | {{range}} | {{n}} | {{faster}} | {{error}}", rows)
    for name, facts in result["told"].items():
        yield from ["", f"Not measured: {name}: {facts['left_out']}"] if "left_out" in facts else []


def _layers(result: Record) -> Lines:
    rows = [
        [concurrent, name, number(values["median"]), around(values), values["n"], ranged(values["tax"], 3)]
        for concurrent, layers in result["concurrent"].items()
        for name, values in layers.items()
    ]
    yield from table(["images at once", "layer", "s", "range, s", "n", "over the engine in process"], rows)
    yield from ["", f"The same bits from: {', '.join(result['same_bits'])}."]


def _cost(result: Record) -> Lines:
    yield from formatted(
        "rows | all rows one step on, ms | a + b·rows, ms | an image, s | against the median",
        "{rows} | {ms[median]:.1f} | {fitted:.1f} | {image} | {against_median:.3f}",
        (
            {"rows": rows, "ms": milliseconds(values["step_s"]), "fitted": 1e3 * values["fitted_step_s"],
             "image": number(values["image_s"]), "against_median": values["against_median"]}
            for rows, values in result["rows"].items()
        ),
    )  # fmt: skip
    model = result["model"]
    decode = (f"{1e3 * seconds:.0f} ms an image in calls of {rows}" for rows, seconds in model["decode_s"].items())
    yield ""
    yield (
        f"Fitted: {1e3 * model['step_base_s']:.1f} ms + {1e3 * model['step_row_s']:.1f} ms a row; decoder: "
        f"{', '.join(decode)}. "
        "The server chooses how many rows go together in a call, so a step of many rows is several calls."
    )


def _load(result: Record) -> Lines:
    rows = []
    for point in result["points"]:
        row: list[Any] = [f"{point['load']:.0%}"]
        for kind in KINDS:
            values = point[kind]
            row += [f"{number(values[p])} ({values[f'{p}_over_alone']:.1f}x)" for p in ("p50", "p99")] + [values["n"]]
        rows.append(row)
    yield from table(["load", *(f"{name}, {kind}" for kind in KINDS for name in ("p50, s", "p99, s", "n"))], rows)
    yield ""
    yield (
        f"Capacity {result['capacity_images_per_s']:.3g} images a second; in brackets multiples of an image on the "
        f"idle server ({number(result['alone_s'])} s). The p99 of few requests is the slowest of them; simulated is "
        "the same batcher on a device with this machine's times, and whole requests in batches of "
        f"{result['rival_rows']} on the same."
    )


def _start(result: Record) -> Lines:
    ready, image = result["ready_s"], result["first_image_s"]
    times = number(ready["median"]), number(image["median"])
    yield from [f"Ready after {times[0]} s, first image after {times[1]} s (n = {image['n']}).", ""]
    idle, loaded = (result["memory_mb"][state] for state in ("idle", "loaded"))
    rows = [[name, idle[name]["rss"], loaded.get(name, {}).get("peak")] for name in idle]
    yield from table(["process", "MB after one image", "MB, peak under load"], rows)


def _presets(result: Record) -> Lines:
    contestants, counts = result["contestants"], result["gflop"]
    rows = []
    for name, values in contestants.items():
        operations = counts[name if name in counts else name.rsplit(", ", 1)[-1]]
        rows.append({
            **values, "name": name, "range": around(values), "ratio": ranged(values["faster_than_baseline"]),
            **{f"{network}_gflop": number(count) for network, count in operations.items()},
        })  # fmt: skip
    yield from formatted(
        " | s an image | range, s | n | faster than the bundle's loop | GFLOP an image | UNet | decoder",
        "{name} | {median:.3g} | {range} | {n} | {ratio} | {image_gflop} | {unet_gflop} | {decoder_gflop}",
        rows,
    )
    for name, facts in result["told"].items():
        yield from ["", f"Not measured: {name}: {facts['left_out']}"] if "left_out" in facts else []


def presets(read: Reader) -> Lines:
    """One image by each preset, beside the bundle's loop."""
    record = read("serving/bundle-presets")
    yield from _presets(record["result"])
    yield from ["", f"{where_and_when(record)}, load at the start {record['machine']['load'][0]}."]


def _analyzer(result: Record) -> Lines:
    import numpy as np  # which --help is spared

    yield from formatted(
        "concurrency | requests | p50, s | p90, s | mean batch, unet | mean batch, decoder",
        "{concurrency} | {requests} | {p50:.3g} | {p90:.3g} | {mean_batch[unet]:.2f} | {mean_batch[vae_decoder]:.2f}",
        (
            {**point, **{f"p{share}": np.quantile(point["seconds"], share / 100) for share in (50, 90)}}
            for point in result["points"]
        ),
    )
    yield ""
    yield "Every image was that of its seed bit for bit; the report and the commands are in the text file beside this."


PARTS: dict[str, tuple[str, Callable[[Record], Lines]]] = {
    "single": ("One image, from the call to the array", _single),
    "offline": ("{images} images at once", _offline),
    "layers": ("Layers, and what serving costs", _layers),
    "cost": ("Cost by rows", _cost),
    "load": ("Requests that come at random (Poisson)", _load),
    "mixed": (
        "10, 25 and 50 steps mixed, at {load:.0%} of what batching whole requests can do",
        lambda result: mixed_latencies(result["records"]),
    ),
    "presets": ("One image by preset", _presets),
    "start": ("Start and memory", _start),
    "perf_analyzer": ("perf_analyzer", _analyzer),
}


# --- blocks of pages: requests of 10, 25 and 50 steps side by side


def mixed_load(read: Reader) -> Lines:
    """The real server with both weights, the simulation of its machine, and a simulated GPU."""
    here, simulated = [], []
    for weights, name in MIXED.items():
        records = read(f"serving/{weights}-mixed")["result"]["records"]
        here += [{**one, "where": f"{name}: {one['where']}"} for one in records if one["where"] != SIMULATED_GPU]
        simulated = [one for one in records if one["where"] == SIMULATED_GPU]  # of a device that no weights change
    return mixed_latencies([*here, *simulated])


def mixed_latencies(records: Iterable[Record]) -> Lines:
    """Mean latency in seconds, and ours over the rival's."""
    return formatted(
        "where | rival's rows | mean, request-level | mean, step-level | ratio of means | ratio of p99",
        "{where} | {rival_rows} | {request_level[mean]:.3g} | {step_level[mean]:.3g} | {mean_ratio:.2f}"
        " | {p99_ratio:.2f}",
        records,
    )


def mixed_steps(read: Reader) -> Lines:
    """The same on a simulated GPU, by the steps of a call."""
    return steps_a_call(read("serving/bundle-mixed")["result"]["steps_a_call"])


def steps_a_call(record: Record) -> Lines:
    """Mean and 99th percentile in milliseconds by load, and images a second at most."""
    names = list(record["images_per_s"])
    rows = []
    for point in record["latencies"]:
        ways = [point["ways"][name] for name in names]
        cells = [f"{1e3 * way['mean']:.0f} / {1e3 * way['p99']:.0f}" for way in ways]
        rows.append([f"{100 * point['load']:.0f} %", *cells])
    rows.append(["images/s at most", *(f"{record['images_per_s'][name]:.0f}" for name in names)])
    return table(["load: mean / p99, ms", *names], rows)
