"""The options that change an image, shared by the commands that make images. Standard library only."""

from __future__ import annotations

import argparse
from typing import Any

from ._presets import PRESETS


def sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    names = ", ".join(f"{name}: {preset.sampler} {preset.steps}" for name, preset in PRESETS.items())
    group.add_argument(
        "--preset", choices=PRESETS, help=f"name for a sampler and its steps ({names}); see docs/quality.md"
    )
    group.add_argument(
        "--steps",
        type=int,
        help="denoising steps, 1 to 1000 (50); numbers that do not divide 1000 skip the noisiest timesteps",
    )
    group.add_argument("--sampler", help="ddim, ddpm or dpmpp_2m (ddim)")
    group.add_argument(
        "--eta", type=float, default=0.0, help="share of fresh noise in each step, 0 to 1; ddim only (%(default)s)"
    )


def check_sampling(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.preset and (args.steps is not None or args.sampler is not None or args.eta):
        parser.error("--preset sets --sampler and --steps, with an eta of 0: pass one or the other")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of the client's methods."""
    return {"preset": args.preset, "steps": args.steps, "sampler": args.sampler, "eta": args.eta}
