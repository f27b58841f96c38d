"""What a folder holds, one image at a time: files of slices, or the shards of a run in bulk."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from .. import _records
from .._errors import BratsLDMError, InvalidRequest, MissingPackage
from .._formats import stem
from .._presets import DEFAULTS, LABEL_FIELDS
from .._statistics import total
from ..bulk.artifacts import artifact_name, check_package, read_pixels
from ..bulk.plan import MANIFEST, Plan, read_manifest
from ..bulk.shard import read_shard
from . import readers
from .parameters import Group, joined, parameters_of
from .readers import Picture

_NOT_SLICES = {"contact_sheet.png", "evaluation.png"}
_PREFERRED = ("nifti", "task01", "hdf5", "zarr", "png16", "dicom", "webdataset", "png")  # by precision


@dataclass(frozen=True)
class Entry:
    """One image of a folder, not read yet."""

    name: str
    """Its file, with an index if the file holds several."""
    record: Mapping[str, Any]
    """How it was made, as far as something beside its file says so."""


@dataclass
class Facts:
    """What is known of a folder before its images are read."""

    count: int = 0
    """Images."""
    formats: dict[str, int] = field(default_factory=dict)
    """Format to bytes on disk."""
    made_by: str = ""
    problems: list[str] = field(default_factory=list)
    """What could not be read, a line each."""
    statistics: dict[str, Any] | None = None
    """Of the pixels of all images, if the folder has them already."""
    groups: list[Group] = field(default_factory=list)
    """How all images were made, if the folder says it in one place; then all are synthetic."""


class Source(Protocol):
    """The images of a folder, counted from 0."""

    facts: Facts

    def entry(self, index: int) -> Entry:
        """What is known of an image without reading it."""

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        """Some images, by ascending index; those that cannot be read are left out and added to the problems."""


def open_source(folder: Path) -> Source:
    """The images of a folder.

    Raises:
        InvalidRequest: it is no folder, or nothing in it can be read.
        MissingPackage: what could be read needs a package that is not installed.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder: give a folder of slices")
    source: Source = Shards(folder) if (folder / MANIFEST).is_file() else Files(folder)
    if not source.facts.count:
        raise InvalidRequest(f"{folder} has no slices to read: {'; '.join(source.facts.problems[:3]) or _ADVICE}")
    return source


_ADVICE = "give a folder of .png, .nii, .nii.gz, .dcm or .npz files, or one of `brats-ldm bulk`"


class Files:
    """Files of slices in one folder; folders in it are not searched."""

    def __init__(self, folder: Path) -> None:
        self.facts = Facts()
        self._records = self._provenance(folder)
        self._places: list[tuple[Path, int, int]] = []  # file, index in it, images in it
        sizes = Counter[str]()
        paths = sorted(path for path in folder.iterdir() if _is_slices(path))
        self._add_records_of_archives(paths)
        for path in _chosen(paths, self._records):
            images = self._count(path)
            self._places += [(path, index, images) for index in range(images)]
            if images:
                sizes[readers.FORMATS[readers.ending(path)]] += path.stat().st_size
        self.facts.count, self.facts.formats = len(self._places), dict(sizes)
        made_by = {str(record.get("made_by", "brats-ldm")) for records in self._records.values() for record in records}
        self.facts.made_by = ", ".join(sorted(made_by)) if len(made_by) < 3 else f"{len(made_by)} programs"

    def _provenance(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        try:
            return _records.read_records(folder)
        except (OSError, InvalidRequest, RecursionError):
            self.facts.problems.append(f"{_records.NAME} is damaged, or of another program")
            return {}

    def _add_records_of_archives(self, paths: Iterable[Path]) -> None:
        """Archives have the records of all their images in themselves."""
        for path in paths:
            if readers.ending(path) == ".npz" and path.name not in self._records:
                with contextlib.suppress(Exception):  # told when its images are counted
                    self._records[path.name] = readers.npz_records(path)[0]

    def _count(self, path: Path) -> int:
        if len(self._records.get(path.name, ())) == 1 and readers.ending(path) != ".npz":
            return 1  # saves a look into the file
        try:
            return readers.count(path)
        except Exception as error:  # what a library says of a damaged file can be anything
            self.facts.problems.append(_problem(path, error))
            return 0

    def entry(self, index: int) -> Entry:
        path, place, images = self._places[index]
        records = self._records.get(path.name, [])
        name = path.name if images == 1 else f"{path.name}[{place}]"
        return Entry(name, records[place] if len(records) == images else {})

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        for path, group in groupby(indices, lambda index: self._places[index][0]):
            wanted = [*group]
            try:
                yield from zip(wanted, readers.read(path, [self._places[i][1] for i in wanted]), strict=True)
            except Exception as error:
                self.facts.problems.append(_problem(path, error))


def _is_slices(path: Path) -> bool:
    named = readers.ending(path) and not path.name.startswith(".") and path.name not in _NOT_SLICES
    return bool(named) and path.is_file()


def _chosen(paths: Iterable[Path], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Path]:
    """The files whose images are shown, each image once: of several formats the one with the most precise values."""
    best: dict[str, Path] = {}
    for path in paths:
        end = readers.ending(path)
        base = path.name[: -len(end)] if end != ".npz" else path.name
        if base not in best or readers.ENDINGS.index(end) < readers.ENDINGS.index(readers.ending(best[base])):
            best[base] = path
    archived: dict[str, set[tuple[str, ...]]] = {}
    for record in (record for path in best.values() for record in _in_archive(path, records)):
        archived.setdefault(stem(record["seed"]), set()).update((_UNKNOWN, _recipe([record])))
    return [path for base, path in best.items() if _recipe(records.get(path.name, ())) not in archived.get(base, ())]


def _in_archive(path: Path, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The records of the images of an archive, as far as they have a seed; none of other files."""
    own = records.get(path.name, ()) if readers.ending(path) == ".npz" else ()
    return [record for record in own if isinstance(record.get("seed"), int)]


def _recipe(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What decides, with its seed, how an image looks; `_UNKNOWN` where that is not recorded."""
    names = ("sampler", "steps", "eta", *DEFAULTS, *LABEL_FIELDS, "model_digest", "weights_sha256", "start_noise")
    return tuple(str(records[0].get(name, DEFAULTS.get(name))) for name in names) if records else _UNKNOWN


_UNKNOWN: tuple[str, ...] = ()


class Shards:
    """The whole shards of a run in bulk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plan: Plan = read_manifest(folder)["plan"]
        self.facts = Facts(made_by="brats-ldm bulk", formats=dict.fromkeys(self._plan.formats, 0))
        self._format = _readable(self._plan)
        self._shards: list[int] = []
        self._starts = [0]  # of each shard's images, and the end
        self.facts.statistics = total(self._marks())
        self.facts.count = self._starts[-1]
        parts = (self._plan.shard(index) for index in self._shards)
        seeds = joined((part[0], part[-1]) for part in parts)
        self.facts.groups = [Group(parameters_of(self._plan.origin()), self.facts.count, seeds)]
        if missing := self._plan.count - self.facts.count:
            self.facts.problems.append(f"{missing:,} of {self._plan.count:,} images are in shards that are not whole")

    def _marks(self) -> Iterator[dict[str, Any]]:
        """The statistics of each whole shard, one at a time: there may be a million."""
        for index in range(self._plan.shards):
            try:
                mark = read_shard(self._plan, self._folder, index)
                statistics = total([mark["pixels"]])
                for name, entry in mark["files"].items():
                    self._add_size(index, name.split("/")[0], int(entry["bytes"]))
            except FileNotFoundError:
                continue
            except (OSError, BratsLDMError, LookupError, TypeError, ValueError) as error:
                self.facts.problems.append(_problem(self._folder / f"shard {index}", error))
                continue
            self._shards.append(index)
            self._starts.append(self._starts[-1] + len(self._plan.shard(index)))
            yield statistics

    def _add_size(self, index: int, artifact: str, size: int) -> None:
        for format in self._plan.formats:
            if artifact == artifact_name(index, format):
                self.facts.formats[format] += size

    def _place(self, index: int) -> tuple[int, int]:
        """The shard of an image, and its seed."""
        at = bisect_right(self._starts, index) - 1
        return self._shards[at], self._plan.shard(self._shards[at])[index - self._starts[at]]

    def entry(self, index: int) -> Entry:
        seed = self._place(index)[1]
        return Entry(f"seed {seed}", self._plan.record(seed))

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        for shard, group in groupby(indices, lambda index: self._place(index)[0]):
            wanted = [*group]
            seeds = [self._place(index)[1] for index in wanted]
            try:
                pixels = read_pixels(self._folder, self._plan, shard, self._format, seeds)
                for index, each in zip(wanted, pixels, strict=True):
                    yield index, Picture(each, {}, True, (1.0, 1.0), True)
            except Exception as error:
                self.facts.problems.append(_problem(self._folder / artifact_name(shard, self._format), error))


def _readable(plan: Plan) -> str:
    """The format of a run that has the most precise values, of those that can be read here."""
    refusal: MissingPackage | None = None
    for format in (name for name in _PREFERRED if name in plan.formats):
        try:
            check_package(format)
            return format
        except MissingPackage as error:
            refusal = error
    raise refusal or InvalidRequest("the manifest names no format")


def _problem(path: Path, error: Exception) -> str:
    """In one line, which goes into the page: without the place of the folder on this machine."""
    words = " ".join(str(error).replace(str(path), path.name).split())
    return f"{path.name} cannot be read ({words or type(error).__name__})"
