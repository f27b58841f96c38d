"""All scenarios in large amounts, one after the other, with a table of the results: `make test-reliability`.

Exits with 1 where a request was lost, an image wrong or something left behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.machine import describe
from reliability.bad_input import fuzz
from reliability.bounds import OutOfBounds, bounded
from reliability.cancel import killed_clients, places, storm
from reliability.drain import drains, grace_over
from reliability.faults import kills, network_faults
from reliability.soak import MB_PER_10_000, plot, soak, write_repository
from server.process import TritonServer
from support.faulty_networks import write_faulty
from support.toy_pipeline import Reference, write_pipeline
from training.files import write_text

Counts = Mapping[str, int | float]
VICTIMS = ("tritonserver", "mri_ldm_0_0", "unet_0_0", "mri_ldm_stream_0_0", "vae_decoder_0_0")
NONE_OF_THEM = (
    "failed",
    "hangs",
    "hung",
    "wrong",
    "lost",
    "left",
    "leaks",
    "dead",
    "internal errors",
    "not counted",
    "other answers",
    "other errors",
)
"""Words in the names of counts that must be 0."""
LONGEST_MINUTES, MOST_MEGABYTES = 20.0, 4000.0
"""Limits of one scenario; on an idle machine it takes at most four minutes and 0.5 GB."""


def held(amount: float, folder: Path, out: Path) -> Counts:
    """The long soak, with its picture."""
    requests = round(30_000 * amount)
    result = soak(write_repository(folder), requests)
    plot(result, out / "soak.png")
    growth = result.growth()
    allowed = MB_PER_10_000 * max(1.0, requests / 10_000)
    leaks = sum(grown > allowed for grown in growth.values())
    largest = round(max(growth.values()), 1)
    return {"requests": requests, **result.counts, "largest growth of a process, MB": largest, "leaks": leaks}


def leavers(amount: float, folder: Path, out: Path) -> Counts:
    """Storms of cancels, and deadlines in every place."""
    repository = write_faulty(folder, max_rows_in_flight=4)
    with TritonServer(repository) as server:
        server.probe()
        after_deadline = {f"gone after a deadline {place}": took for place, took in places(repository, server).items()}
        killed = {f"killed clients: {name}": value for name, value in killed_clients(server).items()}
        # Not {**...}, in which a count would silently take the place of another of its name.
        return dict(**storm(server, round(1000 * amount)), **after_deadline, **killed)


def failing_networks(amount: float, folder: Path, out: Path) -> Counts:
    """Errors and hangs of both networks."""
    repository = write_faulty(folder, network_timeout=1)
    with TritonServer(repository) as server:
        server.probe()
        return network_faults(repository, server.grpc_url, rounds=max(1, round(5 * amount)))


def killed_processes(amount: float, folder: Path, out: Path) -> Counts:
    """SIGKILL for every process of the server, under load."""
    return kills(write_faulty(folder), VICTIMS * max(1, round(4 * amount)))


def stops(amount: float, folder: Path, out: Path) -> Counts:
    """Orderly stops under load, and one whose grace period ends."""
    repository = write_faulty(folder)
    over = {f"grace period over: {name}": value for name, value in grace_over(repository).items()}
    return dict(**drains(repository, rounds=max(1, round(10 * amount))), **over)


def bad_inputs(amount: float, folder: Path, out: Path) -> Counts:
    """Random requests, most of them wrong, over gRPC and HTTP."""
    repository = write_pipeline(folder)
    with TritonServer(repository) as server:
        server.probe()
        return fuzz(server, Reference(repository), round(20_000 * amount), seed=1)


SCENARIOS: dict[str, Callable[[float, Path, Path], Counts]] = {
    "load held": held, "early leavers": leavers, "networks that fail": failing_networks,
    "processes killed": killed_processes, "orderly stops": stops, "bad input": bad_inputs,
}  # fmt: skip


def must_be_none(name: str) -> bool:
    """Whether a count of this name must be 0."""
    return name != "requests that left" and not name.endswith((", s", ", MB")) and any(w in name for w in NONE_OF_THEM)


Record = dict[str, dict[str, Any]]
"""Scenario to its machine with date, amount, seconds, counts, and the sum of those that must be 0."""


def ran(scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one scenario; returns its record."""
    machine, began = describe(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with bounded(60 * LONGEST_MINUTES * max(1.0, options.amount), MOST_MEGABYTES):
                counts = SCENARIOS[scenario](options.amount, Path(folder) / "repository", options.out)
        except (OutOfBounds, AssertionError) as error:  # the others are still worth having
            print(f"{scenario}: {error}", file=sys.stderr, flush=True)
            words = str(error).partition("\n")[0] or type(error).__name__
            counts = {f"failed: {words}": 1}
    seconds, wrong = round(time.monotonic() - began, 1), sum(wrong_of(counts).values())
    return {"machine": machine, "amount": options.amount, "seconds": seconds, "counts": counts, "wrong": wrong}


def wrong_of(counts: Counts) -> Counts:
    """The counts that must be 0 and are not."""
    return {name: value for name, value in counts.items() if value and must_be_none(name)}


def keep(path: Path, record: Record) -> None:
    """Write `record` into the file; a scenario that it lacks stays as it is there."""
    kept: Record = json.loads(path.read_text()) if path.is_file() else {}
    kept |= record
    write_text(path, json.dumps({name: kept[name] for name in SCENARIOS if name in kept}, indent=2) + "\n")


def table(record: Record) -> str:
    """Markdown: a row for each count."""
    lines = ["| scenario | what | count | |", "|---|---|---|---|"]
    for scenario, entry in record.items():
        title = f"{scenario} ({entry['seconds']:.0f} s)"
        for name, value in entry["counts"].items():
            verdict = ("**wrong**" if value else "must be 0") if must_be_none(name) else ""
            lines.append(f"| {title} | {name} | {value:,} | {verdict} |")
            title = ""
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="make test-reliability, or python tests/reliability", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--amount", type=float, default=1.0, help="share of the full amounts (default: %(default)s)")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="one scenario; may be given more than once")
    parser.add_argument(
        "--out", type=Path, default=Path("out/reliability"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE",
        help="write the counts, machine and date to FILE after each scenario; FILE keeps those of other scenarios "
        "(default: record.json in --out)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    record: Record = {}
    for scenario in options.only or SCENARIOS:
        print(f"{scenario} ...", file=sys.stderr, flush=True)
        record[scenario] = ran(scenario, options)
        keep(options.record or options.out / "record.json", record)
        write_text(options.out / "table.md", table(record) + "\n")
    print(table(record))
    wrong = [
        f"{scenario}, {name}: {value}"
        for scenario, entry in record.items()
        for name, value in wrong_of(entry["counts"]).items()
    ]
    print(f"\nwrong: {'; '.join(wrong)}" if wrong else "\nNothing lost, nothing wrong, nothing left.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
