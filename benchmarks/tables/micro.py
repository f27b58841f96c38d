"""What the small benchmarks have recorded: operations, where a call goes, the loop beside its calls, training."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.harness.markdown import Lines, Reader, Record, formatted, milliseconds, number, table, where_and_when


def rewrite(read: Reader) -> Lines:
    """What each kind of operation that export writes is worth."""
    record = read("rewrite-bundle")
    yield from operations(record["networks"])
    yield from ["", f"{where_and_when(record)}."]


def operations(networks: Record) -> Lines:
    """Milliseconds of a call by runtime, and how many times faster than MONAI's layers."""
    runtimes = list(next(iter(networks.values())))
    rows = [
        [network, name, *(_call(by_runtime[runtime][name]) for runtime in runtimes)]
        for network, by_runtime in networks.items()
        for name in by_runtime[runtimes[0]]
    ]
    return table(["network", "operations", *runtimes], rows)


def _call(values: Record) -> str:
    return f"{1e3 * values['median']:.1f} ms ({values['faster_than_baseline']['median']:.2f}x)"


def cpu_path(read: Reader) -> Lines:
    """Milliseconds of a row by setting, and the shares of the operators."""
    record = read("cpu_path")
    yield from calls(record["networks"])
    yield f"{where_and_when(record)}."


def calls(networks: Record) -> Lines:
    """By network: its settings, and its eight dearest operators."""
    for network, record in networks.items():
        settings = [{"name": name, **values, "ms": milliseconds(values)} for name, values in record["settings"].items()]
        head = "setting | ms a row | range | as fast as served"
        row = "{name} | {ms[median]:.1f} | {ms[min]:.1f} to {ms[max]:.1f} | {faster_than_baseline[median]:.2f}"
        yield from [*formatted(f"{network}: {head}", row, settings), ""]
        alone, served = record["operators, 1 thread"], record["operators, as served"]
        whole = sum(values["ms"] for values in served.values())
        operators = [
            {"name": name, **values, "alone": alone[name]["ms"], "share": values["ms"] / whole}
            for name, values in list(served.items())[:8]
        ]
        head = f"{network}: operator | n | ms, 1 thread | ms, as served | share"
        yield from [*formatted(head, "{name} | {n} | {alone:.1f} | {ms:.1f} | {share:.0%}", operators), ""]


def loop(read: Reader) -> Lines:
    """A step of the loop beside its share of a bare call: one step a call before, and by the steps of a call now."""
    runs = read("loop")
    before = {(record["rows"], record["sampler"]): record for record in runs["before"]["records"]}
    toys = []
    for now in sorted(runs["now"]["records"], key=lambda record: (record["rows"], record["sampler"])):
        then = before[now["rows"], now["sampler"]]
        toys.append({**now, "before": then, "times": then["step_ms"]["median"] / now["step_ms"]["median"]})
    yield from formatted(
        "rows | sampler | steps a call | a step before, ms | of it the loop's | a step now, ms | of it the loop's"
        " | times as fast",
        "{rows} | {sampler} | {steps_a_call:.0f} | {before[step_ms][median]:.3f} | {before[beside_call_ms]:.3f}"
        " | {step_ms[median]:.3f} | {beside_call_ms:.3f} | {times:.1f}",
        toys,
    )
    yield from ["", f"Toy networks. Before: {_run(runs['before'])}; now: {_run(runs['now'])}.", ""]
    yield from formatted(
        "weights | rows | sampler | steps a call | a step, ms | its share of a call, ms | the loop's, ms | times",
        "{name} | {rows} | {sampler} | {steps_a_call:.0f} | {step_ms[median]:.2f} | {share:.2f} | {beside_call_ms:.2f}"
        " | {times_the_call:.3f}",
        [
            {"name": name, "share": record["step_ms"]["median"] - record["beside_call_ms"], **record}
            for name, run in {"demo, before": runs["demo-before"], "demo, now": runs["demo"]}.items()
            for record in run["records"]
        ],
    )
    yield from ["", f"Profile `cpu`. Before: {_run(runs['demo-before'])}; now: {_run(runs['demo'])}."]


def _run(run: Record) -> str:
    load = run["machine"]["load"][0]
    return f"{where_and_when(run)}, load at the start {load:.1f}, code {run['code'] or 'of no checkout'}"


def loop_steps(records: Iterable[Record]) -> Lines:
    """A run of the loop by itself; milliseconds."""
    head = "steps a call | rows | sampler | a step, ms | a bare call, ms | beside it, ms | times its share of a call"
    row = "{steps_a_call:.1f} | {rows} | {sampler} | {step_ms[median]:.3f} | {bare_call_ms[median]:.3f}"
    return formatted(head, row + " | {beside_call_ms:.3f} | {times_the_call:.2f}", records)


STAGES = {"autoencoder": "autoencoder and discriminator", "diffusion": "UNet"}


def training_speed(read: Reader) -> Lines:
    """Seconds and memory of one iteration of training."""
    record = read("training_speed")
    yield from iterations(record["rows"])
    yield from ["", f"{where_and_when(record)}, torch {record['machine']['versions']['torch']}."]


def iterations(rows: Iterable[Record]) -> Lines:
    """A row for each configuration and stage."""
    head = "configuration | stage | batch | seconds an iteration | peak memory of the process"
    records = ({**row, "name": STAGES[row["stage"]], "seconds": number(row["seconds"])} for row in rows)
    return formatted(head, "{config} | {name} | {batch} | {seconds} | {peak_gb:.1f} GB", records)
