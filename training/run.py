"""The run folder of one stage: resume state, TensorBoard events, pictures, snapshot. Knows nothing of losses."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import CheckpointError, load_state, save_state
from training.config import Config
from training.pictures import grid, save_picture


class Run:
    """A folder that the same command continues after an interruption.

    The configuration is written at each start; one that differs in more than the length of the run is refused.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        """Raises CheckpointError when `folder` belongs to a run with another configuration."""
        self.folder = folder
        self.snapshot_folder = folder / "snapshot"
        self._claim(asdict(config))
        self.state = load_state(folder / "state.pt")
        self.iteration: int = self.state["iteration"] if self.state else 0
        # Events after the resume point belong to work that is about to be done again.
        self.writer = SummaryWriter(str(folder / "events"), purge_step=self.iteration)

    def _claim(self, config: dict[str, Any]) -> None:
        path = self.folder / "config.json"
        wanted = json.dumps(config, indent=2) + "\n"
        if path.is_file() and _fixed(json.loads(path.read_text())) != _fixed(json.loads(wanted)):
            raise CheckpointError(
                f"{path} holds another configuration: give a new --out, or the flags of the first start"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name("config.json.tmp")
        temporary.write_text(wanted)
        os.replace(temporary, path)

    def save(self, iteration: int, **objects: Any) -> None:
        """Write the resume state: `iteration` and the state_dict of each object."""
        states = {name: thing.state_dict() for name, thing in objects.items()}
        save_state({"iteration": iteration, **states}, self.folder / "state.pt")

    def restore(self, **objects: Any) -> None:
        """Load what `save` wrote, where there is something."""
        if self.state:
            for name, thing in objects.items():
                thing.load_state_dict(self.state[name])
        self.state = None

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Scalars of one iteration to TensorBoard; a value that is not finite stops the run, state untouched."""
        for name, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at iteration {iteration}: lower the learning rate")
            self.writer.add_scalar(name, value, iteration)

    def picture(self, iteration: int, name: str, rows: list[torch.Tensor]) -> None:
        """Rows of slices, each [n, 1, H, W], to TensorBoard and to `pictures/`."""
        pixels = grid([row[:, 0].float().cpu().numpy() for row in rows])
        self.writer.add_image(name, pixels, iteration, dataformats="HW")
        save_picture(pixels, self.folder / "pictures" / f"{name}_{iteration:07d}.png")


def set_learning_rate(optimizer: torch.optim.Optimizer, base: float, milestones: Sequence[int], epoch: int) -> None:
    """A tenth of `base` for each milestone reached; a function of the epoch alone, so there is no state to resume."""
    for group in optimizer.param_groups:
        group["lr"] = base * 0.1 ** sum(epoch >= milestone for milestone in milestones)


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what may change between two starts: how long to train, how often to save."""
    free = ("epochs", "checkpoint_every")
    return {
        section: {name: value for name, value in values.items() if name not in free}
        if isinstance(values, dict)
        else values
        for section, values in config.items()
    }
