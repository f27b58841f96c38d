"""A viewer of slices as HTML: one slice at a time on a canvas, with window and level. Whole in itself, nothing fetched.

The values are in the page, packed with gzip. viewer.js works with them; viewer.html and viewer.css are how it looks.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest
from ._formats.levels import LARGEST
from ._page import package_text
from .pictures import MARK, as_rows

Pixels: TypeAlias = npt.NDArray[Any]

LIMIT = 64  # images in one viewer: more would make pages that browsers are slow to open
EXACT = 4 << 20  # bytes of float32 in one viewer; above, values are rounded to 16 bits
_USUAL = 5.0  # decoders overshoot [0, 1]; values of scanners are in the hundreds


class Shown(NamedTuple):
    """One image of a viewer, and what is known of it."""

    label: str
    image: Pixels
    """[x, y] with the axes of `Generation.images`: values (float32), or grey levels (uint8, uint16) of [0, 1]."""
    synthetic: bool = True
    """Whether the canvas gets the mark that it is synthetic."""
    pixel_mm: tuple[float, float] | None = (1.0, 1.0)
    """The size of a pixel in x and y; None if nobody knows."""
    oriented: bool = True
    """Whether x points to the patient's right and y to anterior, or nobody knows."""


def viewer(images: Sequence[tuple[str, Pixels] | Shown]) -> str:
    """A viewer as a part of a page. In an `<iframe srcdoc>` it can stand alone; a page may hold several.

    Args:
        images: 1 to 64 pairs of a label and an image (of which nothing more than in the defaults of `Shown` is to be
            said), or `Shown`. Images may differ in size.

    Raises:
        InvalidRequest: no image, too many, or one that has not two axes or is of another type.
    """
    shown = [Shown(*image) for image in images]
    _check(shown)
    exact = sum(4 * each.image.size for each in shown if each.image.dtype.kind == "f") <= EXACT
    document = {"full": full_window([each.image for each in shown]), "images": [_packed(each, exact) for each in shown]}
    data = json.dumps(document, allow_nan=False).replace("<", "\\u003c")  # no label can end the element
    return f"""<div class="viewer">
<style>{package_text("viewer.css")}</style>
{package_text("viewer.html")}
<script type="application/json" data-part="data">{data}</script>
<script>{package_text("viewer.js")}</script>
</div>"""


def viewer_page(images: Sequence[tuple[str, Pixels] | Shown], title: str = "Slices") -> str:
    """A whole page with a `viewer` and nothing else; arguments and errors are as there."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>body {{ margin: 0; background: #12171e; }}</style>
</head>
<body>
{viewer(images)}
</body>
</html>
"""


def full_window(images: Sequence[Pixels]) -> tuple[float, float]:
    """The values that are shown black and white: 0 and 1, or the least and the largest where they are of a scanner.

    Where a scanner's values are all the same, 0 is the other one.
    """
    ranges = [_range(image) for image in images if image.dtype.kind == "f"]
    low, high = min((low for low, _ in ranges), default=0.0), max((high for _, high in ranges), default=1.0)
    if low >= -_USUAL and high <= _USUAL:
        return 0.0, 1.0
    return (low, high) if low < high else (min(low, 0.0), max(high, 0.0))


def _check(shown: Sequence[Shown]) -> None:
    if not 1 <= len(shown) <= LIMIT:
        raise InvalidRequest(f"a viewer takes 1 to {LIMIT} images, and got {len(shown)}")
    for each in shown:
        if each.image.ndim != 2 or not each.image.size:
            raise InvalidRequest(f"the image {each.label!r} has the shape {each.image.shape}: give [x, y]")
        if each.image.dtype.kind != "f" and each.image.dtype.name not in ("uint8", "uint16"):
            words = f"the image {each.label!r} is of {each.image.dtype}"
            raise InvalidRequest(f"{words}: give values as float32, or grey levels as uint8 or uint16")


def _range(image: Pixels) -> tuple[float, float]:
    """The least and the largest finite value; 0 and 0 where there is none."""
    finite = image[np.isfinite(image)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _packed(each: Shown, exact: bool) -> dict[str, Any]:
    """What viewer.js reads of one image; `exact`: keep float32."""
    width, height = each.image.shape
    rows, scaling = _encoded(as_rows(each.image), exact)
    return {
        "label": each.label,
        "width": width,
        "height": height,
        "mark": MARK if each.synthetic else "",
        "mm": each.pixel_mm,
        "oriented": each.oriented,
        **scaling,
        "data": base64.b64encode(gzip.compress(rows.tobytes(), 6, mtime=0)).decode(),
    }


def _encoded(rows: Pixels, exact: bool) -> tuple[Pixels, dict[str, Any]]:
    """Little-endian rows, and how their numbers become values: low + number / largest * range."""
    if rows.dtype.kind == "u":
        bits = 8 * rows.dtype.itemsize
        words = f"Values are grey levels of {bits} bits, divided by {LARGEST[bits]}."
        kind = f"u{bits // 8}"
        return rows.astype(f"<{kind}"), {
            "kind": kind, "low": 0.0, "range": 1.0, "largest": LARGEST[bits], "precision": words
        }  # fmt: skip
    values = rows.astype("<f4")
    if exact or not np.isfinite(values).all():
        return values, {"kind": "f4", "precision": "Values are exact, as float32."}
    low, high = _range(values)
    width = high - low
    levels = np.rint((values.astype(np.float64) - low) / (width or 1.0) * LARGEST[16]).astype("<u2")
    step = np.format_float_positional(width / LARGEST[16], 1, unique=False, fractional=False, trim="-")
    words = f"Values are rounded to steps of {step}."
    return levels, {"kind": "u2", "low": low, "range": width, "largest": LARGEST[16], "precision": words}
