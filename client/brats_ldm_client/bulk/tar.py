"""Shards for the package webdataset: a tar with a PNG and a JSON file for each image."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from .._extras import need
from .._formats import image_files, stem
from .._formats.png import png_labels, read_png
from .._types import F32
from ..labels.maps import U8
from .plan import notice


class Tar:
    """Writes one. Its times and owners are always the same."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - `close` closes it
        writer = need("webdataset").TarWriter
        self._tar: Any = writer(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)

    def encode(self, image: F32, record: Mapping[str, Any], labels: U8 | None) -> dict[str, Any]:
        key = stem(record["seed"])
        (png,) = image_files("png", key, image, record).values()
        files = {"__key__": key, "json": (json.dumps({**notice(), **record}) + "\n").encode(), "png": png}
        return files if labels is None else {**files, "labels.png": png_labels(labels, record)}

    def add(self, encoded: dict[str, Any]) -> None:
        self._tar.write(encoded)

    def close(self) -> None:
        try:
            self._tar.close()
        finally:
            self._file.close()


def read_tar(path: Path, seeds: Sequence[int], kind: str = "png") -> list[npt.NDArray[Any]]:
    """The pixels of some images, with the axes of `Slice.image`; or of their label maps, with the kind labels.png."""
    with tarfile.open(path) as tar:
        members = [tar.extractfile(f"{stem(seed)}.{kind}") for seed in seeds]
        return [read_png(io.BytesIO(member.read())) for member in members if member is not None]
