"""The summary page as HTML: whole in itself but for the picture beside it; no scripts. Knows no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from .._page import cards, counted, document, histogram, notice, section, size_words, table, values_table
from .._presets import named
from ..pictures import NOTICE
from .plan import Plan


def page(plan: Plan, sizes: Mapping[str, int], pixels: Mapping[str, Any], sheet: str, shown: int) -> str:
    """The whole page.

    Args:
        plan: What was made.
        sizes: Format to bytes on disk.
        pixels: The statistics of all pixels.
        sheet: The file name of the contact sheet.
        shown: How many images are on it.
    """
    facts = [
        (f"{plan.count:,}", "images"),
        (f"{plan.shards:,}", "shards"),
        (size_words(sum(sizes.values())), "on disk"),
        (plan.sampler, counted(plan.steps, "step")),
    ]
    name = escape(sheet)
    picture = f'<a href="{name}"><img src="{name}" alt="Contact sheet of {counted(shown, "slice")}"></a>'
    heights = "Heights are square roots of counts. The shaded part is [0, 1], the window of the pictures."
    parts = [
        notice(NOTICE),
        cards(facts),
        section("Images", _legend(shown, plan.count), picture),
        section("Pixel values", heights, histogram(pixels["histogram"]) + values_table(pixels)),
        section("How they were made", "", table(_origin(plan, sizes))),
    ]
    return document(f"{counted(plan.count, 'synthetic slice')} of the brain", "\n".join(parts))


def _legend(shown: int, total: int) -> str:
    which = f"{shown} of them, evenly spread" if shown < total else "All of them"
    return f"{which}; window [0, 1], patient's right on the left."


def _origin(plan: Plan, sizes: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    yield "model", plan.model_name
    yield "weights", plan.model_digest
    yield "seeds", f"{plan.seed_base} to {plan.seed_base + plan.count - 1}"
    yield "sampler, steps, eta", f"{plan.sampler}, {plan.steps}, {plan.eta:g}"
    for name, value in named({"timestep_grid": plan.timestep_grid, "decoder": plan.decoder}).items():
        yield name.replace("_", " "), value
    if plan.labels:
        yield "labels", plan.labels
        yield "guidance", f"{plan.guidance:g}"
    yield "images in a shard", f"{plan.shard_size:,}"
    for format, size in sizes.items():
        yield format, size_words(size)
    yield "hashes", "in manifest.json and the shard-NNNNNN.json files; brats-ldm verify checks them"
