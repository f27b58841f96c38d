"""The anatomies that phantom volumes are deformed from: tissue maps of a head, in one frame of millimetres.

icbm152: the average of 152 heads, in nilearn's wheel. colin27: one head, scanned 27 times, so its cortex is sharp.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Range = tuple[float, float]
COLIN27 = "ch2better.nii.gz"
"""Colin27 without its skull at 0.5 mm, as MRIcron distributes it."""
GREY, WHITE = 87, 114
"""The peaks of grey and white matter in the histogram of `COLIN27`."""


class Template(NamedTuple):
    """Maps of a head, axes to patient Right, Anterior, Superior. Its frame is that of ICBM152: in mm from the first
    voxel of that template's grid [197, 233, 189]."""

    gm: Array  # grey-matter fraction, 0 to 1
    wm: Array  # white-matter fraction, 0 to 1
    brain: Array  # blurred brain mask with closed sulci, 0 to 1; a threshold near 0.5 is the brain's surface
    ventricle: Array  # closeness to the lateral ventricles, 0 to 1
    seats: Array  # [S, 3], in mm: points of deep cerebral white matter, where a tumour may start
    sharpness: float  # power for the fractions: an average has faint sulci and a soft cortex
    flair: tuple[Range, Range]  # mean intensities of grey and white matter in FLAIR; 1 is about the brightest tissue
    noise: Range  # standard deviation of the scanner's noise
    blur: Range  # weight of each neighbour in the scanner's blur within a slice
    origin: tuple[float, float, float] = (0, 0, 0)  # of the maps' first voxel, in mm
    voxel: float = 1  # mm

    def sample(self, volume: Array, points: Array) -> Array:
        """Trilinear values of a map at `points` [3, ...] in mm; 0 outside."""
        from scipy.ndimage import map_coordinates

        if self.voxel != 1:
            origin = np.reshape(np.asarray(self.origin, np.float32), (3, *[1] * (points.ndim - 1)))
            points = (points - origin) / np.float32(self.voxel)
        return map_coordinates(volume, points, output=np.float32, order=1, mode="constant")


def icbm152() -> Template:
    """The ICBM152 2009a maps, read out of nilearn's installed wheel, without importing nilearn or using the network."""
    import nibabel as nib

    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the phantom needs the maps inside nilearn's wheel: pip install nilearn")
    path = f"{Path(spec.origin).parent}/datasets/data/mni_icbm152_%s_tal_nlin_sym_09a_converted.nii.gz"
    images: list[Any] = [nib.load(path % name) for name in ("gm", "wm", "t1")]
    gm, wm, t1 = (np.asarray(image.dataobj, np.float32) / 255 for image in images)
    brain, near, seats = _derived(gm, wm, t1 > 0, (0, 0, 0), 1, cut=False)
    return Template(gm, wm, brain, near, seats, 2.7, ((0.62, 0.75), (0.48, 0.60)), (0.015, 0.045), (0.04, 0.14))


def colin27(path: Path) -> Template:
    """Colin27 (Holmes et al. 1998) from `COLIN27`: its T1 intensities give the fractions of grey and white matter.

    Raises:
        ValueError: it is not that file.
    """
    import nibabel as nib

    try:
        image: Any = nib.load(path)
    except nib.filebasedimages.ImageFileError as error:
        raise ValueError(f"{path} is no NIfTI file ({error}): give {COLIN27} of MRIcron") from None
    if image.shape != (301, 370, 316) or image.affine[0, 0] != 0.5:
        raise ValueError(
            f"{path} is not Colin27 at 0.5 mm: give {COLIN27} of MRIcron, in Debian's package mricron-data"
        )
    t1 = np.asarray(image.dataobj, np.float32)
    tissue = t1 > 0  # CSF is cut out
    white = np.clip((t1 - GREY) / (WHITE - GREY), 0, 1)
    smooth = white**2 * (3 - 2 * white)  # smoothstep: noise near a peak stays a tissue of one kind
    wm = np.where(tissue, smooth, 0).astype(np.float32)
    gm = np.where(tissue, 1 - wm, 0).astype(np.float32)
    first = image.affine[:3, 3] + (98, 134, 72)  # ICBM152's grid begins at (-98, -134, -72)
    origin = float(first[0]), float(first[1]), float(first[2])
    brain, near, seats = _derived(gm, wm, tissue, origin, 0.5, cut=True)
    flair = (0.66, 0.80), (0.46, 0.58)  # apart in every volume, so that the cortex can be seen
    return Template(gm, wm, brain, near, seats, 1.5, flair, (0.01, 0.03), (0.02, 0.1), origin, 0.5)


def _derived(
    gm: Array, wm: Array, tissue: NDArray[np.bool_], origin: tuple[float, float, float], voxel: float, cut: bool
) -> tuple[Array, Array, Array]:
    """`brain`, `ventricle` and `seats` of a template; `tissue` is what the maps keep of the head.

    cut: CSF is cut out of them, so that the ventricles are holes.
    """
    from scipy import ndimage

    def blurred(mask: NDArray[Any], mm: float) -> Array:
        return ndimage.gaussian_filter(mask.astype(np.float32), mm / voxel)

    def index(mm: tuple[int, int, int]) -> list[int]:
        return [round((value - first) / voxel) for value, first in zip(mm, origin, strict=True)]

    closed = blurred(tissue, 4) > 0.45
    if cut:
        closed |= _holes(closed)
    # Lateral and third ventricles, without the cisterns and the fissure.
    box = tuple(map(slice, index((70, 65, 68)), index((127, 160, 108))))
    near = np.zeros_like(gm)
    near[box] = np.minimum(1, 1.6 * blurred(gm[box] + wm[box] < 0.5, 4))
    seats = np.argwhere(wm > 0.9).astype(np.float32) * np.float32(voxel) + np.asarray(origin, np.float32)
    deep = (abs(seats[:, 0] - 98) > 14) & (seats[:, 2] > 62) & (seats[:, 2] < 122)
    return blurred(closed | tissue, 1.5), near, seats[deep]


def _holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What `mask` [X, Y, Z] surrounds within an axial slice."""
    from scipy import ndimage

    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    labels, count = ndimage.label(~mask, in_plane)
    surrounded = np.ones(count + 1, bool)
    surrounded[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        surrounded[edge] = False
    found: NDArray[np.bool_] = surrounded[labels]
    return found
