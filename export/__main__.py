"""Command line: a snapshot to a model repository."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a training snapshot into a Triton model repository that mounts as it is.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder written by training.train_diffusion")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("build/model_repository"),
        help="folder to write (default: %(default)s); model_repository itself gets the weights in place",
    )
    parser.add_argument("--name", default="brats_mri_axial_slices", help="name of the weights (default: %(default)s)")
    arguments = parser.parse_args(argv)

    from onnx.checker import ValidationError

    from export.repository import export_repository
    from training.checkpoint import load_snapshot

    try:
        into = arguments.into.resolve()
        into.parent.mkdir(parents=True, exist_ok=True)
        export_repository(load_snapshot(arguments.snapshot), into, arguments.name)
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
