"""Command line: a snapshot, or MONAI's weights, to a model repository; and TensorRT plans into one.

`python -m export check` is export.check.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import check
from export.monai_options import add_monai_options
from training.cli import run_command

if TYPE_CHECKING:
    from export.to_tensorrt import BuildOptions
    from training.checkpoint import Snapshot

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a training snapshot, or weights trained with MONAI, into a Triton model repository that "
        "mounts as it is. A repository as the source gets TensorRT plans, beside the weights that it has.",
        epilog="python -m export check DIR says what would go wrong with a repository before a server does; "
        "python -m export.parity measures its images.",
    )
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        help="snapshot folder written by training.train_diffusion, folder of the MONAI bundle "
        "brats_mri_axial_slices_generative_diffusion with its weights, or exported repository",
    )
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("build/model_repository"),
        help="folder to write (default: %(default)s); model_repository itself gets the weights in place",
    )
    parser.add_argument("--name", default="brats_mri_axial_slices", help="name of the weights (default: %(default)s)")
    parser.add_argument(
        "--onnx",
        action="append",
        default=[],
        choices=("fp16", "bf16"),
        help="also write model.fp16.onnx or model.bf16.onnx, from which trtexec builds plans; may be given twice",
    )
    parser.add_argument(
        "--torch",
        choices=("fp32", "fp16", "bf16"),
        help="also write model.pt2, a torch.export program for the profile torch: PyTorch and a GPU, no TensorRT",
    )
    parser.add_argument(
        "--no-onnx", action="store_true", help="with --torch: no other file than model.pt2; needs no ONNX here"
    )
    parser.add_argument(
        "--steps-per-call",
        type=int,
        metavar="K",
        help="also write unet_steps, which takes K steps of the sampler in one call, in the same kinds of files as "
        "unet; 1 to 50, 1: leave it out; a program of --torch takes any number (default: 5 where something for a "
        "GPU is written, else 1)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with --torch: also write model.compiled.pt2, compiled for this machine's GPU, or its CPU where it has "
        "none; takes minutes and a C++ compiler",
    )
    _add_tensorrt(parser)
    add_monai_options(parser)
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.autoencoder is None):
        parser.error("give one of: a folder, or --autoencoder FILE --unet FILE")
    if (arguments.autoencoder is None) != (arguments.unet is None):
        parser.error("--autoencoder and --unet belong together")
    if arguments.compile and not arguments.torch:
        parser.error("--compile compiles what --torch writes: give --torch PRECISION, too")
    if arguments.tensorrt_rtx and (arguments.version_compatible or arguments.hardware != "none"):
        parser.error("plans of TensorRT-RTX fit every RTX GPU: --version-compatible and --hardware are for --tensorrt")
    return arguments


def _add_tensorrt(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "TensorRT", "docs/tensorrt.md says what each precision costs, and what must match."
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--tensorrt",
        choices=PRECISIONS,
        help="also build model.plan on this machine's GPU, and place it if it computes what the ONNX graph computes",
    )
    which.add_argument("--tensorrt-rtx", choices=PRECISIONS, help="the same for RTX GPUs; builds without any GPU")
    group.add_argument(
        "--optimization-level", type=int, choices=range(6), default=3, help="0 builds fastest (default: %(default)s)"
    )
    group.add_argument(
        "--timing-cache",
        type=Path,
        default=Path("build/tensorrt.timing_cache"),
        metavar="FILE",
        help="kernel times of this GPU, kept for the next build (default: %(default)s)",
    )
    group.add_argument(
        "--version-compatible", action="store_true", help="plans also for later TensorRT releases of the same major"
    )
    group.add_argument(
        "--hardware",
        choices=("none", "same_compute_capability", "ampere_plus"),
        default="none",
        help="plans also for other GPUs than this one, some of them slower (default: %(default)s)",
    )


def _build_options(arguments: argparse.Namespace) -> "BuildOptions | None":
    from export.to_tensorrt import BuildOptions

    precision = arguments.tensorrt or arguments.tensorrt_rtx
    if precision is None:
        return None
    return BuildOptions(
        runtime="tensorrt" if arguments.tensorrt else "tensorrt_rtx",
        precision=precision,
        optimization_level=arguments.optimization_level,
        version_compatible=arguments.version_compatible,
        hardware=arguments.hardware,
        timing_cache=arguments.timing_cache,
    )


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


def _export(arguments: argparse.Namespace) -> None:
    from export.repository import Extras, RepositoryError, add_to_repository, export_repository

    plan = _build_options(arguments)
    if arguments.source is not None and (arguments.source / "manifest.json").is_file():
        if plan is None or arguments.onnx or arguments.torch or arguments.steps_per_call is not None:
            raise RepositoryError(f"{arguments.source} is a repository; it takes plans only: give --tensorrt PRECISION")
        arguments.into = arguments.source
        add_to_repository(arguments.source, plan)
        return
    into = arguments.into.resolve()
    extras = Extras(
        tuple(arguments.onnx),
        plan,
        arguments.torch,
        compiled=arguments.compile,
        with_onnx=not arguments.no_onnx,
        steps_per_call=arguments.steps_per_call,
    )
    export_repository(_load(arguments), into, arguments.name, extras=extras)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, report; returns the exit status."""
    if (words := sys.argv[1:] if argv is None else argv) and words[0] == "check":
        return check.main(words[1:])
    arguments = _parse(argv)
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    if not arguments.no_onnx:
        from onnx.checker import ValidationError

        errors += (ValidationError,)
    try:
        _export(arguments)
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.into} is as it was", file=sys.stderr)
        return 130
    profile = " --profile torch" if arguments.no_onnx else ""  # the server's own choice, cpu, takes model.onnx
    print(f"model repository: {arguments.into}\nserve it: python -m server --repository {arguments.into}{profile}")
    return 0


if __name__ == "__main__":
    run_command(main)
