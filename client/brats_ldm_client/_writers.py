"""Slices on disk: PNG, NIfTI, npz, contact sheet and `provenance.json`. Knows nothing of the server.

The same image gives the same bytes. A file appears under its name only when it is whole, and
`provenance.json` last: each file that it names is there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest
from ._png import NOTICE, SHEET_LIMIT, SOURCE_TYPE, contact_sheet, slice_png
from ._types import Generation

FORMATS = ("png", "nifti", "npz")
# What an image depends on; server versions and times stay in provenance.json, so that files are reproducible.
_CORE = ("synthetic", "seed", "sampler", "steps", "eta", "model_name", "model_digest")


def formats_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The formats named, each once; a string may hold several with commas."""
    parts = names.split(",") if isinstance(names, str) else names
    formats = tuple(dict.fromkeys(part.strip().lower() for part in parts))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InvalidRequest(f"unknown format {', '.join(unknown) or names!r}: use {', '.join(FORMATS)}")
    return formats


class FolderWriter:
    """Writes generations into a folder as they come; `close` writes what needs all of them.

    "npz" keeps every image in memory until then. Records of files in an existing `provenance.json` stay
    unless the file is written anew.
    """

    def __init__(self, folder: str | Path, formats: str | Sequence[str] = "png", *, contact_sheet: bool = True) -> None:
        self.folder = Path(folder)
        self.formats = formats_of(formats)
        self._sheet = contact_sheet
        check_folder(self.folder)
        self._old = _old_records(self.folder / "provenance.json")
        self._records: list[dict[str, Any]] = []
        self._thumbnails: list[tuple[npt.NDArray[np.float32], str]] = []
        self._kept: list[Generation] = []
        self._names: Counter[str] = Counter()
        self.count = 0
        self.paths: list[Path] = []

    def add(self, generation: Generation) -> None:
        for index, image in enumerate(generation.images):
            seed, record = int(generation.seeds[index]), record_of(generation, index)
            name = self._name(seed)
            if "png" in self.formats:
                self._image_file(f"{name}.png", slice_png(image, core(record)), record)
            if "nifti" in self.formats:
                self._image_file(f"{name}.nii.gz", nifti(image, core(record)), record)
            if self._sheet and len(self._thumbnails) < SHEET_LIMIT:
                self._thumbnails.append((image.copy(), f"seed {seed}"))
        self.count += len(generation)
        if "npz" in self.formats:
            self._kept.append(generation)

    def _name(self, seed: int) -> str:
        name = f"slice_seed{seed:09d}"
        self._names[name] += 1
        # The same seed twice in one run (with other latents) must not overwrite itself.
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    def _image_file(self, name: str, data: bytes, record: dict[str, Any]) -> None:
        self._file(name, data)
        self._records.append({"file": name, "sha256": hashlib.sha256(data).hexdigest(), **record})

    def _file(self, name: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / name, data)
        self.paths.append(self.folder / name)

    def close(self) -> list[Path]:
        """Write npz, contact sheet and provenance; returns all paths written."""
        if self._kept:
            records = [record_of(kept, index) for kept in self._kept for index in range(len(kept))]
            data = npz(self._kept, records)
            digest = hashlib.sha256(data).hexdigest()
            self._file("slices.npz", data)
            for index, record in enumerate(records):
                self._records.append({"file": "slices.npz", "index": index, "sha256": digest, **record})
        if self._thumbnails:
            images, captions = zip(*self._thumbnails, strict=True)
            self._file("contact_sheet.png", contact_sheet(images, captions, self.count))
        self._file("provenance.json", provenance_json(self._old, self._records))
        return self.paths


def record_of(generation: Generation, index: int) -> dict[str, Any]:
    """The provenance of one image: the server's record, completed from the request where it is silent."""
    asked = {
        "synthetic": True,
        "seed": int(generation.seeds[index]),
        "sampler": generation.sampler,
        "steps": generation.steps,
        "eta": generation.eta,
    }
    return {**asked, **generation.provenance[index], "synthetic": True}


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
    """One line for the 79 characters of NIfTI's descrip; with a very long seed the digest is cut."""
    digest = str(record.get("model_digest", "unknown")).removeprefix("sha256:")[:12]
    text = "SYNTHETIC seed={seed} {sampler} steps={steps} eta={eta:g} model=".format_map(record)
    return (text + digest)[:79]


def npz(generations: Sequence[Generation], records: Sequence[Mapping[str, Any]]) -> bytes:
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


def provenance_json(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> bytes:
    written = {record["file"] for record in new}
    images = [*(record for record in old if record["file"] not in written), *new]
    document = {"synthetic": True, "notice": NOTICE, "digital_source_type": SOURCE_TYPE, "images": images}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _old_records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["images"]
        if all(isinstance(record["file"], str) for record in records):
            return records
    except (ValueError, KeyError, TypeError):
        pass
    raise InvalidRequest(f"{path} is not a record of this program's: choose another folder or move it away")


def check_folder(folder: Path) -> None:
    """Fails before any work where the folder cannot be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file: choose a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {existing}: choose another folder")


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name beside `path`, then rename: nobody reads half a file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
