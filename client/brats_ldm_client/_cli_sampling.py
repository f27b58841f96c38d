"""The options that the commands that make images share: what changes an image, and the load on the server.

Standard library only.
"""

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


def load_options(parser: argparse.ArgumentParser, concurrency: int, retry: float) -> None:
    group = parser.add_argument_group("load on the server")
    group.add_argument(
        "--rows-per-request", type=int, default=8, metavar="N", help="images in one request, 1 to 64 (%(default)s)"
    )
    group.add_argument(
        "--concurrency", type=int, default=concurrency, metavar="N", help="requests sent at the same time (%(default)s)"
    )
    group.add_argument(
        "--retry",
        type=float,
        default=retry,
        metavar="S",
        help="seconds to keep trying while the server is busy or restarting (%(default)s)",
    )


def load(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `connect`."""
    return {
        "timeout": args.timeout,
        "rows_per_request": args.rows_per_request,
        "concurrency": args.concurrency,
        "retry_seconds": args.retry,
    }
