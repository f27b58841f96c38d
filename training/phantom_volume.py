"""One volume of phantom data: a template, deformed at random, with invented contrasts and lesions. Knows no files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.phantom_template import Array, Template

GRID = (240, 240, 155)  # voxels of 1 mm; axes point to patient Right, Anterior, Superior
CROP = (slice(30, 210), slice(12, 228), slice(0, 155))  # holds every deformed brain; the rest is background
CROP_SHAPE = (180, 216, 155)

Contrast = tuple[tuple[float, float], ...]
# Range of the mean intensity of each tissue, one row per modality; 1 is about the brightest healthy tissue.
#            grey matter   white matter  CSF           oedema        necrosis      rim
CONTRAST = (
    ((0.62, 0.75), (0.48, 0.60), (0.08, 0.20), (0.90, 1.08), (0.30, 0.70), (0.78, 0.95)),
    ((0.55, 0.65), (0.78, 0.90), (0.15, 0.25), (0.50, 0.60), (0.30, 0.42), (0.48, 0.58)),
    ((0.57, 0.68), (0.78, 0.90), (0.15, 0.25), (0.50, 0.60), (0.30, 0.42), (1.25, 1.60)),
    ((0.52, 0.62), (0.36, 0.45), (0.88, 1.05), (0.78, 0.92), (0.80, 1.00), (0.62, 0.75)),
)


def smooth_field(rng: np.random.Generator, spacing_mm: float) -> Array:
    """Gaussian noise [*CROP_SHAPE], mean 0, standard deviation 1 at every voxel, smooth over `spacing_mm`: a
    tensor product of cubic B-splines: three small matrix products in place of a 3D interpolation."""
    bases = []
    for size in CROP_SHAPE:
        u = np.arange(size, dtype=np.float32) / np.float32(spacing_mm) + 1
        t = np.abs(u[:, None] - np.arange(int(u[-1]) + 3, dtype=np.float32))
        basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        bases.append((basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32))
    field: Array = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for basis in bases:
        field = np.tensordot(field, basis, axes=(0, 1))  # contracts the first axis, appends the new one
    return field


def rotation(degrees: NDArray[np.float64]) -> Array:
    """Rotation matrix [3, 3] of the Euler angles [3] about the axes Right, Anterior, Superior."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().astype(np.float32)


def deformed_points(rng: np.random.Generator) -> Array:
    """Template coordinate, in mm, of every voxel of the crop: [3, *CROP_SHAPE]."""
    scale = rng.uniform(0.92, 1.04) * rng.uniform(0.98, 1.04, 3)
    matrix = rotation(rng.uniform((-6, -3, -4), (6, 3, 4))) / scale.astype(np.float32)
    vertex = rng.uniform(138, 150)  # slice of the brain's top, as in BraTS: a tall brain loses its medulla
    middle = rng.uniform(117, 123), rng.uniform(117, 123), vertex - 77 * scale[2]
    x, y, z = (np.float32(grid - c) for grid, c in zip(np.ogrid[CROP], middle, strict=True))
    coarse, fine, points = rng.uniform(2, 4), rng.uniform(0.6, 1.2), np.empty((3, *CROP_SHAPE), np.float32)
    for i, centre in enumerate((98, 117, 78)):  # middle of the template; `coarse` and `fine` are in mm
        points[i] = coarse * smooth_field(rng, 45) + fine * smooth_field(rng, 16)
        points[i] += matrix[i, 0] * x + matrix[i, 1] * y + (matrix[i, 2] * z + centre)
    return points


def magnify(points: Array, centre: Array, radius: float, amount: float) -> Array:
    """Move `points` [3, V] towards `centre` [3], over a `radius` in mm: with `amount` > 0
    this enlarges that place and pushes its surroundings outwards (one to one below 0.7); `amount` < 0 shrinks it."""
    offset = points - centre[:, None]
    return points - amount * np.exp(np.einsum("iv,iv->v", offset, offset) * (-0.5 / radius**2)) * offset


def tissues(gm: Array, wm: Array, sharpness: float, atrophy: float, jitter: Array) -> Array:
    """Fractions [3, V] of grey matter, white matter and CSF, made sharper by the power `sharpness`. `atrophy` widens
    the sulci, `jitter` [V] moves the borders."""
    parts = np.stack([gm, wm * np.exp(jitter), atrophy * np.clip(1 - gm - wm, 0, 1)]) + 0.02
    parts **= sharpness
    return parts / parts.sum(axis=0)


def sigmoid(x: Array) -> Array:
    """Logistic function, elementwise; saturates without overflow."""
    return 1 / (1 + np.exp(-np.clip(x, -20, 20)))


def hyperintensities(rng: np.random.Generator, wm: Array, ventricle: Array, noise: Array) -> Array:
    """Small periventricular spots [V] in white matter, in about half of the volumes."""
    burden = rng.uniform(-6, -2)  # below -4 the volume has none
    return wm * (burden > -4) * sigmoid(3 * (3 * ventricle + noise + burden))


def tumour(rng: np.random.Generator, offset: Array, size: float, parts: Array, noise: Array) -> Array:
    """Memberships [3, V] of oedema, core and rim; `offset` [3, V] from the centre and `size`, the core's
    radius, in mm. An ellipsoid roughened by `noise` [V]; oedema runs along white matter and spares cortex."""
    axes = rotation(rng.uniform(0, 180, 3)) / rng.uniform(0.75, 1.3, (3, 1)).astype(np.float32)
    radius = np.linalg.norm(axes @ offset, axis=0) + 0.22 * size * noise
    reach = size + rng.uniform(5, 20) * (0.1 + 0.9 * parts[1])
    oedema = sigmoid((reach - radius) / 0.9) * (1 - parts[2])
    core = sigmoid((size - radius) / 0.6)
    if rng.uniform() < 0.3:  # a diffuse tumour without enhancement
        return np.stack([oedema, core * rng.uniform(0.55, 1), 0 * core])
    inner = size - rng.uniform(3, 6) * (1 + 0.4 * noise)
    return np.stack([oedema, core, core * sigmoid((radius - inner) / 0.4)])


def paint(rng: np.random.Generator, contrast: Contrast, parts: Array, lesions: Array, texture: Array) -> Array:
    """Noise-free intensities [V] of one modality, about 0 to 1.4."""
    means = [np.float32(rng.uniform(*limits)) for limits in contrast]
    values = sum(mean * part for mean, part in zip(means[:3], parts, strict=True))
    for mean, member in zip(means[3:], lesions, strict=True):
        values += member * (mean - values)
    return values * (1 + texture * (0.03 + 0.07 * lesions[1]))


def acquire(rng: np.random.Generator, template: Template, values: Array, inside: NDArray[np.bool_]) -> Array:
    """Add Rician noise and the blur of a scanner to `values` [V] of the voxels `inside` the crop; [V]."""
    sigma = np.float32(rng.uniform(*template.noise))
    real = values + sigma * rng.standard_normal(values.size, dtype=np.float32)
    field = np.full(CROP_SHAPE, np.float32(values.mean() / 2))
    field[inside] = np.hypot(real, sigma * rng.standard_normal(values.size, dtype=np.float32))
    in_plane, across = rng.uniform(*template.blur), rng.uniform(0.05, 0.25)  # 3-tap weights; slices are thicker
    for axis, weight in enumerate((in_plane, in_plane, across)):
        line = np.moveaxis(field, axis, 0)
        neighbours = line[:-2] + line[2:]
        neighbours -= 2 * line[1:-1]
        line[1:-1] += np.float32(weight) * neighbours
    return field[inside]


def make_volume(template: Template, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One head: image [240, 240, 155, 4] (FLAIR, T1w, T1gd, T2w; background 0) and labels [240, 240, 155].
    Depends on the generator's state alone, bit for bit on one machine and one set of library versions."""
    points = deformed_points(rng)
    inside = template.sample(template.brain, points) > rng.uniform(0.42, 0.6)
    ventricles = np.array([98, 120, 88], np.float32)  # their middle in the template
    points = magnify(points[:, inside], ventricles, 24, rng.uniform(-0.25, 0.4))  # [3, V]
    fine, mid = smooth_field(rng, 3)[inside], smooth_field(rng, 9)[inside]
    seat = template.seats[rng.integers(len(template.seats))]
    size = rng.uniform(6, 20) if rng.uniform() < 0.75 else 0.0  # mm; 0 is a healthy volume
    offset = points - seat[:, None]
    if size:
        points = magnify(points, seat, 1.6 * size, rng.uniform(0, 0.45))  # mass effect
    gm, wm, ventricle = (template.sample(v, points) for v in (template.gm, template.wm, template.ventricle))
    parts = tissues(gm, wm, template.sharpness, rng.uniform(1.0, 1.9), 0.12 * fine + 0.1 * mid)
    spots = hyperintensities(rng, parts[1], ventricle, mid + 0.3 * fine)
    lesions, labels = np.zeros_like(parts), np.zeros(GRID, np.uint8, order="F")
    if size:
        lesions = tumour(rng, offset, size, parts, mid + 0.15 * fine)
        labels[CROP][inside] = (np.array([[1], [2], [3]], np.uint8) * (lesions > 0.5)).max(axis=0)
    lesions[0] = np.maximum(lesions[0], spots)
    image = np.zeros((*GRID, 4), np.int16, order="F")  # as NIfTI stores it
    for modality in range(4):
        contrast = (*template.flair, *CONTRAST[0][2:]) if modality == 0 else CONTRAST[modality]
        values = paint(rng, contrast, parts, lesions, 0.6 * fine + mid)
        values *= np.exp(np.float32(rng.uniform(0.02, 0.09)) * smooth_field(rng, 90)[inside])  # bias field
        gain = np.float32(np.exp(rng.uniform(np.log(250), np.log(900))))
        image[..., modality][CROP][inside] = np.maximum(1, np.rint(gain * acquire(rng, template, values, inside)))
    return image, labels
