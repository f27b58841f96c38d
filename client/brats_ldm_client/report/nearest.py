"""An evaluation as the page shows it: what evaluation.json says, and the slices that it names, where they are.

evaluation.json may come from anyone: a name in it is looked up in the list of its folder, and never used as a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import InvalidRequest
from . import readers
from .readers import Picture

NAME = "evaluation.json"
SHOWN = 8  # pairs, those with the highest score first
_INDEXED = re.compile(r"(.+?)(?:\[(\d{1,9})\])?", re.DOTALL)


@dataclass(frozen=True)
class Pair:
    """A synthetic slice with its nearest slices of two folders."""

    copy: bool
    score: float
    names: tuple[str, str, str]
    """The synthetic slice, its nearest training slice, its nearest held-out slice."""
    similarities: tuple[float, float]
    """To the training and to the held-out slice."""
    pictures: tuple[Picture | None, Picture | None, Picture | None]
    """In the order of the names; None where there is no such slice any more."""


@dataclass(frozen=True)
class Evaluation:
    """What the page shows of an evaluation."""

    metrics: Sequence[tuple[str, float, float, str]]
    """Name, value of the synthetic slices, value of the reference, how to read it."""
    slices: Mapping[str, int]
    folders: Mapping[str, str]
    """The folders of the synthetic, the real and the training slices, as the evaluation names them."""
    notes: Sequence[str]
    facts: Mapping[str, float]
    """Of the search for copies; empty if there was none."""
    opened: bool
    """Whether the training and the held-out slices were looked for in their folders."""
    pairs: Sequence[Pair]


def find_evaluation(folder: Path, named: Path | None) -> Path | None:
    """The file of an evaluation: `named`, or in that folder, or in `folder`; None if there is none.

    Raises:
        FileNotFoundError: there is none where `named` says.
    """
    path = (named / NAME if named.is_dir() else named) if named is not None else folder / NAME
    if path.is_file():
        return path
    if named is None:
        return None
    raise FileNotFoundError(f"there is no {path}: give what `python -m training.evaluation` has written")


def read_evaluation(path: Path, folder: Path, opens_folders: bool) -> Evaluation:
    """An evaluation with the pictures of its most suspicious slices.

    Args:
        path: evaluation.json.
        folder: Where synthetic slices are looked for if the evaluation's own folder is gone.
        opens_folders: Also look into the folders that the evaluation names. Only if somebody has chosen this file: one
            that came with a folder could name any other.

    Raises:
        InvalidRequest: it is no evaluation.
        OSError: it cannot be read.
    """
    try:
        return _evaluation(json.loads(path.read_bytes()), folder, opens_folders)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{path} is no evaluation ({type(error).__name__}: {error}): evaluate again") from error


def _evaluation(document: Mapping[str, Any], folder: Path, opens_folders: bool) -> Evaluation:
    arguments, reading = document["arguments"], document.get("reading", {})
    folders = {name: str(arguments[name]) for name in ("synthetic", "real", "training") if arguments.get(name)}
    found = document.get("memorisation") or {}
    return Evaluation(
        metrics=[
            (name, float(row["synthetic"]), float(row["reference"]), str(reading.get(name, "")))
            for name, row in document["metrics"].items()
        ],
        slices={name: int(count) for name, count in document["slices"].items()},
        folders=folders,
        notes=[str(note) for note in document["notes"]],
        facts={name: float(value) for name, value in found.items() if name != "slices"},
        opened=opens_folders,
        pairs=[*_pairs(found.get("slices", []), folders if opens_folders else {}, folder)],
    )


def _pairs(rows: Sequence[Mapping[str, Any]], folders: Mapping[str, str], folder: Path) -> Iterator[Pair]:
    synthetic = _Album(Path(folders["synthetic"]) if "synthetic" in folders else folder, folder)
    training, real = (_Album(Path(folders[name])) if name in folders else _Album() for name in ("training", "real"))
    for row in sorted(rows, key=lambda row: -float(row["score"]))[:SHOWN]:
        names = (str(row["synthetic"]), str(row["training"]), str(row["held_out"]))
        yield Pair(
            copy=bool(row["copy"]),
            score=float(row["score"]),
            names=names,
            similarities=(float(row["similarity_training"]), float(row["similarity_held_out"])),
            pictures=(synthetic.find(names[0]), training.find(names[1]), real.find(names[2])),
        )


class _Album:
    """The slices of the first of some folders that can be read, by the names that an evaluation gives them."""

    def __init__(self, *folders: Path) -> None:
        self._files: dict[str, Path] = {}
        for folder in folders:
            try:
                self._files = {path.name: path for path in folder.iterdir() if readers.ending(path) and path.is_file()}
            except OSError:
                continue
            if self._files:
                break

    def find(self, name: str) -> Picture | None:
        """A slice; None if it is not there or cannot be read."""
        parts = _INDEXED.fullmatch(name)
        if parts is None or parts[1] not in self._files:
            return None
        try:
            return next(readers.read(self._files[parts[1]], [int(parts[2] or 0)]))
        except Exception:  # what a library says of a damaged file can be anything
            return None
