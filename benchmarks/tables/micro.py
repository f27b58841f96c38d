"""What the small benchmarks have recorded: operations, where a call goes, the loop beside its calls, training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.harness.markdown import Lines, Reader, Record, number, table, where_and_when


def rewrite(read: Reader) -> Lines:
    """What each kind of operation that export writes is worth."""
    record = read("rewrite-bundle")
    yield from operations(record["networks"])
    yield ""
    yield f"{where_and_when(record)}."


def operations(networks: Record) -> Lines:
    """Milliseconds of a call by runtime, and how many times faster than MONAI's layers."""
    runtimes = list(next(iter(networks.values())))
    rows = []
    for network, by_runtime in networks.items():
        for name in by_runtime[runtimes[0]]:
            measured = [by_runtime[runtime][name] for runtime in runtimes]
            times = [f"{1e3 * own['median']:.1f} ms ({own['faster_than_baseline']['median']:.2f}x)" for own in measured]
            rows.append([network, name, *times])
    yield from table(["network", "operations", *runtimes], rows)


def cpu_path(read: Reader) -> Lines:
    """Milliseconds of a row by setting, and the shares of the operators."""
    record = read("cpu_path")
    yield from calls(record["networks"])
    yield f"{where_and_when(record)}."


def calls(networks: Record) -> Lines:
    """By network: its settings, and its eight dearest operators."""
    for network, record in networks.items():
        rows = [
            [name, f"{1e3 * values['median']:.1f}", f"{1e3 * values['min']:.1f} to {1e3 * values['max']:.1f}",
             f"{values['faster_than_baseline']['median']:.2f}"]
            for name, values in record["settings"].items()
        ]  # fmt: skip
        yield from table([f"{network}: setting", "ms a row", "range", "as fast as served"], rows)
        yield ""
        one, served = record["operators, 1 thread"], record["operators, as served"]
        whole = sum(values["ms"] for values in served.values())
        rows = [
            [name, values["n"], f"{one[name]['ms']:.1f}", f"{values['ms']:.1f}", f"{values['ms'] / whole:.0%}"]
            for name, values in list(served.items())[:8]
        ]
        yield from table([f"{network}: operator", "n", "ms, 1 thread", "ms, as served", "share"], rows)
        yield ""


def loop(read: Reader) -> Lines:
    """A step of the loop beside its share of a bare call: one step a call before, and by the steps of a call now."""
    runs = read("loop")
    yield from _toys(runs["before"]["records"], runs["now"]["records"])
    yield ""
    yield f"Toy networks. Before: {_run(runs['before'])}; now: {_run(runs['now'])}."
    yield ""
    head = ["weights", "rows", "sampler", "steps a call", "a step, ms", "its share of a call, ms", "the loop's, ms"]
    demos = {"demo, before": runs["demo-before"], "demo, now": runs["demo"]}
    rows = [[name, *_demo(record)] for name, run in demos.items() for record in run["records"]]
    yield from table([*head, "times"], rows)
    yield ""
    yield f"Profile `cpu`. Before: {_run(runs['demo-before'])}; now: {_run(runs['demo'])}."


def _toys(before: list[Record], now: list[Record]) -> Iterator[str]:
    earlier = {(record["rows"], record["sampler"]): record for record in before}
    rows: list[list[Any]] = []
    for record in sorted(now, key=lambda record: (record["rows"], record["sampler"])):
        old = earlier[record["rows"], record["sampler"]]
        cells = [cell for run in (old, record) for cell in _milliseconds(run)]
        faster = f"{old['step_ms']['median'] / record['step_ms']['median']:.1f}"
        rows.append([record["rows"], record["sampler"], f"{record['steps_a_call']:.0f}", *cells, faster])
    head = ["rows", "sampler", "steps a call", "a step before, ms", "of it the loop's", "a step now, ms"]
    yield from table([*head, "of it the loop's", "times as fast"], rows)


def _milliseconds(record: Record) -> list[str]:
    return [f"{record['step_ms']['median']:.3f}", f"{record['beside_call_ms']:.3f}"]


def _demo(record: Record) -> list[Any]:
    step, beside = record["step_ms"]["median"], record["beside_call_ms"]
    figures = [f"{step:.2f}", f"{step - beside:.2f}", f"{beside:.2f}", f"{record['times_the_call']:.3f}"]
    return [record["rows"], record["sampler"], f"{record['steps_a_call']:.0f}", *figures]


def _run(run: Record) -> str:
    load = run["machine"]["load"][0]
    return f"{where_and_when(run)}, load at the start {load:.1f}, code {run['code'] or 'of no checkout'}"


def loop_steps(records: list[Record]) -> Lines:
    """A run of the loop by itself; milliseconds."""
    rows = []
    for record in records:
        times = [record["step_ms"]["median"], record["bare_call_ms"]["median"], record["beside_call_ms"]]
        cells = [*(f"{value:.3f}" for value in times), f"{record['times_the_call']:.2f}"]
        rows.append([f"{record['steps_a_call']:.1f}", record["rows"], record["sampler"], *cells])
    head = ["steps a call", "rows", "sampler", "a step, ms", "a bare call, ms", "beside it, ms"]
    yield from table([*head, "times its share of a call"], rows)


STAGES = {"autoencoder": "autoencoder and discriminator", "diffusion": "UNet"}


def training_speed(read: Reader) -> Lines:
    """Seconds and memory of one iteration of training."""
    record = read("training_speed")
    yield from iterations(record["rows"])
    yield ""
    yield f"{where_and_when(record)}, torch {record['machine']['versions']['torch']}."


def iterations(rows: list[Record]) -> Lines:
    """A row for each configuration and stage."""
    cells = [
        [row["config"], STAGES[row["stage"]], row["batch"], number(row["seconds"]), f"{row['peak_gb']:.1f} GB"]
        for row in rows
    ]
    yield from table(["configuration", "stage", "batch", "seconds an iteration", "peak memory of the process"], cells)
