"""Command line: a snapshot, or MONAI's weights, to a model repository."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import check
from export.monai_options import add_monai_options

if TYPE_CHECKING:
    from training.checkpoint import Snapshot


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a training snapshot, or weights trained with MONAI, into a Triton model repository that "
        "mounts as it is.",
        epilog="python -m export check DIR says what would go wrong with a repository before a server does.",
    )
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        help="snapshot folder written by training.train_diffusion, or folder of the MONAI bundle "
        "brats_mri_axial_slices_generative_diffusion with its weights",
    )
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("build/model_repository"),
        help="folder to write (default: %(default)s); model_repository itself gets the weights in place",
    )
    parser.add_argument("--name", default="brats_mri_axial_slices", help="name of the weights (default: %(default)s)")
    add_monai_options(parser)
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.autoencoder is None):
        parser.error("give one of: a folder, or --autoencoder FILE --unet FILE")
    if (arguments.autoencoder is None) != (arguments.unet is None):
        parser.error("--autoencoder and --unet belong together")
    return arguments


def _load(arguments: argparse.Namespace) -> "Snapshot":
    from export.monai_weights import Network, bundle_files, is_bundle, load_monai
    from training.checkpoint import CheckpointError, load_snapshot
    from training.config import load_config

    source: Path | None = arguments.source
    files: dict[Network, Path]
    if source is None:
        files = {"autoencoder": arguments.autoencoder, "unet": arguments.unet}
    elif source.is_file():
        raise CheckpointError(f"{source} is a file: give a folder, or --autoencoder FILE --unet FILE")
    elif is_bundle(source) and not (source / "snapshot.json").is_file():
        files = bundle_files(source)
    elif arguments.scale_factor is not None or arguments.config is not None:
        raise CheckpointError(f"{source} is no MONAI bundle; a snapshot has its own scale factor and configuration")
    else:
        return load_snapshot(source)
    return load_monai(files, load_config(arguments.config or "brats"), arguments.scale_factor)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, report; returns the exit status."""
    if (words := sys.argv[1:] if argv is None else argv) and words[0] == "check":
        return check.main(words[1:])
    arguments = _parse(argv)

    from onnx.checker import ValidationError

    from export.repository import export_repository

    try:
        into = arguments.into.resolve()
        into.parent.mkdir(parents=True, exist_ok=True)
        export_repository(_load(arguments), into, arguments.name)
    except (ValueError, OSError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.into} is as it was", file=sys.stderr)
        return 130
    print(f"model repository: {arguments.into}\nserve it: python -m server --repository {arguments.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
