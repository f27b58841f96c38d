"""What the long runs showed: the reliability run, and the closing lines of `make demo` and `make test`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness.markdown import Lines, Reader, Record, table, where_and_when

COMMANDS = ("make demo", "make test")
SCENARIOS = {
    "early leavers": (
        "storms of early leavers, five ways to leave", "{requests that left:,} requests",
        "{rows left} rows left after {until idle, s:g} s",
    ),
    "networks that fail": (
        "errors and hangs of a network", "{faults injected} faults",
        "{requests hung} hung; errors that do not name the network: {other}",
    ),
    "processes killed": (
        "SIGKILL of every process in turn, under load", "{faults injected} kills",
        "{requests lost} lost of {images:,} images; back within {slowest restart, s:g} s",
    ),
    "orderly stops": (
        "stops amid running requests", "{stops} stops",
        "{requests lost} of {requests in flight} requests; "
        "end {slowest exit after the last row, s:g} s after the last row",
    ),
    "bad input": (
        "random requests over gRPC and HTTP, most wrong", "{inputs tried:,} requests",
        "{internal errors} internal errors, {images wrong} wrong images",
    ),
}  # fmt: skip
"""What was done, how much of it, and what came of it; with the names of a scenario's counts."""


def two_commands(read: Reader) -> Lines:
    """A console with both commands and what they printed."""
    record = read("commands")
    yield "```console"
    for command in COMMANDS:
        yield from [f"$ {command}", *record[command]["lines"]]
    yield from ["```", ""]
    yield f"{'; '.join(f'`{command}`: {where_and_when(record[command])}' for command in COMMANDS)}."


def reliability(read: Reader) -> Lines:
    """A row or two for each scenario, with the machine of the run."""
    record = read("reliability")
    rows = [row for scenario, entry in record.items() for row in _scenario(scenario, entry)]
    yield from table(["what was done", "how much", "lost, hung or wrong"], rows)
    yield ""
    minutes = sum(entry["seconds"] for entry in record.values()) / 60
    machines = dict.fromkeys(where_and_when(entry) for entry in record.values())
    yield f"{', '.join(machines)}, {minutes:.0f} minutes in all."


def _scenario(scenario: str, entry: Record) -> Iterator[list[str]]:
    counts, wrong = entry["counts"], entry["wrong"]
    if failed := [name for name in counts if name.startswith("failed")]:
        yield [scenario, "", f"**{failed[0]}**"]
    elif scenario == "load held":
        done = f"{counts['requests']:,} requests"
        yield ["mixed load: images, streams, bad input, cancels, refusals; six clients", done, f"{wrong}"]
        growth = f"{counts['largest growth of a process, MB']:g} MB"
        yield ["memory growth of any process, from the second quarter of the load to the last", growth, ""]
    else:
        other = sum(value for name, value in counts.items() if name.startswith("other errors"))
        done, amount, came = (words.format_map({**counts, "other": other}) for words in SCENARIOS[scenario])
        yield [done, amount, f"{came}; **{wrong} wrong**" if wrong else came]
