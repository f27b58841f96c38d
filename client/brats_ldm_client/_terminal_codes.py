"""Grey pictures as escape codes: kitty's graphics, iTerm2's inline images, sixel, half blocks. Writes nothing.

The cursor is at the top left of the picture. Where it is afterwards differs from terminal to terminal.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from .pictures import Pixels, png

HALF_BLOCK = "▀"
_CHUNK = 4096  # characters of data in one of kitty's codes
_REPEATED = re.compile(r"(.)\1{3,}")


def kitty(pixels: Pixels, columns: int, rows: int, number: int) -> str:
    """A picture over so many cells. It takes the place of an earlier one with the same number."""
    data = base64.b64encode(png(pixels, {}, xmp=False)).decode()
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    # p: replaces instead of adding; C: leaves the cursor; q: no answers, which nobody would read.
    keys = [f"a=T,f=100,i={number},p=1,c={columns},r={rows},C=1,q=2,"] + [""] * (len(parts) - 1)
    more = [1] * (len(parts) - 1) + [0]
    return "".join(f"\x1b_G{key}m={m};{part}\x1b\\" for key, m, part in zip(keys, more, parts, strict=True))


def iterm(pixels: Pixels, columns: int, rows: int) -> str:
    """A picture over so many cells."""
    data = png(pixels, {}, xmp=False)
    size = f"size={len(data)};width={columns};height={rows};preserveAspectRatio=0"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(data).decode()}\x07"


def sixel(pixels: Pixels, greys: int) -> str:
    """A picture of so many levels of grey, 2 to 101, pixel by pixel."""
    height, width = pixels.shape
    levels = np.rint(pixels * ((greys - 1) / 255)).astype(np.uint8)
    percents = [round(100 * level / (greys - 1)) for level in range(greys)]
    palette = "".join(f"#{level};2;{percent};{percent};{percent}" for level, percent in enumerate(percents))
    bands = "-".join(_band(levels[top : top + 6]) for top in range(0, height, 6))
    return f'\x1bP0;1q"1;1;{width};{height}{palette}{bands}\x1b\\'


def _band(levels: Pixels) -> str:
    """Up to six rows: for each level of grey a line of characters, one a column, whose bits are the rows."""
    bits = (1 << np.arange(len(levels), dtype=np.uint8))[:, None]
    lines = []
    for level in np.unique(levels):
        characters = 63 + np.where(levels == level, bits, 0).sum(axis=0, dtype=np.uint8)
        line = characters.tobytes().decode("ascii").rstrip("?")  # "?": no pixel of this level
        lines.append(f"#{level}" + _REPEATED.sub(lambda run: f"!{len(run[0])}{run[1]}", line))
    return "$".join(lines)


def shades(true_colour: bool) -> tuple[list[str], list[str]]:
    """The codes for characters of each level of grey, and those for what is behind them.

    true_colour: whether the terminal can show all levels. Otherwise 26 greys of the palette of 256 colours are used,
        which every terminal has, whatever TERM says: black, white, and 8, 18, ... 238.
    """
    if true_colour:
        colours = [f"2;{grey};{grey};{grey}" for grey in range(256)]
    else:
        palette = {0: 16, 255: 231} | {8 + 10 * i: 232 + i for i in range(24)}
        colours = [f"5;{palette[min(palette, key=lambda one: abs(one - grey))]}" for grey in range(256)]
    return [f"\x1b[38;{colour}m" for colour in colours], [f"\x1b[48;{colour}m" for colour in colours]


def blocks(pixels: Pixels, fore: Sequence[str], back: Sequence[str]) -> list[str]:
    """Lines of characters that each show two pixels, one above the other.

    Args:
        pixels: An even number of rows.
        fore: The code for characters of each level of grey.
        back: The code for what is behind them.
    """
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        runs = ((pair, len(list(run))) for pair, run in groupby(zip(upper, lower, strict=True)))
        text = "".join(f"{fore[high]}{back[low]}{HALF_BLOCK * length}" for (high, low), length in runs)
        lines.append(f"{text}\x1b[0m")
    return lines
