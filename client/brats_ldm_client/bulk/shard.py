"""Writes a shard: its images in each format, then `shard-NNNNNN.json`, whose presence says that it is whole."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from .._errors import InvalidRequest, ProtocolError, WeightsChanged
from .._statistics import Statistics
from .._types import F32, Slice
from ..labels.maps import digest
from .artifacts import Writer, about, artifact_name, mark_name, open_writer, shard_name
from .background import in_order
from .plan import Plan, as_json, notice, read_json
from .workplace import all_to_disk, put, workplace


def write_shard(plan: Plan, folder: Path, index: int, slices: Iterable[Slice]) -> None:
    """Write shard `index` from its images, which come in the order of their seeds.

    Raises:
        WeightsChanged: an image is of other weights.
        ProtocolError: an image is missing, has another size, or is not the next one.
        OSError: a file could not be written; the error names it. Nothing of the shard is left then.
    """
    with workplace(folder, shard_name(index)) as place:
        facts = _write_images(plan, folder, place, index, slices)
        files = _hashes(place, [place / artifact_name(index, format) for format in plan.formats])
        document = {**notice(), "shard": index, "model_digest": plan.model_digest, "files": files, **facts}
        mark = place / mark_name(index)
        with about(folder / mark.name):
            mark.write_bytes(as_json(document))
        all_to_disk([*(place / name for name in files), mark])
        for format in plan.formats:
            put(place / artifact_name(index, format), folder / artifact_name(index, format))
        put(mark, folder / mark.name)


def _write_images(plan: Plan, folder: Path, place: Path, index: int, slices: Iterable[Slice]) -> dict[str, Any]:
    """Images into a workplace; returns what the mark says of them."""
    seeds, pixels, hashes, maps = plan.shard(index), Statistics(), list[str](), list[str]()
    writers: list[tuple[Path, Writer]] = []
    try:
        arrived = _checked(plan, seeds, slices)
        for first in arrived:
            writers = _open_writers(plan, folder, place, index, first.image)
            encode = partial(_encode, plan, [writer for _, writer in writers])
            for image, record, encoded in in_order(encode, chain([first], arrived)):
                pixels.add(image)
                hashes.append(pixel_hash(image))
                maps += [record["labels_sha256"]] if plan.labels else []
                for (path, writer), part in zip(writers, encoded, strict=True):
                    with about(path):
                        writer.add(part)
        for path, writer in writers:
            with about(path):
                writer.close()
    except BaseException:
        for _, writer in writers:
            with contextlib.suppress(Exception):
                writer.close()
        raise
    if len(hashes) != len(seeds):
        raise ProtocolError(f"shard {index} got {len(hashes)} of {len(seeds)} images")
    labels = {"labels_sha256": maps} if plan.labels else {}
    return {"seeds": [*seeds], "pixels_sha256": hashes, **labels, "pixels": pixels.as_dict()}


def _open_writers(plan: Plan, folder: Path, place: Path, index: int, image: F32) -> list[tuple[Path, Writer]]:
    writers: list[tuple[Path, Writer]] = []
    for format in plan.formats:
        name = artifact_name(index, format)
        with about(folder / name):
            writers.append((folder / name, open_writer(plan, index, format, place / name, image.shape)))
    return writers


def _encode(plan: Plan, writers: Iterable[Writer], made: Slice) -> tuple[F32, dict[str, Any], list[Any]]:
    """An image, its record, and what each writer will write of it."""
    record = plan.record(made.seed, None if made.labels is None else digest(made.labels))
    return made.image, record, [writer.encode(made.image, record, made.labels) for writer in writers]


def _checked(plan: Plan, seeds: Iterable[int], slices: Iterable[Slice]) -> Iterator[Slice]:
    size = None
    for seed, made in zip(seeds, slices, strict=False):  # takes no image of the next shard
        _check(plan, seed, made)
        size = size or made.image.shape
        if made.image.shape != size:
            raise ProtocolError(f"the image of seed {seed} is {made.image.shape}, and those before it are {size}")
        yield made


def _check(plan: Plan, seed: int, made: Slice) -> None:
    if made.seed != seed:
        raise ProtocolError(f"the image of seed {made.seed} came in the place of seed {seed}")
    if (made.labels is None) != (not plan.labels):
        raise ProtocolError(f"the image of seed {seed} has {'no' if plan.labels else 'a'} label map, unlike the plan")
    weights = made.record.get("model_digest")
    if weights != plan.model_digest:
        raise WeightsChanged(
            f"the image of seed {seed} was made with the weights {weights}, not {plan.model_digest}: "
            "what is whole stays; ask a server with those weights, or choose another folder"
        )


def pixel_hash(image: F32) -> str:
    """SHA-256 of the raw values: float32, little-endian."""
    return hashlib.sha256(image.astype("<f4").tobytes()).hexdigest()


def _hashes(place: Path, artifacts: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, by its path in the folder."""
    files = [path for artifact in artifacts for path in files_of(artifact)]
    return {
        path.relative_to(place).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }


def files_of(path: Path) -> list[Path]:
    """A file, or all files in a folder, sorted."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_shard(plan: Plan, folder: Path, index: int) -> dict[str, Any]:
    """The mark of a shard. The names in its "files" are of files of the shard, in all formats.

    Raises:
        FileNotFoundError: the shard is not whole.
        InvalidRequest: the mark is damaged, or of another plan.
    """
    path = folder / mark_name(index)
    mark = read_json(path)
    artifacts = {artifact_name(index, format) for format in plan.formats}
    try:
        files: Mapping[str, Any] = mark["files"]
        fits = (
            (mark["seeds"], mark["model_digest"]) == ([*plan.shard(index)], plan.model_digest)
            and {name.split("/")[0] for name in files} == artifacts
            and all(_is_plain(name) and {"bytes", "sha256"} <= entry.keys() for name, entry in files.items())
            and len(mark["pixels_sha256"]) == len(mark["seeds"])
            and (not plan.labels or len(mark["labels_sha256"]) == len(mark["seeds"]))
        )
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise InvalidRequest(f"{path} is damaged, or of another plan: remove it, and give the same bulk command again")
    return mark


def _is_plain(name: str) -> bool:
    """Whether a path leads to no other folder, on any system: a manifest may come from anyone."""
    return not {"", ".", ".."} & {*name.split("/")} and not {"\\", ":", "\0"} & {*name}


def is_whole(plan: Plan, folder: Path, index: int, digest: str | None = None) -> bool:
    """Whether a shard has its mark, and its files the sizes in it. `verify` reads the files.

    digest: the hash that the mark must have.
    """
    try:
        files = read_shard(plan, folder, index)["files"]
        same = digest is None or file_hash(folder / mark_name(index)) == digest
        return same and all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, InvalidRequest):
        return False
