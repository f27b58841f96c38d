"""Requests of 10, 25 and 50 steps side by side, from the records of the scenario `mixed`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.markdown import Lines, Reader, Record, number, table

SIMULATED_GPU = "simulated, as a GPU"
NAMES = {"bundle": "bundle's networks", "demo": "demo weights"}


def mixed_load(read: Reader) -> Lines:
    """The real server with both weights, the simulation of its machine, and a simulated GPU."""
    records: list[Record] = []
    for weights, name in NAMES.items():
        every = read(f"serving/{weights}-mixed")["result"]["records"]
        records += [
            {**record, "where": f"{name}: {record['where']}"} for record in every if record["where"] != SIMULATED_GPU
        ]
        simulated = [record for record in every if record["where"] == SIMULATED_GPU]
    yield from latencies([*records, *simulated])  # of a device that no weights change


def latencies(records: Sequence[Record]) -> Lines:
    """Mean latency in seconds, and ours over the rival's."""
    head = ["where", "rival's rows", "mean, request-level", "mean, step-level", "ratio of means", "ratio of p99"]
    rows = []
    for record in records:
        means = [number(record[kind]["mean"]) for kind in ("request_level", "step_level")]
        ratios = [f"{record[f'{name}_ratio']:.2f}" for name in ("mean", "p99")]
        rows.append([record["where"], record["rival_rows"], *means, *ratios])
    yield from table(head, rows)


def steps_a_call(read: Reader) -> Lines:
    """The same on a simulated GPU, by the steps of a call."""
    yield from by_steps(read("serving/bundle-mixed")["result"]["steps_a_call"])


def by_steps(record: Record) -> Lines:
    """Mean and 99th percentile in milliseconds by load, and images a second at most."""
    names = list(record["images_per_s"])
    rows = []
    for point in record["latencies"]:
        ways = [point["ways"][name] for name in names]
        cells = [f"{1e3 * way['mean']:.0f} / {1e3 * way['p99']:.0f}" for way in ways]
        rows.append([f"{100 * point['load']:.0f} %", *cells])
    rows.append(["images/s at most", *(f"{record['images_per_s'][name]:.0f}" for name in names)])
    yield from table(["load: mean / p99, ms", *names], rows)
