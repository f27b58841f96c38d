"""Several steps in a call of the network: what the loop costs beside it, and how many there should be, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.speed import Reader, Record, where_and_when
from benchmarks.mixed_load.several import table
from benchmarks.serving.table import markdown


def choice(read: Reader) -> Iterator[str]:
    """Latency under mixed load on the simulated GPU, by the steps of a call."""
    yield from table(read("mixed_load")["several_steps"]).splitlines()


def loop(read: Reader) -> Iterator[str]:
    """A step of the loop beside its share of a bare call: one step a call before, and by the steps of a call now."""
    runs = read("loop")
    before = {(each["rows"], each["sampler"]): each for each in runs["before"]["records"]}
    head = ["rows", "sampler", "steps a call", "a step before, ms", "of it the loop's", "a step now, ms"]
    rows = []
    for now in sorted(runs["now"]["records"], key=lambda each: (each["rows"], each["sampler"])):
        then = before[now["rows"], now["sampler"]]
        steps = [f"{each['step_ms']['median']:.3f}" for each in (then, now)]
        own = [f"{each['beside_call_ms']:.3f}" for each in (then, now)]
        faster = f"{then['step_ms']['median'] / now['step_ms']['median']:.1f}"
        made = [str(now["rows"]), now["sampler"], f"{now['steps_a_call']:.0f}"]
        rows.append([*made, steps[0], own[0], steps[1], own[1], faster])
    yield from markdown([*head, "of it the loop's", "times as fast"], rows)
    yield ""
    yield f"Toy networks. Before: {_run(runs['before'])}; now: {_run(runs['now'])}."
    yield ""
    head = [
        "weights",
        "rows",
        "sampler",
        "steps a call",
        "a step, ms",
        "its share of a call, ms",
        "the loop's, ms",
        "times",
    ]
    demos = {"demo, before": runs["demo-before"], "demo, now": runs["demo"]}
    yield from markdown(head, [[name, *_own(each)] for name, run in demos.items() for each in run["records"]])
    yield ""
    yield f"Profile `cpu`. Before: {_run(runs['demo-before'])}; now: {_run(runs['demo'])}."


def _own(record: Record) -> list[str]:
    step = record["step_ms"]["median"]
    share = step - record["beside_call_ms"]
    figures = [f"{record['steps_a_call']:.0f}", f"{step:.2f}", f"{share:.2f}", f"{record['beside_call_ms']:.2f}"]
    return [str(record["rows"]), record["sampler"], *figures, f"{record['times_the_call']:.3f}"]


def _run(run: Record) -> str:
    load = run["machine"]["load"][0]
    return f"{where_and_when(run)}, load at the start {load:.1f}, code {run['code'] or 'of no checkout'}"
