"""python -m benchmarks.serving: the server beside what a user would run instead; every figure is a ratio in one run.

Each scenario writes OUT/WEIGHTS-SCENARIO.json when it is done, and the table and plots anew. A scenario whose file is
there is left out, so a run that was stopped goes on where it was; --again measures it anew.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import DEMO_SNAPSHOT, ROOT
from training.cli import run_command

if TYPE_CHECKING:
    from benchmarks.serving.setup import Bench

SCENARIOS = ("start", "layers", "single", "offline", "cost", "load", "mixed", "perf_analyzer")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", choices=("bundle", "demo"), default="bundle", help="default: %(default)s")
    parser.add_argument("--snapshot", type=Path, default=DEMO_SNAPSHOT, help="of demo")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument(
        "--without", nargs="+", default=(), metavar="PART", help="contestants with this in their name take no part"
    )
    parser.add_argument("--again", action="store_true", help="also those that are recorded")
    parser.add_argument("--quick", action="store_true", help="try the benchmark itself: tiny networks, few, once")
    parser.add_argument("--work", type=Path, help="for exports and fetched programs (default: build/serving-work)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/serving; --quick: build/serving")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.weights = "small"
    arguments.out = arguments.out or ROOT / ("build/serving" if arguments.quick else "benchmarks/serving")
    arguments.out = arguments.out.resolve()
    arguments.again |= arguments.quick
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)

    from benchmarks.machine import describe
    from benchmarks.sections import left, run_sections
    from benchmarks.serving.plot import draw
    from benchmarks.serving.setup import AMOUNTS, Bench
    from benchmarks.serving.table import write_table

    with _work_folder(arguments) as work:
        bench = Bench(
            arguments.weights, AMOUNTS[arguments.weights], work, arguments.snapshot, without=tuple(arguments.without)
        )
        without = f" --without {shlex.join(arguments.without)}" if arguments.without else ""
        command = f"python -m benchmarks.serving --weights {arguments.weights}{without}"
        functions = _functions(bench, arguments.out)
        wanted = {f"{arguments.weights}-{name}": functions[name] for name in arguments.only or SCENARIOS}
        with closing(bench):
            failed = run_sections(
                left(wanted, arguments.out, arguments.again),
                arguments.out,
                lambda: {"machine": describe(), "command": command, "steps": bench.amount.steps},
                lambda: (write_table(arguments.out), draw(arguments.out)),
            )
    if (arguments.out / "table.md").is_file():
        print((arguments.out / "table.md").read_text())
    if failed:
        print(f"error: these scenarios failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _work_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """For what can be used again; the export of a try-out is not, unless told."""
    if arguments.quick and arguments.work is None:
        with tempfile.TemporaryDirectory(prefix="brats-ldm-serving-") as temporary:
            yield Path(temporary)
        return
    folder: Path = (arguments.work or ROOT / "build" / "serving-work").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _functions(bench: Bench, out: Path) -> dict[str, Callable[[], Any]]:
    from benchmarks.serving import load, scenarios
    from benchmarks.serving.analyzer.drive import analyze

    return {
        "start": lambda: scenarios.start(bench),
        "layers": lambda: scenarios.layers(bench),
        "single": lambda: scenarios.single(bench),
        "offline": lambda: scenarios.offline(bench),
        "cost": lambda: scenarios.cost(bench),
        "load": lambda: load.sweep(bench),
        "mixed": lambda: load.mixed(bench),
        "perf_analyzer": lambda: analyze(bench, out / f"{bench.weights}-perf_analyzer.txt"),
    }


if __name__ == "__main__":
    run_command(main)
