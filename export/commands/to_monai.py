"""The command `to-monai`: a snapshot to the weight files of the MONAI bundle, for its own inference and training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import exit_status

if TYPE_CHECKING:
    from export.commands.options import Commands


def add_command(commands: Commands) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "to-monai",
        help="write a snapshot as the weight files of the MONAI bundle",
        description="Write a training snapshot as the weight files of the MONAI bundle "
        "brats_mri_axial_slices_generative_diffusion.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder written by training.train_diffusion")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder that gets models/*.pt; may be a bundle's folder",
    )
    parser.add_argument(
        "--layout",
        choices=("monai-1.5", "monai-1.4", "monai-generative"),
        default="monai-1.5",
        help="version that will read the files: MONAI 1.5 and later (default), MONAI 1.4, or monai-generative 0.2",
    )
    parser.set_defaults(run=lambda arguments: exit_status(lambda: _write(arguments), "interrupted"))


def _write(arguments: argparse.Namespace) -> None:
    from export.monai.weights import differences_from_bundle, save_monai
    from training.checkpoint import load_snapshot, takes_labels, without_labels

    snapshot = load_snapshot(arguments.snapshot)
    print(*save_monai(snapshot, arguments.out, arguments.layout), sep="\n")
    print("the scale factor is folded into the autoencoder: for these files it is 1.0")
    if takes_labels(snapshot):
        print("the bundle knows no labels: these files make the images that the snapshot makes without them")
    if differences := differences_from_bundle(without_labels(snapshot).config):
        print(f"not the bundle's networks; its configurations must be given {', '.join(differences)}")
