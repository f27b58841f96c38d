"""Options of the commands that read weights trained with MONAI. Imports no torch, so that --help is instant."""

import argparse
from pathlib import Path


def add_monai_options(parser: argparse.ArgumentParser) -> None:
    """The group of options: autoencoder and unet (paths or None), scale_factor (float or None), config (or None)."""
    monai = parser.add_argument_group(
        "weights trained with MONAI",
        "Files of monai-generative 0.2, MONAI 1.4, or MONAI 1.5 and later; python -m export.to_monai writes them.",
    )
    monai.add_argument("--autoencoder", type=Path, metavar="FILE", help="file of the autoencoder, instead of a folder")
    monai.add_argument("--unet", type=Path, metavar="FILE", help="file of the UNet, with --autoencoder")
    monai.add_argument("--scale-factor", type=float, help="what latents are divided by before they are decoded")
    monai.add_argument("--config", help="configuration whose networks they are: brats (default), demo, or a .toml file")
