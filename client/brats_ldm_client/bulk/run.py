"""Makes the shards that a folder lacks. A run that is stopped in any way goes on when it is started again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from .._client import Client
from .._errors import InvalidRequest
from .._records import check_folder
from .._types import Slice
from ..files import TEMPORARY
from ..labels import LabelSource
from ..labels.maps import U8
from .artifacts import check_packages, mark_name
from .background import Background
from .plan import MANIFEST, Plan, check_labels, check_same, read_manifest, write_manifest
from .shard import file_hash, is_whole, write_shard
from .summary import SUMMARY, write_summary
from .workplace import tidy, workplace

_AHEAD = 64  # images that wait for the disk; then no more are asked for


class Report(Protocol):
    """Hears how a run goes on. `shard` is called in a thread of its own."""

    def there(self, images: int, shards: int) -> None:
        """The folder has that much from before."""

    def image(self, made: Slice) -> None:
        """An image has arrived."""

    def shard(self, index: int, images: int) -> None:
        """A shard is whole."""


class Silent:
    def there(self, images: int, shards: int) -> None: ...
    def image(self, made: Slice) -> None: ...
    def shard(self, index: int, images: int) -> None: ...


@dataclass(frozen=True)
class Done:
    """What a run has done."""

    images: int
    """Images that were made now."""
    there: int
    """Images that the folder had before."""


def model_of(client: Client) -> Mapping[str, Any]:
    """What a server says of its model, for `plan_for`. Waits while the server is busy."""
    return client.generate(1, seed=0, steps=1).provenance[0]


def make_all(
    client: Client, plan: Plan, folder: str | Path, report: Report | None = None, labels: LabelSource | None = None
) -> Done:
    """Make all images of a plan that a folder lacks, then its summary page. Needs the memory of a few hundred images.

    Args:
        client: Decides which servers are asked, how many requests are sent at a time, and how long is retried.
        plan: What to make; see `plan_for`.
        folder: The folder; made when the first image has come.
        report: Gets the progress.
        labels: Of the plan, if it has labels.

    Raises:
        InvalidRequest: the folder holds something else, or another run writes to it; or the labels are not the plan's.
        WeightsChanged: a server has other weights than the plan.
        BratsLDMError: the server failed, and so did the retries. Shards that are whole stay, here as always.
        OSError: a file could not be written.
    """

    def make(plan: Plan, folder: Path, missing: list[int], report: Report) -> None:
        _make(client, plan, folder, missing, report, alone(plan, folder), labels)

    check_labels(plan, labels)
    return fill(make, plan, Path(folder), report or Silent())


def fill(make: Callable[[Plan, Path, list[int], Report], object], plan: Plan, folder: Path, report: Report) -> Done:
    """Let `make` make the shards that a folder lacks, and finish it. Raises as `make_all`."""
    check_packages(plan)
    missing = _open_folder(folder, plan)
    images = sum(len(plan.shard(index)) for index in missing)
    report.there(plan.count - images, plan.shards - len(missing))
    if missing:
        make(plan, folder, missing, report)
    elif _is_finished(plan, folder):
        return Done(0, plan.count)
    finish(plan, folder)
    return Done(images, plan.count - images)


def make_shard(client: Client, plan: Plan, folder: str | Path, index: int, labels: LabelSource | None = None) -> None:
    """`make_shards` for one shard."""
    make_shards(client, plan, folder, [index], labels=labels)


def make_shards(
    client: Client,
    plan: Plan,
    folder: str | Path,
    indices: Iterable[int],
    report: Report | None = None,
    labels: LabelSource | None = None,
) -> Done:
    """Make those of some shards that are missing: any number of processes can share the shards of a folder.

    `make_all` then finds nothing to make and writes the summary page. Raises as `make_all`, and InvalidRequest for a
    shard that the plan does not have.
    """
    folder, report = Path(folder), report or Silent()
    check_labels(plan, labels)
    check_packages(plan)
    sizes = {index: len(plan.shard(index)) for index in indices}
    missing = _missing(plan, folder, sizes, check_plan(folder, plan))
    images = sum(map(sizes.__getitem__, missing))
    there = sum(sizes.values()) - images
    report.there(there, len(sizes) - len(missing))
    if missing:
        _make(client, plan, folder, missing, report, _beside_others(plan, folder), labels)
    return Done(images, there)


def _open_folder(folder: Path, plan: Plan) -> list[int]:
    """Check a folder and clear away what killed runs have left; returns the shards that it lacks."""
    check_folder(folder)
    manifest = check_plan(folder, plan)
    _clear(folder)
    return _missing(plan, folder, range(plan.shards), manifest)


def _missing(plan: Plan, folder: Path, indices: Iterable[int], manifest: Mapping[str, Any]) -> list[int]:
    """Those of some shards that are not whole, or not as the manifest of a finished folder says."""
    hashes = manifest.get("shards", {})
    return [index for index in indices if not is_whole(plan, folder, index, hashes.get(mark_name(index)))]


def _clear(folder: Path, but: str = "") -> None:
    """Remove what killed runs have left; raises InvalidRequest while another run lives."""
    if any(name.startswith(".run.") for name in tidy(folder) if name != but):
        raise InvalidRequest(f"another run is writing to {folder}: wait until it ends, or stop it")


@contextlib.contextmanager
def alone(plan: Plan, folder: Path) -> Iterator[None]:
    """In the block no other run can begin. Another may have begun since the folder was checked: hence again."""
    with workplace(folder, "run") as place:
        _clear(folder, but=place.name)
        check_plan(folder, plan)
        write_manifest(folder, plan)  # without hashes, which are of finished folders
        yield


@contextlib.contextmanager
def _beside_others(plan: Plan, folder: Path) -> Iterator[None]:
    """In the block other processes can make other shards. One may have begun since the folder was checked."""
    if not check_plan(folder, plan):
        write_manifest(folder, plan)
    yield


def check_plan(folder: Path, plan: Plan) -> dict[str, Any]:
    """The manifest of a folder, if it has one.

    Raises:
        InvalidRequest: the folder holds another plan, or something else.
    """
    # Listed first: a run writes the manifest before anything else, and another process may be doing so now.
    others = folder.exists() and any(not path.match(TEMPORARY) for path in folder.iterdir())
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        if others:
            raise InvalidRequest(
                f"{folder} is not empty and has no {MANIFEST} of a run in bulk: choose another folder"
            ) from None
        return {}
    check_same(manifest["plan"], plan, folder)
    return manifest


def _make(
    client: Client,
    plan: Plan,
    folder: Path,
    missing: list[int],
    report: Report,
    claim: contextlib.AbstractContextManager[None],
    labels: LabelSource | None,
) -> None:
    """One call for all images: the server never waits for the end of a shard. `claim` is the right to write."""
    seeds = itertools.chain.from_iterable(map(plan.shard, missing))
    maps = None if labels is None else partial(_map, labels, plan)
    with closing(client.iter_images(seeds, labels=maps, guidance=plan.guidance, **plan.sampling())) as slices:
        first = next(slices)  # a server that refuses leaves no folder

        def write(arrived: Iterator[Slice]) -> None:
            for index in missing:
                write_shard(plan, folder, index, arrived)
                report.shard(index, len(plan.shard(index)))

        with claim, Background(write, _AHEAD) as writing:
            for made in itertools.chain([first], slices):
                report.image(made)
                writing.put(made)


def _map(labels: LabelSource, plan: Plan, seed: int) -> U8:
    return labels.map(seed - plan.seed_base, seed)


def finish(plan: Plan, folder: Path) -> None:
    """Write the summary page, and the manifest with the hashes of everything beside it."""
    with alone(plan, folder):
        write_summary(plan, folder)
        write_manifest(folder, plan, _hashes(plan, folder))


def _hashes(plan: Plan, folder: Path) -> dict[str, dict[str, str]]:
    """What the manifest of a finished folder says of the files beside it."""
    names = {"summary": SUMMARY, "shards": map(mark_name, range(plan.shards))}
    return {key: {name: file_hash(folder / name) for name in files} for key, files in names.items()}


def _is_finished(plan: Plan, folder: Path) -> bool:
    """Whether the last thing of a run has been done, and nothing has changed since."""
    try:
        return _hashes(plan, folder).items() <= read_manifest(folder).items()
    except FileNotFoundError:
        return False
