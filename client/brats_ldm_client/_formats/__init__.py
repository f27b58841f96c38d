"""The formats that hold one image a file. Each says in its files that the image is synthetic, and how it was made.

Imports the standard library only; a format's libraries are imported when it is used. The same image and record give
the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InvalidRequest
from .._extras import need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ENDINGS = {"png": (".png",), "png16": ("_16bit.png",), "nifti": (".nii.gz", ".json"), "dicom": (".dcm",)}
files_per_image: tuple[str, ...] = tuple(_ENDINGS)
PAIRED = ("task01",)
"""Formats with files for each image, which must have labels."""
FORMATS = (*files_per_image, "npz", *PAIRED)
LABELS = "labels"
"""The folder of the label maps, beside images of all formats but task01 and npz."""


def formats_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The formats without repetition; a string may hold several, with commas.

    Raises:
        InvalidRequest: a name is not in `FORMATS`.
        MissingPackage: a format needs a package that is not installed.
    """
    formats = known_formats(names, FORMATS)
    if "dicom" in formats:
        need("pydicom")
    return formats


def known_formats(names: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """As `formats_of`, of the names in `known`, and without a look at packages."""
    parts = names.split(",") if isinstance(names, str) else [part for name in names for part in name.split(",")]
    formats = tuple(dict.fromkeys(part.strip().lower() for part in parts))
    unknown = [name for name in formats if name not in known]
    if unknown or not formats:
        raise InvalidRequest(f"unknown format {', '.join(map(repr, unknown)) or repr(names)}: use {', '.join(known)}")
    return formats


def stem(seed: int) -> str:
    """The name of an image's files, without what the format adds."""
    return f"slice_seed{seed:09d}"


def file_names(format: str, stem: str, labels: bool = False) -> tuple[str, ...]:
    """The files of one image in a format of `files_per_image` or `PAIRED`; the image is in the first.

    labels: With its label map, which is in the last.
    """
    if format == "task01":
        from .task01 import pair_names

        return pair_names(stem)
    names = tuple(stem + ending for ending in _ENDINGS[format])
    return (*names, f"{LABELS}/{stem}{'.nii.gz' if format == 'nifti' else '.png'}") if labels else names


def image_files(
    format: str,
    stem: str,
    image: npt.NDArray[np.float32],
    record: Mapping[str, Any],
    labels: npt.NDArray[np.uint8] | None = None,
) -> dict[str, bytes]:
    """The files of one image in a format of `files_per_image` or `PAIRED`, and of its label map: name to content.

    Raises:
        InvalidRequest: the format needs labels.
    """
    contents = _contents(format, image, record)
    if labels is not None:
        contents = (*contents, _label_contents(format, labels, record))
    elif format == "task01":
        raise InvalidRequest("format task01 has images with labels: generate them with labels, or choose another")
    return dict(zip(file_names(format, stem, labels is not None), contents, strict=True))


def _label_contents(format: str, labels: npt.NDArray[np.uint8], record: Mapping[str, Any]) -> bytes:
    if format in ("nifti", "task01"):
        from .nifti import nifti_labels

        return nifti_labels(labels, record)
    from .png import png_labels

    return png_labels(labels, record)


def _contents(format: str, image: npt.NDArray[np.float32], record: Mapping[str, Any]) -> tuple[bytes, ...]:
    if format in ("nifti", "task01"):
        from .nifti import nifti, sidecar

        return (nifti(image, record), sidecar(record)) if format == "nifti" else (nifti(image, record),)
    if format == "dicom":
        from .dicom import dicom

        return (dicom(image, record),)
    from .png import png

    return (png(image, record, 16 if format == "png16" else 8),)


def stored(format: str, image: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """The pixels that a reader of such a file gets, with the axes of `image`: float32 for NIfTI, else grey levels."""
    if format in ("nifti", "task01"):
        return image
    from .levels import stored_levels

    return stored_levels(image, 8 if format == "png" else 16)


def read(path: Path) -> npt.NDArray[Any]:
    """The pixels of a file that `image_files` has made, as `stored` gives them; of a label map, the labels."""
    if path.suffix == ".png":
        from .png import read_png

        return read_png(path)
    if path.suffix == ".dcm":
        from .dicom import read_dicom

        return read_dicom(path)
    from .nifti import read_nifti

    return read_nifti(path)


def shown(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """An 8-bit picture of what `stored` or `read` gives: of both the same, so that contact sheets are the same."""
    from .levels import picture

    return picture(pixels)
