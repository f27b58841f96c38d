"""python -m benchmarks.cost: how time and memory grow, beside what one `brats-ldm calibrate` on the same server says.

Seconds against steps, images of a request, clients, images of a call; memory against rows in flight and the decoder's
batch. Each part is kept in a file of --work when it is done, and a run that was stopped continues; --again measures all
anew. Nothing else may run meanwhile. The tables of the committed weights go into docs/cost.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import COMMITTED, ROOT
from training.cli import run_command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=COMMITTED, help="default: the demo weights")
    parser.add_argument("--profile", default="cpu", help="of the server (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="try the benchmark itself: few points, once")
    parser.add_argument("--again", action="store_true", help="also what is recorded in --work")
    parser.add_argument("--work", type=Path, help="for the parts (default: a folder of these weights in build/cost)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: benchmarks/cost.json; in --work with --repository or --quick"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="default: docs/cost.png; or in --work, as --out")
    arguments = parser.parse_args(argv)
    if not (arguments.repository / "mri_ldm" / "1" / "model.json").is_file():
        parser.error(f"--repository: no mri_ldm/1/model.json in {arguments.repository}: give an exported repository")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)

    from benchmarks import report
    from benchmarks.cost.plot import draw
    from benchmarks.cost.record import assemble
    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections
    from benchmarks.tables.cost import tables
    from training.files import write_text

    model = json.loads((arguments.repository / "mri_ldm" / "1" / "model.json").read_text())
    work = arguments.work or _work_folder(arguments, model["digest"])
    recorded_run = arguments.repository == COMMITTED and not arguments.quick
    out = arguments.out or (ROOT / "benchmarks" if recorded_run else work) / "cost.json"
    picture = arguments.picture or (ROOT / "docs" if recorded_run else work) / "cost.png"
    command = shlex.join(["python", "-m", "benchmarks.cost", *(sys.argv[1:] if argv is None else argv)])
    facts = {"command": command, "model": model["name"], "profile": arguments.profile}
    with ExitStack() as stack:
        sections = _sections(arguments, stack)
        failed = run_sections(
            left(sections, work, arguments.again), work, lambda: {"machine": describe(), **facts}, lambda: None
        )
    if failed:
        print(f"error: these parts failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    record = assemble({name: json.loads((work / f"{name}.json").read_text()) for name in sections})
    write_text(out, json.dumps(record, indent=2) + "\n")
    draw(record, picture)
    print("\n".join(tables(record)))
    print(f"{out}, {picture}", file=sys.stderr)
    if recorded_run and not arguments.out:
        report.main([])
    return 0


def _work_folder(arguments: argparse.Namespace, digest: str) -> Path:
    kind = "quick" if arguments.quick else "full"
    return ROOT / "build" / "cost" / f"{digest.removeprefix('sha256:')[:12]}-{arguments.profile}-{kind}"


def _sections(arguments: argparse.Namespace, stack: ExitStack) -> Mapping[str, Callable[[], Any]]:
    """By name, in order. The times share one server, started for the first of them; `stack` stops it."""
    from benchmarks.cost import measure
    from server.process import TritonServer

    amount, profile = measure.QUICK if arguments.quick else measure.FULL, arguments.profile

    @cache
    def bench() -> measure.Bench:
        server = stack.enter_context(TritonServer(arguments.repository, profile))
        server.probe()
        return measure.Bench(server, amount, print, _unrolled(arguments))

    def measure_memory(part: Callable[..., Any]) -> Any:
        stack.close()  # each starts a server of its own
        return part(arguments.repository, profile, amount, print)

    times = {
        "calibration": measure.calibration,
        "steps": measure.by_steps,
        "rows": measure.by_rows,
        "clients": measure.by_clients,
        "images": measure.by_images,
    }
    memories = {"memory": measure.memory_by_rows, "decoder": measure.memory_by_decode_batch}
    return {
        **{name: partial(lambda part: part(bench()), part) for name, part in times.items()},
        **{name: partial(measure_memory, part) for name, part in memories.items()},
    }


def _unrolled(arguments: argparse.Namespace) -> int:
    """Steps that every call computes."""
    model = json.loads((arguments.repository / "mri_ldm" / "1" / "model.json").read_text())
    return 1 if arguments.profile == "torch" else max(1, model.get("steps_per_call", 1))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # in order, so that the server ends too


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    run_command(main)
