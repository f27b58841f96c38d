"""The summary page of a finished run, from what is on the disk: the same whether the run was interrupted or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._formats import shown
from .._statistics import total
from ..pictures import SHEET_LIMIT, Pixels, contact_sheet
from .artifacts import artifact_name, read_pixels
from .page import page
from .plan import Plan
from .shard import read_shard
from .workplace import put_file

PAGE, SHEET = "summary.html", "contact_sheet.png"
SUMMARY = (SHEET, PAGE)


def write_summary(plan: Plan, folder: Path) -> None:
    """Write the page and its picture."""
    pictures = _pictures(plan, folder)
    put_file(folder / SHEET, contact_sheet(pictures, plan.count))
    sizes = dict.fromkeys(plan.formats, 0)

    def pixels() -> Iterator[dict[str, Any]]:
        for index in range(plan.shards):
            mark = read_shard(plan, folder, index)
            for format in plan.formats:
                sizes[format] += _size(mark["files"], artifact_name(index, format))
            yield mark["pixels"]  # one at a time: there may be a million

    statistics = total(pixels())
    text = page(plan, sizes, statistics, SHEET, len(pictures))
    put_file(folder / PAGE, text.encode())


def _size(files: dict[str, dict[str, int]], artifact: str) -> int:
    return sum(entry["bytes"] for name, entry in files.items() if name.split("/")[0] == artifact)


def _pictures(plan: Plan, folder: Path) -> list[tuple[Pixels, str]]:
    """Images spread evenly over the run, from the files of the first format."""
    number = min(SHEET_LIMIT, plan.count)
    chosen: dict[int, list[int]] = {}
    for i in range(number):
        image = i * plan.count // number
        chosen.setdefault(image // plan.shard_size, []).append(plan.seed_base + image)
    pictures: list[tuple[Pixels, str]] = []
    for index, seeds in chosen.items():
        pixels = read_pixels(folder, plan, index, plan.formats[0], seeds)
        pictures += [(shown(stored), f"seed {seed}") for seed, stored in zip(seeds, pixels, strict=True)]
    return pictures
