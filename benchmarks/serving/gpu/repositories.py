"""The model repositories of the benchmark. Each is made once, when it is first asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from benchmarks import ROOT
from benchmarks.harness.weights import load_weights
from benchmarks.serving.gpu.setup import Setup
from export.configs import parse_config
from export.repository import Extras, export_repository
from training.checkpoint import Snapshot, save_snapshot
from training.files import write_text

FRONT = "mri_ldm"


class Repositories:
    """Of one kind of weights."""

    def __init__(self, setup: Setup, weights: str) -> None:
        self._setup, self._weights = setup, weights

    @cached_property
    def snapshot(self) -> Snapshot:
        """The weights."""
        return load_weights(self._weights, self._setup.demo_snapshot)

    def torch(self, compiled: bool = False) -> Path:
        """The profile torch alone, exported with the torch of this machine; `compiled` for its device."""
        into = self._setup.work / f"{self._weights}-{'compiled' if compiled else 'torch'}"
        if not into.exists():
            extras = Extras(torch=self._setup.precision, with_onnx=False, compiled=compiled)
            export_repository(self.snapshot, into, self._weights, extras=extras)
            add_fronts(into, self._setup.steps_a_call)
        return into

    def tensorrt(self) -> Path:
        """The default profile with plans, exported by the command that a user types."""
        into = self._setup.work / f"{self._weights}-tensorrt"
        if not into.exists():
            source = self._setup.work / f"{self._weights}-snapshot"
            save_snapshot(self.snapshot, source)
            command = [sys.executable, "-m", "export", str(source), "--into", str(into)]
            subprocess.run([*command, "--tensorrt", self._setup.precision], cwd=ROOT, check=True, timeout=540)
        return into


def front(steps_a_call: int) -> str:
    """The name of the front model that has so many steps in a call."""
    return f"{FRONT}_{steps_a_call}"


def add_fronts(repository: Path, steps_a_call: Sequence[int]) -> None:
    """Copies of `mri_ldm` with fixed numbers of steps a call. They share its networks; 1 calls `unet`.

    None where there is no `unet_steps`.
    """
    if not (repository / "unet_steps").is_dir():
        return
    for steps in steps_a_call:
        folder = repository / front(steps)
        shutil.copytree(repository / FRONT, folder)
        record = json.loads((folder / "1" / "model.json").read_text())
        if steps == 1:
            del record["steps_per_call"]
            write_text(folder / "1" / "model.json", json.dumps(record))
        for path in (folder / "config.pbtxt", *folder.glob("configs/*.pbtxt")):
            config = parse_config(path)
            config.name = folder.name
            config.parameters["steps_per_call"].string_value = str(steps)
            write_text(path, str(config))
