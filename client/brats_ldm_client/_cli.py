"""The command `brats-ldm`: arguments, one library call, one line for an error.

Imports the standard library only, so that --help is immediate; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from . import _cli_animate, _cli_bulk, _cli_generate, _cli_labels, _cli_report, _cli_studio, _cli_verify
from ._cli_connection import complete, connect, connection_options
from ._presets import DECODER
from .printing import forgiving_streams

_EPILOG = """\
examples:
  brats-ldm generate -n 8 --seed 0 --out slices
  brats-ldm generate -n 100 --preset fast --out slices
  brats-ldm generate -n 100 --sampler unipc --steps 8 --timestep-grid karras --decoder tiny --out slices
  brats-ldm generate --seeds 1,5,9 --sampler dpmpp_2m --steps 20 --format png,nifti --out slices
  brats-ldm animate --seed 42 --steps 50 --out denoising.gif
  brats-ldm bulk --count 1000000 --preset fast --format webdataset --out dataset
  brats-ldm labels --data data --out library.npz
  brats-ldm generate -n 100 --seed 0 --draw-labels library.npz --format task01 --out pairs
  brats-ldm verify dataset
  brats-ldm report slices
  brats-ldm studio
  brats-ldm info --url gpu-box:8001
  brats-ldm ready --deep --timeout 120

$BRATS_LDM_SECRET is sent to a server that asks for a secret. BRATS_LDM_URL, BRATS_LDM_TIMEOUT, BRATS_LDM_TLS_CA and so
on are used where their options are not given.
exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong arguments, 130 interrupted,
143 terminated (SIGTERM).
All images are SYNTHETIC: for research only, not for diagnosis.
"""


def main(argv: Sequence[str] | None = None) -> int:
    with forgiving_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"brats-ldm {_version()}")
        return 0
    if args.command is None:
        parser.error(
            "choose a command: generate, animate, bulk, labels, verify, report, studio, info, ready or calibrate"
        )
    args.check(parser, args)
    return _run(args)


@contextlib.contextmanager
def _heed_sigterm(heard: list[int]) -> Iterator[None]:
    """SIGTERM, as of SLURM or Kubernetes, ends a command in order, as Ctrl-C does. `heard` gets its number."""

    def terminate(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run(args: argparse.Namespace) -> int:
    heard: list[int] = []
    try:
        with _heed_sigterm(heard):
            return _run_command(args)
    except KeyboardInterrupt:
        _fail(args, "terminated" if heard else "interrupted")
        return 143 if heard else 130


def _run_command(args: argparse.Namespace) -> int:
    from ._errors import BratsLDMError

    try:
        complete(args)
        status: int = args.run(args)
        return status
    except (BratsLDMError, OSError, MemoryError) as error:
        return _fail(args, _words(error))


def _fail(args: argparse.Namespace, message: str) -> int:
    print(f"brats-ldm: {' '.join(message.split())}{args.kept}", file=sys.stderr)
    return 1


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("brats-ldm-client")
    except PackageNotFoundError:  # run from a checkout
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brats-ldm",
        description="Synthetic 2D FLAIR brain MRI slices from a latent diffusion model on a Triton server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # kept: what an interrupted command leaves, for the error line. check: refuses wrong arguments.
    parser.set_defaults(kept="", check=lambda parser, args: None)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _cli_generate.add_parser(commands)
    _cli_animate.add_parser(commands)
    _cli_bulk.add_parser(commands)
    _cli_labels.add_parser(commands)
    _cli_verify.add_parser(commands)
    _cli_report.add_parser(commands)
    _cli_studio.add_parser(commands)
    info = commands.add_parser("info", help="print the server's version, models, limits and model digest")
    connection_options(info, timeout=30.0)
    info.set_defaults(run=_info)
    ready = commands.add_parser("ready", help="wait until the server and its models are ready")
    ready.add_argument("--deep", action="store_true", help="also generate an image in one step and print its checksum")
    ready.add_argument(
        "--checksum", metavar="SHA256", help="with --deep: fail if the checksum is another; for CPUs only"
    )
    connection_options(ready, timeout=60.0)
    ready.set_defaults(run=_ready)
    _calibrate_parser(commands)
    return parser


def _calibrate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure the server, and predict how long N images take",
        description="Time a few small requests on an otherwise idle server, fit a model to them, and predict the time "
        "of any number of images. docs/cost.md explains the model.",
    )
    parser.add_argument("--steps", type=_positive, default=50, help="denoising steps to predict for (%(default)s)")
    parser.add_argument(
        "-n", type=_positive, metavar="N", help="number of images to predict for (several, from 1 to 1,000,000)"
    )
    parser.add_argument(
        "--at-once", type=_positive, default=32, metavar="N", help="images in progress at the same time (%(default)s)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of images in the timed requests, 1 to 64 (1 2 4 8); on a GPU add 32",
    )
    parser.add_argument(
        "--steps-per-call",
        type=_positive,
        default=1,
        metavar="K",
        help="steps in one call of unet_steps, if it is unrolled: every profile but torch (%(default)s)",
    )
    parser.add_argument("--decoder", help=f"of the timed requests: full, or tiny where the server has it ({DECODER})")
    parser.add_argument("--json", action="store_true", help="print the model and the predictions as JSON")
    connection_options(parser, timeout=600.0)
    parser.set_defaults(run=_calibrate)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _info(args: argparse.Namespace) -> int:
    from ._errors import BratsLDMError

    with connect(args, timeout=args.timeout) as client:
        print(client.info())
        with contextlib.suppress(BratsLDMError):  # an older server does not tell
            print("\nqueue", *client.queue(), sep="\n  ")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from ._calibrate import ROWS, as_json, calibrate, describe

    rows, images = args.rows or ROWS, [1, 10, 100, 10_000, 1_000_000] if args.n is None else [args.n]
    print("rows steps  seconds", file=sys.stderr)
    with connect(args, timeout=args.timeout, rows_per_request=max(rows), concurrency=1) as client:
        calibration = calibrate(
            client,
            rows,
            report=lambda *timed: print("{:4} {:5} {:8.3f}".format(*timed), file=sys.stderr),
            steps_per_call=args.steps_per_call,
            decoder=args.decoder,
        )
    print((as_json if args.json else describe)(calibration, args.steps, args.at_once, images))
    return 0


def _ready(args: argparse.Namespace) -> int:
    with connect(args, timeout=args.timeout) as client:
        checksum = client.wait_until_ready(args.timeout, args.deep, args.checksum)
    print(f"ready: {args.url}" + (f", image {checksum}" if checksum else ""))
    return 0
