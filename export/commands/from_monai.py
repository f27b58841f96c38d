"""The command `from-monai`: weights trained with MONAI to a snapshot folder, for training, evaluation and export."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.options import add_monai_options, load_monai_files
from training.cli import exit_status

if TYPE_CHECKING:
    from export.commands.options import Commands
    from export.monai.layouts import NetworkName
    from training.checkpoint import Snapshot


def add_command(commands: Commands) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "from-monai",
        help="write weights trained with MONAI as a snapshot folder",
        description="Write weights trained with MONAI as a snapshot folder. Without a UNet, the snapshot works with "
        "training.train_diffusion --autoencoder, training.reconstruct and training.evaluation --features. With a "
        "UNet, it also works with training.sample and `python -m export repository`.",
    )
    parser.add_argument(
        "bundle",
        type=Path,
        nargs="?",
        help="folder of the MONAI bundle brats_mri_axial_slices_generative_diffusion with "
        "models/model_autoencoder.pt and, if there is one, models/model.pt",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="snapshot folder to write")
    add_monai_options(parser)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if (arguments.bundle is None) == (arguments.autoencoder is None):
        parser.error("give one of: a bundle folder, or --autoencoder FILE, with --unet FILE if there is one")
    if arguments.bundle is not None and arguments.unet is not None:
        parser.error("--unet needs --autoencoder; a bundle folder has its own UNet")
    return exit_status(lambda: _write(arguments), "interrupted")


def _write(arguments: argparse.Namespace) -> None:
    """Raises CheckpointError, ConfigError, OSError: a file or option cannot be used, or --out exists."""
    from training.checkpoint import CheckpointError, save_snapshot

    out: Path = arguments.out
    if out.exists():
        raise CheckpointError(f"{out} exists already: give another --out, or move it away")
    snapshot = _load(arguments)
    save_snapshot(snapshot, out)
    print(f"snapshot: {out}")
    if snapshot.unet is None:
        print(f"it holds an autoencoder and no UNet; train one: python -m training.train_diffusion --autoencoder {out}")
    else:
        print(f"it holds both networks; scale factor {snapshot.scale_factor}")


def _load(arguments: argparse.Namespace) -> Snapshot:
    from export.monai.weights import bundle_files, is_bundle
    from training.checkpoint import CheckpointError

    bundle: Path | None = arguments.bundle
    if bundle is None:
        options: dict[NetworkName, Path | None] = {"autoencoder": arguments.autoencoder, "unet": arguments.unet}
        return load_monai_files(arguments, {network: path for network, path in options.items() if path is not None})
    if not is_bundle(bundle):
        raise CheckpointError(f"{bundle} is no folder of a MONAI bundle: give one, or --autoencoder FILE")
    return load_monai_files(arguments, bundle_files(bundle, required=["autoencoder"]))
