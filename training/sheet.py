"""Slices with captions on one sheet, for people. Pixels only, no files."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.pictures import to_display

LINE, GAP = 20, 4
# The longest foot line must fit below a single slice.
LEAST_WIDTH = 400


def captioned_sheet(rows: Sequence[Sequence[tuple[np.ndarray, str]]], foot: Sequence[str]) -> np.ndarray:
    """Rows of (slice [H, W] in [0, 1], caption), and the lines of `foot` beneath; the last row may be shorter.

    Captions stand below their slices; 40 characters fit 240 pixels. Returns uint8 [height, width].
    """
    pictures = [[(Image.fromarray(to_display(image)), caption) for image, caption in row] for row in rows]
    width, height = pictures[0][0][0].size
    used = len(rows[0]) * (width + GAP) + GAP
    rows_end = GAP + len(rows) * (height + LINE + GAP)
    sheet = Image.new("L", (max(used, LEAST_WIDTH), rows_end + (len(foot) + 1) * LINE), 24)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    left = (sheet.width - used) // 2 + GAP
    for i, row in enumerate(pictures):
        for j, (picture, caption) in enumerate(row):
            x, y = left + j * (width + GAP), GAP + i * (height + LINE + GAP)
            sheet.paste(picture, (x, y))
            draw.text((x + width // 2, y + height + LINE // 2), caption, fill=200, font=font, anchor="mm")
    for i, line in enumerate(foot):
        draw.text((sheet.width // 2, rows_end + (i + 1) * LINE), line, fill=230, font=font, anchor="mm")
    return np.asarray(sheet)
