"""Figures of images to distances: a record for each setting. Arrays only: no files, no networks.

Two measures answer two questions. Paired: is it the image that many steps would have made of this seed?
Distributions: are the images as good a sample, whether they are the same images or not?
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.harness.engine import Array
from benchmarks.quality.features import Figures, Measured
from benchmarks.quality.settings import Design, Setting
from training.evaluation import FEWEST
from training.evaluation.measure import distribution_metrics

GROUPS = 10  # that the jackknife leaves out in turn
Distances = dict[str, float]


def distance(one: Array, other: Array) -> Distances:
    """Frechet and kernel distance of two sets of features, float64 [n, d] and [m, d]."""
    metrics = distribution_metrics(torch.from_numpy(one), torch.from_numpy(other), seed=0)
    return {"frechet": metrics["FID"], "kid": metrics["KID"]}


def jackknife(without: list[float]) -> float:
    """Standard error of a figure from its values with each of the groups left out (Efron 1982)."""
    values = np.array(without)
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def change(real: Array, own: Array, baseline: Array) -> Distances:
    """Of `own` features [n, d] to real ones [m, d], and how much more than the baseline's of the same seeds.

    As the seeds are the same, their draw cancels for the most part: `_error` is the standard error of the change.
    """
    groups = np.arange(len(own)) % GROUPS
    left_out = [np.ones(len(own), bool), *(groups != group for group in range(GROUPS))]  # nothing, and then each group
    pairs = [(distance(real, own[kept]), distance(real, baseline[kept])) for kept in left_out]
    result: Distances = {}
    for name, value in pairs[0][0].items():
        changes = [mine[name] - its[name] for mine, its in pairs]
        result |= {name: value, f"{name}_change": changes[0], f"{name}_change_error": jackknife(changes[1:])}
    return result


def _halves(real: Array) -> Distances:
    """Of one half to the other, in the order of files, so that a volume lies in one half."""
    half = len(real) // 2
    return distance(real[:half], real[half:])


def compare(measured: Measured, design: Design, real: Array | None) -> dict[str, Any]:
    """A record of each preset and of each setting of the sweep; `real`: features of real slices.

    Raises:
        ValueError: the reference or a preset has too few images.
    """
    for setting in (design.reference, *design.presets):
        if (images := len(measured.features[setting]["features"]) if setting in measured.features else 0) < FEWEST:
            raise ValueError(
                f"there are latents of {images} images by {setting.name}: at least {FEWEST} are needed; "
                "--generate makes what is missing"
            )
    whole = measured.whole.get(design.whole)
    return {
        "reference": _facts(design.reference) | {"beside": _facts(design.whole) | _paired(whole) if whole else None},
        "presets": [_preset(setting, measured, design, real) for setting in (*design.presets, design.reference)],
        "sweep": _swept(measured.sweep),
        "real": None if real is None else {"slices": len(real), "halves": _halves(real)},
    }


def _facts(setting: Setting) -> dict[str, Any]:
    return {"setting": setting.name} | asdict(setting)


def _preset(setting: Setting, measured: Measured, design: Design, real: Array | None) -> dict[str, Any]:
    """Compared with images of the same seeds: `paired` with the reference's, `change` with the baseline's."""
    own, reference, baseline = (measured.features[one] for one in (setting, design.reference, design.baseline))
    paired = None
    if setting != design.reference:
        metrics = distance(_among(reference, own), _among(own, reference))
        paired = _paired(measured.presets[setting]) | {"frechet": metrics["frechet"]}
    return _facts(setting) | {
        "images": len(own["image"]),
        "paired": paired,
        "to_real": None if real is None else change(real, own["features"], _among(baseline, own)),
    }


def _among(figures: Figures, others: Figures) -> Array:
    """The features of the images that the others have, too."""
    return figures["features"][np.isin(figures["image"], others["image"])]


def _swept(figures: dict[Setting, Figures]) -> list[dict[str, Any]]:
    """`behind`: dB of PSNR less than the best with as many steps, a mean over seeds, with its standard error."""
    best: dict[int, Array] = {}
    for setting, own in figures.items():
        if setting.steps not in best or own["psnr"].mean() > best[setting.steps].mean():
            best[setting.steps] = own["psnr"]
    records = []
    for setting, own in figures.items():
        behind = best[setting.steps] - own["psnr"]
        error = behind.std(ddof=1) / len(behind) ** 0.5
        records.append(_facts(setting) | _paired(own) | {"behind": float(behind.mean()), "behind_error": float(error)})
    return records


def _paired(own: Figures) -> dict[str, Any]:
    """Of images beside the reference's of the same seeds."""
    values = {
        f"{name}_{kind}": float(getattr(own[name], kind)()) for name in ("psnr", "ssim") for kind in ("mean", "min")
    }
    return {"images": len(own["psnr"])} | values
