"""Shards made by the workers of Ray, Dask or any other engine, on any number of machines that share a folder.

An engine is a function. This module knows none of them: `ray_engine` and `dask_engine` do.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from .._client import Client
from .._errors import BratsLDMError, EngineError, InvalidRequest
from ..labels import LabelSource
from .plan import Plan, check_labels
from .run import Done, Report, Silent, alone, fill, make_shard
from .shard import is_whole

Engine: TypeAlias = Callable[[Callable[[int], int], Sequence[int]], Iterable[int]]
"""Calls a function with each of some numbers, anywhere and in any order; gives the results as they come.

`map` is an engine, and so is the `map` of a pool in `concurrent.futures`. The function can be pickled.
"""
_SEEN_WITHIN = 90.0  # seconds: NFS may show a machine the new files of others a minute late


@dataclass(frozen=True)
class Job:
    """Makes the shard whose number it is called with, and returns that number."""

    plan: Plan
    folder: Path
    connection: Mapping[str, Any] = field(repr=False)  # engines log what they call, and this may hold a secret
    labels: LabelSource | None = None

    def __call__(self, index: int) -> int:
        with Client(**self.connection) as client:
            make_shard(client, self.plan, self.folder, index, self.labels)
        return index


def make_all_with(
    engine: Engine,
    plan: Plan,
    folder: str | Path,
    connection: Mapping[str, Any],
    report: Report | None = None,
    labels: LabelSource | None = None,
) -> Done:
    """Make all images of a plan that a folder lacks, by an engine; then the summary page.

    The folder has the same bytes as after `make_all`, whoever made which shard.

    Args:
        engine: `on_ray(...)`, `on_dask(...)`, or a function of your own; see `Engine`.
        plan: What to make; see `plan_for`.
        folder: The folder, at the same path on all machines, in a file system with locks.
        connection: The arguments of `Client` for the workers, such as `{"url": ["a:8001", "b:8001"]}`. Files that they
            name must be on the workers.
        report: Gets the progress, shard by shard; no single images.
        labels: Of the plan, if it has labels. The workers read it from the same path.

    Raises:
        EngineError: the engine failed, left a shard out, or its workers write to another folder.
        BratsLDMError, OSError: as `make_all`. Shards that are whole stay.
    """

    def make(plan: Plan, folder: Path, missing: list[int], report: Report) -> None:
        _make(engine, Job(plan, folder, connection, there), missing, report)

    check_labels(plan, labels)
    there = None if labels is None else replace(labels, path=labels.path.absolute())
    return fill(make, plan, Path(folder).absolute(), report or Silent())


def _make(engine: Engine, job: Job, missing: Sequence[int], report: Report) -> None:
    made = set[int]()
    with contextlib.ExitStack() as claim, _one_line():
        for index in engine(job, missing):
            if not made:  # as in `make_all`, a server that refuses leaves no folder
                _wait_until_seen(job, [index])  # that the folder is another one shows now, not in hours
                claim.enter_context(alone(job.plan, job.folder))
            made.add(index)
            report.shard(index, len(job.plan.shard(index)))
    if left := sorted({*missing} - made):
        raise EngineError(f"the engine has left out {len(left)} shards, the first of them {left[0]}")
    _wait_until_seen(job, missing)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """An error in the block that is not known is one of the engine."""
    try:
        yield
    except (BratsLDMError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]  # Ray's have paragraphs
        raise EngineError(f"the engine failed: {type(error).__name__}: {reason}") from error


def _wait_until_seen(job: Job, indices: Sequence[int]) -> None:
    """Wait until this machine sees shards that workers have made."""
    deadline = time.monotonic() + _SEEN_WITHIN
    while indices := [index for index in indices if not is_whole(job.plan, job.folder, index)]:
        if time.monotonic() > deadline:
            raise EngineError(
                f"a worker has made shard {indices[0]}, but it is not in {job.folder} here: "
                "choose a folder that all machines share"
            )
        time.sleep(1)
        for folder in (job.folder.parent, job.folder):  # makes NFS look again
            with contextlib.suppress(FileNotFoundError):
                os.listdir(folder)


def check_workers(workers: int) -> None:
    """Raises InvalidRequest for fewer than one."""
    if workers < 1:
        raise InvalidRequest(f"workers is {workers}: it must be at least 1")
