"""python -m benchmarks.serving: the server beside what a user would run instead; every figure is a ratio in one run.

Each scenario writes its record (OUT/WEIGHTS-SCENARIO.json, with --device gpu OUT/gpu-SECTION.json) when it is done, and
table and plots anew. A scenario with a record is left out, so a run that was stopped continues; --again measures it
anew. A scenario that fails is recorded too, the others run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import DEMO_SNAPSHOT, ROOT
from benchmarks.serving.gpu import timetable
from training.cli import run_command

if TYPE_CHECKING:
    from export.precision import Precision

SCENARIOS = ("start", "layers", "single", "offline", "cost", "load", "mixed", "presets", "perf_analyzer")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "gpu"), default="cpu", help="device to measure (default: %(default)s)")
    add(
        "--weights",
        nargs="+",
        choices=("bundle", "demo"),
        help="networks to serve (default: bundle; --device gpu: bundle demo)",
    )
    add(
        "--snapshot",
        type=Path,
        default=DEMO_SNAPSHOT,
        help="snapshot of the demo weights (default: this checkout's, or its model.onnx)",
    )
    add("--only", nargs="+", default=[], metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; GPU: see --dry-run")
    add("--again", action="store_true", help="measure recorded scenarios again, too")
    add("--quick", action="store_true", help="try the benchmark itself with tiny networks on the CPU")
    add("--work", type=Path, help="folder for exports and fetched programs (default: build/serving-work)")
    add("--out", type=Path, help="folder for records (default: benchmarks/serving; --quick: build/serving)")
    cpu = parser.add_argument_group("on a CPU")
    cpu.add_argument(
        "--without", nargs="+", default=(), metavar="PART", help="leave out contestants whose name contains PART"
    )
    gpu = parser.add_argument_group("on a GPU", "The first weights are measured in every way, others as served.")
    gpu.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="precision of exports (default: fp16; --quick: fp32)"
    )
    gpu.add_argument(
        "--minutes", type=float, default=9.0, help="begin no new part after this many minutes (default: 9)"
    )
    gpu.add_argument(
        "--compile", action="store_true", help="with --quick: also measure compiled programs (takes minutes)"
    )
    gpu.add_argument("--no-tests", action="store_true", help="do not run `pytest -m gpu`")
    gpu.add_argument(
        "--dry-run", action="store_true", help="print the order, the times and the size of the kit, and exit"
    )
    arguments = parser.parse_args(argv)
    quick, on_gpu = arguments.quick, arguments.device == "gpu"
    arguments.weights = arguments.weights or (["small"] if quick else ["bundle", "demo"] if on_gpu else ["bundle"])
    arguments.out = (arguments.out or ROOT / ("build/serving" if quick else "benchmarks/serving")).resolve()
    arguments.again |= quick
    _check_only(parser, arguments)
    return arguments


def _check_only(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Sets `names`, the scenarios or sections to measure."""
    names = _gpu_sections(arguments) if arguments.device == "gpu" else list(SCENARIOS)
    if unknown := sorted(set(arguments.only) - set(names)):
        parser.error(f"--only: no section {unknown[0]} here, but {', '.join(names)}")
    arguments.names = [name for name in names if not arguments.only or name in arguments.only]


def _gpu_sections(arguments: argparse.Namespace) -> list[str]:
    real = not arguments.quick
    tensorrt = real and find_spec("tensorrt") is not None
    return timetable.order(arguments.weights, tensorrt, real and not arguments.no_tests, real or arguments.compile)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)
    if arguments.dry_run:
        _print_timetable(arguments)
        return 0
    with _work_folder(arguments) as work:
        measure = _on_gpu if arguments.device == "gpu" else _on_cpu
        failed = measure(arguments, work)
    page = arguments.out / "table.md"
    print(page.read_text() if page.is_file() else "")
    if failed:
        print(f"error: these sections failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _work_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """For what can be used again. The exports of a try-out and of a GPU's run are temporary, without --work."""
    if arguments.work is None and (arguments.quick or arguments.device == "gpu"):
        with tempfile.TemporaryDirectory(prefix="brats-ldm-serving-") as temporary:
            yield Path(temporary)
        return
    folder: Path = (arguments.work or ROOT / "build" / "serving-work").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _on_cpu(arguments: argparse.Namespace, work: Path) -> list[str]:
    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections
    from benchmarks.serving import presets_chart
    from benchmarks.serving.bench import AMOUNTS, Bench
    from benchmarks.serving.plot import draw
    from benchmarks.serving.scenarios import functions
    from benchmarks.tables.serving import write_table

    out, failed = arguments.out, []
    without = ["--without", *arguments.without] if arguments.without else []
    for weights in arguments.weights:
        amount = AMOUNTS["small" if arguments.quick else weights]
        command = shlex.join(["python", "-m", "benchmarks.serving", "--weights", weights, *without])

        def facts(command: str = command, steps: int = amount.steps) -> dict[str, Any]:
            return {"machine": describe(), "command": command, "steps": steps}

        with closing(Bench(weights, amount, work, arguments.snapshot, without=tuple(arguments.without))) as bench:
            measured = functions(bench, out)
            wanted = left({f"{weights}-{name}": measured[name] for name in arguments.names}, out, arguments.again)
            failed += run_sections(wanted, out, facts, lambda: (write_table(out), draw(out)))
    if "presets" in arguments.names and not arguments.quick:
        presets_chart.draw_recorded()
    return failed


def _on_gpu(arguments: argparse.Namespace, work: Path) -> list[str]:
    import torch

    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections
    from benchmarks.serving.gpu.sections import sections
    from benchmarks.serving.gpu.setup import Setup, describe_gpu
    from benchmarks.tables.serving import write_table

    if not (arguments.quick or torch.cuda.is_available()):
        raise SystemExit("error: torch sees no GPU here; --quick tries the benchmark itself")
    device = torch.device("cpu") if arguments.quick else torch.device("cuda", 0)
    precision: Precision = arguments.precision or ("fp32" if arguments.quick else "fp16")
    setup = Setup(device, precision, time.monotonic() + 60 * arguments.minutes, work, arguments.snapshot)
    facts = {"machine": describe() | describe_gpu(device), "command": "make gpu", "precision": precision}
    measured, out = sections(arguments.names, setup.quick() if arguments.quick else setup), arguments.out
    return run_sections(left(measured, out, arguments.again), out, lambda: facts, lambda: write_table(out))


def _print_timetable(arguments: argparse.Namespace) -> None:
    from benchmarks.serving.gpu.kit import ARCHIVE, LIMIT_MB

    print("\n".join(timetable.lines(arguments.names)))
    print(f"nothing new begins after {60 * arguments.minutes:.0f} (--minutes {arguments.minutes:g})")
    size = f"{ARCHIVE.stat().st_size / 1e6:.1f} MB" if ARCHIVE.is_file() else "not built here (make gpu-kit)"
    print(f"kit: {size}, at most {LIMIT_MB} MB")


if __name__ == "__main__":
    run_command(main)
