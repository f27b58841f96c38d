"""Figures of images to distances: a record for each setting. Arrays only: no files, no networks.

Two measures answer two questions. Paired: is it the image that all 1000 steps would have made of this seed?
Distributions: are the images as good a sample, whether they are the same images or not?
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.harness.engine import Array
from benchmarks.quality.features import Figures
from benchmarks.quality.settings import Design, Setting
from training.evaluation import FEWEST
from training.evaluation.measure import distribution_metrics

GROUPS = 10  # that the jackknife leaves out in turn
Distances = dict[str, float]


def distance(one: Array, other: Array) -> Distances:
    """Frechet and kernel distance of two sets of features, float64 [n, d] and [m, d]."""
    metrics = distribution_metrics(torch.from_numpy(one), torch.from_numpy(other), seed=0)
    return {"frechet": metrics["FID"], "kid": metrics["KID"]}


def crossed(own: Array, reference: Array) -> Distances:
    """Of features [n, d] of the same seeds: one half to the other half of the reference, the mean of both ways.

    The seeds must differ: a distance between samples assumes independent draws, and images of one seed are not.
    """
    half = len(own) // 2
    ways = distance(reference[half:], own[:half]), distance(reference[:half], own[half:])
    return {name: float(np.mean([way[name] for way in ways])) for name in ways[0]}


def jackknife(without: list[float]) -> float:
    """Standard error of a figure from its values with each of the groups left out (Efron 1982)."""
    values = np.array(without)
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def change(real: Array, own: Array, reference: Array) -> Distances:
    """Of `own` features [n, d] to real ones [m, d], and how much more than the reference's of the same seeds.

    As the seeds are the same, their draw cancels for the most part: `_error` is the standard error of the change.
    """
    groups = np.arange(len(own)) % GROUPS
    left_out = [np.ones(len(own), bool), *(groups != group for group in range(GROUPS))]  # nothing, and then each group
    pairs = [(distance(real, own[kept]), distance(real, reference[kept])) for kept in left_out]
    result: Distances = {}
    for name, value in pairs[0][0].items():
        changes = [mine[name] - its[name] for mine, its in pairs]
        result |= {name: value, f"{name}_change": changes[0], f"{name}_change_error": jackknife(changes[1:])}
    return result


def _halves(real: Array) -> Distances:
    """Of one half to the other, in the order of files, so that a volume lies in one half."""
    half = len(real) // 2
    return distance(real[:half], real[half:])


def compare(measured: dict[Setting, Figures], design: Design, real: Array | None) -> dict[str, Any]:
    """A record of each setting that has FEWEST images or more; `real`: features of real slices.

    Raises:
        ValueError: the paired settings share too few.
    """
    shared = len(measured[design.reference]["image"]) if design.reference in measured else 0
    if shared < FEWEST:
        raise ValueError(
            f"all of {', '.join(setting.name for setting in design.paired)} have latents of {shared} images: at least "
            f"{FEWEST} are needed; --generate makes what is missing"
        )
    enough = [setting for setting in design.all if setting in measured and len(measured[setting]["image"]) >= FEWEST]
    return {
        "settings": [_record(setting, measured, design, real) for setting in enough],
        "real": None if real is None else {"slices": len(real), "halves": _halves(real)},
    }


def _record(setting: Setting, measured: dict[Setting, Figures], design: Design, real: Array | None) -> dict[str, Any]:
    own, reference = measured[setting], measured[design.reference]
    features, among = own["features"], reference["features"][np.isin(reference["image"], own["image"])]
    paired = setting in design.fewer
    return {
        "setting": setting.name,
        "sampler": setting.sampler,
        "steps": setting.steps,
        "images": len(features),
        "paired": _paired(own) | {"frechet": distance(among, features)["frechet"]} if paired else None,
        "to_reference": None if setting == design.reference else crossed(features, among),
        "reference_to_itself": crossed(among, among),
        "to_real": None if real is None else change(real, features, among),
    }


def _paired(own: Figures) -> Distances:
    """Of images of the same seeds."""
    return {
        f"{name}_{kind}": float(getattr(own[name], kind)()) for name in ("psnr", "ssim") for kind in ("mean", "min")
    }
