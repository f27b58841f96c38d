"""Slices from files of any origin: their pixels, and what the file itself says of them. Runs no code of a file.

What a file does not say is not claimed: whether a slice is synthetic, how large its pixels are, where the patient's
right is.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .._extras import need
from .._presets import DEFAULTS, LABEL_FIELDS
from ..pictures import NOTICE, SOURCE_TYPE, from_rows

ENDINGS = (".npz", ".nii.gz", ".nii", "_16bit.png", ".dcm", ".png")
"""By precision: of files of one image in several formats the first is read."""
FORMATS = dict(zip(ENDINGS, ("npz", "NIfTI", "NIfTI", "PNG of 16 bits", "DICOM", "PNG"), strict=True))
_ORIENTATION = [1, 0, 0, 0, 1, 0]  # of DICOM: columns to the patient's left, rows to the back
_DEFLATE = 1100  # bytes at most that a byte of a packed file can stand for


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice of a file."""

    pixels: npt.NDArray[Any]
    """[x, y]: values (float32), or grey levels of [0, 1] (uint8, uint16)."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, as far as the file says so."""
    synthetic: bool = False
    """Whether the file says that it is."""
    pixel_mm: tuple[float, float] | None = None
    oriented: bool = False
    """Whether x points to the patient's right and y to anterior."""


def ending(path: Path) -> str:
    """The ending of a file of slices, one of `ENDINGS`; empty for other files."""
    name = path.name.lower()
    return next((each for each in ENDINGS if name.endswith(each)), "")


def count(path: Path) -> int:
    """How many slices a file holds, from its header. Raises whatever its library raises for a damaged file."""
    kind = ending(path)
    if kind == ".npz":
        with _archive(path) as archive, archive.open("images.npy") as file:
            shape, _, dtype = _layout(file)
        _check_size(path, math.prod(shape) * dtype.itemsize)
        return shape[0]
    if kind in (".nii", ".nii.gz"):
        volume = _open_nifti(path)
        _check_size(path, math.prod(volume.shape) * volume.get_data_dtype().itemsize)
        return _depth(volume.shape)
    return 1


def _check_size(path: Path, size: int) -> None:
    """A header can name any number of images. Each takes memory, so those that cannot be there are not counted."""
    if size > _DEFLATE * path.stat().st_size:
        raise ValueError("its end is missing")


def read(path: Path, indices: Sequence[int] = (0,)) -> Iterator[Picture]:
    """Some slices of a file, in the order of `indices`, which must ascend. Raises as `count` does."""
    return _READERS[ending(path)](path, indices)


def _png(path: Path, indices: Sequence[int]) -> Iterator[Picture]:
    with Image.open(path, formats=("PNG",)) as picture:
        text = dict(getattr(picture, "text", {}))
        rows = _grey(picture)
    record = {key: _parsed(text[key]) for key in _TEXTS if key in text}
    ours = text.get("DigitalSourceType") == SOURCE_TYPE
    if ours:
        yield Picture(from_rows(rows), record, True, (1.0, 1.0), True)
    else:
        yield Picture(from_rows(rows))


_HOW = ("sampler", "steps", "eta", *DEFAULTS, *LABEL_FIELDS)
_TEXTS = ("seed", *_HOW, "model_name", "model_digest", "weights_sha256", "made_by")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _grey(picture: Image.Image) -> npt.NDArray[Any]:
    if picture.mode.startswith("I"):  # older Pillows read 16 bits as 32
        return np.asarray(picture).astype(np.uint16)
    if picture.mode == "L":
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB"))
    if (colours != colours[:, :, :1]).any():
        raise ValueError("it is in colour, and slices are grey")
    return np.ascontiguousarray(colours[:, :, 0])


def _nifti(path: Path, indices: Sequence[int]) -> Iterator[Picture]:
    volume = _open_nifti(path)
    record, known = _extension(volume), bool(volume.header["qform_code"] or volume.header["sform_code"])
    synthetic = record.get("digital_source_type") == SOURCE_TYPE
    volume, axial = _turned(volume)
    sizes = volume.header.get_zooms()
    size = (float(sizes[0]), float(sizes[1]))
    for index in indices:
        pixels = np.ascontiguousarray(np.asarray(volume.dataobj)[:, :, index])
        yield Picture(pixels, record, synthetic, size if min(size) > 0 else None, known and axial)


def _turned(volume: Any) -> tuple[Any, bool]:
    """A volume of float32 [x, y, slice] with axes to the right, the front and up; and whether its slices are axial.

    Slices of the other two directions have no right or no front. They stay as they are.
    """
    nibabel = need("nibabel")
    voxels = volume.get_fdata(dtype=np.float32).reshape(*volume.shape[:2], _depth(volume.shape))
    volume = nibabel.Nifti1Image(voxels, volume.affine)
    axial = bool(nibabel.io_orientation(volume.affine)[2, 0] == 2)
    return (nibabel.as_closest_canonical(volume) if axial else volume), axial


def _open_nifti(path: Path) -> Any:
    return need("nibabel").load(path)


def _depth(shape: Sequence[int]) -> int:
    """The number of slices of a volume [x, y], [x, y, z] or [x, y, z, 1, ...]."""
    if len(shape) < 2 or min(shape[:2]) < 1 or any(size != 1 for size in shape[3:]):
        raise ValueError(f"its shape is {[*shape]}, and slices have two axes or, counted by the third, three")
    return shape[2] if len(shape) > 2 else 1


def _extension(volume: Any) -> dict[str, Any]:
    for extension in volume.header.extensions:
        content = extension.get_content()
        document = _parsed(content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content))
        if isinstance(document, dict):
            return document
    return {}


def _dicom(path: Path, indices: Sequence[int]) -> Iterator[Picture]:
    data = need("pydicom").dcmread(path)
    if data.PhotometricInterpretation != "MONOCHROME2":
        raise ValueError(f"its pixels are {data.PhotometricInterpretation}, and MONOCHROME2 is needed")
    rows = data.pixel_array
    if rows.ndim != 2:
        raise ValueError(f"its shape is {[*rows.shape]}, and a slice has two axes")
    record, synthetic = _equipment(data), str(data.get("SyntheticData", "")) == "YES"
    if not (synthetic and record and rows.dtype == np.uint16):  # not by this program
        slope, intercept = _numbers(data, "RescaleSlope") or [1.0], _numbers(data, "RescaleIntercept") or [0.0]
        rows = (rows * slope[0] + intercept[0]).astype(np.float32)
    spacing = _numbers(data, "PixelSpacing")
    size = (spacing[1], spacing[0]) if len(spacing) == 2 and min(spacing) > 0 else None
    oriented = _numbers(data, "ImageOrientationPatient") == _ORIENTATION
    yield Picture(from_rows(rows), record, synthetic, size, oriented)


def _numbers(data: Any, name: str) -> list[float]:
    """The numbers of an element, which may be missing or empty."""
    value = data.get(name)
    return [] if value is None else [float(number) for number in np.atleast_1d(value)]


def _equipment(data: Any) -> dict[str, Any]:
    for item in data.get("ContributingEquipmentSequence") or []:
        document = _parsed(str(item.get("ContributionDescription", "")))
        if isinstance(document, dict):
            return document
    return {}


def _npz(path: Path, indices: Sequence[int]) -> Iterator[Picture]:
    records, synthetic = npz_records(path)
    with _archive(path) as archive, archive.open("images.npy") as file:
        (total, *size), fortran, dtype = _layout(file)
        if fortran:  # written column by column: there is no part of the file that is one slice
            images = np.frombuffer(file.read(), dtype).reshape(total, *size, order="F")
            slices: Iterator[npt.NDArray[Any]] = (images[index] for index in indices)
        else:
            slices = _streamed(file, dtype, (size[0], size[1]), indices)
        for index, pixels in zip(indices, slices, strict=True):
            kept = pixels if dtype.name in ("uint8", "uint16") else pixels.astype(np.float32)
            record = records[index] if index < len(records) else {}
            ours = (1.0, 1.0) if synthetic else None
            yield Picture(np.ascontiguousarray(kept), record, synthetic, ours, synthetic)


def npz_records(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The records of the images of an archive, as far as it has them, and whether it says that they are synthetic."""
    with _archive(path), np.load(path, allow_pickle=False) as archive:
        texts = np.atleast_1d(archive["provenance"]).tolist() if "provenance" in archive else []
        seeds = archive["seeds"].tolist() if "seeds" in archive else []
        synthetic = str(archive["notice"]) == NOTICE if "notice" in archive else False
    parsed = [_parsed(str(text)) for text in texts]
    records = [record if isinstance(record, dict) else {} for record in parsed]
    if len(records) == 1 and len(seeds) > 1:  # one recipe for all of them
        records *= len(seeds)
    if len(records) == len(seeds):
        records = [{"seed": seed, **record} for seed, record in zip(seeds, records, strict=True)]
    return records, synthetic


def _archive(path: Path) -> zipfile.ZipFile:
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
        raise ValueError("it is no npz archive")
    archive = zipfile.ZipFile(path)
    if "images.npy" not in archive.namelist():
        archive.close()
        raise ValueError("it has no array `images`")
    return archive


def _layout(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape [n, x, y], whether in Fortran's order, and type of an array whose values are next in the file."""
    form: Any = np.lib.format  # NumPy has no types for it
    header = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if len(shape) != 3 or min(shape[1:]) < 1 or dtype.kind not in "fiu":
        raise ValueError(f"its images are {dtype} {[*shape]}, and numbers [n, x, y] are needed")
    return shape, fortran, dtype


def _streamed(
    file: IO[bytes], dtype: np.dtype[Any], size: tuple[int, int], indices: Sequence[int]
) -> Iterator[npt.NDArray[Any]]:
    """One slice in memory at a time, however many the array has."""
    length, at = dtype.itemsize * size[0] * size[1], 0
    for index in indices:
        while at < index:
            _whole(file, length)
            at += 1
        yield np.frombuffer(_whole(file, length), dtype).reshape(size)
        at += 1


def _whole(file: IO[bytes], length: int) -> bytes:
    content = file.read(length)
    if len(content) < length:
        raise ValueError("its end is missing")
    return content


_READERS: dict[str, Callable[[Path, Sequence[int]], Iterator[Picture]]] = {
    ".npz": _npz,
    ".nii.gz": _nifti,
    ".nii": _nifti,
    "_16bit.png": _png,
    ".dcm": _dicom,
    ".png": _png,
}
