"""The run folder of one stage: resume state, TensorBoard events, pictures, snapshot. Knows nothing of losses."""

import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import CheckpointError, load_state, save_state, write_text
from training.config import AutoencoderTraining, Config, DiffusionTraining, config_from_dict
from training.pictures import grid, save_picture

Stage = AutoencoderTraining | DiffusionTraining


class Run:
    """A folder that the same command continues after an interruption.

    smooth: exponential averages of the logged losses, part of the resume state.
    """

    def __init__(self, folder: Path, stage: str, config: Config, data: dict[str, Any]) -> None:
        """Open or begin the run of `stage` with `config` on `data` (a record of `training.data.describe_data`).

        Raises:
            CheckpointError: `folder` holds a run of another stage, of other data, or of a configuration that differs
                in more than the length of the run and the way the data are cached.
        """
        self.folder = folder
        self.snapshot_folder = folder / "snapshot"
        self._identity = {"stage": stage, "data": data, "config": asdict(config)}
        self.state = load_state(folder / "state.pt")
        if self.state:
            self._check_identity()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "run.json", json.dumps(self._identity, indent=2) + "\n")
        self.iteration: int = self.state["iteration"] if self.state else 0
        self.smooth: dict[str, float] = self.state["smooth"] if self.state else {}
        # Events after the resume point belong to work that is about to be done again.
        self.writer = SummaryWriter(str(folder / "events"), purge_step=self.iteration)

    def _check_identity(self) -> None:
        path = self.folder / "run.json"
        theirs = json.loads(path.read_text())
        # Through the dataclasses, so that a field which is younger than the run gets its default.
        theirs["config"] = asdict(config_from_dict(theirs["config"], str(path)))
        mine = json.loads(json.dumps(self._identity))
        for part in ("stage", "data", "config"):
            if _fixed(json.loads(json.dumps(theirs[part]))) != _fixed(mine[part]):
                raise CheckpointError(f"{path} belongs to a run with another {part}: give a new --out")

    def save(self, iteration: int, **objects: Any) -> None:
        """Write the resume state: `iteration`, the smoothed losses and the state_dict of each object."""
        states = {name: thing.state_dict() for name, thing in objects.items()}
        save_state({"iteration": iteration, "smooth": self.smooth, **states}, self.folder / "state.pt")

    def restore(self, **objects: Any) -> None:
        """Load what `save` wrote, where there is something."""
        if self.state:
            for name, thing in objects.items():
                thing.load_state_dict(self.state[name])
        self.state = None

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """The losses of one iteration, to TensorBoard and into `smooth`.

        Raises:
            FloatingPointError: one is not finite; the resume state is that of before.
        """
        for name, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at iteration {iteration}: lower the learning rate and give a new --out"
                )
            self.writer.add_scalar(name, value, iteration)
            self.smooth[name] = 0.99 * self.smooth.get(name, value) + 0.01 * value

    def record(self, iterations: int) -> dict[str, Any]:
        """How the weights of this stage were made, for the snapshot."""
        versions = {package: importlib.metadata.version(package) for package in ("torch", "monai", "numpy")}
        data = self._identity["data"]
        return {"data": data, "iterations": iterations, "smoothed_losses": dict(self.smooth), "versions": versions}

    def picture(self, iteration: int, name: str, rows: list[torch.Tensor]) -> None:
        """Rows of slices, each [n, 1, H, W], to TensorBoard and to `pictures/`."""
        pixels = grid([row[:, 0].float().cpu().numpy() for row in rows])
        self.writer.add_image(name, pixels, iteration, dataformats="HW")
        save_picture(pixels, self.folder / "pictures" / f"{name}_{iteration:07d}.png")


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Stage, epoch: int) -> None:
    """MultiStepLR of the stage's settings as a function of the epoch alone, so there is no state to resume."""
    reached = sum(epoch >= milestone for milestone in settings.milestones)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * settings.gamma**reached


def _fixed(value: Any) -> Any:
    """`value` without the settings that may change between two starts of a run."""
    free = ("epochs", "checkpoint_every", "workers", "cache_rate")
    if isinstance(value, dict):
        return {name: _fixed(item) for name, item in value.items() if name not in free}
    return value
