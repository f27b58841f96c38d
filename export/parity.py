"""How far images drift in each precision and runtime: float32 in PyTorch against what a repository holds.

    python -m export.parity RUN/snapshot build/model_repository --out parity.json

For each file of the repository that runs here: both networks on random inputs, and whole images of many seeds by the
reference loop (training.sample), compared with PyTorch's of the same seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from training.cli import exit_status, run_command

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from export.candidates import Candidate
    from training.checkpoint import Snapshot

# The least PSNR of an image, in dB for a data range of 1: 50 steps feed each error into the next, so it depends on the
# weights more than on the runtime. 45 dB is a root mean square error of 0.6 % of the range, 35 dB one of 1.8 %.
LEAST_PSNR: dict[str, float] = {
    "fp32": 70.0,  # seen: 100 and more
    "tf32": 45.0,
    "fp16": 45.0,  # seen: 60
    "bf16": 35.0,  # seen: 53
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.parity",
        description="Compare a repository's networks and images with PyTorch in float32. The exit status is 1 where "
        "something drifts further than its precision may.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder; export.from_monai makes one of MONAI's weights")
    parser.add_argument("repository", type=Path, help="what export made of them: every ONNX file and plan is measured")
    parser.add_argument("--seeds", type=int, default=16, help="images of the seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of an image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images made at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    if min(arguments.seeds, arguments.steps, arguments.batch) < 1 or arguments.steps > 1000:
        parser.error("--seeds and --batch must be 1 or more, --steps 1 to 1000")
    return arguments


def generate(
    candidate: Candidate, snapshot: Snapshot, seeds: Sequence[int], steps: int, batch: int, bar: tqdm
) -> Tensor:
    """Images float32 [n, 1, size, size] of `seeds`, clipped by nothing, by the reference loop."""
    import numpy as np
    import torch

    from training.sample import ddim_trajectory, decode, start_noise

    def unet(latents: Tensor, timesteps: Tensor) -> Tensor:
        return candidate.denoise(latents, timesteps[:, None].int())

    images = []
    for first in range(0, len(seeds), batch):
        noise = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
        for latents, _ in ddim_trajectory(unet, snapshot.config.noise_schedule, noise, steps):
            bar.update(len(latents))
        decoder = SimpleNamespace(decode=candidate.decode)
        images.append(decode(decoder, latents, scale_factor=1.0, size=snapshot.config.data.size))
    return torch.cat(images)


def compare_images(images: Tensor, reference: Tensor) -> dict[str, float]:
    """The worst and the mean over images [n, 1, H, W] of PSNR (dB) and SSIM for a data range of 1; and differences."""
    from training.metrics import reconstruction_metrics

    measured = reconstruction_metrics(images, reference)
    difference = images - reference
    return {
        "max_abs": float(difference.abs().max()),
        "relative_l2": float(difference.norm() / reference.norm()),
        **{
            f"{name}_{kind}": float(getattr(values, kind)())
            for name, values in measured.items()
            for kind in ("min", "mean")
        },
    }


def measure(snapshot: Snapshot, repository: Path, seeds: Sequence[int], steps: int, batch: int) -> list[dict[str, Any]]:
    """A record for each candidate, with `problems`: what is further off than its precision may be."""
    import torch
    from tqdm import tqdm

    from export.candidates import candidates, in_torch
    from export.graphs import UNET, VAE_DECODER

    denoiser, decoder = (graph.build(snapshot).eval() for graph in (UNET, VAE_DECODER))
    reference = in_torch(denoiser, decoder, "fp32")
    found = list(candidates(repository, denoiser, decoder))
    records = []
    with torch.no_grad(), tqdm(total=(1 + len(found)) * len(seeds) * steps, unit="step", disable=None) as bar:
        bar.set_description("float32")
        expected = generate(reference, snapshot, seeds, steps, batch, bar)
        for candidate in found:
            bar.set_description(f"{candidate.runtime} {candidate.precision}")
            images = compare_images(generate(candidate, snapshot, seeds, steps, batch, bar), expected)
            records.append(_record(candidate, reference, images))
    return records


def _record(candidate: Candidate, reference: Candidate, images: dict[str, float]) -> dict[str, Any]:
    from export.compare import measure as measure_network
    from export.graphs import GRAPHS, random_inputs

    record: dict[str, Any] = {"runtime": candidate.runtime, "precision": candidate.precision}
    problems = []
    for graph in GRAPHS:
        inputs = random_inputs(graph, graph.opt_batch_size, seed=1)
        expected, answer = (side.network(graph)(*inputs).numpy() for side in (reference, candidate))
        parity = measure_network(expected, answer, candidate.precision)
        record[graph.name] = parity.record()
        if candidate.precision != "fp32" and parity.max_abs == 0:
            problems.append(
                f"{graph.name}: not a bit differs from fp32, so it was not computed in {candidate.precision}"
            )
        if not parity.passed:
            problems.append(
                f"{graph.name}: relative L2 {parity.relative_l2:.1e}, not {parity.tolerance_relative_l2:.0e}"
            )
    least = LEAST_PSNR[candidate.precision]
    if not images["psnr_min"] >= least:
        problems.append(f"an image has a PSNR of {images['psnr_min']:.1f} dB, not {least:.0f} dB or more")
    return record | {"images": images | {"tolerance_psnr": least}, "problems": problems}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
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


def _run(arguments: argparse.Namespace) -> list[str]:
    import torch

    from export.repository import exported_name
    from training.checkpoint import load_snapshot
    from training.files import write_text

    name = exported_name(arguments.repository)
    snapshot = load_snapshot(arguments.snapshot)
    records = measure(snapshot, arguments.repository, range(arguments.seeds), arguments.steps, arguments.batch)
    print(table(records))
    if arguments.out is not None:
        report = {"weights": name, "seeds": arguments.seeds, "steps": arguments.steps, "torch": torch.__version__}
        write_text(arguments.out, json.dumps(report | {"results": records}, indent=2) + "\n")
    return [f"{record['runtime']} {record['precision']}: {text}" for record in records for text in record["problems"]]


def report_status(run: Callable[[], list[str]]) -> int:
    """Call `run`, print the problems that it returns; the exit status."""
    problems: list[str] = []
    status = exit_status(lambda: problems.extend(run()), "interrupted: nothing was written")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else status


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)
    return report_status(lambda: _run(arguments))


if __name__ == "__main__":
    run_command(main)
