"""Pictures: one slice, or a contact sheet of many, as PNG bytes. No files.

Display convention: radiological (anterior up, patient's right on the left), fixed window [0, 1].
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

# Hyphens, not dashes: the font that comes with Pillow has no others.
NOTICE = "SYNTHETIC - research use only - not for diagnosis"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SHEET_LIMIT = 64  # pictures on a sheet

_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def picture(image: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """The slice [x → Right, y → Anterior] as rows from anterior to posterior, columns from Right to Left.

    One window for all images: [0, 1], clipped; the brightness of two pictures can be compared.
    """
    levels = np.clip(np.nan_to_num(image, nan=0.0), 0.0, 1.0) * 255.0
    return np.ascontiguousarray(np.rint(levels).astype(np.uint8).T[::-1, ::-1])


def slice_png(image: npt.NDArray[np.float32], record: Mapping[str, Any]) -> bytes:
    """One slice with its provenance in the file's text chunks."""
    return _png(Image.fromarray(picture(image)), record)


def contact_sheet(shown: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], total: int) -> bytes:
    """What `picture` gave in rows, with captions, and the notice at the foot; `total` is how many there are in all."""
    pictures = [Image.fromarray(each) for each in shown]
    width, height = pictures[0].size
    columns = _columns(len(pictures))
    line, gap = 20, 4
    rows_end = gap + -(-len(pictures) // columns) * (height + line + gap)
    size = (max(columns * (width + gap) + gap, 400), rows_end + 3 * line)  # 400: the notice must fit
    sheet = Image.new("L", size, 24)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    left = (size[0] - columns * (width + gap) + gap) // 2
    for index, (pasted, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = left + column * (width + gap), gap + row * (height + line + gap)
        sheet.paste(pasted, (x, y))
        draw.text((x + width // 2, y + height + line // 2), caption, fill=200, font=font, anchor="mm")
    counted = f"{len(pictures)} of {total} images, " if total > len(pictures) else ""
    legend = f"{counted}window [0, 1], patient's right on the left"
    draw.text((size[0] // 2, rows_end + line), NOTICE, fill=255, font=font, anchor="mm")
    draw.text((size[0] // 2, rows_end + 2 * line), legend, fill=160, font=font, anchor="mm")
    return _png(sheet, {})


def _columns(count: int) -> int:
    """A sheet about as wide as high, at most 8 pictures wide, with few empty places."""
    least = min(8, math.ceil(math.sqrt(count)))
    return min(range(least, min(8, 2 * least) + 1), key=lambda columns: (-count % columns, columns))


def _png(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    chunks = PngInfo()
    chunks.add_text("Description", NOTICE)
    chunks.add_text("DigitalSourceType", SOURCE_TYPE)
    for key, value in record.items():
        chunks.add_text(key, value if isinstance(value, str) else json.dumps(value))
    chunks.add_itxt("XML:com.adobe.xmp", _XMP)  # where image tools look for the source type
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
