"""NIfTI files: checks of the header, without which the voxels mean nothing. Knows neither MONAI nor data sets."""

import gzip
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.01  # mm of spacing: an error of at most two pixels over a slice of 240
MILLIMETRES = {1: 1000.0, 3: 0.001}  # metre and micron in xyzt_units; every other value means mm


class NiftiError(ValueError):
    """A file that is not a valid NIfTI image; the message does not name it."""


def open_nifti(path: Path) -> Any:
    """The nibabel image of a file with a valid header; the voxels are not read yet.

    Raises:
        NiftiError: another format, voxels that are not real numbers, voxels inside the header, too few voxels (only
            uncompressed files are checked for that), or an affine that is not finite or has no inverse.
        Exception: any error of nibabel's about a damaged file.
    """
    opened = nib.load(path)
    if not isinstance(opened, nib.Nifti1Pair):
        raise NiftiError(f"it is a {type(opened).__name__}, and NIfTI is needed")
    image: Any = opened  # nibabel's types do not know what NIfTI images have
    if image.header.get_data_dtype().kind not in "biuf":
        name = nib.nifti1.data_type_codes.label[int(image.header["datatype"])]
        raise NiftiError(f"its voxels are of the type {name}, and one real number each is needed")
    first, least = int(image.dataobj.offset), int(image.header.single_vox_offset)
    if isinstance(image, nib.Nifti1Image) and first < least:  # a Nifti1Pair has its voxels in a file of their own
        raise NiftiError(f"its vox_offset is {first}, inside the header: {least} or more is needed")
    voxels = Path(image.file_map["image"].filename)
    size, needed = voxels.stat().st_size, first + math.prod(image.shape) * image.header.get_data_dtype().itemsize
    if voxels.suffix != ".gz" and size < needed:
        raise NiftiError(f"it is damaged ({size} bytes, and {needed} by its header): copy or download it again")
    check_affine(image.affine)
    return image


def check_affine(affine: NDArray[np.float64]) -> None:
    """Raises NiftiError if `affine` [4, 4] cannot give the position of a voxel."""
    if not np.isfinite(affine).all():
        raise NiftiError(f"its affine is not finite: {affine[:3].tolist()}")
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise NiftiError(f"its affine has no inverse: {affine[:3].tolist()}")


def to_ras(image: Any, values: NDArray[Any]) -> NDArray[Any]:
    """`values`, one for each of the three axes of the grid, in the order Right, Anterior, Superior."""
    turned = np.empty_like(values)
    turned[nib.io_orientation(image.affine)[:, 0].astype(int)] = values
    return turned


def spacing(image: Any) -> NDArray[np.float64]:
    """Sizes of a voxel in mm towards Right, Anterior and Superior: [3].

    Raises:
        NiftiError: the header gives the sizes twice, as pixdim and in the affine, and they differ.
    """
    unit = MILLIMETRES.get(int(image.header["xyzt_units"]) % 8, 1.0)
    sizes = unit * nib.affines.voxel_sizes(image.affine)
    pixdim = unit * np.array(image.header.get_zooms()[:3], np.float64)
    # A pixdim of 0 means unknown. Headers store it as float32.
    if (abs(pixdim - sizes[: len(pixdim)]) > TOLERANCE * np.maximum(1, pixdim))[pixdim > 0].any():
        raise NiftiError(f"its pixdim says voxels of {in_mm(pixdim)}, and its affine {in_mm(sizes)}")
    return to_ras(image, sizes)


def in_mm(sizes: NDArray[np.float64]) -> str:
    """Sizes for people: 1 x 1 x 5 mm."""
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"


def check_whole(path: Path) -> None:
    """Unpack a .gz to its end, where the checksum is. Reading the voxels alone would stop before it.

    Raises:
        NiftiError: the file is damaged.
    """
    if path.suffix == ".gz":
        status = path.stat()
        _check_gzip(path, status.st_mtime_ns, status.st_size)


@cache  # a volume that is not kept in memory is read many times; errors are not cached
def _check_gzip(path: Path, changed: int, size: int) -> None:
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NiftiError(f"it is damaged ({error}): copy or download it again") from None
