"""A page of `brats-ldm report` as a test reads it: texts, pictures, the values in its viewer, what it asks for."""

from __future__ import annotations

import base64
import gzip
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brats_ldm_client.pictures import from_rows

_ASKS = {"src", "href", "action", "data", "poster", "srcset", "formaction", "background"}  # attributes that can ask


class ReportPage(HTMLParser):
    """What is in a page.

    tags: all elements, by name. words: all text but that of styles and scripts. pictures: rows of grey levels by their
    captions. outside: what the page would ask of another file or machine.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.rows: list[list[str]] = []
        self.pictures: dict[str, np.ndarray] = {}
        self.outside: list[str] = []
        self.viewed: dict[str, Any] = {}
        self._inside = ""
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        self.outside += [given[name] for name in given if name in _ASKS and not given[name].startswith("data:")]
        if tag == "img":
            with Image.open(io.BytesIO(base64.b64decode(given["src"].partition(",")[2]))) as picture:
                self.pictures[given["alt"]] = np.asarray(picture)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._inside = "viewer" if given.get("data-part") == "data" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "viewer":
            self.viewed = json.loads(data)
        elif self._inside not in ("style", "script"):
            self.words += data
            if self._inside in ("td", "th"):
                self.rows[-1][-1] += data

    def value(self, name: str) -> str:
        """What stands beside a name in a table."""
        return next(row[1] for row in self.rows if row and row[0] == name)


def viewed_values(image: dict[str, Any]) -> np.ndarray:
    """The values [x, y] of an image in a viewer, as its script computes them."""
    raw = np.frombuffer(gzip.decompress(base64.b64decode(image["data"])), f"<{image['kind']}")
    rows = raw.reshape(image["height"], image["width"])
    if image["kind"] != "f4":
        rows = (image["low"] + rows.astype(np.float64) / image["largest"] * image["range"]).astype(np.float32)
    return from_rows(rows)
