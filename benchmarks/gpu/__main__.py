"""python -m benchmarks.gpu: every figure in one run; each section writes its JSON when it is done.

A section that fails is told, recorded and left; the others run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.setup import Setup

ROOT = Path(__file__).resolve().parents[2]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the figures (default: benchmarks/gpu; --cpu: build/gpu)")
    parser.add_argument(
        "--weights", nargs="+", choices=("demo", "bundle", "small"), help="default: bundle, and demo if it is there"
    )
    parser.add_argument("--snapshot", type=Path, default=Path("runs/demo/diffusion/snapshot"), help="of demo")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="default: fp16; --cpu: fp32")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after these (default: 9)")
    parser.add_argument("--cpu", action="store_true", help="try the benchmark itself: few, tiny, on the CPU")
    parser.add_argument("--no-tests", action="store_true", help="leave `pytest -m gpu` out")
    arguments = parser.parse_args(argv)
    if not arguments.weights:
        demo = ["demo"] if (arguments.snapshot / "snapshot.json").is_file() else []
        arguments.weights = ["small"] if arguments.cpu else ["bundle", *demo]
    arguments.precision = arguments.precision or ("fp32" if arguments.cpu else "fp16")
    arguments.out = arguments.out or ROOT / ("build/gpu" if arguments.cpu else "benchmarks/gpu")
    return arguments


def _setup(arguments: argparse.Namespace, work: Path) -> Setup:
    import torch

    from benchmarks.gpu.setup import Setup

    shared = {"work": work, "demo_snapshot": arguments.snapshot, "precision": arguments.precision}
    deadline = time.monotonic() + 60 * arguments.minutes
    if arguments.cpu:
        few = {"batches": (1, 2), "steps": 2, "images": 2, "requests": 2, "repeats": 1}
        return Setup(device=torch.device("cpu"), deadline=deadline, **few, **shared)
    if not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here; --cpu tries the benchmark itself")
    many = {"batches": (1, 2, 4, 8, 16, 32, 64), "steps": 50, "images": 512, "requests": 30, "repeats": 10}
    return Setup(device=torch.device("cuda", 0), deadline=deadline, **many, **shared)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)

    from benchmarks.gpu.setup import machine
    from benchmarks.gpu.table import write_table
    from benchmarks.sections import run_sections

    with tempfile.TemporaryDirectory(prefix="brats-ldm-gpu-") as work:
        setup = _setup(arguments, Path(work))
        described = {**machine(setup.device), "precision": arguments.precision}
        print(json.dumps(described), flush=True)
        sections = _sections(arguments, setup)
        failed = run_sections(
            sections, arguments.out, lambda: {"machine": described}, lambda: write_table(arguments.out)
        )
    print((arguments.out / "table.md").read_text())
    if failed:
        print(f"error: these sections failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _sections(arguments: argparse.Namespace, setup: Setup) -> list[tuple[str, Callable[[], Any]]]:
    """Names and functions, the most wanted first. What several of them need is made by the first that does."""
    from benchmarks.gpu.in_process import bundle_loop, programs
    from benchmarks.gpu.repositories import Repositories
    from benchmarks.gpu.served import served

    sections: list[tuple[str, Callable[[], Any]]] = []
    for weights in arguments.weights:
        own, trained = Repositories(setup, weights), weights == "demo"
        sections += [
            (f"{weights}-programs", lambda own=own: programs(setup, own.torch())),
            (
                f"{weights}-served-torch",
                lambda own=own, trained=trained: served(setup, own.snapshot(), own.torch(), "torch", trained),
            ),
            (f"{weights}-pytorch", lambda own=own: bundle_loop(setup, own.snapshot())),
        ]
        if setup.device.type == "cuda" and find_spec("tensorrt"):
            sections.append(
                (
                    f"{weights}-served-tensorrt",
                    lambda own=own, trained=trained: served(setup, own.snapshot(), own.tensorrt(), None, trained),
                )
            )
    if not arguments.no_tests and setup.device.type == "cuda":
        sections.append(("tests", _tests))
    return sections


def _tests() -> dict[str, Any]:
    # Only the files that hold such tests: the others import what a bare machine lacks.
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu ended with exit status {done.returncode}")
    return {"summary": done.stdout.strip().splitlines()[-1]}


if __name__ == "__main__":
    sys.exit(main())
