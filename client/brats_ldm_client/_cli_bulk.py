"""`brats-ldm bulk`: its options, and how it shows its progress. Standard library until it runs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli_connection import connect, connection_options
from ._cli_sampling import Warnings, check_formats, check_sampling, load, load_options, sampling, sampling_options

if TYPE_CHECKING:
    from ._types import Slice
    from .bulk import Plan

_QUIET_SECONDS = 60


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
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="DIR", help="output folder, created if missing")
    output.add_argument("--shard-size", type=int, default=1000, metavar="N", help="images in a shard (%(default)s)")
    output.add_argument(
        "--format",
        action="append",
        metavar="F[,F]",
        help="webdataset (tar files with 8-bit PNG and JSON), hdf5 or zarr (raw values), or folders of png, png16, "
        "nifti or dicom files; may be given more than once (webdataset)",
    )
    connection_options(parser, timeout=600.0)
    load_options(parser, concurrency=8, retry=600.0)
    parser.set_defaults(run=_bulk, check=_check)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    check_sampling(parser, args)
    from .bulk.plan import FORMATS

    check_formats(parser, args, FORMATS)
    for option, number in (("--count", args.count), ("--shard-size", args.shard_size)):
        if number < 1:
            parser.error(f"{option} must be at least 1")


def _bulk(args: argparse.Namespace) -> int:
    from .bulk import make_all, model_of, plan_for

    folder = Path(args.out)
    with connect(args, **load(args)) as client:
        plan = plan_for(
            model_of(client),
            args.count,
            args.format,
            seed_base=args.seed_base,
            shard_size=args.shard_size,
            **sampling(args),
        )
        progress = _Progress(plan)
        try:
            done = make_all(client, plan, folder, progress)
        except BaseException:
            if progress.began and (folder / "manifest.json").exists():  # a refused folder may hold another run
                args.kept = f"; {progress.shards} of {plan.shards} shards are whole; the same command makes the rest"
            raise
        finally:
            progress.close()
    before = f", {done.there} of them there before" + ("," if done.images else "") if done.there else ""
    took = f" in {progress.time()}" if done.images else ""
    last = plan.seed_base + plan.count - 1
    print(
        f"{plan.count} synthetic slices (seeds {plan.seed_base} to {last}){before}{took}: "
        f"{plan.shards} shard{'s' if plan.shards > 1 else ''} in {folder}; look at {folder / 'summary.html'}"
    )
    return 0


class _Progress:
    """A bar where stderr is a terminal, else a line for each shard, and at least one a minute."""

    def __init__(self, plan: Plan) -> None:
        from tqdm import tqdm

        self._plan, self.shards = plan, 0
        self._images = self._before = 0
        self._since = self._told = time.monotonic()
        self._warnings = Warnings()
        self.began = False
        """Whether the folder is one for this run."""
        self._bar = tqdm(total=plan.count, unit="image", file=sys.stderr, disable=None, smoothing=0.02)

    def there(self, images: int, shards: int) -> None:
        self.shards, self._images, self._before = shards, images, images
        self._since, self.began = time.monotonic(), True
        self._bar.initial = self._bar.n = images
        self._bar.refresh()

    def image(self, made: Slice) -> None:
        self._images += 1
        self._bar.update()
        self._warnings.show(made.record, self._bar)
        if time.monotonic() - self._told > _QUIET_SECONDS:
            self._tell()

    def shard(self, index: int, images: int) -> None:
        self.shards += 1
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._bar.disable:
            print(self._line(), file=sys.stderr)

    def _line(self) -> str:
        rate = (self._images - self._before) / max(time.monotonic() - self._since, 1e-9)
        left = round((self._plan.count - self._images) / rate)
        return (
            f"{self._images} of {self._plan.count} images, {self.shards} of {self._plan.shards} shards, "
            f"{rate:.1f} images/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )

    def time(self) -> str:
        """How long it has taken until now."""
        from ._calibrate import duration

        return duration(time.monotonic() - self._since)

    def close(self) -> None:
        self._bar.close()
