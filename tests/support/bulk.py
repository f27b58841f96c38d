"""Folders of `brats-ldm bulk` in tests: as they are on the disk, and as processes make them."""

from __future__ import annotations

import sys
from pathlib import Path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and what it holds. Empty folders count too."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    empty = [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]
    return files | {f"{path.relative_to(folder)}/": b"" for path in empty}


def bulk(out: Path, url: str, *more: object) -> list[str]:
    """The command in a process of its own."""
    return [sys.executable, "-m", "brats_ldm_client", *arguments(out, url, *more)]


def arguments(out: Path, url: str, *more: object) -> list[str]:
    return [str(word) for word in ("bulk", "--out", out, "--url", url, *more)]
