"""Repositories of the front models as they are and of networks that stand in for real ones."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_front(source: Path, model: str, folder: Path) -> None:
    """A front model of the repository `source`."""
    shutil.copytree(source / model, folder / model, ignore=shutil.ignore_patterns("__pycache__"))


def copy_model(config: Path, code: Path, folder: Path) -> Path:
    """A model of the name of its config, with that code; returns the new config."""
    (folder / config.stem / "1").mkdir(parents=True)
    shutil.copy(code, folder / config.stem / "1" / "model.py")
    return Path(shutil.copy(config, folder / config.stem / "config.pbtxt"))
