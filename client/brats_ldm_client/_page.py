"""What the pages of this package share: the frame and its style, tables, histograms, pictures, words. Knows no files.

A page is whole in itself. Every text is escaped here, or by the caller where an argument is called `html`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from PIL import Image

from .pictures import Pixels, marked, png

_WIDTH, _HEIGHT = 960, 220  # of the histogram, which the page stretches to its own width


def document(title: str, html: str) -> str:
    """A whole page with a heading."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{package_text("_page.css")}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{html}
</main>
</body>
</html>
"""


def package_text(name: str) -> str:
    """A file beside this one."""
    return files(__package__).joinpath(name).read_text("utf-8")


def notice(text: str) -> str:
    return f'<p class="notice">{escape(text)}</p>'


def cards(facts: Iterable[tuple[str, str]]) -> str:
    """The main facts, as pairs of a value and what it is."""
    each = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    return f'<div class="facts">{each}</div>'


def section(title: str, words: str, html: str) -> str:
    """A part of the page: its title, a line of explanation, its content."""
    line = f'<p class="soft">{escape(words)}</p>\n' if words else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{line}{html}\n</section>"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and their values."""
    lines = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{lines}\n</table>"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table with a line of heads; `kind` is its class."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>"
    return f'<div class="scroll"><table class="grid {escape(kind)}">\n{inner}\n</table></div>'


def values_table(pixels: Mapping[str, Any]) -> str:
    """The numbers of `Statistics.as_dict` beside its histogram."""
    return table(_values(pixels))


def _values(pixels: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    bins = pixels["histogram"]
    if pixels["least"] is not None:
        yield "least and largest", f"{pixels['least']:.4g} and {pixels['largest']:.4g}"
    yield f"below {bins['from']:g}", counted(bins["below"], "pixel")
    yield f"above {bins['to']:g}", counted(bins["above"], "pixel")
    yield "not finite", counted(pixels["not_finite"], "pixel")


def histogram(bins: Mapping[str, Any], window: tuple[float, float] = (0.0, 1.0)) -> str:
    """The histogram of `Statistics.as_dict`; the window of the pictures is shaded."""
    counts, low, high = bins["counts"], bins["from"], bins["to"]
    wide, tallest = _WIDTH / len(counts), math.sqrt(max([*counts, 1]))

    def x(value: float) -> float:
        return float((value - low) / (high - low) * _WIDTH)

    bars = [(i * wide, math.sqrt(count) / tallest * (_HEIGHT - 8)) for i, count in enumerate(counts) if count]
    path = "".join(f"M{left:.1f} {_HEIGHT}v{-tall:.1f}h{wide - 1:.1f}v{tall:.1f}z" for left, tall in bars)
    quarters = [window[0] + (window[1] - window[0]) * part / 4 for part in range(5)]
    ticks = "".join(f'<span style="left: {x(value) / _WIDTH:.2%}">{value:.4g}</span>' for value in quarters)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        'aria-label="Histogram of pixel values">'
        f'<rect class="band" x="{x(window[0]):.1f}" y="0" width="{x(window[1]) - x(window[0]):.1f}" '
        f'height="{_HEIGHT}"/>'
        f'<path class="bar" d="{path}"/>'
        f'<line class="axis" x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/></svg>'
        f'<div class="ticks">{ticks}</div>'
    )


def figure(pixels: Pixels, caption: str, *, synthetic: bool) -> str:
    """A picture in the page itself. A synthetic one has its mark in the pixels, so that a copy has it, too."""
    data = png(marked(pixels), {}) if synthetic else _plain(pixels)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _plain(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def size_words(size: float) -> str:
    """Bytes for people."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.4g} TB"
