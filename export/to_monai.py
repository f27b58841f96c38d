"""Command line: a snapshot to the two weight files of the MONAI bundle, for its own inference and training.

python -m export.to_monai RUN/snapshot --out FOLDER
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.cli import exit_status, run_command
from training.config import Config


def differences_from_bundle(config: Config) -> list[str]:
    """What the bundle's configurations would have to say for these weights: `section.field = value`."""
    bundle = Config()
    return [
        f"{section}.{field} = {value}"
        for section in ("autoencoder", "unet", "noise_schedule")
        for field, value in asdict(getattr(config, section)).items()
        if value != getattr(getattr(bundle, section), field)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export.to_monai",
        description="Write a training snapshot as the weight files of the MONAI bundle "
        "brats_mri_axial_slices_generative_diffusion.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder written by training.train_diffusion")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets models/*.pt: a bundle's, or any")
    parser.add_argument(
        "--layout",
        choices=("monai-1.5", "monai-1.4", "monai-generative"),
        default="monai-1.5",
        help="who will read them: MONAI 1.5 and later (default), MONAI 1.4, or monai-generative 0.2",
    )
    arguments = parser.parse_args(argv)

    return exit_status(lambda: _write(arguments), "interrupted")


def _write(arguments: argparse.Namespace) -> None:
    from export.monai_weights import save_monai
    from training.checkpoint import load_snapshot

    snapshot = load_snapshot(arguments.snapshot)
    written = save_monai(snapshot, arguments.out, arguments.layout)
    print(*written, sep="\n")
    print("the scale factor is folded into the autoencoder: for these files it is 1.0")
    if differences := differences_from_bundle(snapshot.config):
        print(f"not the bundle's networks; its configurations must be given {', '.join(differences)}")


if __name__ == "__main__":
    run_command(main)
