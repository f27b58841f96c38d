"""Writes slices: PNG, NIfTI, npz and contact sheet, with their records. Knows nothing of the server.

The same image gives the same bytes. A file gets its name only when it is complete and its record is on disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest
from ._records import Records, check_folder
from .files import naming, whole_file
from .pictures import NOTICE, SHEET_LIMIT, SOURCE_TYPE, Pixels, contact_sheet, png, to_display

FORMATS = ("png", "nifti", "npz")
_ENDINGS = {"png": ".png", "nifti": ".nii.gz"}  # of the formats with one file per image
# The image depends on these. Server versions and times are in provenance.json only, so that files are reproducible.
_CORE = ("synthetic", "seed", "sampler", "steps", "eta", "model_name", "model_digest")


class Slices(Protocol):
    """The part of a `Generation` that is written. `Generation` imports this module, so it cannot be named here."""

    @property
    def images(self) -> npt.NDArray[np.float32]: ...
    @property
    def latents(self) -> npt.NDArray[np.float32] | None: ...
    @property
    def seeds(self) -> npt.NDArray[np.int64]: ...
    @property
    def sampler(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def eta(self) -> float: ...
    @property
    def provenance(self) -> Sequence[Mapping[str, Any]]: ...
    def __len__(self) -> int: ...


def formats_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The formats without repetition; a string may hold several, with commas."""
    parts = names.split(",") if isinstance(names, str) else names
    formats = tuple(dict.fromkeys(part.strip().lower() for part in parts))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InvalidRequest(f"unknown format {', '.join(unknown) or names!r}: use {', '.join(FORMATS)}")
    return formats


class FolderWriter:
    """Writes generations into a folder as they arrive; `close` writes the files that need all of them.

    "npz" keeps every image in memory until then. Records in the folder stay, except for files that are written again.
    count: images of this run that are in the folder in every format.

    Raises:
        InvalidRequest, OSError: an unknown format, or a folder or provenance.json that cannot be used. Later, OSError
            names the file that could not be written; the files before it stay, with their records.
    """

    def __init__(self, folder: str | Path, formats: str | Sequence[str] = "png", *, contact_sheet: bool = True) -> None:
        self.folder = Path(folder)
        self.formats = formats_of(formats)
        self._endings = [_ENDINGS[name] for name in self.formats if name in _ENDINGS]
        self._sheet = contact_sheet
        check_folder(self.folder)
        self._records = Records(self.folder)
        self._pictures: list[tuple[Pixels, str]] = []
        self._kept: list[Slices] = []
        self._names: Counter[str] = Counter()
        self._total = self.count = 0
        self.paths: list[Path] = []

    def add(self, generation: Slices) -> None:
        if "npz" in self.formats:
            self._kept.append(generation)
        for index in range(len(generation)):
            self.add_image(generation, index)

    def add_image(self, generation: Slices, index: int) -> None:
        """Write one image of a generation, except for npz."""
        image, seed, record = generation.images[index], int(generation.seeds[index]), record_of(generation, index)
        name = self._name(seed)
        for ending in self._endings:
            data = png(to_display(image), core(record)) if ending == ".png" else nifti(image, core(record))
            self._file(name + ending, data, [record])
        self._place(seed, lambda: to_display(image))

    @property
    def empty(self) -> bool:
        """Whether nothing has been added yet."""
        return not self._total

    def has(self, seed: int, record: Mapping[str, Any]) -> bool:
        """Whether an earlier run has left that image in every format. Always false for npz, which is one file."""
        names = [f"{_stem(seed)}{ending}" for ending in self._endings]
        return "npz" not in self.formats and all(self._records.has(name, {**record, "seed": seed}) for name in names)

    def keep(self, seed: int) -> None:
        """Called in place of `add_image` for an image that the folder already has."""
        path = self.folder / (self._name(seed) + self._endings[0])
        self._place(seed, lambda: _shown(path))

    def _place(self, seed: int, show: Callable[[], Pixels]) -> None:
        if self._sheet and len(self._pictures) < SHEET_LIMIT:
            self._pictures.append((show(), f"seed {seed}"))
        self._total += 1
        self.count += bool(self._endings)

    def _name(self, seed: int) -> str:
        name = _stem(seed)
        self._names[name] += 1
        # The same seed twice in one run (with other latents) must not overwrite itself.
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    def _file(self, name: str, data: bytes, records: Iterable[Mapping[str, Any]] = ()) -> None:
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
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
        finally:
            self.paths.append(self._records.close())
        return self.paths

    def _write_npz(self) -> None:
        if self._kept:
            records = [record_of(kept, index) for kept in self._kept for index in range(len(kept))]
            numbered = ({"index": index, **record} for index, record in enumerate(records))
            self._file("slices.npz", npz(self._kept, records), numbered)
            self._kept.clear()  # after an interruption `close` is called again
            if not self._endings:
                self.count = len(records)


def _stem(seed: int) -> str:
    return f"slice_seed{seed:09d}"


def _shown(path: Path) -> Pixels:
    """The grey levels of a slice on disk."""
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image)
    import nibabel

    volume: Any = nibabel.load(path)
    return to_display(volume.get_fdata(dtype=np.float32)[:, :, 0])


def record_of(generation: Slices, index: int) -> dict[str, Any]:
    """The provenance of one image: the server's record, with the request's values for missing entries."""
    requested = {
        "synthetic": True,
        "seed": int(generation.seeds[index]),
        "sampler": generation.sampler,
        "steps": generation.steps,
        "eta": generation.eta,
    }
    return {**requested, **generation.provenance[index], "synthetic": True}


def core(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in _CORE if key in record}


def nifti(image: npt.NDArray[np.float32], record: Mapping[str, Any]) -> bytes:
    """One slice as .nii.gz: raw values, 1 mm RAS voxels, x and y centred on 0. The height z is unknown: 0."""
    import nibabel

    affine = np.eye(4)
    affine[:2, 3] = [-(size - 1) / 2 for size in image.shape]
    volume = nibabel.Nifti1Image(image[:, :, None].astype(np.float32), affine)  # type: ignore[no-untyped-call]
    header: Any = volume.header
    header.set_xyzt_units("mm")
    header.set_intent("none", name="SYNTHETIC")
    header["descrip"] = describe(record).encode("ascii", "replace")
    header["cal_min"], header["cal_max"] = 0.0, 1.0
    text = json.dumps({"notice": NOTICE, "digital_source_type": SOURCE_TYPE, **record}, sort_keys=True)
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, buffer, mtime=0) as stream:  # a time would make each file differ
        stream.write(volume.to_bytes())
    return buffer.getvalue()


def describe(record: Mapping[str, Any]) -> str:
    """One line for the 79 characters of NIfTI's descrip; a very long seed shortens the digest."""
    digest = str(record.get("model_digest", "unknown")).removeprefix("sha256:")[:12]
    text = "SYNTHETIC seed={seed} {sampler} steps={steps} eta={eta:g} model=".format_map(record)
    return (text + digest)[:79]


def npz(generations: Sequence[Slices], records: Sequence[Mapping[str, Any]]) -> bytes:
    """All slices in one archive that loads without pickle."""
    first = generations[0]
    arrays: dict[str, Any] = {
        "images": np.concatenate([generation.images for generation in generations]),
        "seeds": np.concatenate([generation.seeds for generation in generations]),
        "sampler": first.sampler,
        "steps": first.steps,
        "eta": first.eta,
        "notice": NOTICE,
        "digital_source_type": SOURCE_TYPE,
        "provenance": np.array([json.dumps(core(record), sort_keys=True) for record in records]),
    }
    latents = [generation.latents for generation in generations if generation.latents is not None]
    if len(latents) == len(generations):
        arrays["latents"] = np.concatenate(latents)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
