"""Label maps from files: NIfTI of any orientation, libraries, and folders of them."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import BratsLDMError, InvalidRequest
from .._extras import need
from .maps import U8, check_maps

ENDINGS = (".nii.gz", ".nii", ".npz")
_ADVICE = "give a NIfTI file of 240 x 240 pixels of 1 mm, a library of `brats-ldm labels` (.npz), or a folder of them"
_TOLERANCE = 0.01  # mm: an error of at most two pixels over a slice


def read_labels(path: str | os.PathLike[str]) -> U8:
    """The label maps uint8 [n, 240, 240] of a file, or of all files in a folder, sorted by name.

    Of a NIfTI file with one slice, that slice is taken as it is. Of one with several, those with a lesion are taken,
    from the lowest to the highest. Axes are turned to those of an image: to the patient's right and to anterior.

    Args:
        path: A NIfTI file, a library of `brats-ldm labels`, or a folder of such files.

    Raises:
        InvalidRequest: the file has another shape, spacing or other values, no slice of it has a lesion, or a folder
            has no such file. The message names the file.
        OSError: a file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path)
    files = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS) and not file.name.startswith("."))
    if not files:
        raise InvalidRequest(f"{path} holds no .nii.gz, .nii or .npz file: {_ADVICE}")
    return np.concatenate([_read(file) for file in files])


def _read(path: Path) -> U8:
    what = f"{path}: labels"
    if path.name.endswith(".npz"):
        return check_maps(read_archive(path, ["labels"])["labels"], what)
    if not path.name.endswith(ENDINGS):
        raise InvalidRequest(f"{path} is no file of labels: {_ADVICE}")
    maps = check_maps(label_slices(path), what)
    if len(maps) == 1:
        return maps
    chosen: U8 = maps[maps.any(axis=(1, 2))]
    if not len(chosen):
        raise InvalidRequest(f"{path} has no lesion in its {len(maps)} slices: give a file with one, or a single slice")
    return chosen


def label_slices(path: Path) -> npt.NDArray[np.int16]:
    """The slices of a NIfTI file [n, x, y], whole numbers, from the lowest to the highest."""
    values = voxels(axial(open_nifti(path), path), path)
    whole = np.rint(values)
    if (odd := values[~(whole == values)]).size:  # not-a-number too
        raise InvalidRequest(f"{path} has the value {odd[0]:g}, which is no label: give labels, not an image")
    return np.clip(whole, -1, 255).astype(np.int16)


def open_nifti(path: Path) -> Any:
    """The nibabel image of a file; its voxels are not read yet.

    Raises:
        InvalidRequest: the file is no NIfTI image.
        OSError: it cannot be read.
    """
    with _about(path):
        return need("nibabel").load(path)


def axial(image: Any, path: Path) -> Any:
    """The same image as [x, y, slice], with axes to the patient's right, to anterior and up.

    Raises:
        InvalidRequest: it has more axes, or its pixels are not of 1 mm.
    """
    nibabel = need("nibabel")
    with _about(path):
        image = nibabel.squeeze_image(image)
        if len(image.shape) == 2:
            image = nibabel.Nifti1Image(image.get_fdata(dtype=np.float32)[..., None], image.affine)
    if len(image.shape) != 3:
        raise InvalidRequest(f"{path} has the shape {image.shape}: {_ADVICE}")
    turned = nibabel.as_closest_canonical(image)
    sizes = nibabel.affines.voxel_sizes(turned.affine)[:2]
    if not (np.abs(sizes - 1) <= _TOLERANCE).all():
        raise InvalidRequest(f"{path} has pixels of {sizes[0]:.4g} x {sizes[1]:.4g} mm: {_ADVICE}")
    return turned


def voxels(image: Any, path: Path) -> npt.NDArray[np.float32]:
    """The values of what `axial` returns, as slices from the lowest to the highest: [n, x, y]."""
    with _about(path):
        values: npt.NDArray[np.float32] = image.get_fdata(dtype=np.float32)
    return values.transpose(2, 0, 1)


def read_archive(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Some arrays of an npz file.

    Raises:
        InvalidRequest: the file is no such archive, is damaged, or lacks one of them.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # NumPy would take it for a pickle
            raise InvalidRequest(f"{path} is no npz archive: make a library with `brats-ldm labels`")
        with _about(path), np.load(file, allow_pickle=False) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise InvalidRequest(
                    f"{path} has no array {', '.join(missing)}: make a library with `brats-ldm labels`"
                )
            return {name: archive[name] for name in names}


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """What a library says of a damaged file can be anything; here it is one line with the name of the file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError, BratsLDMError):
        raise
    except Exception as error:
        words = " ".join(str(error).replace(str(path), path.name).split())
        raise InvalidRequest(f"{path} cannot be read ({words or type(error).__name__}): {_ADVICE}") from error
