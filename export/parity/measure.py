"""How far networks and images drift in each precision and runtime: float32 in PyTorch against a repository's files.

For each file that runs here: both networks on random inputs, and whole images of many seeds by the reference loop
(training.sample), compared with PyTorch's images of the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from export import compare
from export.graphs import GRAPHS, UNET, VAE_DECODER, random_inputs
from export.parity.candidates import Candidate, candidates, in_torch
from export.parity.images import compare_images, generate
from training.checkpoint import Snapshot

# The least PSNR of an image, in dB for a data range of 1. It depends on the weights more than on the runtime, because
# 50 steps feed each error into the next. 45 dB is a root mean square error of 0.6 % of the range, 35 dB one of 1.8 %.
LEAST_PSNR: dict[str, float] = {
    "fp32": 70.0,  # seen: 100 and more
    "tf32": 45.0,
    "fp16": 45.0,  # seen: 60
    "bf16": 35.0,  # seen: 53
}


def measure(snapshot: Snapshot, repository: Path, seeds: Sequence[int], steps: int, batch: int) -> list[dict[str, Any]]:
    """A record for each candidate; its `problems` say what differs by more than the precision allows."""
    denoiser, decoder = UNET.build(snapshot).eval(), VAE_DECODER.build(snapshot).eval()
    reference = in_torch(denoiser, decoder, "fp32")
    runnable = list(candidates(repository, denoiser, decoder))
    records = []
    with torch.no_grad(), tqdm(total=(1 + len(runnable)) * len(seeds) * steps, unit="step", disable=None) as bar:
        bar.set_description("float32")
        expected = generate(reference, snapshot, seeds, steps, batch, bar)
        for candidate in runnable:
            bar.set_description(f"{candidate.runtime} {candidate.precision}")
            images = compare_images(generate(candidate, snapshot, seeds, steps, batch, bar), expected)
            records.append(_record(candidate, reference, images))
    return records


def _record(candidate: Candidate, reference: Candidate, images: dict[str, float]) -> dict[str, Any]:
    record: dict[str, Any] = {"runtime": candidate.runtime, "precision": candidate.precision}
    problems = []
    for graph in GRAPHS:
        inputs = random_inputs(graph, graph.opt_batch_size, seed=1)
        expected, answer = (side.network(graph)(*inputs).numpy() for side in (reference, candidate))
        parity = compare.measure(expected, answer, candidate.precision)
        record[graph.name] = parity.record()
        if candidate.precision != "fp32" and parity.max_abs == 0:
            problems.append(
                f"{graph.name}: not a bit differs from fp32, so it was not computed in {candidate.precision}"
            )
        if not parity.passed:
            problems.append(
                f"{graph.name}: relative L2 {parity.relative_l2:.1e}, allowed: {parity.tolerance_relative_l2:.0e}"
            )
    least = LEAST_PSNR[candidate.precision]
    if not images["psnr_min"] >= least:
        problems.append(f"an image has a PSNR of {images['psnr_min']:.1f} dB, not {least:.0f} dB or more")
    return record | {"images": images | {"tolerance_psnr": least}, "problems": problems}


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as a table in Markdown."""
    columns = (
        *("runtime", "precision", "UNet, relative L2", "decoder, relative L2"),
        *("image PSNR, worst (mean)", "SSIM, worst (mean)", "largest error of a pixel"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for record in records:
        images = record["images"]
        lines.append(
            f"| {record['runtime']} | {record['precision']} | {record['unet']['relative_l2']:.1e} "
            f"| {record['vae_decoder']['relative_l2']:.1e} | {images['psnr_min']:.1f} ({images['psnr_mean']:.1f}) dB "
            f"| {images['ssim_min']:.4f} ({images['ssim_mean']:.4f}) | {images['max_abs']:.1e} |"
        )
    return "\n".join(lines)
