"""Finished images as files to download. They stay in memory under random names; no path comes from a request."""

from __future__ import annotations

import io
import secrets
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .._formats import file_names, stem
from .._types import Generation

FORMATS = {"png": "PNG", "png16": "16-bit PNG", "nifti": "NIfTI", "dicom": "DICOM"}
_TYPES = {".png": "image/png", ".gz": "application/gzip", ".dcm": "application/dicom", ".zip": "application/zip"}
_YEAR = (1980, 1, 1, 0, 0, 0)  # the first of ZIP's calendar: the same images give the same archive


@dataclass(frozen=True)
class Download:
    """A file."""

    name: str
    content: bytes

    @property
    def media_type(self) -> str:
        return _TYPES[Path(self.name).suffix]


class Downloads:
    """Files by random tokens, until their tab is closed."""

    def __init__(self) -> None:
        self._files: dict[str, Download] = {}

    def add(self, file: Download) -> str:
        token = secrets.token_urlsafe(24)
        self._files[token] = file
        return token

    def get(self, token: str) -> Download | None:
        return self._files.get(token)

    def forget(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            self._files.pop(token, None)


def pack(generation: Generation, format: str) -> Download:
    """The images as `Generation.save` writes them: the file of a single image, or an archive of the whole folder.

    Raises:
        MissingPackage: the format needs a package that is not installed.
        InvalidRequest: there is no such format.
    """
    with tempfile.TemporaryDirectory(prefix="brats-ldm-studio-") as folder:
        paths = generation.save(folder, format)
        if len(generation) == 1:
            name = file_names(format, stem(int(generation.seeds[0])))[0]
            return Download(name, Path(folder, name).read_bytes())
        return Download(f"synthetic_slices_{format}.zip", _archive(paths))


def _archive(paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            entry = zipfile.ZipInfo(path.name, _YEAR)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()
