"""One shard in one format: which file or folder it is, how it is written and how its images are read."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from .._extras import need
from .._formats import PAIRED, file_names, files_per_image, image_files, read, stem, stored, task01
from .._types import F32
from ..labels.maps import U8
from .hdf5 import Hdf5, read_hdf5
from .plan import Plan, notice
from .tar import Tar, read_tar
from .zarr_group import Zarr, read_zarr

_PACKAGES = {"webdataset": "webdataset", "hdf5": "h5py", "zarr": "zarr", "dicom": "pydicom"}
_ENDINGS = {"webdataset": ".tar", "hdf5": ".h5", "zarr": ".zarr"}


class Writer(Protocol):
    """Writes the images of a shard."""

    def encode(self, image: F32, record: Mapping[str, Any], labels: U8 | None) -> Any:
        """The bytes of an image, and of its label map if the plan has labels; called in several threads."""

    def add(self, encoded: Any) -> None:
        """Write what `encode` has made; called in the order of the seeds."""

    def close(self) -> None:
        """Write what is left."""


class Files:
    """A folder with the files of each image."""

    def __init__(self, path: Path, format: str) -> None:
        self._path, self._format = path, format
        path.mkdir()

    def encode(self, image: F32, record: Mapping[str, Any], labels: U8 | None) -> dict[str, bytes]:
        return image_files(self._format, stem(record["seed"]), image, record, labels)

    def add(self, encoded: dict[str, bytes]) -> None:
        for name, content in encoded.items():
            (self._path / name).parent.mkdir(parents=True, exist_ok=True)
            (self._path / name).write_bytes(content)

    def close(self) -> None:
        """Each shard is a data set of its own."""
        if self._format == "task01":
            (self._path / task01.INDEX).write_bytes(task01.dataset(self._path))
            (self._path / task01.TEST).mkdir()


def shard_name(index: int) -> str:
    return f"shard-{index:06d}"


def mark_name(index: int) -> str:
    """The file that says that a shard is whole."""
    return f"{shard_name(index)}.json"


def artifact_name(index: int, format: str) -> str:
    """The file or folder of a shard in a format."""
    return shard_name(index) + _ENDINGS.get(format, f"-{format}")


def check_packages(plan: Plan) -> None:
    """Raises MissingPackage before any work."""
    for format in plan.formats:
        check_package(format)


def check_package(format: str) -> None:
    """Raises MissingPackage if the package of a format is not installed."""
    if format in _PACKAGES:
        need(_PACKAGES[format])


def open_writer(plan: Plan, index: int, format: str, path: Path, size: tuple[int, ...]) -> Writer:
    """A writer of images of that size to `path`."""
    seeds, labels = plan.shard(index), bool(plan.labels)
    attributes = {**notice(), **plan.origin()}
    if format == "webdataset":
        return Tar(path)
    if format == "hdf5":
        return Hdf5(path, seeds, size, attributes, labels)
    if format == "zarr":
        return Zarr(path, seeds, size, attributes, labels)
    return Files(path, format)


def read_pixels(folder: Path, plan: Plan, index: int, format: str, seeds: Sequence[int]) -> list[npt.NDArray[Any]]:
    """The pixels of some images of a shard, as `stored_pixels` gives them."""
    path, first = folder / artifact_name(index, format), plan.shard(index).start
    if format == "webdataset":
        return read_tar(path, seeds)
    if format == "hdf5":
        return [*read_hdf5(path, [seed - first for seed in seeds])]
    if format == "zarr":
        return [*read_zarr(path, [seed - first for seed in seeds])]
    return [read(path / file_names(format, stem(seed))[0]) for seed in seeds]


def read_maps(folder: Path, plan: Plan, index: int, format: str, seeds: Sequence[int]) -> list[npt.NDArray[Any]]:
    """The label maps of some images of a shard, of a plan with labels."""
    path, first = folder / artifact_name(index, format), plan.shard(index).start
    if format == "webdataset":
        return read_tar(path, seeds, "labels.png")
    if format == "hdf5":
        return [*read_hdf5(path, [seed - first for seed in seeds], "labels")]
    if format == "zarr":
        return [*read_zarr(path, [seed - first for seed in seeds], "labels")]
    return [read(path / file_names(format, stem(seed), labels=True)[-1]) for seed in seeds]


def stored_pixels(format: str, image: F32) -> npt.NDArray[Any]:
    """What a reader of that format must get: values, or the grey levels of a file."""
    kind = "png" if format == "webdataset" else format
    return stored(kind, image) if kind in (*files_per_image, *PAIRED) else image


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """An OSError in the block names `path` and says what the system says, also where a library has other words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        words = re.search(r"errno = (\d+)", str(error))  # HDF5's
        number = getattr(error, "errno", None) or (int(words[1]) if words else None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
