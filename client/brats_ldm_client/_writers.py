"""Writes slices into a folder: files in the formats of `_formats`, a contact sheet, and their records.

Knows nothing of the server. A file gets its name only when it is complete and its record is on disk.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _formats
from ._errors import InvalidRequest
from ._formats import task01
from ._formats.npz import npz
from ._records import Records, check_folder
from .files import naming, whole_file
from .pictures import SHEET_LIMIT, Pixels, contact_sheet, to_display

if TYPE_CHECKING:
    from ._types import Slice


class FolderWriter:
    """Writes slices into a folder as they arrive; `close` writes the files that need all of them.

    "npz" keeps every slice in memory until then. Records in the folder stay, except for files that are written again.
    count: images of this run that are in the folder in every format.

    Raises:
        MissingPackage: a format needs a package that is not installed.
        InvalidRequest, OSError: an unknown format, or a folder or provenance.json that cannot be used. Later, OSError
            names the file that could not be written; the files before it stay, with their records.
    """

    def __init__(self, folder: str | Path, formats: str | Sequence[str] = "png", *, contact_sheet: bool = True) -> None:
        self.folder = Path(folder)
        self.formats = _formats.formats_of(formats)
        self._per_image = [name for name in self.formats if name != "npz"]
        self._sheet = contact_sheet
        check_folder(self.folder)
        if any(self.folder.glob("shard-*.json")):
            raise InvalidRequest(f"{self.folder} holds a run of `brats-ldm bulk`: choose another folder")
        if "task01" in self.formats:
            task01.check_own(self.folder)
        self._records = Records(self.folder)
        self._pictures: list[tuple[Pixels, str]] = []
        self._kept: list[Slice] = []
        self._names: Counter[str] = Counter()
        self._total = self.count = 0
        self.paths: list[Path] = []

    def add(self, made: Slice) -> None:
        """Write a slice in all formats, except for npz."""
        if "npz" in self.formats:
            self._kept.append(made)
        name = self._name(made.seed)
        files: dict[str, bytes] = {}  # several formats may have the same file of labels
        for format in self._per_image:
            files |= _formats.image_files(format, name, made.image, made.record, made.labels)
        for file, data in files.items():
            self._file(file, data, [made.record])
        self._place(made.seed, lambda: self._shown(made))

    def _shown(self, made: Slice) -> Pixels:
        if not self._per_image:
            return to_display(made.image)
        return _formats.shown(_formats.stored(self._per_image[0], made.image))

    @property
    def empty(self) -> bool:
        """Whether nothing has been added yet."""
        return not self._total

    def has(self, seed: int, record: Mapping[str, Any]) -> bool:
        """Whether an earlier run has left that image in every format. Always false for npz, which is one file."""
        labels, stem = record.get("labels_sha256") is not None, _formats.stem(seed)
        names = [name for format in self._per_image for name in _formats.file_names(format, stem, labels)]
        return "npz" not in self.formats and all(self._records.has(name, {**record, "seed": seed}) for name in names)

    def keep(self, seed: int) -> None:
        """Called in place of `add` for a slice that the folder already has."""
        name, *_ = _formats.file_names(self._per_image[0], self._name(seed))
        self._place(seed, lambda: _formats.shown(_formats.read(self.folder / name)))

    def _place(self, seed: int, show: Callable[[], Pixels]) -> None:
        if self._sheet and len(self._pictures) < SHEET_LIMIT:
            self._pictures.append((show(), f"seed {seed}"))
        self._total += 1
        self.count += bool(self._per_image)

    def _name(self, seed: int) -> str:
        name = _formats.stem(seed)
        self._names[name] += 1
        # The same seed twice in one run (with other latents) must not overwrite itself.
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    def _file(self, name: str, data: bytes, records: Iterable[Mapping[str, Any]] = ()) -> None:
        with naming(self.folder):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(data).hexdigest()
        entries = [{"file": name, "sha256": digest, **record} for record in records]
        with whole_file(self.folder / name) as temporary:
            temporary.write_bytes(data)
            if entries:  # before the file has its name
                self._records.add(name, entries)
        self.paths.append(self.folder / name)

    def close(self) -> list[Path]:
        """Write npz, contact sheet and provenance; returns all paths written."""
        try:
            self._write_npz()
            if self._pictures:
                self._file("contact_sheet.png", contact_sheet(self._pictures, self._total))
            if "task01" in self.formats and self._total:
                self._write_index()
        finally:
            self.paths.append(self._records.close())
        return self.paths

    def _write_index(self) -> None:
        """The pairs that the folder holds now, of this run and of others."""
        self._file(task01.INDEX, task01.dataset(self.folder))
        (self.folder / task01.TEST).mkdir(exist_ok=True)

    def _write_npz(self) -> None:
        if self._kept:
            numbered = ({"index": index, **made.record} for index, made in enumerate(self._kept))
            self._file("slices.npz", npz(self._kept), numbered)
            if not self._per_image:
                self.count = len(self._kept)
            self._kept.clear()  # after an interruption `close` is called again
