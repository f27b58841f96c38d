"""Command line: weights trained with MONAI to a snapshot folder, for training, evaluation and export.

python -m export.from_monai --autoencoder FILE --out FOLDER
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.monai_options import add_monai_options
from training.cli import exit_status, run_command

if TYPE_CHECKING:
    from training.checkpoint import Snapshot


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.from_monai",
        description="Write weights trained with MONAI as a snapshot folder: of stage 1 where there is no UNet, for "
        "training.train_diffusion --autoencoder, training.reconstruct and training.evaluation --features; of both "
        "stages where there is one, for training.sample and python -m export as well.",
    )
    parser.add_argument(
        "bundle",
        type=Path,
        nargs="?",
        help="folder of the MONAI bundle brats_mri_axial_slices_generative_diffusion with "
        "models/model_autoencoder.pt and, taken if it is there, models/model.pt",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="snapshot folder to write")
    add_monai_options(parser)
    arguments = parser.parse_args(argv)
    if (arguments.bundle is None) == (arguments.autoencoder is None):
        parser.error("give one of: a bundle folder, or --autoencoder FILE, with --unet FILE if there is one")
    if arguments.bundle is not None and arguments.unet is not None:
        parser.error("--unet goes with --autoencoder; a bundle folder has its own")
    return arguments


def _load(arguments: argparse.Namespace) -> "Snapshot":
    from export.monai_weights import Network, bundle_files, is_bundle, load_monai
    from training.checkpoint import CheckpointError
    from training.config import load_config

    bundle: Path | None = arguments.bundle
    files: dict[Network, Path]
    if bundle is None:
        given: dict[Network, Path | None] = {"autoencoder": arguments.autoencoder, "unet": arguments.unet}
        files = {network: path for network, path in given.items() if path is not None}
    elif is_bundle(bundle):
        files = bundle_files(bundle, required=["autoencoder"])
    else:
        raise CheckpointError(f"{bundle} is no folder of a MONAI bundle: give one, or --autoencoder FILE")
    return load_monai(files, load_config(arguments.config or "brats"), arguments.scale_factor)


def _write(arguments: argparse.Namespace) -> None:
    """Raises CheckpointError, ConfigError, OSError: a file or setting that cannot be used, or --out is there."""
    from training.checkpoint import CheckpointError, save_snapshot

    out: Path = arguments.out
    if out.exists():
        raise CheckpointError(f"{out} is there already: give another --out, or move it away")
    snapshot = _load(arguments)
    save_snapshot(snapshot, out)
    print(f"snapshot: {out}")
    if snapshot.unet is None:
        print("it holds an autoencoder and no UNet; train one: python -m training.train_diffusion --autoencoder", out)
    else:
        print(f"it holds both networks; scale factor {snapshot.scale_factor}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, report; returns the exit status."""
    arguments = _parse(argv)
    return exit_status(lambda: _write(arguments))


if __name__ == "__main__":
    run_command(main)
