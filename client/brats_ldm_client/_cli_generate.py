"""`brats-ldm generate`: its options, and what it does: slices into a folder, except for those that are there."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ._cli_connection import connect, connection_options
from ._cli_sampling import (
    Warnings,
    check_formats,
    check_labels,
    check_sampling,
    label_options,
    label_source,
    load,
    load_options,
    sampling,
    sampling_options,
)
from ._formats import FORMATS
from ._presets import resolve
from ._terminal_kinds import KINDS

if TYPE_CHECKING:
    from ._client import Client
    from ._request import Request
    from ._types import Slice
    from ._watch import Watch
    from ._writers import FolderWriter
    from .labels import LabelSource
    from .labels.source import Labels


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="generate slices into a folder",
        description="Generate slices into a folder: one file an image and format, a contact sheet and provenance.json. "
        "The same seed and sampling options always give the same image. To continue an interrupted run, start the "
        "same command again: complete images of the same weights are kept. (With npz all images are made again.)",
    )
    which = parser.add_argument_group("which images")
    which.add_argument("-n", type=int, metavar="N", help="number of images (1; with --labels, that of the maps)")
    which.add_argument("--seed", type=int, help="use the seeds SEED, SEED+1, ... (random)")
    which.add_argument("--seeds", type=_seeds, metavar="S,S,...", help="use these seeds, instead of -n and --seed")
    sampling_options(parser)
    label_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", default="slices", metavar="DIR", help="output folder, created if missing (%(default)s)"
    )
    output.add_argument(
        "--format",
        action="append",
        metavar="F[,F]",
        help="png (8 bit, window [0, 1], radiological), png16 (the same, 16 bit), nifti (raw values, with a JSON "
        "sidecar), dicom (16 bit; needs pydicom), npz (all images in one file, kept in memory until the end) or task01 "
        "(with labels: a data set for MONAI and nnU-Net); may be given more than once (png)",
    )
    output.add_argument("--no-contact-sheet", action="store_true", help="do not write contact_sheet.png")
    output.add_argument(
        "--watch",
        nargs="?",
        const="auto",
        choices=("auto", *KINDS),
        help="show previews in the terminal while a few images at a time are made: in the best way that it says it can "
        "(to ask it needs blessed), or in this way; the files are the same",
    )
    connection_options(parser, timeout=600.0)
    load_options(parser, concurrency=4, retry=60.0)
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
    check_formats(parser, args, FORMATS)
    check_labels(parser, args)


def _generate(args: argparse.Namespace) -> int:
    from ._request import make_request
    from ._writers import FolderWriter

    writer = FolderWriter(args.out, args.format, contact_sheet=not args.no_contact_sheet)
    source = label_source(args)
    n = args.n
    if n is None and args.seeds is None:
        n = len(source.maps) if args.labels is not None and source is not None else 1
    asked = make_request(n, resolve(**sampling(args)), seeds=args.seeds, seed=args.seed)
    try:
        with connect(args, **load(args)) as client:
            run = _Run(client, asked, writer, _labels_of(source, asked), args.guidance)
            watch = _watch(args, client, asked)
            began = time.monotonic()
            run.make(watch)
            seconds = time.monotonic() - began
        paths = writer.close()
    except BaseException:
        args.kept = _kept(writer, asked, args)
        raise
    before = f", {run.kept} of them there before," if run.kept else ""
    print(
        f"{len(asked.seeds)} synthetic slices (seeds {_span(asked.seeds)}){before} in {seconds:.1f} s: "
        f"{len(paths)} files in {writer.folder}{_named(writer)}"
    )
    return 0


def _watch(args: argparse.Namespace, client: Client, asked: Request) -> Watch | None:
    """What shows the images while they are made, if that is wanted and stderr is a terminal that can."""
    if args.watch is None:
        return None
    from ._watch import Watch
    from .terminal import open_screen

    screen = open_screen(args.watch)
    return None if screen is None else Watch(client, asked, screen, args.rows_per_request)


def _labels_of(source: LabelSource | None, asked: Request) -> Labels | None:
    """The map of each seed, as a function; but maps in turn where a seed comes twice."""
    from ._request import MAX_ROWS

    if source is None:
        return None
    places = {seed: place for place, seed in enumerate(asked.seeds.tolist())}
    if not source.drawn and len(places) < len(asked.seeds):
        return source.maps
    # Cached for a request: whether the folder has an image is asked before the map is sent.
    return lru_cache(MAX_ROWS)(lambda seed: source.map(places[seed], seed))


class _Run:
    """The images of a request that the folder lacks. Few of them are in memory at a time."""

    def __init__(
        self,
        client: Client,
        asked: Request,
        writer: FolderWriter,
        labels: Labels | None,
        guidance: float,
    ) -> None:
        self._client, self._asked, self._writer = client, asked, writer
        self._labels, self._guidance = labels, guidance
        eta = 1.0 if asked.sampler == "ddpm" else asked.eta
        self._how = {**asked.sampling(), "eta": eta, "start_noise": "seed"}
        self._repeats = len(set(asked.seeds.tolist())) < len(asked.seeds)
        self._order: deque[tuple[int, bool]] = deque()  # seeds in turn, and whether the folder has their images
        self._warnings = Warnings()
        self.kept = 0

    def make(self, watch: Watch | None) -> None:
        from tqdm import tqdm

        # disable=None: no bar where stderr is not a terminal.
        bar: Any = watch or tqdm(total=len(self._asked.seeds), unit="image", file=sys.stderr, disable=None)
        missing = self._missing(bar)
        slices = self._slices(missing) if watch is None else watch.slices(missing, self._labels, self._guidance)
        with bar, closing(slices):
            for made in slices:
                self._keep(bar)
                self._order.popleft()
                self._warnings.show(made.record, bar)
                self._writer.add(made)
                bar.update()
            self._keep(bar)

    def _slices(self, missing: Iterator[int]) -> Generator[Slice, None, None]:
        how = self._asked.sampling()
        return self._client.iter_images(missing, labels=self._labels, guidance=self._guidance, **how)

    def _missing(self, bar: Any) -> Iterator[int]:
        for seed in self._asked.seeds.tolist():
            there = self._has(seed)
            self._order.append((seed, there))
            self._keep(bar)
            if not there:
                yield seed

    def _keep(self, bar: Any) -> None:
        """Keep the images that the folder has, up to the next one that it lacks."""
        while self._order and self._order[0][1]:
            self._writer.keep(self._order.popleft()[0])
            self.kept += 1
            bar.update()

    def _has(self, seed: int) -> bool:
        """Whether the folder has that image, made in the same way by the same weights."""
        # Images of a seed that is asked for twice have names that depend on what came before them.
        if self._repeats or not self._writer.has(seed, {**self._how, **self._labelled(seed)}):
            return False
        if "model_digest" not in self._how:
            self._how["model_digest"] = self._client.info().model_digest
            return self._writer.has(seed, {**self._how, **self._labelled(seed)})
        return True

    def _labelled(self, seed: int) -> dict[str, Any]:
        """What the record of an image says of its labels."""
        from .labels.maps import digest

        if not callable(self._labels):
            return {"labels_sha256": None}
        return {"labels_sha256": digest(self._labels(seed)), "guidance": round(self._guidance, 5)}


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
