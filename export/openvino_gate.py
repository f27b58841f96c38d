"""Whether OpenVINO may serve these weights: paired images of many seeds against float32, and their distribution.

    python -m export.openvino_gate RUN/snapshot build/model_repository --real REAL --out gate.json

REAL holds real slices (`python -m training.evaluation.slices`). The exit status is 1 where a precision misses one of
the limits, or does not run on this machine, so that nothing is known of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.cli import run_command
from training.evaluation import ENCODER, FEWEST

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from export.candidates import Candidate
    from export.precision import Precision
    from training.checkpoint import Snapshot

LEAST_PSNR = 45.0  # dB for a data range of 1, of every image
LEAST_SSIM = 0.995  # of every image
FRECHET_CHANGE = 0.02  # of the distance to the real slices, up or down, relative to that of float32
PRECISIONS: dict[str, tuple[Precision, Precision]] = {
    "fp32": ("fp32", "fp32"),
    "bf16-decoder": ("fp32", "bf16"),
    "bf16": ("bf16", "bf16"),
}
"""Of the UNet and of the decoder: errors of the UNet go through all steps, those of the decoder through none."""


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.openvino_gate",
        description="Hold the profile openvino to float32: PSNR and SSIM of paired images, Frechet distance of all.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder of the weights")
    parser.add_argument("repository", type=Path, help="what export made of them")
    parser.add_argument("--real", type=Path, required=True, help="folder of real slices, what distances are taken to")
    parser.add_argument("--features", type=Path, default=ENCODER, help="of training.evaluation (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS),
        help="of both networks, or bf16-decoder: float32 in the UNet (default: all three)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=200, help="images of the seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of an image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images made at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    if arguments.seeds < FEWEST or arguments.batch < 1 or not 1 <= arguments.steps <= 1000:
        parser.error(f"--seeds must be {FEWEST} or more, --batch 1 or more, --steps 1 to 1000")
    return arguments


def limits(images: dict[str, float], change: float) -> list[str]:
    """What is missed. images: as export.parity.compare_images has it; change: of the Frechet distance, relative."""
    problems = []
    if not images["psnr_min"] >= LEAST_PSNR:
        problems.append(f"an image has a PSNR of {images['psnr_min']:.1f} dB, not {LEAST_PSNR:.0f} dB or more")
    if not images["ssim_min"] >= LEAST_SSIM:
        problems.append(f"an image has an SSIM of {images['ssim_min']:.4f}, not {LEAST_SSIM} or more")
    if not abs(change) <= FRECHET_CHANGE:
        problems.append(f"the Frechet distance changes by {change:+.1%}, not {FRECHET_CHANGE:.0%} at most")
    return problems


class Frechet:
    """Frechet distances to real slices. Only their ratios mean anything unless `features` is a published network."""

    def __init__(self, real: np.ndarray, features: Path) -> None:
        import torch

        from training.evaluation.features import extract, load_extractor

        self._device = torch.device("cpu")
        self._extractor, self.origin = load_extractor(features, self._device)
        self._real = extract(self._extractor, real, self._device, "real")

    def __call__(self, images: Tensor) -> float:
        """Of images [n, 1, H, W], clipped to [0, 1] as whoever looks at them has them."""
        from training.evaluation.features import extract
        from training.evaluation.measure import distribution_metrics

        found = extract(self._extractor, images[:, 0].clamp(0, 1).numpy(), self._device, "generated")
        return distribution_metrics(self._real, found, seed=0)["FID"]


def candidates(repository: Path, precisions: Sequence[str]) -> tuple[dict[str, Candidate], list[str]]:
    """Those of the precisions that OpenVINO computes on this machine, and why it does not compute the others."""
    from export.candidates import in_openvino
    from export.executed import NotRunHere

    found, missing = {}, []
    for precision in precisions:
        try:
            found[precision] = in_openvino(repository, *PRECISIONS[precision])
        except NotRunHere as error:
            missing.append(f"{precision}: not run here: {error}")
    return found, missing


def gate(
    snapshot: Snapshot, found: dict[str, Candidate], arguments: argparse.Namespace, distance: Frechet
) -> tuple[float, list[dict[str, Any]]]:
    """How far float32 in PyTorch is from the real slices; a record for each precision."""
    import torch
    from tqdm import tqdm

    from export.candidates import in_torch
    from export.graphs import UNET, VAE_DECODER
    from export.parity import compare_images, generate

    denoiser, decoder = (graph.build(snapshot).eval() for graph in (UNET, VAE_DECODER))
    seeds, steps = range(arguments.seeds), arguments.steps
    records: list[dict[str, Any]] = []
    calls = (1 + len(found)) * len(seeds) * steps
    with torch.no_grad(), tqdm(total=calls, unit="step", disable=None, desc="PyTorch fp32") as bar:
        expected = generate(in_torch(denoiser, decoder, "fp32"), snapshot, seeds, steps, arguments.batch, bar)
        reference = distance(expected)
        for precision, candidate in found.items():
            bar.set_description(f"{candidate.runtime} {precision}")
            images = generate(candidate, snapshot, seeds, steps, arguments.batch, bar)
            frechet = distance(images)
            change = frechet / reference - 1
            compared = compare_images(images, expected)
            records.append(
                {"runtime": candidate.runtime, "precision": precision, "images": compared}
                | {"frechet": frechet, "frechet_change": change}
                | {"problems": limits(compared, change)}
            )
    return reference, records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
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


def _run(arguments: argparse.Namespace) -> list[str]:
    from export.repository import exported_name
    from training.checkpoint import load_snapshot
    from training.evaluation.slices import read_slices
    from training.files import write_text

    name = exported_name(arguments.repository)
    real = read_slices(arguments.real).images
    if len(real) < FEWEST:
        raise ValueError(f"--real {arguments.real} holds {len(real)} slices: at least {FEWEST} are needed")
    found, missing = candidates(arguments.repository, arguments.precision)
    if not found:
        return missing
    distance = Frechet(real, arguments.features)
    reference, records = gate(load_snapshot(arguments.snapshot), found, arguments, distance)
    print(table(records))
    if arguments.out is not None:
        setting = {
            "weights": name,
            **{name: getattr(arguments, name) for name in ("seeds", "steps")},
            "real_slices": len(real),
            "features": distance.origin,
            "limits": {"psnr_min": LEAST_PSNR, "ssim_min": LEAST_SSIM, "frechet_change": FRECHET_CHANGE},
            "reference": {"runtime": "PyTorch", "precision": "fp32", "frechet": reference},
        }
        write_text(arguments.out, json.dumps(setting | {"results": records}, indent=2) + "\n")
    missed = [f"{each['runtime']} {each['precision']}: {text}" for each in records for text in each["problems"]]
    return missed + missing


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    from export.parity import report_status

    arguments = _parse(argv)
    return report_status(lambda: _run(arguments))


if __name__ == "__main__":
    run_command(main)
