"""Shards as Zarr groups: `image` [n, x, y] in float32, `seed` [n], `labels` [n, x, y], and how they were made.

Version 2 of the storage format, which the packages zarr 2 and 3 read and write alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._extras import need
from .._types import F32
from ..labels.maps import SIDE, U8

_IN_CHUNK = 16  # images: a chunk is a file, and a million files are a burden


class Zarr:
    """Writes one. A chunk is written once, when all of its images are there."""

    def __init__(
        self, path: Path, seeds: Sequence[int], size: tuple[int, ...], attributes: Mapping[str, Any], labels: bool
    ) -> None:
        in_chunk = min(_IN_CHUNK, len(seeds))
        group = _new_group(path)
        group.attrs.update(attributes)
        # The names of axes for xarray.
        kinds = {"image": ("<f4", size), **({"labels": ("|u1", (SIDE, SIDE))} if labels else {})}
        self._arrays = [
            _new_array(group, name, kind, (len(seeds), *plane), (in_chunk, *plane))
            for name, (kind, plane) in kinds.items()
        ]
        for array in self._arrays:
            array.attrs["_ARRAY_DIMENSIONS"] = ["image", "x", "y"]
        all_seeds = _new_array(group, "seed", "<i8", (len(seeds),), (len(seeds),))
        all_seeds.attrs["_ARRAY_DIMENSIONS"] = ["image"]
        all_seeds[:] = np.array(seeds, "<i8")
        self._in_chunk, self._total = in_chunk, len(seeds)
        self._waiting: list[tuple[npt.NDArray[Any], ...]] = []
        self._written = 0

    def encode(self, image: F32, record: Mapping[str, Any], labels: U8 | None) -> tuple[npt.NDArray[Any], ...]:
        return (image,) if labels is None else (image, labels)

    def add(self, encoded: tuple[npt.NDArray[Any], ...]) -> None:
        self._waiting.append(encoded)
        end = self._written + len(self._waiting)
        if len(self._waiting) == self._in_chunk or end == self._total:
            for array, planes in zip(self._arrays, zip(*self._waiting, strict=True), strict=True):
                array[self._written : end] = np.stack(planes)
            self._written = end
            self._waiting.clear()

    def close(self) -> None:
        """Nothing is left to write."""


def _new_group(path: Path) -> Any:
    zarr = need("zarr")
    version = {"zarr_version" if zarr.__version__.startswith("2.") else "zarr_format": 2}
    return zarr.open_group(str(path), mode="w", **version)


def _new_array(group: Any, name: str, dtype: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
    codecs = need("numcodecs")
    packed, filters = codecs.Zstd(level=3), [codecs.Shuffle(np.dtype(dtype).itemsize)]
    kind = {"shape": shape, "chunks": chunks, "dtype": dtype, "fill_value": 0}
    if hasattr(group, "create_array"):  # zarr 3
        return group.create_array(name, compressors=packed, filters=filters, **kind)
    return group.create_dataset(name, compressor=packed, filters=filters, **kind)


def read_zarr(path: Path, indices: Sequence[int], name: str = "image") -> list[npt.NDArray[Any]]:
    """Some images of a shard, or some of its `labels`."""
    planes = need("zarr").open_group(str(path), mode="r")[name]
    return [np.asarray(planes[index]) for index in indices]
