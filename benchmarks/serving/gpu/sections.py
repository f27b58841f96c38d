"""The sections of a run on a GPU, as functions: a server in each profile, PyTorch, programs, and the GPU's tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.serving.gpu.networks import bundle_loop, programs
from benchmarks.serving.gpu.repositories import Repositories
from benchmarks.serving.gpu.served import served
from benchmarks.serving.gpu.setup import Setup
from benchmarks.serving.gpu.timetable import kind


def sections(names: Sequence[str], setup: Setup) -> dict[str, Callable[[], Any]]:
    """By the name of the record. Repositories that several sections need are made by the first of them."""
    repositories = cache(partial(Repositories, setup))

    def run(name: str) -> Any:
        weights = name.partition("-")[0]
        of, trained = repositories(weights), weights == "demo"
        functions: dict[str, Callable[[], Any]] = {
            "served-torch": lambda: served(setup, of.snapshot, of.torch, "torch", trained),
            "served-compiled": lambda: served(setup, of.snapshot, partial(of.torch, True), "torch", trained),
            "served-tensorrt": lambda: served(setup, of.snapshot, of.tensorrt, None, trained),
            "pytorch": lambda: bundle_loop(setup, of.snapshot),
            "programs": lambda: programs(setup, of.snapshot, of.torch),
            "tests": lambda: gpu_tests(setup),
        }
        return functions[kind(name)]()

    return {f"gpu-{name}": partial(run, name) for name in names}


def gpu_tests(setup: Setup) -> Iterator[tuple[str, Any]]:
    """`pytest -m gpu`."""
    setup.check_time()
    options = [
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "pythonpath=. tests client model_repository/mri_ldm/1",
    ]
    command = [sys.executable, "-m", "pytest", *options, *map(str, _test_files())]
    left = setup.deadline - time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu ended with exit status {done.returncode}")
    yield "summary", done.stdout.strip().splitlines()[-1]


def _test_files() -> list[Path]:
    """The files with tests for a GPU. A bare machine lacks what the other files import."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not (find_spec("tensorrt") or find_spec("tensorrt_rtx")):
        files = [path for path in files if "tensorrt" not in path.name]
    return files
