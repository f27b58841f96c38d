"""The records of the slices in a folder. Knows neither images nor the server.

A slice gets its name only when its record is on disk, so no slice is without a record, however the run ends. During the
run the records are in a journal, one JSON object per line. At the end they are written to `provenance.json`. The next
run reads the journal of a run that was cut short.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ._errors import InvalidRequest
from ._presets import DEFAULTS
from .files import naming, whole_file
from .pictures import NOTICE, SOURCE_TYPE

Record = dict[str, Any]
NAME = "provenance.json"
_DEFAULTS = {**DEFAULTS, "labels_sha256": None}
JOURNALS = f"provenance.{'[0-9a-f]' * 8}.jsonl"  # not wider: files that match are removed when they have been read


class Records:
    """The records of one run, added to those that the folder has.

    Raises:
        InvalidRequest: provenance.json is of another program.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = folder / f"provenance.{secrets.token_hex(4)}.jsonl"
        self._new: dict[str, list[Record]] = {}
        self._digests: dict[str, str] = {}
        self._before = _read(folder, self._digests)

    def add(self, name: str, records: list[Record]) -> None:
        """Append the records of a file to the journal: all of them or none."""
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        with naming(self._journal), open(self._journal, "ab", buffering=0) as file:
            size = file.tell()
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except OSError:
                file.truncate(size)
                raise
        self._new[name] = records

    def has(self, name: str, what: Mapping[str, Any]) -> bool:
        """Whether the folder has that file, unchanged, with a record that contains `what`. Old ones lack defaults."""
        records = [each for each in self._before.get(name, ()) if what.items() <= {**_DEFAULTS, **each}.items()]
        return any(_is_whole(self._folder, record, self._digests) for record in records)

    def close(self) -> Path:
        """Write provenance.json, unless there is no record; returns its path. Records of other runs stay."""
        journals = list(self._folder.glob(JOURNALS))
        others = _read(self._folder, {}, but=self._journal)
        kept = {name: records for name, records in others.items() if name not in self._new}
        document = {"synthetic": True, "notice": NOTICE, "digital_source_type": SOURCE_TYPE}
        document["images"] = [record for records in (*kept.values(), *self._new.values()) for record in records]
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        if document["images"]:
            with whole_file(self._folder / NAME, sync=True) as temporary:
                temporary.write_bytes(text.encode())
        for journal in journals:
            journal.unlink(missing_ok=True)
        return self._folder / NAME


def read_records(folder: Path) -> dict[str, list[Record]]:
    """The records that a folder has, by file, also those of a run that goes on or was cut short.

    Raises:
        InvalidRequest: provenance.json is of another program.
    """
    return _read(folder, {})


def _read(folder: Path, digests: dict[str, str], but: Path | None = None) -> dict[str, list[Record]]:
    """The records that a folder has, by file. Records in journals count only if the file fits them.

    digests: gets the digests of the files that were read.
    """
    left: dict[str, list[Record]] = {}
    for journal in set(folder.glob(JOURNALS)) - {but}:
        left |= _by_file(record for record in _lines(journal) if _is_whole(folder, record, digests))
    # Last, because another run that ends now writes it before it removes its journal.
    there = _by_file(_images(folder / NAME)) if (folder / NAME).exists() else {}
    return there | left


def _by_file(records: Iterable[Record]) -> dict[str, list[Record]]:
    by_file: dict[str, list[Record]] = {}
    for record in records:
        by_file.setdefault(record["file"], []).append(record)
    return by_file


def _is_whole(folder: Path, record: Record, digests: dict[str, str]) -> bool:
    """Whether the file of a record has the digest in it; `digests` caches the digests of files."""
    name = record["file"]
    if name not in digests:
        digests[name] = _digest(folder / name)
    return digests[name] == record.get("sha256")


def _images(path: Path) -> list[Record]:
    try:
        records: list[Record] = json.loads(path.read_text("utf-8"))["images"]
        if all(isinstance(record["file"], str) for record in records):
            return records
    except (ValueError, KeyError, TypeError):
        pass
    raise InvalidRequest(f"{path} is not a record of this program's: choose another folder or move it away")


def _lines(journal: Path) -> Iterator[Record]:
    """The records in a journal. A killed run may have left half a line; another run may have removed the journal."""
    try:
        content = journal.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("file"), str):
                yield record


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def check_folder(folder: Path) -> None:
    """Raises OSError before any work if the folder cannot be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file: choose a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {existing}: choose another folder")
