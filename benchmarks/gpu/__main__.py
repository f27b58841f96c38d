"""python -m benchmarks.gpu: every figure in one run, the most wanted first, each written as soon as it is there.

A section that fails is told, recorded and left; the others run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import DEMO_SNAPSHOT, ROOT
from benchmarks.gpu.plan import describe, kind, order
from training.cli import run_command
from training.files import whole_file

if TYPE_CHECKING:
    from benchmarks.gpu.setup import Setup

ARCHIVE = "gpu.tar.gz"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, help=f"folder of the figures and of {ARCHIVE} with all of them (default: benchmarks/gpu)"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=("bundle", "demo", "small"),
        help="the first is measured in every way, others as served (default: bundle demo; --cpu: small)",
    )
    parser.add_argument(
        "--snapshot", type=Path, default=DEMO_SNAPSHOT, help="of demo (default: of this checkout, or its model.onnx)"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="default: fp16; --cpu: fp32")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after these (default: 9)")
    parser.add_argument("--cpu", action="store_true", help="try the benchmark itself: few, tiny, on the CPU")
    parser.add_argument("--compile", action="store_true", help="with --cpu: what is compiled, too (minutes)")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="of those that --dry-run names")
    parser.add_argument("--no-tests", action="store_true", help="leave `pytest -m gpu` out")
    parser.add_argument("--dry-run", action="store_true", help="print the order, times and the kit's size, and end")
    arguments = parser.parse_args(argv)
    arguments.weights = arguments.weights or (["small"] if arguments.cpu else ["bundle", "demo"])
    arguments.precision = arguments.precision or ("fp32" if arguments.cpu else "fp16")
    return arguments


def _setup(arguments: argparse.Namespace, work: Path, deadline: float) -> Setup:
    import torch

    from benchmarks.gpu.setup import Setup

    shared = {"work": work, "demo_snapshot": arguments.snapshot, "precision": arguments.precision, "deadline": deadline}
    if arguments.cpu:
        few = {"batches": (1, 2), "steps": 2, "steps_a_call": (1, 2), "images": 2, "requests": 2, "repeats": 1}
        return Setup(device=torch.device("cpu"), **few, **shared)
    if not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here; --cpu tries the benchmark itself")
    many = {"batches": (1, 8, 64), "steps": 50, "images": 512, "requests": 30, "repeats": 10}
    many["steps_a_call"] = (1, 5, 10, 50)
    return Setup(device=torch.device("cuda", 0), **many, **shared)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments, deadline = _parse(argv), time.monotonic()
    deadline += 60 * arguments.minutes
    tensorrt, tests = find_spec("tensorrt") is not None, not arguments.no_tests
    compiled = arguments.compile or not arguments.cpu
    names = order(arguments.weights, tensorrt and not arguments.cpu, tests and not arguments.cpu, compiled)
    if unknown := sorted(set(arguments.only) - set(names)):
        raise SystemExit(f"error: no section {unknown[0]} here, but {', '.join(names)}")
    names = [name for name in names if not arguments.only or name in arguments.only]
    if arguments.dry_run:
        _print_plan(names, arguments.minutes)
        return 0

    from benchmarks.gpu.setup import machine
    from benchmarks.gpu.table import write_table
    from benchmarks.sections import run_sections

    out: Path = arguments.out or ROOT / ("build/gpu" if arguments.cpu else "benchmarks/gpu")

    def after_each() -> None:
        write_table(out)
        if arguments.out:
            _archive(out)

    with tempfile.TemporaryDirectory(prefix="brats-ldm-gpu-") as work:
        setup = _setup(arguments, Path(work), deadline)
        described = {**machine(setup.device), "precision": arguments.precision}
        print(json.dumps(described), flush=True)
        failed = run_sections(_sections(names, setup), out, lambda: {"machine": described}, after_each)
    print((out / "table.md").read_text())
    if failed:
        print(f"error: these sections failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _print_plan(names: Sequence[str], minutes: float) -> None:
    from benchmarks.gpu.kit import ARCHIVE, LIMIT_MB

    print(describe(names))
    print(f"nothing new begins after {60 * minutes:.0f} (--minutes {minutes:g})")
    size = f"{ARCHIVE.stat().st_size / 1e6:.1f} MB" if ARCHIVE.is_file() else "not built here (make gpu-kit)"
    print(f"kit: {size}, at most {LIMIT_MB} MB")


def _archive(out: Path) -> None:
    with whole_file(out / ARCHIVE) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for path in [*sorted(out.glob("*.json")), out / "table.md"]:
            tar.add(path, path.name)


def _sections(names: Sequence[str], setup: Setup) -> list[tuple[str, Callable[[], Any]]]:
    """Each name with its function. What several of them need is made by the first that does."""
    from benchmarks.gpu.in_process import bundle_loop, programs
    from benchmarks.gpu.repositories import Repositories
    from benchmarks.gpu.served import served

    repositories = cache(partial(Repositories, setup))

    def run(name: str) -> Any:
        weights = name.partition("-")[0]
        own, trained = repositories(weights), weights == "demo"
        functions: dict[str, Callable[[], Any]] = {
            "served-torch": lambda: served(setup, own.snapshot(), own.torch, "torch", trained),
            "served-compiled": lambda: served(setup, own.snapshot(), own.compiled, "torch", trained),
            "served-tensorrt": lambda: served(setup, own.snapshot(), own.tensorrt, None, trained),
            "pytorch": lambda: bundle_loop(setup, own.snapshot()),
            "programs": lambda: programs(setup, own.snapshot(), own.torch),
            "tests": lambda: _tests(setup),
        }
        return functions[kind(name)]()

    return [(name, partial(run, name)) for name in names]


def _tests(setup: Setup) -> Iterator[tuple[str, Any]]:
    setup.check_time()
    # Only the files that hold such tests, and have what they need: a bare machine lacks what the others import.
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not (find_spec("tensorrt") or find_spec("tensorrt_rtx")):
        files = [path for path in files if "tensorrt" not in path.name]
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=. client"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    left = setup.deadline - time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu ended with exit status {done.returncode}")
    yield "summary", done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    run_command(main)
