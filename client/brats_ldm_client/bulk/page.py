"""The summary page as HTML: whole in itself but for the picture beside it; no scripts. Knows no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ..pictures import NOTICE
from .plan import Plan

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --paper: #ffffff;
  --ground: #f4f6f9; --bar: #4059ad; --band: #4059ad14; --warn: #8a4b00; --warn-ground: #fff3e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #2c3541; --paper: #171d26;
  --ground: #0f141b; --bar: #8fa6ff; --band: #8fa6ff14; --warn: #ffc98a; --warn-ground: #33240f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 12px; font-weight: 650; }
h2 { font-size: 17px; margin: 0 0 2px; font-weight: 650; }
.notice { display: inline-block; margin: 0 0 20px; padding: 5px 12px; border-radius: 6px; font-weight: 600;
  background: var(--warn-ground); color: var(--warn); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 12px; }
.facts div, section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.facts div { padding: 12px 16px; }
.facts b { display: block; font-size: 21px; font-weight: 650; }
.facts span, .soft { color: var(--soft); font-size: 13px; }
section { padding: 18px 20px; margin-bottom: 12px; }
section p { margin: 0 0 12px; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
svg { display: block; width: 100%; height: 220px; }
.ticks { position: relative; height: 22px; color: var(--soft); font-size: 12px; }
.ticks span { position: absolute; transform: translateX(-50%); }
svg .bar { fill: var(--bar); } svg .band { fill: var(--band); } svg .axis { stroke: var(--line); }
table { border-collapse: collapse; width: 100%; margin-top: 6px; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-top: 1px solid var(--line); }
th { width: min(190px, 36vw); font-weight: 500; color: var(--soft); }
td { overflow-wrap: anywhere; }
"""
_WIDTH, _HEIGHT = 960, 220  # of the histogram, which the page stretches to its own width


def page(plan: Plan, sizes: Mapping[str, int], pixels: Mapping[str, Any], sheet: str, shown: int) -> str:
    """The whole page.

    Args:
        plan: What was made.
        sizes: Format to bytes on disk.
        pixels: The statistics of all pixels.
        sheet: The file name of the contact sheet.
        shown: How many images are on it.
    """
    title = f"{_counted(plan.count, 'synthetic slice')} of the brain"
    facts = [
        (f"{plan.count:,}", "images"),
        (f"{plan.shards:,}", "shards"),
        (_bytes(sum(sizes.values())), "on disk"),
        (plan.sampler, _counted(plan.steps, "step")),
    ]
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="notice">{escape(NOTICE)}</p>
<div class="facts">{cards}</div>
<section>
<h2>Images</h2>
<p class="soft">{escape(_legend(shown, plan.count))}</p>
<a href="{escape(sheet)}"><img src="{escape(sheet)}" alt="Contact sheet of {_counted(shown, "slice")}"></a>
</section>
<section>
<h2>Pixel values</h2>
<p class="soft">Heights are square roots of counts. The shaded part is [0, 1], the window of the pictures.</p>
{_histogram(pixels["histogram"])}
{_table(_values(pixels))}
</section>
<section>
<h2>How they were made</h2>
{_table(_origin(plan, sizes))}
</section>
</main>
</body>
</html>
"""


def _legend(shown: int, total: int) -> str:
    which = f"{shown} of them, evenly spread" if shown < total else "All of them"
    return f"{which}; window [0, 1], patient's right on the left."


def _values(pixels: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    histogram = pixels["histogram"]
    if pixels["least"] is not None:
        yield "least and largest", f"{pixels['least']:.4g} and {pixels['largest']:.4g}"
    yield f"below {histogram['from']:g}", _counted(histogram["below"], "pixel")
    yield f"above {histogram['to']:g}", _counted(histogram["above"], "pixel")
    yield "not finite", _counted(pixels["not_finite"], "pixel")


def _origin(plan: Plan, sizes: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    yield "model", plan.model_name
    yield "weights", plan.model_digest
    yield "seeds", f"{plan.seed_base} to {plan.seed_base + plan.count - 1}"
    yield "sampler, steps, eta", f"{plan.sampler}, {plan.steps}, {plan.eta:g}"
    yield "images in a shard", f"{plan.shard_size:,}"
    for format, size in sizes.items():
        yield format, _bytes(size)
    yield "hashes", "in manifest.json and the shard-NNNNNN.json files; brats-ldm verify checks them"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{lines}\n</table>"


def _histogram(histogram: Mapping[str, Any]) -> str:
    counts, low, high = histogram["counts"], histogram["from"], histogram["to"]
    wide, tallest = _WIDTH / len(counts), math.sqrt(max([*counts, 1]))

    def x(value: float) -> float:
        return float((value - low) / (high - low) * _WIDTH)

    bars = [(i * wide, math.sqrt(count) / tallest * (_HEIGHT - 8)) for i, count in enumerate(counts) if count]
    path = "".join(f"M{left:.1f} {_HEIGHT}v{-tall:.1f}h{wide - 1:.1f}v{tall:.1f}z" for left, tall in bars)
    ticks = "".join(
        f'<span style="left: {x(value) / _WIDTH:.2%}">{value:g}</span>' for value in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        'aria-label="Histogram of pixel values">'
        f'<rect class="band" x="{x(0):.1f}" y="0" width="{x(1) - x(0):.1f}" height="{_HEIGHT}"/>'
        f'<path class="bar" d="{path}"/>'
        f'<line class="axis" x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/></svg>'
        f'<div class="ticks">{ticks}</div>'
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _bytes(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.4g} TB"
