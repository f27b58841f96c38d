"""`brats-ldm bulk`: its options, and how it shows its progress. Standard library until it runs."""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli_connection import connect, connection, connection_options
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

if TYPE_CHECKING:
    from ._client import Client
    from ._types import Slice
    from .bulk import Done, Plan
    from .labels import LabelSource

_QUIET_SECONDS = 60
_WORKERS = 4


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bulk",
        help="generate any number of slices in shards, and go on after any interruption",
        description="Generate slices with the seeds BASE, BASE+1, ... in shards: files for training programs, a "
        "manifest with hashes, and a summary page. The finished folder has the same bytes however often the run was "
        "interrupted: start the same command again and it makes the shards that are missing. docs/bulk.md explains the "
        "folder.",
    )
    which = parser.add_argument_group("which images")
    which.add_argument("--count", type=int, required=True, metavar="N", help="number of images")
    which.add_argument("--seed-base", type=int, default=0, metavar="BASE", help="the first seed (%(default)s)")
    sampling_options(parser)
    label_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="DIR", help="output folder, created if missing")
    output.add_argument("--shard-size", type=int, default=1000, metavar="N", help="images in a shard (%(default)s)")
    output.add_argument(
        "--format",
        action="append",
        metavar="F[,F]",
        help="webdataset (tar files with 8-bit PNG and JSON), hdf5 or zarr (raw values), or folders of png, png16, "
        "nifti or dicom files, or task01 (data sets with labels for MONAI and nnU-Net); may be given more than once "
        "(webdataset)",
    )
    _machines_options(parser)
    connection_options(parser, timeout=600.0)
    load_options(parser, concurrency=8, retry=600.0)
    parser.set_defaults(run=_bulk, check=_check)


def _machines_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several machines", "They share the folder. docs/scale.md says when to use what.")
    group.add_argument(
        "--shards",
        metavar="FROM..TO",
        help="make these shards only, counted from 0, both included; others may be made by other processes at the same "
        "time. The same command without this option then writes the summary page",
    )
    group.add_argument(
        "--engine",
        choices=("ray", "dask"),
        help="let the workers of a cluster make the shards: of the Ray at $RAY_ADDRESS, or of the Dask at "
        "$DASK_SCHEDULER_ADDRESS",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"with --engine: shards made at a time, which share --concurrency ({_WORKERS})",
    )


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    check_sampling(parser, args)
    from ._formats import PAIRED
    from .bulk.plan import FORMATS

    check_formats(parser, args, (*FORMATS, *PAIRED))
    check_labels(parser, args)
    if args.workers is not None and not args.engine:
        parser.error("--workers is for --engine: pass both, or none")
    args.workers = _WORKERS if args.workers is None else args.workers
    for option in ("count", "shard_size", "workers"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1, not {getattr(args, option)}")
    if args.shards is not None:
        if args.engine:
            parser.error("--shards is for one process, and --engine for all shards: pass one or the other")
        args.shards = _range_of(parser, args)


def _range_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> range:
    """The shards of FROM..TO. Blocks of one size need not end where the shards end, so TO may be too large."""
    parts = re.fullmatch(r"(\d+)\.\.(\d+)", args.shards)
    first, last = map(int, parts.groups()) if parts else (1, 0)
    if first > last:
        parser.error(f"--shards must be FROM..TO, such as 0..9, or 5..5 for one, not {args.shards!r}")
    there = -(-args.count // args.shard_size)
    if first >= there:
        parser.error(f"--shards {args.shards}: there are {there} shards, so FROM is at most {there - 1}")
    return range(first, min(last + 1, there))


def _bulk(args: argparse.Namespace) -> int:
    from .bulk import model_of, plan_for

    labels = label_source(args)
    with connect(args, **load(args)) as client:
        plan = plan_for(
            model_of(client),
            args.count,
            args.format,
            seed_base=args.seed_base,
            shard_size=args.shard_size,
            labels=labels,
            guidance=args.guidance,
            **sampling(args),
        )
        progress = _Progress(plan, args.shards or range(plan.shards), args.engine is not None)
        try:
            done = _make(args, client, plan, progress, labels)
        except BaseException:
            if progress.began and (Path(args.out) / "manifest.json").exists():  # a refused folder may hold another run
                least = "at least " if args.engine else ""  # workers may have made more than they have told
                args.kept = f"; {least}{progress.shards_words()} are whole; the same command makes the rest"
            raise
        finally:
            progress.close()
    print(f"{progress.done_words(done)} in {args.out}; {_next(args)}")
    return 0


def _make(
    args: argparse.Namespace, client: Client, plan: Plan, progress: _Progress, labels: LabelSource | None
) -> Done:
    from .bulk import make_all, make_all_with, make_shards, on_dask, on_ray

    folder = Path(args.out)
    if args.shards is not None:
        return make_shards(client, plan, folder, args.shards, progress, labels)
    if args.engine is None:
        return make_all(client, plan, folder, progress, labels)
    engine = on_ray(args.workers) if args.engine == "ray" else on_dask(workers=args.workers)
    each = {**load(args), "concurrency": -(-args.concurrency // args.workers)}
    return make_all_with(engine, plan, folder, connection(args, **each), progress, labels)


def _next(args: argparse.Namespace) -> str:
    if args.shards is not None:
        return "the command without --shards makes the rest and the summary page"
    return f"look at {Path(args.out) / 'summary.html'}"


class _Progress:
    """A bar where stderr is a terminal, else a line for each shard, and at least one a minute."""

    def __init__(self, plan: Plan, shards: range, by_shard: bool) -> None:
        """by_shard: images are reported with their shard, not one by one."""
        from tqdm import tqdm

        self._all_shards, self.shards, self._by_shard = len(shards), 0, by_shard
        self._first, self._last = plan.shard(shards[0])[0], plan.shard(shards[-1])[-1]
        self._all = self._last - self._first + 1
        self._images = self._before = 0
        self._since = self._told = time.monotonic()
        self._heard, self._closed = time.monotonic(), threading.Event()
        self._warnings = Warnings()
        self.began = False
        """Whether the folder is one for this run."""
        self._bar = tqdm(total=self._all, unit="image", file=sys.stderr, disable=None, smoothing=0.02)

    def there(self, images: int, shards: int) -> None:
        self.shards, self._images, self._before = shards, images, images
        self._since, self.began = time.monotonic(), True
        self._heard = self._since
        threading.Thread(target=self._watch, daemon=True).start()
        self._bar.initial = self._bar.n = images
        self._bar.refresh()

    def image(self, made: Slice) -> None:
        self._heard = time.monotonic()
        self._images += 1
        self._bar.update()
        self._warnings.show(made.record, self._bar)
        if time.monotonic() - self._told > _QUIET_SECONDS:
            self._tell()

    def shard(self, index: int, images: int) -> None:
        self._heard = time.monotonic()
        self.shards += 1
        if self._by_shard:
            self._images += images
            self._bar.update(images)
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._bar.disable:
            print(self._line(), file=sys.stderr)

    def _watch(self) -> None:
        """Say once a minute that nothing comes: a client that waits for a server is silent."""
        what = "shard" if self._by_shard else "image"
        while not self._closed.wait(_QUIET_SECONDS):
            seconds = time.monotonic() - self._heard
            if seconds >= _QUIET_SECONDS:
                words = "servers that are busy or gone are asked again until --retry is over"
                self._bar.write(f"no {what} for {seconds:.0f} s: {words}", file=sys.stderr)

    def _line(self) -> str:
        rate = (self._images - self._before) / max(time.monotonic() - self._since, 1e-9)
        left = round((self._all - self._images) / rate)
        return (
            f"{self._images} of {self._all} images, {self.shards_words()}, "
            f"{rate:.1f} images/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )

    def shards_words(self) -> str:
        """How many shards are whole, of how many."""
        return f"{self.shards} of {self._all_shards} shards"

    def done_words(self, done: Done) -> str:
        """What there is now, and how long it took."""
        from ._calibrate import duration

        before = f", {done.there} of them there before" + ("," if done.images else "") if done.there else ""
        took = f" in {duration(time.monotonic() - self._since)}" if done.images else ""
        seeds, plural = f"seeds {self._first} to {self._last}", "s" if self._all_shards > 1 else ""
        return f"{self._all} synthetic slices ({seeds}){before}{took}: {self._all_shards} shard{plural}"

    def close(self) -> None:
        self._closed.set()
        self._bar.close()
