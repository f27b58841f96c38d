"""`brats-ldm animate`: the denoising of one image as an animation. Standard library only until it runs."""

from __future__ import annotations

import argparse
from typing import Any

from ._cli_connection import connect, connection_options
from ._cli_sampling import check_sampling, sampling, sampling_options
from ._presets import resolve


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "animate",
        help="show the denoising of one image as an animation",
        description="Generate one image and write its denoising as an animated GIF or WebP: a preview every few "
        "steps, then the image. Previews are latents, a quarter of the image's size and enlarged.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the image (%(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="steps from preview to preview (%(default)s)")
    parser.add_argument(
        "--out", default="denoising.gif", metavar="FILE", help="file that ends in .gif or .webp (%(default)s)"
    )
    sampling_options(parser)
    connection_options(parser, timeout=600.0)
    parser.set_defaults(run=_animate, check=_check)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    check_sampling(parser, args)
    steps = resolve(**sampling(args)).steps
    if args.every < 1 or args.every > steps >= 1:  # the server refuses steps below 1
        parser.error(f"--every is {args.every}: choose 1 to {max(steps, 1)}, the number of steps")


def _animate(args: argparse.Namespace) -> int:
    from .animation import check_path, save_animation

    check_path(args.out)  # before any work
    with connect(args, timeout=args.timeout) as client:
        path = save_animation(client.stream(seeds=[args.seed], preview_every=args.every, **sampling(args)), args.out)
    print(f"the denoising of synthetic slice {args.seed}: {path}")
    return 0
