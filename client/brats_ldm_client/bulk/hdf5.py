"""Shards as HDF5 files: `image` [n, x, y] in float32, `seed` [n], `labels` [n, x, y], and how they were made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._extras import need
from .._types import F32
from ..labels.maps import SIDE, U8

_LEVEL = 4  # of zlib


class Hdf5:
    """Writes one. Each image is a chunk, so that a reader of one image reads only that."""

    def __init__(
        self, path: Path, seeds: Sequence[int], size: tuple[int, ...], attributes: Mapping[str, Any], labels: bool
    ) -> None:
        self._file = need("h5py").File(path, "w")
        self._file.attrs.update(attributes)
        packed = {"compression": "gzip", "compression_opts": _LEVEL, "shuffle": True}
        shape, chunk = (len(seeds), *size), (1, *size)
        # Times would make each file differ.
        self._images = self._file.create_dataset("image", shape, "<f4", chunks=chunk, track_times=False, **packed)
        self._images.attrs["axes"] = "image, x (to the patient's right), y (to anterior)"
        self._labels: Any = None
        if labels:
            kind = {"chunks": (1, SIDE, SIDE), "track_times": False, **packed, "shuffle": False}
            self._labels = self._file.create_dataset("labels", (len(seeds), SIDE, SIDE), "u1", **kind)
        self._file.create_dataset("seed", data=np.array(seeds, "<i8"), track_times=False)
        self._count = 0

    def encode(self, image: F32, record: Mapping[str, Any], labels: U8 | None) -> tuple[bytes, bytes]:
        """Chunks as HDF5's own filters would make them, which hold a lock while they do."""
        by_place = image.astype("<f4").reshape(-1, 1).view(np.uint8).T  # all first bytes, then all second ones, ...
        packed = b"" if labels is None else zlib.compress(labels.tobytes(), _LEVEL)
        return zlib.compress(by_place.tobytes(), _LEVEL), packed

    def add(self, encoded: tuple[bytes, bytes]) -> None:
        image, labels = encoded
        self._images.id.write_direct_chunk((self._count, 0, 0), image)
        if self._labels is not None:
            self._labels.id.write_direct_chunk((self._count, 0, 0), labels)
        self._count += 1

    def close(self) -> None:
        self._file.close()


def read_hdf5(path: Path, indices: Sequence[int], name: str = "image") -> list[npt.NDArray[Any]]:
    """Some images of a shard, or some of its `labels`."""
    with need("h5py").File(path, "r") as file:
        return [file[name][index] for index in indices]
