"""Checks a finished folder: its hashes, and a random sample of images that a server makes again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._client import Client
from .._errors import InvalidRequest, WeightsChanged
from .._formats.levels import LARGEST
from .._types import F32, Slice
from ..files import REPORT, TEMPORARY
from ..labels.maps import U8, check_maps, digest
from .artifacts import artifact_name, check_packages, mark_name, read_maps, read_pixels, stored_pixels
from .plan import MANIFEST, Plan, read_manifest
from .run import model_of
from .shard import file_hash, files_of, pixel_hash, read_shard
from .summary import SUMMARY

_AGAIN = "remove it and give the same bulk command again"


@dataclass
class Verdict:
    """What was checked, and what is wrong."""

    plan: Plan
    shards: int = 0
    """Shards whose files were read."""
    files: int = 0
    bytes: int = 0
    seeds: list[int] = field(default_factory=list)
    """Images that were made again."""
    faults: list[str] = field(default_factory=list)
    """A line for each."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def check_hashes(folder: str | Path, on_bytes: Callable[[int], object] | None = None) -> Verdict:
    """Read every file and compare it with the manifests; also finds files that are missing or too many.

    Args:
        folder: A folder of `make_all`.
        on_bytes: Called with the number of bytes read since its last call.

    Raises:
        InvalidRequest: there is no manifest that says what the folder should hold.
    """
    folder = Path(folder)
    manifest = manifest_of(folder)
    verdict = Verdict(manifest["plan"])
    hashes = _hashes(manifest, verdict)
    expected = {MANIFEST, *SUMMARY, REPORT}
    for index in range(verdict.plan.shards):
        expected |= _check_shard(folder, index, hashes, verdict, on_bytes)
    for name in SUMMARY if hashes else ():
        _check_file(folder, name, hashes.get(name), verdict, on_bytes)
    # Those of a run that has not ended are cleared away by the next.
    leftovers = set[str]() if hashes else {path.name for path in folder.glob(TEMPORARY)}
    there = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    names = (path.as_posix() for path in there if path.parts[0] not in leftovers)
    verdict.faults += [f"{name} does not belong here: move it away" for name in names if name not in expected]
    return verdict


def manifest_of(folder: Path) -> dict[str, Any]:
    """As `read_manifest`; a folder without a manifest is an InvalidRequest."""
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        raise InvalidRequest(f"{folder} has no {MANIFEST}: give a folder of `brats-ldm bulk`") from None


def _hashes(manifest: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The hashes in a manifest, by name; none if the run has not ended."""
    hashes = {**manifest.get("summary", {}), **manifest.get("shards", {})}
    marks = map(mark_name, range(verdict.plan.shards))
    if not hashes:
        verdict.faults.append(f"{MANIFEST} says that the run has not ended: the same bulk command makes the rest")
    elif hashes.keys() != {*SUMMARY, *marks}:
        verdict.faults.append(f"{MANIFEST} has not the hashes of all shards: give the same bulk command again")
    return hashes


def total_bytes(folder: str | Path) -> int:
    """How many bytes `check_hashes` will read, about."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _check_shard(
    folder: Path, index: int, hashes: dict[str, Any], verdict: Verdict, on_bytes: Callable[[int], object] | None
) -> set[str]:
    """Returns the names that belong to the shard."""
    name = mark_name(index)
    if not _check_file(folder, name, hashes.get(name), verdict, on_bytes):
        return {name} | _there(folder, index, verdict.plan)
    try:
        files = read_shard(verdict.plan, folder, index)["files"]
    except InvalidRequest as error:
        verdict.faults.append(str(error))
        return {name} | _there(folder, index, verdict.plan)
    for file, entry in files.items():
        _check_file(folder, file, entry["sha256"], verdict, on_bytes)
    verdict.shards += 1
    return {name, *files}


def _there(folder: Path, index: int, plan: Plan) -> set[str]:
    """The names of a shard's files on the disk, where no mark says which it has."""
    artifacts = (folder / artifact_name(index, format) for format in plan.formats)
    return {path.relative_to(folder).as_posix() for artifact in artifacts for path in files_of(artifact)}


def _check_file(
    folder: Path, name: str, digest: str | None, verdict: Verdict, on_bytes: Callable[[int], object] | None
) -> bool:
    """Whether a file is there and has that hash. Without a hash, being there is enough."""
    path = folder / name
    try:
        size = path.stat().st_size
        if not path.is_file():  # a device or a pipe would never end
            raise OSError("it is no file")
        found = file_hash(path)
    except OSError as error:
        verdict.faults.append(f"{name} cannot be read ({error.strerror or error}): give the same bulk command again")
        return False
    verdict.files += 1
    verdict.bytes += size
    if on_bytes is not None:
        on_bytes(size)
    if digest not in (None, found):
        verdict.faults.append(f"{name} is not what was written (its SHA-256 is {found}, not {digest}): {_AGAIN}")
        return False
    return True


def check_sample(
    client: Client, folder: str | Path, count: int = 16, seed: int | None = None, tolerance: float | None = None
) -> Verdict:
    """Make a random sample of a folder's images again and compare raw values and stored pixels.

    Args:
        client: Asks a server with the same weights.
        folder: A folder of `make_all`.
        count: How many images.
        seed: Of the draw; random by default.
        tolerance: The largest difference that a pixel may have, for a GPU or another kind of processor. By default all
            bits must be the same.

    Raises:
        InvalidRequest: the folder has no manifest.
        MissingPackage: a format needs a package that is not installed.
        WeightsChanged: the server has other weights.
    """
    folder, verdict = Path(folder), Verdict(manifest_of(Path(folder))["plan"])
    plan = verdict.plan
    prepare_sample(client, plan)
    chosen = random.Random(seed).sample(range(plan.count), min(count, plan.count))
    verdict.seeds = sorted(plan.seed_base + image for image in chosen)
    maps: dict[int, U8] = {}
    seeds = _with_maps(folder, verdict, maps) if plan.labels else verdict.seeds
    labels = maps.pop if plan.labels else None
    asked = client.iter_images(seeds, labels=labels, guidance=plan.guidance, **plan.sampling())
    with closing(asked) as slices:
        for made in slices:
            _check_weights(plan, made.record)  # of several servers, one was asked before
            verdict.faults += _differences(folder, plan, made, tolerance)
    return verdict


def _with_maps(folder: Path, verdict: Verdict, maps: dict[int, U8]) -> Iterator[int]:
    """The seeds whose label maps are as they were when the images were made; puts those maps into `maps`.

    Seeds of other maps are faults, and no longer among those of the verdict.
    """
    for seed in [*verdict.seeds]:
        try:
            maps[seed] = _map(folder, verdict.plan, seed)
        except Exception as error:  # what a library says of a damaged file can be anything
            verdict.faults.append(f"seed {seed}: its label map is of no use ({_words(error)})")
            verdict.seeds.remove(seed)
            continue
        yield seed


def _map(folder: Path, plan: Plan, seed: int) -> U8:
    """The label map of an image, from the files of the first format."""
    index = (seed - plan.seed_base) // plan.shard_size
    expected = read_shard(plan, folder, index)["labels_sha256"][seed - plan.shard(index).start]
    (there,) = read_maps(folder, plan, index, plan.formats[0], [seed])
    labels: U8 = check_maps(there)[0]
    if digest(labels) != expected:
        raise InvalidRequest(f"in {plan.formats[0]} it is not the one that the image was made with")
    return labels


def prepare_sample(client: Client, plan: Plan) -> None:
    """Raises what `check_sample` would, before any work."""
    check_packages(plan)
    _check_weights(plan, model_of(client))


def _check_weights(plan: Plan, record: Mapping[str, Any]) -> None:
    digest = record.get("model_digest")
    if digest != plan.model_digest:
        raise WeightsChanged(
            f"the server has the weights {digest}, and the images are of {plan.model_digest}: ask a server with those, "
            "or check the hashes only"
        )


def _differences(folder: Path, plan: Plan, made: Slice, tolerance: float | None) -> Iterator[str]:
    index = (made.seed - plan.seed_base) // plan.shard_size
    what = "hash"
    try:
        if tolerance is None:
            mark = read_shard(plan, folder, index)
            if mark["pixels_sha256"][made.seed - plan.shard(index).start] != pixel_hash(made.image):
                yield f"seed {made.seed}: the server makes another image; a GPU or another processor needs a tolerance"
        for what in plan.formats:
            (there,) = read_pixels(folder, plan, index, what, [made.seed])
            if off := _off(what, there, made.image, tolerance):
                yield f"seed {made.seed}: its {what} is off by {off:.3g}"
            if made.labels is not None:
                (labels,) = read_maps(folder, plan, index, what, [made.seed])
                if not np.array_equal(labels, made.labels):
                    yield f"seed {made.seed}: its label map in {what} is another one"
    except Exception as error:  # what a library says of a damaged file can be anything
        yield f"seed {made.seed}: its {what} cannot be read ({_words(error)})"


def _words(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split())


def _off(format: str, there: npt.NDArray[Any], image: F32, tolerance: float | None) -> float:
    """The largest difference in value, 0 if it is allowed."""
    expected = stored_pixels(format, image)
    if there.shape != expected.shape or there.dtype != expected.dtype:
        return float("inf")
    if np.array_equal(there, expected, equal_nan=there.dtype.kind == "f"):
        return 0.0
    levels = LARGEST[8 * there.dtype.itemsize] if there.dtype.kind == "u" else None
    # A grey level stands for all values that round to it.
    ours = image if levels is None else np.clip(image, 0, 1)
    allowed = (tolerance or 0.0) + (0.5001 / levels if levels and tolerance is not None else 0.0)
    off = float(np.abs(there.astype(np.float64) / (levels or 1) - ours).max())
    return off if tolerance is None or not off <= allowed else 0.0
