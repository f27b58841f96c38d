"""The report as HTML: whole in itself, nothing fetched. Knows no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .._page import (
    cards,
    counted,
    document,
    figure,
    grid,
    histogram,
    notice,
    package_text,
    section,
    size_words,
    table,
    values_table,
)
from ..pictures import NOTICE, SHEET_LIMIT
from ..viewer import Shown, viewer
from .evaluation_page import nearest
from .gather import SAMPLE, Gathered, evenly, grey
from .nearest import Evaluation
from .parameters import Group, parameters_of, weights
from .readers import Picture
from .sources import Entry, Facts

VIEWED = 32  # images in the viewer: their values make most of the size of a page
_VALUES = VIEWED * 512**2  # in the viewer: of larger images there are fewer
TABLE_LIMIT = 3000  # rows
_GROUPS = 20  # shown
_PROBLEMS = 200  # shown


@dataclass(frozen=True)
class Contents:
    """What the page says."""

    title: str
    facts: Facts
    found: Gathered
    entries: Mapping[int, Entry]
    """Those of the pictures, and of all images if there are few enough for a table."""
    groups: Sequence[Group]
    synthetic: int
    """Images that say that they are synthetic."""
    known: int
    """Images of which a record or the file itself was read."""
    evaluation: Evaluation | None


def page(contents: Contents) -> str:
    """The whole page."""
    return document(contents.title, "\n".join(_parts(contents)))


def _parts(contents: Contents) -> Iterator[str]:
    facts, found = contents.facts, contents.found
    yield notice(_origin_words(contents))
    yield cards(_cards(contents))
    yield section("Contact sheet", _legend(contents), _sheet(contents))
    yield section("Look closely", _viewer_words(contents), viewer(_viewed(contents)))
    yield section("Pixel values", _pixel_words(contents), _pixels(found))
    yield section("Seeds and parameters", "", _parameters(contents))
    if contents.evaluation is not None:
        yield nearest(contents.evaluation)
    if facts.problems:
        yield section("Not read", "", _problems(facts.problems))


def _problems(problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - _PROBLEMS:,} more"] if len(problems) > _PROBLEMS else []
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in [*problems[:_PROBLEMS], *more])}</ul>"


def _origin_words(contents: Contents) -> str:
    if not contents.synthetic:
        return "Origin not recorded: nothing here says whether these slices are synthetic or of patients"
    if contents.synthetic == contents.facts.count:
        return NOTICE
    if contents.synthetic == contents.known:
        words = f"All {counted(contents.known, 'slice')} that were read are recorded as synthetic"
        return f"{words} (research use only, not for diagnosis); the others were not asked"
    return (
        f"{contents.synthetic:,} of {counted(contents.known, 'slice')} are recorded as synthetic (research use only, "
        "not for diagnosis); the origin of the others is not recorded"
    )


def _cards(contents: Contents) -> Iterator[tuple[str, str]]:
    facts = contents.facts
    yield f"{facts.count:,}", "images" if facts.count != 1 else "image"
    yield ", ".join(facts.formats), "format" if len(facts.formats) == 1 else "formats"
    yield size_words(sum(facts.formats.values())), "on disk, in the files shown"
    if facts.made_by and contents.synthetic == contents.known:  # not by somebody else as well
        yield facts.made_by, "made by"


def _window_words(window: tuple[float, float]) -> str:
    return f"window [{window[0]:.4g}, {window[1]:.4g}]"


def _legend(contents: Contents) -> str:
    shown, count = len(contents.found.pictures), contents.facts.count
    which = f"{shown} of {count:,}, {_why_some(count, SHEET_LIMIT)}" if shown < count else "All of them"
    oriented = all(picture.oriented for picture in contents.found.pictures.values())
    side = ", patient's right on the left" if oriented else "; where the patient's right is, not all files say"
    return f"{which}; {_window_words(contents.found.window)}{side}."


def _why_some(count: int, most: int) -> str:
    """Why not all images are there, where at most so many of them would be."""
    return "evenly spread" if count > most else "which could be read"


def _sheet(contents: Contents) -> str:
    window = contents.found.window
    pictures = (
        figure(grey(picture, window), caption(contents.entries[index]), synthetic=_synthetic(contents, index, picture))
        for index, picture in contents.found.pictures.items()
    )
    return f'<div class="sheet">{"".join(pictures)}</div>'


def _synthetic(contents: Contents, index: int, picture: Picture) -> bool:
    return picture.synthetic or contents.entries[index].record.get("synthetic") is True


def caption(entry: Entry) -> str:
    """What stands below a picture: its seed, or its name."""
    seed = entry.record.get("seed")
    return f"seed {seed}" if isinstance(seed, int) else entry.name


def _viewed(contents: Contents) -> list[Shown]:
    return [
        Shown(
            caption(contents.entries[index]),
            picture.pixels,
            synthetic=_synthetic(contents, index, picture),
            pixel_mm=picture.pixel_mm,
            oriented=picture.oriented,
        )
        for index, picture in _chosen(contents)
    ]


def _chosen(contents: Contents) -> list[tuple[int, Picture]]:
    """The pictures in the viewer, with their numbers."""
    pictures = [*contents.found.pictures.items()]
    largest = max(picture.pixels.size for _, picture in pictures)
    most = max(1, min(VIEWED, _VALUES // largest))
    return [pictures[place] for place in evenly(len(pictures), most)]


def _viewer_words(contents: Contents) -> str:
    shown, viewed = len(contents.found.pictures), len(_chosen(contents))
    which = f"{viewed} of the slices above" if viewed < shown else "The slices above"
    return f"{which}, with their values in the page."


def _pixel_words(contents: Contents) -> str:
    found, count = contents.found, contents.facts.count
    which = "all images" if found.measured == count else f"{found.measured} images, {_why_some(count, SAMPLE)}"
    shaded = f"The shaded part is the {_window_words(found.window)} of the pictures"
    return f"Of {which}. Heights are square roots of counts. {shaded}."


def _pixels(found: Gathered) -> str:
    return histogram(found.statistics["histogram"], found.window) + values_table(found.statistics)


def _parameters(contents: Contents) -> str:
    return "\n".join([*_warnings(contents.groups), _groups(contents), _images(contents)])


def _warnings(groups: Sequence[Group]) -> Iterator[str]:
    if (mixed := len(weights(groups))) > 1:
        text = f"These images are of {mixed} different weights. They are not one set: look at each group by itself."
        yield f'<p class="warn">{text}</p>'


def _groups(contents: Contents) -> str:
    groups = contents.groups
    if len(groups) == 1:
        return table(_group_rows(groups[0], contents.facts))
    names = [*dict.fromkeys(name for group in groups for name in group.parameters)]
    differ = [name for name in names if len({group.parameters.get(name) for group in groups}) > 1]
    same = [(_label(name), groups[0].parameters[name]) for name in names if name not in differ]
    rows = [
        [
            f"{number}",
            f"{group.count:,}",
            group.seeds or "not recorded",
            *(group.parameters.get(name, "not recorded") for name in differ),
        ]
        for number, group in enumerate(groups[:_GROUPS], 1)
    ]
    more = f"<p>and {len(groups) - _GROUPS:,} more groups</p>" if len(groups) > _GROUPS else ""
    heads = ["group", "images", "seeds", *map(_label, differ)]
    return grid(heads, rows, "wrap") + more + (table(same) if same else "")


def _group_rows(group: Group, facts: Facts) -> Iterator[tuple[str, str]]:
    yield "seeds", group.seeds or "not recorded"
    if not group.parameters:
        yield "parameters", "not recorded"
    yield from ((_label(name), value) for name, value in group.parameters.items())
    for format, size in facts.formats.items():
        yield format, size_words(size)


def _label(name: str) -> str:
    return {"model_name": "model", "model_digest": "weights", "weights_sha256": "weights"}.get(
        name, name.replace("_", " ")
    )


def _images(contents: Contents) -> str:
    """A table of all images that can be searched, unless there are too many."""
    count = contents.facts.count
    if count > TABLE_LIMIT:
        return f'<p class="soft">{count:,} images are too many for a table of them.</p>'
    numbers = {tuple(group.parameters.items()): number for number, group in enumerate(contents.groups, 1)}
    rows = grid(["image", "seed", "group"], _image_rows(contents.entries, numbers), "images")
    search = '<input type="search" placeholder="Find a name or a seed" aria-label="Find a name or a seed">'
    script = f"<script>{package_text('report/search.js')}</script>"
    summary = f"<summary>Table of {counted(count, 'image')}</summary>"
    return f'<details class="search">{summary}{search}<div class="rows">{rows}</div>{script}</details>'


def _image_rows(entries: Mapping[int, Entry], numbers: Mapping[Any, int]) -> Iterable[tuple[str, str, str]]:
    for _, entry in sorted(entries.items()):
        number = numbers.get(tuple(parameters_of(entry.record).items()))
        yield entry.name, str(entry.record.get("seed", "")), "" if number is None else str(number)
