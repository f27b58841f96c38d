"""The command `brats-ldm`: arguments, one library call, one line for an error.

Imports the standard library only, so that --help is immediate; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._cli_connection import connect, connection_options
from ._presets import PRESETS

if TYPE_CHECKING:
    from ._client import Client
    from ._writers import FolderWriter

_BLOCK = 256  # images held in memory at a time

_EPILOG = """\
examples:
  brats-ldm generate -n 8 --seed 0 --out slices
  brats-ldm generate -n 100 --preset fast --out slices
  brats-ldm generate --seeds 1,5,9 --sampler dpmpp_2m --steps 20 --format png,nifti --out slices
  brats-ldm info --url gpu-box:8001
  brats-ldm ready --deep --timeout 120

$BRATS_LDM_SECRET is sent to a server that asks for a secret.
exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong arguments, 130 interrupted.
All images are SYNTHETIC: for research only, not for diagnosis.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"brats-ldm {_version()}")
        return 0
    if args.command is None:
        parser.error("choose a command: generate, info, ready or calibrate")
    if args.command == "generate":
        _check_generate(parser, args)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        from ._errors import BratsLDMError

        try:
            status: int = args.run(args)
            return status
        except (BratsLDMError, OSError, MemoryError) as error:
            return _fail(args, str(error) or type(error).__name__)
    except KeyboardInterrupt:
        _fail(args, "interrupted")
        return 130


def _fail(args: argparse.Namespace, message: str) -> int:
    print(f"brats-ldm: {' '.join(message.split())}{args.kept}", file=sys.stderr)
    return 1


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
    parser.set_defaults(kept="")  # what an interrupted command leaves, for the error line
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _generate_parser(commands)
    info = commands.add_parser("info", help="what the server is: versions, models, limits, model digest")
    connection_options(info, timeout=30.0)
    info.set_defaults(run=_info)
    ready = commands.add_parser("ready", help="wait until the server and its models are ready")
    ready.add_argument("--deep", action="store_true", help="also make an image in one step and print its checksum")
    ready.add_argument("--checksum", metavar="SHA256", help="with --deep: what it must be (the same on a CPU only)")
    connection_options(ready, timeout=60.0)
    ready.set_defaults(run=_ready)
    _calibrate_parser(commands)
    return parser


def _generate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="generate slices into a folder",
        description="Generate slices into a folder: one file an image, a contact sheet and provenance.json. "
        "The same seed, sampler, steps and eta give the same image, whatever else is asked for.",
    )
    which = parser.add_argument_group("which images")
    which.add_argument("-n", type=int, metavar="N", help="how many images; 1 when left out")
    which.add_argument("--seed", type=int, help="seeds are SEED, SEED+1, ...; a random one when left out")
    which.add_argument("--seeds", type=_seeds, metavar="S,S,...", help="these seeds, instead of -n and --seed")
    how = parser.add_argument_group("how")
    names = ", ".join(f"{name}: {preset.sampler} {preset.steps}" for name, preset in PRESETS.items())
    how.add_argument("--preset", choices=PRESETS, help=f"sampler and steps by name ({names}; docs/quality.md)")
    how.add_argument("--steps", type=int, help="denoising steps, 1 to 1000 (50)")
    how.add_argument("--sampler", help="ddim, ddpm or dpmpp_2m (ddim)")
    how.add_argument("--eta", type=float, default=0.0, help="noise added in each step, 0 to 1; ddim only (%(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="slices", metavar="DIR", help="folder; made if it is not there (%(default)s)")
    output.add_argument(
        "--format",
        action="append",
        metavar="F[,F]",
        help="png (8 bit, window [0, 1], radiological), nifti (raw values, 1 mm) or npz (all in one file, "
        "kept in memory until the end); repeatable (png)",
    )
    output.add_argument("--no-contact-sheet", action="store_true", help="write no contact_sheet.png")
    connection_options(parser, timeout=600.0)
    load = parser.add_argument_group("load on the server")
    load.add_argument(
        "--rows-per-request", type=int, default=8, metavar="N", help="images in a request, 1 to 64 (%(default)s)"
    )
    load.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests in flight (%(default)s)")
    load.add_argument(
        "--retry",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds of trying again while it has no room (%(default)s)",
    )
    parser.set_defaults(run=_generate)


def _calibrate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure the server, and predict how long N images take",
        description="Time a few small requests on an otherwise idle server, fit a model to them, and predict the time "
        "of any number of images. docs/cost.md explains the model.",
    )
    parser.add_argument("--steps", type=_positive, default=50, help="denoising steps to predict for (%(default)s)")
    parser.add_argument("-n", type=_positive, metavar="N", help="images to predict for; 1 to 1,000,000 when left out")
    parser.add_argument(
        "--at-once", type=_positive, default=32, metavar="N", help="of them on their way at a time (%(default)s)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        metavar="N",
        help="images in the timed requests, 1 to 64 (1 2 4 8); on a GPU add 32",
    )
    parser.add_argument("--json", action="store_true", help="print the model and the predictions as JSON")
    connection_options(parser, timeout=600.0)
    parser.set_defaults(run=_calibrate)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,5,9") from None


def _check_generate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.seeds is not None and (args.n is not None or args.seed is not None):
        parser.error("--seeds replaces -n and --seed: pass one or the other")
    if args.seeds is not None and not args.seeds:
        parser.error("--seeds is empty: pass at least one seed")
    if args.n is not None and args.n < 1:
        parser.error("-n must be at least 1")
    if args.preset and (args.steps is not None or args.sampler is not None or args.eta):
        parser.error("--preset stands for --sampler and --steps, with an eta of 0: pass one or the other")
    formats = [name.strip().lower() for text in args.format or ["png"] for name in text.split(",")]
    unknown = [name for name in formats if name not in ("png", "nifti", "npz")]
    if unknown:
        parser.error(f"--format: unknown {', '.join(unknown)}; choose from png, nifti, npz")
    args.format = formats


def _generate(args: argparse.Namespace) -> int:
    from ._protocol import make_request
    from ._writers import FolderWriter

    writer = FolderWriter(args.out, args.format, contact_sheet=not args.no_contact_sheet)
    n = 1 if args.n is None and args.seeds is None else args.n
    seeds = make_request(n, seeds=args.seeds, seed=args.seed).seeds
    load = {
        "timeout": args.timeout,
        "rows_per_request": args.rows_per_request,
        "concurrency": args.concurrency,
        "retry_seconds": args.retry,
    }
    try:
        with connect(args, **load) as client:
            seconds = _generate_blocks(client, seeds, args, writer)
    except BaseException:
        if writer.count:  # what is done is good: record it before the error goes on
            writer.close()
            args.kept = f"; {writer.count} of {len(seeds)} images are in {writer.folder}"
        raise
    paths = writer.close()
    print(
        f"{len(seeds)} synthetic slices (seeds {_span(seeds)}) in {seconds:.1f} s: "
        f"{len(paths)} files in {writer.folder}{_named(writer)}"
    )
    return 0


def _generate_blocks(client: Client, seeds: Any, args: argparse.Namespace, writer: FolderWriter) -> float:
    """A block at a time, so that a million images need the memory of 256."""
    from tqdm import tqdm

    seconds = 0.0
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=len(seeds), unit="image", file=sys.stderr, disable=None) as bar:
        for start in range(0, len(seeds), _BLOCK):

            def report(done: int, total: int, start: int = start) -> None:
                bar.update(start + done - bar.n)

            generation = client.generate(
                seeds=seeds[start : start + _BLOCK],
                preset=args.preset,
                steps=args.steps,
                sampler=args.sampler,
                eta=args.eta,
                on_progress=report,
            )
            writer.add(generation)
            seconds += generation.seconds
    return seconds


def _span(seeds: Any) -> str:
    first, last = int(seeds[0]), int(seeds[-1])
    if last - first == len(seeds) - 1:
        return f"{first} to {last}" if len(seeds) > 1 else str(first)
    return ", ".join(map(str, seeds[:4])) + (", …" if len(seeds) > 4 else "")


def _named(writer: FolderWriter) -> str:
    sheet = next((path for path in writer.paths if path.name == "contact_sheet.png"), None)
    return f"; look at {sheet}" if sheet else ""


def _info(args: argparse.Namespace) -> int:
    with connect(args, timeout=args.timeout) as client:
        print(client.info())
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from ._calibrate import ROWS, as_json, calibrate, describe

    rows, images = args.rows or ROWS, [1, 10, 100, 10_000, 1_000_000] if args.n is None else [args.n]
    print("rows steps  seconds", file=sys.stderr)
    with connect(args, timeout=args.timeout, rows_per_request=max(rows), concurrency=1) as client:
        found = calibrate(
            client, rows, report=lambda *timed: print("{:4} {:5} {:8.3f}".format(*timed), file=sys.stderr)
        )
    print((as_json if args.json else describe)(found, args.steps, args.at_once, images))
    return 0


def _ready(args: argparse.Namespace) -> int:
    with connect(args, timeout=args.timeout) as client:
        checksum = client.wait_until_ready(args.timeout, args.deep, args.checksum)
    print(f"ready: {args.url}" + (f", image {checksum}" if checksum else ""))
    return 0
