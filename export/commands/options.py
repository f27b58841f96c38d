"""Options, and ways to read them, that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import exit_status

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from export.monai.layouts import NetworkName
    from training.checkpoint import Snapshot

    Commands = _SubParsersAction[argparse.ArgumentParser]


def add_monai_options(parser: argparse.ArgumentParser) -> None:
    """The group of options: autoencoder and unet (paths or None), scale_factor (float or None), config (or None)."""
    monai = parser.add_argument_group(
        "weights trained with MONAI",
        "Files of monai-generative 0.2, MONAI 1.4, or MONAI 1.5 and later; `python -m export to-monai` writes them.",
    )
    monai.add_argument("--autoencoder", type=Path, metavar="FILE", help="file of the autoencoder, instead of a folder")
    monai.add_argument("--unet", type=Path, metavar="FILE", help="file of the UNet, with --autoencoder")
    monai.add_argument(
        "--scale-factor",
        type=float,
        metavar="NUMBER",
        help="scale factor that MONAI printed in training; latents are divided by it before decoding",
    )
    monai.add_argument("--config", help="configuration of the networks: brats (default), demo, or a .toml file")


def load_monai_files(arguments: argparse.Namespace, files: dict[NetworkName, Path]) -> Snapshot:
    """The snapshot of MONAI's weights in `files`, with --config and --scale-factor.

    Raises:
        CheckpointError, ConfigError: a file or an option cannot be used.
    """
    from export.monai.weights import load_monai
    from training.config import load_config

    return load_monai(files, load_config(arguments.config or "brats"), arguments.scale_factor)


def add_image_options(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Options of the commands that make images: seeds (by default `seeds`), steps, batch and out (path or None)."""
    parser.add_argument("--seeds", type=int, default=seeds, help="images of the seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of an image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images made at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")


def report_problems(run: Callable[[], list[str]]) -> int:
    """Call `run` and print the problems that it returns; returns the exit status."""
    problems: list[str] = []
    status = exit_status(lambda: problems.extend(run()), "interrupted: nothing was written")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else status
