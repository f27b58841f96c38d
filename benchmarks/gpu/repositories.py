"""The model repositories of the benchmark: made once, when first asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.fronts import add_fronts
from benchmarks.gpu.setup import Setup
from benchmarks.weights import load_weights
from export.repository import Extras, export_repository
from training.checkpoint import Snapshot, save_snapshot

ROOT = Path(__file__).resolve().parents[2]


class Repositories:
    """Of one kind of weights."""

    def __init__(self, setup: Setup, weights: str) -> None:
        self._setup, self._weights = setup, weights
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The weights."""
        self._snapshot = self._snapshot or load_weights(self._weights, self._setup.demo_snapshot)
        return self._snapshot

    def torch(self) -> Path:
        """The profile torch alone, exported with the torch that is here."""
        return self._torch("torch", Extras(torch=self._setup.precision, with_onnx=False))

    def compiled(self) -> Path:
        """The same, compiled for the device that is here."""
        return self._torch("compiled", Extras(torch=self._setup.precision, with_onnx=False, compiled=True))

    def _torch(self, kind: str, extras: Extras) -> Path:
        into = self._setup.work / f"{self._weights}-{kind}"
        if not into.exists():
            export_repository(self.snapshot(), into, self._weights, extras=extras)
            add_fronts(into, self._setup.steps_a_call)
        return into

    def tensorrt(self) -> Path:
        """The default profile with plans, exported by the command that a user types."""
        into = self._setup.work / f"{self._weights}-tensorrt"
        if not into.exists():
            source = self._setup.work / f"{self._weights}-snapshot"
            save_snapshot(self.snapshot(), source)
            command = [sys.executable, "-m", "export", str(source), "--into", str(into)]
            subprocess.run([*command, "--tensorrt", self._setup.precision], cwd=ROOT, check=True, timeout=540)
        return into
