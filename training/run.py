"""The run folder of one stage: resume state, TensorBoard events, pictures, snapshots. Knows no network."""

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import summary

from training.checkpoint import CheckpointError, Snapshot, load_state, save_snapshot, save_state
from training.config import Config, config_from_dict
from training.event_writer import EventWriter
from training.files import NotWritten, remove_temporary_files, whole_file, write_text
from training.pictures import grid, save_picture
from training.processes import Processes

# Settings that may change between two starts of a run. They change the length of the run and the intervals, but not the
# results. `accumulate` is one of them because only the number of parts in all processes matters.
FREE: tuple[str, ...] = ("epochs", "checkpoint_every", "workers", "cache_rate", "accumulate")
FREE += ("spacing",)  # decides which volumes are refused, and changes nothing in the others
FREE += ("validate_every", "validation_volumes", "patience")
# The path of the perceptual weights; their hash is compared instead.
FREE += ("weights",)
TINY_DECODER = "tiny_decoder"
"""The stage that comes last; its sections, of this name and with _training, are free in the stages before it."""


class Run:
    """The folder of a run. After an interruption the same command continues it. Only the first process writes to it.

    Everything is logged under the number of completed iterations. `smooth` and `best` are part of the resume state.

    smooth: exponential averages of the logged losses.
    best: the best validation score so far, where lower is better, and the number of validations since then.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        config: Config,
        data: dict[str, Any],
        parts: int,
        processes: Processes,
        perceptual_sha256: str | None = None,
        initial: dict[str, Any] | None = None,
    ) -> None:
        """Open or begin the run of `stage` with `config` on `data` (a record of `training.decathlon.describe_data`).

        parts: of an update's global batch, see `training.processes`. initial: a record of the weights that the run
        begins with, if they are not random.

        Raises:
            CheckpointError: `folder` holds a run of another stage, of other data, of another number of parts, or with
                other settings; only those in FREE may differ. The message lists the differences.
            NotWritten: the folder cannot be written.
        """
        self.folder = folder
        self.snapshot_folder = folder / "snapshot"
        self._processes = processes
        self._identity = {"stage": stage, "data": data, "parts": parts, "perceptual_sha256": perceptual_sha256}
        self._identity["initial"] = initial
        self._identity["config"] = asdict(config)
        self.state = load_state(folder / "state.pt", processes.first)
        if self.state:
            self._check_identity(self.state)
        processes.agree(0)  # no process writes before all have read
        self._events = None
        self.iteration: int = self.state["iteration"] if self.state else 0
        self.smooth: dict[str, float] = self.state["smooth"] if self.state else {}
        self.best: dict[str, float] = self.state["best"] if self.state else {"score": float("inf"), "since": 0}
        if processes.first:
            remove_temporary_files(folder)
            write_text(folder / "run.json", json.dumps(self._identity, indent=2) + "\n")
            # Events after the resume point belong to iterations that will be done again.
            self._events = EventWriter(folder / "events", purge_step=self.iteration + 1)

    def _check_identity(self, state: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        try:
            before = state.get("identity") or json.loads(path.read_text())  # old states have no such entry
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}, which says what the run is, cannot be read ({error}): give a new --out"
            ) from None
        # Through the dataclasses, so that a field that is newer than the run gets its default.
        before["config"] = asdict(config_from_dict(before["config"], str(path)))
        free = FREE if self._identity["stage"] == TINY_DECODER else (*FREE, TINY_DECODER, f"{TINY_DECODER}_training")
        before, now = (_fixed(json.loads(json.dumps(identity)), free) for identity in (before, self._identity))
        if changed := _differences(before, now):
            hint = "; parts are processes x accumulate" if any(line.startswith("parts ") for line in changed) else ""
            raise CheckpointError(f"{path} belongs to another run ({', '.join(changed)}{hint}): give a new --out")

    @contextmanager
    def saving(self) -> Iterator[None]:
        """In this context, the error of a full disk also says from which iteration the run can continue."""
        try:
            yield
        except NotWritten as error:
            state = f"{self.folder / 'state.pt'} holds iteration {self.iteration}" if self.iteration else "No state yet"
            raise NotWritten(f"{error}. {state}; give the same command when there is room") from error

    def save(self, iteration: int, **objects: Any) -> None:
        """Write the resume state: `iteration`, the state of this class, and the state_dict of each object."""
        if self._processes.first:
            states = {name: value.state_dict() for name, value in objects.items()}
            state = {"iteration": iteration, "smooth": self.smooth, "best": self.best, "identity": self._identity}
            save_state({**state, **states}, self.folder / "state.pt")
        self.iteration = iteration

    def restore(self, **objects: Any) -> None:
        """Load the result of `save`, if there is one."""
        if self.state:
            for name, value in objects.items():
                value.load_state_dict(self.state[name])
        self.state = None

    def not_finite(self, iteration: int, batch: dict[int, torch.Tensor], error: FloatingPointError) -> Exception:
        """The error to raise for a number that is not finite; the batch is saved, the resume state stays."""
        path = self.folder / f"not_finite_rank{self._processes.rank}.safetensors"
        with whole_file(path) as temporary:
            tensors = {f"part{part}": tensor.detach().cpu().contiguous() for part, tensor in batch.items()}
            save_file(tensors, temporary, {"iteration": str(iteration)})
        return FloatingPointError(
            f"{error} at iteration {iteration}, with the batch in {path}. Set a lower learning_rate, max_grad_norm or "
            "fp32, and give a new --out"
        )

    def log(self, done: int, losses: dict[str, float], others: dict[str, float]) -> None:
        """Log the numbers of one iteration. The losses are averaged over all processes, and also go into `smooth`."""
        losses = self._processes.mean(losses)
        for name, value in losses.items():
            self.smooth[name] = 0.99 * self.smooth.get(name, value) + 0.01 * value
        if self._events:
            for name, value in {**losses, **others}.items():
                self._events.add(done, summary.scalar(name, value))

    def validated(self, done: int, values: dict[str, float], score: float) -> bool:
        """Record a validation of the first process; returns whether its score is the best so far. Lower is better."""
        for name, value in values.items():
            if self._events:
                self._events.add(done, summary.scalar(f"validation/{name}", value))
        score = self._processes.agree(score)
        better = score < self.best["score"]
        self.best = {"score": score, "since": 0} if better else {**self.best, "since": self.best["since"] + 1}
        return better

    def without_progress(self, patience: int) -> bool:
        """Whether the last `patience` validations brought no better score; never with a patience of 0."""
        return 0 < patience <= self.best["since"]

    def record(self, iterations: int) -> dict[str, Any]:
        """A record of the training of this stage, for the snapshot."""
        versions = {package: importlib.metadata.version(package) for package in ("torch", "monai", "numpy")}
        about = {name: self._identity[name] for name in ("data", "parts", "perceptual_sha256", "initial")}
        return {**about, "iterations": iterations, "smoothed_losses": dict(self.smooth), "versions": versions}

    def save_snapshot(self, snapshot: Snapshot, best: bool = False) -> None:
        """Write the latest snapshot or, with `best`, the best one."""
        if self._processes.first:
            save_snapshot(snapshot, self.folder / "best" if best else self.snapshot_folder)

    def picture(self, done: int, name: str, rows: list[torch.Tensor]) -> None:
        """Rows of slices, each [n, 1, H, W], to TensorBoard and to `pictures/`."""
        if self._events:
            pixels = grid([row[:, 0].float().cpu().numpy() for row in rows])
            self._events.add(done, summary.image(name, pixels, dataformats="HW"))
            save_picture(pixels, self.folder / "pictures" / f"{name}_{done:07d}.png")


def _fixed(value: Any, free: Sequence[str]) -> Any:
    """`value` without the settings `free`, which may change between two starts of a run."""
    if isinstance(value, dict):
        return {name: _fixed(item, free) for name, item in value.items() if name not in free}
    return value


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name old -> new` for each entry that differs between two nested dictionaries."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{name}.{k}".lstrip("."))]
    return [] if old == new else [f"{name} {old} -> {new}"]
