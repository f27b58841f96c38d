"""Writes the page of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._errors import InvalidRequest
from .._page import counted
from ..files import REPORT, whole_file
from .gather import Gathered, gather
from .nearest import Evaluation, find_evaluation, read_evaluation
from .page import TABLE_LIMIT, Contents, page
from .parameters import groups
from .sources import Entry, Source, open_source


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    evaluation: str | Path | None = None,
    *,
    title: str | None = None,
    on_image: Callable[[], object] | None = None,
    on_problem: Callable[[str], object] | None = None,
) -> Path:
    """Write one HTML page on a folder of slices; returns its path. The page needs no other file and no network.

    Args:
        folder: Slices of `brats-ldm generate`, `brats-ldm bulk`, `training.sample`, or of any other origin.
        out: The file; by default `report.html` in the folder.
        evaluation: `evaluation.json` of `training.evaluation`, or its folder. The page has its training and held-out
            slices. By default the one in `folder`, if any; of that one the page has their names only.
        title: The heading; by default it says how many slices of which folder.
        on_image: Called after each image that was read, of at most 512.
        on_problem: Called with a line for each thing that could not be read. The page lists them too.

    Raises:
        InvalidRequest: there is no slice to read, or the named evaluation is none.
        MissingPackage: the files need a package that is not installed.
        OSError: a file cannot be read or written; the error names it.
    """
    folder = Path(folder)
    path = folder / REPORT if out is None else Path(out)
    named = None if evaluation is None else Path(evaluation)
    place = find_evaluation(folder, named)
    source = open_source(folder)
    result = None if place is None else _evaluation(place, folder, source, named is not None)
    found = gather(source, on_image)
    if not found.pictures:
        raise InvalidRequest(f"{folder} has no slices to read: {'; '.join(source.facts.problems[:3])}")
    source.facts.problems = [*dict.fromkeys(source.facts.problems)]  # a file can be opened twice
    text = page(_contents(source, found, title, folder, result))
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8", "xmlcharrefreplace")
    if on_problem is not None:
        for problem in source.facts.problems:
            on_problem(problem)
    return path


def _evaluation(place: Path, folder: Path, source: Source, chosen: bool) -> Evaluation | None:
    """An evaluation that only lies in the folder must not keep the page from being written."""
    try:
        return read_evaluation(place, folder, opens_folders=chosen)
    except InvalidRequest as error:
        if chosen:
            raise
        source.facts.problems.append(str(error).replace(str(place), place.name))  # the page knows no place
        return None


def _contents(
    source: Source, found: Gathered, title: str | None, folder: Path, evaluation: Evaluation | None
) -> Contents:
    synthetic, known = _synthetic(source, found)
    count = source.facts.count
    kind = "synthetic slice" if synthetic == count else "slice"
    name = folder.resolve().name or str(folder)
    numbers = range(count) if count <= TABLE_LIMIT else found.pictures
    return Contents(
        title=title or f"{name}: {counted(count, kind)}",
        facts=source.facts,
        found=found,
        entries={index: _told(source.entry(index), found.said.get(index, {})) for index in numbers},
        groups=source.facts.groups or groups(record for record in _records(source, found) if record is not None),
        synthetic=synthetic,
        known=known,
        evaluation=evaluation,
    )


def _told(entry: Entry, said: Mapping[str, Any]) -> Entry:
    """With what the file itself says, where nothing beside it does."""
    return entry if entry.record else Entry(entry.name, said)


def _records(source: Source, found: Gathered) -> Iterator[Mapping[str, Any] | None]:
    """How each image was made; None where that is not known because its file was not read."""
    for index in range(source.facts.count):
        yield source.entry(index).record or found.said.get(index)


def _synthetic(source: Source, found: Gathered) -> tuple[int, int]:
    """How many images are recorded as synthetic, and of how many anything is known."""
    if source.facts.groups:
        return source.facts.count, source.facts.count
    synthetic = known = 0
    for index, record in enumerate(_records(source, found)):
        said = found.said.get(index, {})
        known += record is not None
        synthetic += record is not None and True in (record.get("synthetic"), said.get("synthetic"))
    return synthetic, known
