"""Whether OpenVINO may serve these weights: images of many seeds compared with float32, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from export.executed import NotRunHere
from export.graphs import UNET, VAE_DECODER
from export.parity.candidates import Candidate, in_openvino, in_torch
from export.parity.images import compare_images, generate
from export.parity.limits import PRECISIONS, missed_limits
from training.checkpoint import Snapshot
from training.evaluation.features import extract, load_extractor
from training.evaluation.measure import distribution_metrics


class Frechet:
    """Frechet distances to real slices. Only their ratios mean anything, unless `features` is a published network."""

    def __init__(self, real: np.ndarray[Any, Any], features: Path) -> None:
        self._device = torch.device("cpu")
        self._extractor, self.origin = load_extractor(features, self._device)
        self._real = extract(self._extractor, real, self._device, "real")

    def __call__(self, images: Tensor) -> float:
        """Of images [n, 1, H, W], clipped to [0, 1] as viewers show them."""
        features = extract(self._extractor, images[:, 0].clamp(0, 1).numpy(), self._device, "generated")
        return distribution_metrics(self._real, features, seed=0)["FID"]


def candidates(repository: Path, precisions: Sequence[str]) -> tuple[dict[str, Candidate], list[str]]:
    """The precisions that OpenVINO computes on this machine, and why it does not compute the others."""
    runnable, missing = {}, []
    for precision in precisions:
        try:
            runnable[precision] = in_openvino(repository, *PRECISIONS[precision])
        except NotRunHere as error:
            missing.append(f"{precision}: not run here: {error}")
    return runnable, missing


def measure(
    snapshot: Snapshot,
    runnable: dict[str, Candidate],
    distance: Frechet,
    *,
    seeds: Sequence[int],
    steps: int,
    batch: int,
) -> tuple[float, list[dict[str, Any]]]:
    """The distance of float32 in PyTorch to the real slices, and a record for each precision."""
    reference = in_torch(UNET.build(snapshot).eval(), VAE_DECODER.build(snapshot).eval(), "fp32")
    records: list[dict[str, Any]] = []
    calls = (1 + len(runnable)) * len(seeds) * steps
    with torch.no_grad(), tqdm(total=calls, unit="step", disable=None, desc="PyTorch fp32") as bar:
        expected = generate(reference, snapshot, seeds, steps, batch, bar)
        reference_distance = distance(expected)
        for precision, candidate in runnable.items():
            bar.set_description(f"{candidate.runtime} {precision}")
            images = generate(candidate, snapshot, seeds, steps, batch, bar)
            frechet = distance(images)
            change = frechet / reference_distance - 1
            compared = compare_images(images, expected)
            records.append(
                {"runtime": candidate.runtime, "precision": precision, "images": compared}
                | {"frechet": frechet, "frechet_change": change}
                | {"problems": missed_limits(compared, change)}
            )
    return reference_distance, records


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as a table in Markdown."""
    lines = [
        "| runtime | precision | PSNR, worst (mean) | SSIM, worst (mean) | Frechet distance | gate |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        images = record["images"]
        lines.append(
            f"| {record['runtime']} | {record['precision']} | {images['psnr_min']:.1f} ({images['psnr_mean']:.1f}) dB "
            f"| {images['ssim_min']:.4f} ({images['ssim_mean']:.4f}) | {record['frechet_change']:+.2%} "
            f"| {'missed' if record['problems'] else 'passed'} |"
        )
    return "\n".join(lines)
