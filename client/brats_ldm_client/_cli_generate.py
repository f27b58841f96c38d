"""`brats-ldm generate`: its options, and what it does: slices into a folder, except for those that are there."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._cli_connection import connect, connection_options
from ._cli_sampling import check_sampling, sampling, sampling_options
from ._formats import FORMATS

if TYPE_CHECKING:
    from ._client import Client
    from ._protocol import Request
    from ._types import Generation
    from ._writers import FolderWriter

_BLOCK = 256  # images held in memory at a time


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="generate slices into a folder",
        description="Generate slices into a folder: one file an image and format, a contact sheet and provenance.json. "
        "The same seed, sampler, steps and eta always give the same image. To continue an interrupted run, start the "
        "same command again: complete images of the same weights are kept. (With npz all images are made again.)",
    )
    which = parser.add_argument_group("which images")
    which.add_argument("-n", type=int, metavar="N", help="number of images (1)")
    which.add_argument("--seed", type=int, help="use the seeds SEED, SEED+1, ... (random)")
    which.add_argument("--seeds", type=_seeds, metavar="S,S,...", help="use these seeds, instead of -n and --seed")
    sampling_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", default="slices", metavar="DIR", help="output folder, created if missing (%(default)s)"
    )
    output.add_argument(
        "--format",
        action="append",
        metavar="F[,F]",
        help="png (8 bit, window [0, 1], radiological), png16 (the same, 16 bit), nifti (raw values, with a JSON "
        "sidecar), dicom (16 bit; needs pydicom) or npz (all images in one file, kept in memory until the end); may be "
        "given more than once (png)",
    )
    output.add_argument("--no-contact-sheet", action="store_true", help="do not write contact_sheet.png")
    connection_options(parser, timeout=600.0)
    load = parser.add_argument_group("load on the server")
    load.add_argument(
        "--rows-per-request", type=int, default=8, metavar="N", help="images in one request, 1 to 64 (%(default)s)"
    )
    load.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="requests sent at the same time (%(default)s)"
    )
    load.add_argument(
        "--retry",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to keep trying while the server is busy or restarting (%(default)s)",
    )
    parser.set_defaults(run=_generate, check=check)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,5,9") from None


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.seeds is not None and (args.n is not None or args.seed is not None):
        parser.error("--seeds replaces -n and --seed: pass one or the other")
    if args.seeds is not None and not args.seeds:
        parser.error("--seeds is empty: pass at least one seed")
    if args.n is not None and args.n < 1:
        parser.error("-n must be at least 1")
    check_sampling(parser, args)
    args.format = [name.strip().lower() for text in args.format or ["png"] for name in text.split(",")]
    unknown = [name for name in args.format if name not in FORMATS]
    if unknown:
        parser.error(f"--format: unknown {', '.join(unknown)}; choose from {', '.join(FORMATS)}")


def _generate(args: argparse.Namespace) -> int:
    from ._protocol import make_request
    from ._writers import FolderWriter

    writer = FolderWriter(args.out, args.format, contact_sheet=not args.no_contact_sheet)
    n = 1 if args.n is None and args.seeds is None else args.n
    asked = make_request(n, seeds=args.seeds, seed=args.seed, **sampling(args))
    load = {
        "timeout": args.timeout,
        "rows_per_request": args.rows_per_request,
        "concurrency": args.concurrency,
        "retry_seconds": args.retry,
    }
    try:
        with connect(args, **load) as client:
            run = _Run(client, asked, writer)
            run.blocks()
        paths = writer.close()
    except BaseException:
        args.kept = _kept(writer, asked, args)
        raise
    before = f", {run.kept} of them there before," if run.kept else ""
    print(
        f"{len(asked.seeds)} synthetic slices (seeds {_span(asked.seeds)}){before} in {run.seconds:.1f} s: "
        f"{len(paths)} files in {writer.folder}{_named(writer)}"
    )
    return 0


class _Run:
    """The images of a request, a block at a time, so that a million of them need the memory of 256."""

    def __init__(self, client: Client, asked: Request, writer: FolderWriter) -> None:
        self._client, self._asked, self._writer = client, asked, writer
        eta = 1.0 if asked.sampler == "ddpm" else asked.eta
        self._how = {"sampler": asked.sampler, "steps": asked.steps, "eta": eta, "start_noise": "seed"}
        self._repeats = len(set(asked.seeds.tolist())) < len(asked.seeds)
        self._warned: set[str] = set()
        self.seconds, self.kept = 0.0, 0

    def blocks(self) -> None:
        from tqdm import tqdm

        seeds = self._asked.seeds.tolist()
        # disable=None: no bar where stderr is not a terminal.
        with tqdm(total=len(seeds), unit="image", file=sys.stderr, disable=None) as bar:
            for start in range(0, len(seeds), _BLOCK):
                self._block(seeds[start : start + _BLOCK], bar)

    def _block(self, seeds: Sequence[int], bar: Any) -> None:
        there, order = self._there(seeds), iter(seeds)
        missing = [seed for seed in seeds if seed not in there]
        bar.update(len(there))
        self.kept += len(there)

        def write(made: Generation) -> None:
            self._warn(made, bar)
            if not there:
                self._writer.add(made)
                return
            for index in range(len(made)):
                while (seed := next(order)) in there:
                    self._writer.keep(seed)
                self._writer.add_image(made, index)

        if missing:
            self._make(missing, bar, write)
        for seed in order:
            if seed in there:
                self._writer.keep(seed)

    def _there(self, seeds: Sequence[int]) -> set[int]:
        """Those that the folder has, made in the same way by the same weights."""
        if self._repeats:  # which have names that depend on what came before them
            return set()
        present = {seed for seed in seeds if self._writer.has(seed, self._how)}
        if present and "model_digest" not in self._how:
            self._how["model_digest"] = self._client.info().model_digest
            return self._there(seeds)
        return present

    def _make(self, seeds: Sequence[int], bar: Any, write: Callable[[Generation], None]) -> None:
        asked, done_before = self._asked, bar.n
        made = self._client.generate(
            seeds=seeds,
            steps=asked.steps,
            sampler=asked.sampler,
            eta=asked.eta,
            on_progress=lambda done, total: bar.update(done_before + done - bar.n),
            on_images=write,
        )
        self.seconds += made.seconds

    def _warn(self, made: Generation, bar: Any) -> None:
        for warning in {str(record["warning"]) for record in made.provenance if "warning" in record} - self._warned:
            self._warned.add(warning)
            bar.write(f"brats-ldm: warning: {warning}", file=sys.stderr)


def _kept(writer: FolderWriter, asked: Request, args: argparse.Namespace) -> str:
    """For the error line: what a run leaves that has ended early, and how to go on."""
    if writer.empty:
        return ""
    with contextlib.suppress(OSError):  # no room: then the records stay in the journal, where the next run finds them
        writer.close()
    seed = f" with --seed {asked.seeds[0]}" if args.seed is None and args.seeds is None else ""
    left = f"{writer.count or 'none'} of {len(asked.seeds)} images are in {writer.folder}, each with its record"
    return f"; {left}; the same command{seed} makes {'them all' if 'npz' in args.format else 'the rest'}"


def _span(seeds: Any) -> str:
    first, last = int(seeds[0]), int(seeds[-1])
    if last - first == len(seeds) - 1:
        return f"{first} to {last}" if len(seeds) > 1 else str(first)
    return ", ".join(map(str, seeds[:4])) + (", …" if len(seeds) > 4 else "")


def _named(writer: FolderWriter) -> str:
    sheet = next((path for path in writer.paths if path.name == "contact_sheet.png"), None)
    return f"; look at {sheet}" if sheet else ""
