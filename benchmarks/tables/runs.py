"""What the long runs showed: the reliability run, and the closing lines of `make demo` and `make test`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness.markdown import Lines, Reader, Record, table, where_and_when

COMMANDS = ("make demo", "make test")


def two_commands(read: Reader) -> Lines:
    """A console with both commands and what they printed."""
    record = read("commands")
    yield "```console"
    for command in COMMANDS:
        yield f"$ {command}"
        yield from record[command]["lines"]
    yield "```"
    yield ""
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
        yield ["growth of the memory of any process from the second quarter of it to the last", growth, ""]
    else:
        done, amount, came = _words(scenario, counts)
        yield [done, amount, f"{came}; **{wrong} wrong**" if wrong else came]


def _words(scenario: str, counts: Record) -> tuple[str, str, str]:
    """What was done, how much of it, and what came of it."""
    match scenario:
        case "early leavers":
            left = f"{counts['rows left']} rows left after {counts['until idle, s']:g} s"
            return "storms of early leavers, five ways to leave", f"{counts['requests that left']:,} requests", left
        case "networks that fail":
            other = sum(value for name, value in counts.items() if name.startswith("other errors"))
            came = f"{counts['requests hung']} hung; errors that do not name the network: {other}"
            return "errors and hangs of a network", f"{counts['faults injected']} faults", came
        case "processes killed":
            lost = f"{counts['requests lost']} lost of {counts['images']:,} images"
            came = f"{lost}; back within {counts['slowest restart, s']:g} s"
            return "SIGKILL of every process in turn, under load", f"{counts['faults injected']} kills", came
        case "orderly stops":
            lost = f"{counts['requests lost']} of {counts['requests in flight']} requests"
            came = f"{lost}; end {counts['slowest exit after the last row, s']:g} s after the last row"
            return "stops amid running requests", f"{counts['stops']} stops", came
        case "bad input":
            came = f"{counts['internal errors']} internal errors, {counts['images wrong']} wrong images"
            return "random requests over gRPC and HTTP, most wrong", f"{counts['inputs tried']:,} requests", came
    raise ValueError(f"no words for the scenario {scenario!r}")
