"""Repositories of the front models as they are and of networks that stand in for real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.harness.command import read_record, write_record


def copy_front(source: Path, model: str, folder: Path, *, toys: bool = False) -> None:
    """A front model of the repository `source`; toys: for networks that stand in for real ones and take no labels."""
    shutil.copytree(source / model, folder / model, ignore=shutil.ignore_patterns("__pycache__"))
    if toys:
        record = folder / model / "1" / "model.json"
        write_record(record, {k: value for k, value in read_record(record).items() if k != "conditioning"})


def copy_model(config: Path, code: Path, folder: Path) -> Path:
    """A model of the name of its config, with that code; returns the new config."""
    (folder / config.stem / "1").mkdir(parents=True)
    shutil.copy(code, folder / config.stem / "1" / "model.py")
    return Path(shutil.copy(config, folder / config.stem / "config.pbtxt"))
