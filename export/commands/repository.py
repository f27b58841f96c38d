"""The command `repository`: a snapshot, or MONAI's weights, to a model repository; and TensorRT plans into one."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.options import add_monai_options, load_monai_files
from export.manifest import RepositoryError, is_exported
from training.cli import exit_status

if TYPE_CHECKING:
    from export.commands.options import Commands
    from export.monai.layouts import NetworkName
    from export.tensorrt.build import BuildOptions
    from training.checkpoint import Snapshot

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
EXPERIMENTAL = "Experimental: not yet run on a GPU"


def add_command(commands: Commands) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "repository",
        help="write a model repository, or build TensorRT plans into one",
        description="Turn a training snapshot, or weights trained with MONAI, into a Triton model repository that a "
        "server can load at once. Given an exported repository, build TensorRT plans from its ONNX files into it.",
        epilog="Then run `python -m export check DIR`. `python -m export parity` compares images with PyTorch.",
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
        metavar="FOLDER",
        default=Path("build/model_repository"),
        help="folder to write (default: %(default)s); `model_repository` replaces the demo weights",
    )
    parser.add_argument("--name", default="brats_mri_axial_slices", help="name of the weights (default: %(default)s)")
    _add_formats(parser)
    _add_tensorrt(parser)
    add_monai_options(parser)
    parser.set_defaults(run=partial(_run, parser))


def _add_formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--onnx",
        action="append",
        default=[],
        choices=("fp16", "bf16"),
        help="also write model.fp16.onnx or model.bf16.onnx, for trtexec; may be given twice",
    )
    parser.add_argument(
        "--torch",
        choices=("fp32", "fp16", "bf16"),
        help="also write model.pt2, a torch.export program for the profile torch: PyTorch and a GPU, no TensorRT",
    )
    parser.add_argument(
        "--no-onnx", action="store_true", help="with --torch: write model.pt2 only; needs no ONNX packages"
    )
    parser.add_argument(
        "--monai-layers",
        action="store_true",
        help="keep MONAI's layers in model.onnx, in place of operations that are faster on CPUs; a checkout then needs "
        "no snapshot to build its benchmarks' PyTorch networks",
    )
    parser.add_argument(
        "--steps-per-call",
        type=int,
        metavar="K",
        help="also write the network unet_steps, which takes K denoising steps in one call (1 to 50; 1: do not write "
        "it); a program of --torch takes any number (default: 5 if files for a GPU are written, else 1)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with --torch: also write model.compiled.pt2, compiled for this machine's GPU, or for its CPU if it has "
        "no GPU; takes minutes and a C++ compiler. Experimental for CUDA: not yet run on a GPU",
    )


def _add_tensorrt(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TensorRT", "docs/tensorrt.md explains precisions and versions.")
    runtime = group.add_mutually_exclusive_group()
    runtime.add_argument(
        "--tensorrt",
        choices=PRECISIONS,
        help="also build model.plan on this machine's GPU, and keep it if its output agrees with the ONNX graph. "
        f"{EXPERIMENTAL}",
    )
    runtime.add_argument(
        "--tensorrt-rtx", choices=PRECISIONS, help=f"the same for RTX GPUs; needs no GPU to build. {EXPERIMENTAL}"
    )
    group.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        default=3,
        help="0: fastest build, 5: most thorough (default: %(default)s)",
    )
    group.add_argument(
        "--timing-cache",
        type=Path,
        default=Path("build/tensorrt.timing_cache"),
        metavar="FILE",
        help="kernel times of this GPU, kept for the next build (default: %(default)s)",
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="the plans also run with later TensorRT releases of the same major version",
    )
    group.add_argument(
        "--hardware",
        choices=("none", "same_compute_capability", "ampere_plus"),
        default="none",
        help="the plans also run on other GPUs than this one, but may be slower (default: %(default)s)",
    )


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if (arguments.source is None) == (arguments.autoencoder is None):
        parser.error("give one of: a folder, or --autoencoder FILE --unet FILE")
    if (arguments.autoencoder is None) != (arguments.unet is None):
        parser.error("--autoencoder and --unet belong together")
    if arguments.compile and not arguments.torch:
        parser.error("--compile compiles what --torch writes: give --torch PRECISION, too")
    if arguments.tensorrt_rtx and (arguments.version_compatible or arguments.hardware != "none"):
        parser.error("plans of TensorRT-RTX fit every RTX GPU: --version-compatible and --hardware are for --tensorrt")
    if arguments.source is not None and is_exported(arguments.source):
        arguments.into = arguments.source
        return exit_status(lambda: _add_plans(arguments), f"interrupted: {arguments.into} is as it was")
    return exit_status(lambda: _export(arguments), f"interrupted: {arguments.into} is as it was")


def _add_plans(arguments: argparse.Namespace) -> None:
    """Raises RepositoryError, PlanError, ParityError: the repository is as it was."""
    plan = _build_options(arguments)
    others = (arguments.onnx, arguments.torch, arguments.no_onnx, arguments.monai_layers)
    if plan is None or any(others) or arguments.steps_per_call is not None:
        raise RepositoryError(f"{arguments.source} is a repository; it takes plans only: give --tensorrt PRECISION")
    from export.repository import add_to_repository

    add_to_repository(arguments.source, plan)
    _print_what_next(arguments)


def _export(arguments: argparse.Namespace) -> None:
    """Raises what export_repository raises: the folder is as it was."""
    from export.repository import Extras, export_repository

    extras = Extras(
        tuple(arguments.onnx),
        _build_options(arguments),
        arguments.torch,
        compiled=arguments.compile,
        monai_layers=arguments.monai_layers,
        with_onnx=not arguments.no_onnx,
        steps_per_call=arguments.steps_per_call,
    )
    export_repository(_load(arguments), arguments.into.resolve(), arguments.name, extras=extras)
    _print_what_next(arguments)


def _print_what_next(arguments: argparse.Namespace) -> None:
    profile = " --profile torch" if arguments.no_onnx else ""  # the server's default, cpu, needs model.onnx
    print(f"model repository: {arguments.into}\nserve it: python -m server --repository {arguments.into}{profile}")


def _build_options(arguments: argparse.Namespace) -> BuildOptions | None:
    from export.tensorrt.build import BuildOptions

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


def _load(arguments: argparse.Namespace) -> Snapshot:
    """The snapshot of the source: a folder of ours, a MONAI bundle, or MONAI's files."""
    from export.monai.weights import bundle_files, is_bundle
    from training.checkpoint import CheckpointError, load_snapshot

    source: Path | None = arguments.source
    if source is None:
        files: dict[NetworkName, Path] = {"autoencoder": arguments.autoencoder, "unet": arguments.unet}
        return load_monai_files(arguments, files)
    if source.is_file():
        raise CheckpointError(f"{source} is a file: give a folder, or --autoencoder FILE --unet FILE")
    if is_bundle(source) and not (source / "snapshot.json").is_file():
        return load_monai_files(arguments, bundle_files(source))
    if arguments.scale_factor is not None or arguments.config is not None:
        raise CheckpointError(f"{source} is no MONAI bundle; a snapshot has its own scale factor and configuration")
    return load_snapshot(source)
