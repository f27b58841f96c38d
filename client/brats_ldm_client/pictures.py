"""Slices as pictures: grey levels, PNG with the notice that the image is synthetic, contact sheets. Writes no files.

Display convention: radiological (anterior up, patient's right on the left), fixed window [0, 1].
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

Pixels = npt.NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)

# Hyphens, not dashes: the font that comes with Pillow has no others.
NOTICE = "SYNTHETIC - research use only - not for diagnosis"
MARK = "SYNTHETIC - not for diagnosis"  # fits below 240 pixels
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SHEET_LIMIT = 64  # pictures on a contact sheet
LINE, GAP = 20, 4  # pixels, on a sheet
LEAST_WIDTH = 400  # of a sheet: the notice must fit below a single slice
_SCALE = 4  # pixels of an image on one of its latents

XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def to_display(image: npt.NDArray[np.floating[Any]]) -> Pixels:
    """The slice [x → Right, y → Anterior] as rows from anterior to posterior, columns from Right to Left.

    One window for all images, [0, 1], so the brightness of two pictures can be compared. Values outside are clipped.
    """
    return as_rows(grey_levels(image).astype(np.uint8))


def grey_levels(image: npt.NDArray[np.floating[Any]], largest: int = 255) -> npt.NDArray[np.floating[Any]]:
    """Values of [0, 1] as whole numbers from 0 to `largest`. Values outside are clipped; not-a-number becomes 0."""
    return np.asarray(np.rint(np.clip(np.nan_to_num(image, nan=0.0), 0.0, 1.0) * largest))


def latent_scale(latent: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The values of a latent [h, w] that are shown black and white; the first can be the larger one.

    A latent has no scale, and its sign has no meaning. But the border of a slice is background, which is black.
    """
    border = np.concatenate([latent[0], latent[-1], latent[:, 0], latent[:, -1]])
    black = float(np.median(border))
    low, high = (float(value) for value in np.percentile(latent, (1, 99)))
    return (black, high) if high - black >= black - low else (black, low)


def latent_picture(
    latent: npt.NDArray[np.floating[Any]], size: tuple[int, int] = (240, 240), scale: tuple[float, float] | None = None
) -> Pixels:
    """A latent [h, w] as a picture of its image.

    Args:
        latent: Such as the previews of a stream, which are estimates of the latent.
        size: Of the image [x, y], in pixels. What lies outside is the padding of training.
        scale: The values for black and white; by default those of `latent_scale`.
    """
    columns, rows = (side // _SCALE for side in size)
    left, top = (latent.shape[0] - columns) // 2, (latent.shape[1] - rows) // 2
    cut = latent[left : left + columns, top : top + rows]
    black, white = scale or latent_scale(cut)
    small = to_display((cut - black) / (white - black or 1.0))
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def difference_picture(
    image: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]], gain: float = 4.0
) -> Pixels:
    """Where an image is brighter than another (light) or darker (dark). Mid-grey: equal in the window [0, 1].

    gain: by how much differences are enlarged. With 4, black and white are differences of an eighth of the window.
    """
    return to_display(0.5 + gain * (np.clip(image, 0, 1) - np.clip(other, 0, 1)))


def marked(pixels: Pixels) -> Pixels:
    """The picture above a line that says that it is synthetic, so that a copy of it says so, too."""
    height, width = pixels.shape
    image = Image.new("L", (width, height + LINE), 24)
    image.paste(Image.fromarray(pixels), (0, 0))
    place = (width // 2, height + LINE // 2)
    ImageDraw.Draw(image).text(place, MARK, fill=255, font=ImageFont.load_default(12), anchor="mm")
    return np.asarray(image)


def as_rows(image: npt.NDArray[Value]) -> npt.NDArray[Value]:
    """An image's pixels [x, y] as the rows and columns of a picture."""
    return np.ascontiguousarray(image.T[::-1, ::-1])


def from_rows(picture: npt.NDArray[Value]) -> npt.NDArray[Value]:
    """The way back from `as_rows`."""
    return np.ascontiguousarray(picture[::-1, ::-1].T)


def png(pixels: npt.NDArray[np.unsignedinteger[Any]], record: Mapping[str, Any], *, xmp: bool = True) -> bytes:
    """A picture of 8 or 16 bits as PNG, with the notice and a record in its text chunks, so that they stay with it.

    xmp: also write the source type as XMP metadata, where image tools look for it.
    """
    chunks = PngInfo()
    for key, value in {"Description": NOTICE, "DigitalSourceType": SOURCE_TYPE, **record}.items():
        chunks.add_text(key, value if isinstance(value, str) else json.dumps(value))
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", XMP)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def sheet(rows: Sequence[Sequence[tuple[Pixels, str]]], foot: Sequence[tuple[str, int]]) -> Pixels:
    """Pictures of one size on one sheet.

    rows: pictures with their captions, which stand below them; the last row may be shorter. 40 characters fit below
        240 pixels.
    foot: lines below all rows, each with its grey level.
    """
    height, width = rows[0][0][0].shape
    used = len(rows[0]) * (width + GAP) + GAP
    rows_end = GAP + len(rows) * (height + LINE + GAP)
    image = Image.new("L", (max(used, LEAST_WIDTH), rows_end + (len(foot) + 1) * LINE), 24)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    left = (image.width - used) // 2 + GAP
    for i, row in enumerate(rows):
        for j, (pixels, caption) in enumerate(row):
            x, y = left + j * (width + GAP), GAP + i * (height + LINE + GAP)
            image.paste(Image.fromarray(pixels), (x, y))
            draw.text((x + width // 2, y + height + LINE // 2), caption, fill=200, font=font, anchor="mm")
    for i, (text, grey) in enumerate(foot):
        draw.text((image.width // 2, rows_end + (i + 1) * LINE), text, fill=grey, font=font, anchor="mm")
    return np.asarray(image)


def legend(shown: int, total: int) -> str:
    """The line of a sheet that explains its pictures, of which it shows the first `shown`."""
    counted = f"{shown} of {total} images, " if total > shown else ""
    return f"{counted}window [0, 1], patient's right on the left"


def contact_sheet(pictures: Sequence[tuple[Pixels, str]], total: int) -> bytes:
    """Pictures with captions and the notice, as PNG; `total` is how many images there are."""
    columns = _columns(len(pictures))
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    return png(sheet(rows, [(NOTICE, 255), (legend(len(pictures), total), 160)]), {})


def _columns(count: int) -> int:
    """A sheet about as wide as high, at most 8 pictures wide, with few empty places."""
    least = min(8, math.ceil(math.sqrt(count)))
    return min(range(least, min(8, 2 * least) + 1), key=lambda columns: (-count % columns, columns))
