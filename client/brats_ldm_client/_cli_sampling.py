"""What the commands that make images share: options for the images and the load on the server, and warnings.

Standard library only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._errors import InvalidRequest
from ._formats import known_formats
from ._presets import DECODER, GRID, GUIDANCE, PRESETS, Sampling, named

if TYPE_CHECKING:
    from .labels import LabelSource


def sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    names = ", ".join(f"{name}: {_words(how)}" for name, how in PRESETS.items())
    group.add_argument(
        "--preset", choices=PRESETS, help=f"name for all of the following options ({names}); see docs/quality.md"
    )
    group.add_argument(
        "--steps",
        type=int,
        help="denoising steps, 1 to 1000 (50); on the grid leading, numbers that do not divide 1000 skip the noisiest "
        "timesteps",
    )
    group.add_argument("--sampler", help="ddim, ddpm, dpmpp_2m, dpmpp_3m or unipc (ddim)")
    group.add_argument(
        "--eta", type=float, default=0.0, help="share of fresh noise in each step, 0 to 1; ddim only (%(default)s)"
    )
    group.add_argument(
        "--timestep-grid",
        metavar="GRID",
        help=f"which timesteps the steps are at: leading, log_snr, karras, or aligned where the server has it ({GRID})",
    )
    group.add_argument(
        "--decoder",
        help=f"full, or tiny where the server has it: faster, and less exact ({DECODER}); also beside --preset",
    )


def _words(how: Sampling) -> str:
    """Such as "dpmpp_2m 6 log_snr tiny"."""
    others = named({"timestep_grid": how.timestep_grid, "decoder": how.decoder}).values()
    return " ".join([how.sampler, str(how.steps), *others])


def check_sampling(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.preset and (args.steps, args.sampler, args.eta, args.timestep_grid) != (None, None, 0, None):
        parser.error("--preset sets --sampler, --steps and --timestep-grid, with an eta of 0: pass one or the others")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of the client's methods."""
    names = ("preset", "steps", "sampler", "eta", "timestep_grid", "decoder")
    return {name: getattr(args, name) for name in names}


def label_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labels", "For weights that were trained with labels; see docs/generate.md.")
    group.add_argument(
        "--labels",
        metavar="PATH",
        help="make images with these label maps, used in turn: a NIfTI file, a library of `brats-ldm labels`, or a "
        "folder of such",
    )
    group.add_argument(
        "--draw-labels",
        metavar="LIBRARY",
        help="make each image with a new label map, drawn by its seed from a library of `brats-ldm labels`",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=GUIDANCE,
        metavar="G",
        help="how strongly images follow their labels, 1 to 10; more than 1 takes twice the work (%(default)s)",
    )


def check_labels(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """After `check_formats`."""
    if args.labels is not None and args.draw_labels is not None:
        parser.error("--labels uses maps as they are, and --draw-labels draws new ones: pass one or the other")
    if args.labels is None and args.draw_labels is None:
        if args.guidance != GUIDANCE:
            parser.error("--guidance is for images with labels: pass --labels or --draw-labels too")
        if "task01" in args.format:
            parser.error("--format task01 has images with labels: pass --labels or --draw-labels too")


def label_source(args: argparse.Namespace) -> LabelSource | None:
    """Where the labels come from, if there are any."""
    from pathlib import Path

    from .labels import LabelSource

    path = args.labels if args.draw_labels is None else args.draw_labels
    return None if path is None else LabelSource(Path(path), drawn=args.draw_labels is not None)


def check_formats(parser: argparse.ArgumentParser, args: argparse.Namespace, known: Sequence[str]) -> None:
    """`args.format` as a tuple of names; the first of `known` by default."""
    try:
        args.format = known_formats(args.format or known[:1], known)
    except InvalidRequest as error:
        parser.error(f"--format: {error}")


class Warnings:
    """The server's warnings, each of them once."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def show(self, record: Mapping[str, Any], bar: Any) -> None:
        """Print the warning in an image's record above the progress bar."""
        warning = str(record.get("warning", ""))
        if warning and warning not in self._shown:
            self._shown.add(warning)
            bar.write(f"brats-ldm: warning: {warning}", file=sys.stderr)


def load_options(parser: argparse.ArgumentParser, concurrency: int, retry: float) -> None:
    group = parser.add_argument_group("load on the server")
    group.add_argument(
        "--rows-per-request", type=int, default=8, metavar="N", help="images in one request, 1 to 64 (%(default)s)"
    )
    group.add_argument(
        "--concurrency", type=int, default=concurrency, metavar="N", help="requests sent at the same time (%(default)s)"
    )
    group.add_argument(
        "--retry",
        type=float,
        default=retry,
        metavar="S",
        help="seconds to keep trying while the server is busy or restarting (%(default)s)",
    )


def load(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `connect`."""
    return {
        "timeout": args.timeout,
        "rows_per_request": args.rows_per_request,
        "concurrency": args.concurrency,
        "retry_seconds": args.retry,
    }
