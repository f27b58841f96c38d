"""The limits of the gate for OpenVINO's images, and its precisions. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.precision import Precision

LEAST_PSNR = 45.0  # dB for a data range of 1, of every image
LEAST_SSIM = 0.995  # of every image
FRECHET_CHANGE = 0.02  # of the distance to the real slices, up or down, relative to that of float32
LIMITS = {"psnr_min": LEAST_PSNR, "ssim_min": LEAST_SSIM, "frechet_change": FRECHET_CHANGE}
PRECISIONS: dict[str, tuple[Precision, Precision]] = {
    "fp32": ("fp32", "fp32"),
    "bf16-decoder": ("fp32", "bf16"),
    "bf16": ("bf16", "bf16"),
}
"""Of the UNet and of the decoder. Errors of the UNet pass through all steps, those of the decoder through none."""


def missed_limits(images: dict[str, float], change: float) -> list[str]:
    """The limits that are missed. images: as compare_images returns it; change: of the Frechet distance, relative."""
    problems = []
    if not images["psnr_min"] >= LEAST_PSNR:
        problems.append(f"an image has a PSNR of {images['psnr_min']:.1f} dB, not {LEAST_PSNR:.0f} dB or more")
    if not images["ssim_min"] >= LEAST_SSIM:
        problems.append(f"an image has an SSIM of {images['ssim_min']:.4f}, not {LEAST_SSIM} or more")
    if not abs(change) <= FRECHET_CHANGE:
        problems.append(f"the Frechet distance changes by {change:+.1%}, not {FRECHET_CHANGE:.0%} at most")
    return problems
