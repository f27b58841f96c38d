"""Runs the sections of a benchmark one after the other. Each writes its JSON as soon as it is done.

A section is a function. Its result is recorded as a whole. Where it returns an iterator of names and figures, each
figure is recorded as soon as it is there.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.files import write_text

Section = tuple[str, Callable[[], Any]]


def recorded(path: Path) -> bool:
    """Whether a section has left its whole result there."""
    try:
        return "error" not in json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # ValueError: torn
        return False


def left(sections: Mapping[str, Callable[[], Any]], out: Path, again: bool) -> list[Section]:
    """The sections to measure: with `again` all, else those without a result in `out`. Prints which are left out."""
    to_measure = []
    for name, section in sections.items():
        if again or not recorded(out / f"{name}.json"):
            to_measure.append((name, section))
        else:
            print(f"{name}: recorded; --again measures it anew", flush=True)
    return to_measure


def run_sections(
    sections: Sequence[Section], out: Path, facts: Callable[[], Mapping[str, Any]], after_each: Callable[[], object]
) -> list[str]:
    """Write `out`/<name>.json of each section: `facts` when it begins, its result or error, its seconds.

    `after_each` is called whenever a file has been written. Returns the sections that failed.
    """
    failed = []
    for name, section in sections:
        print(f"{name} ...", flush=True)
        record: dict[str, Any] = dict(facts())
        for _ in _steps(section, record):
            write_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")
            after_each()
        if "error" in record:
            failed.append(name)
        print(f"{name}: {'FAILED' if name in failed else 'done'} after {record['seconds']} s", flush=True)
    return failed


def _steps(section: Callable[[], Any], record: dict[str, Any]) -> Iterator[None]:
    """Fill `record`. Yields whenever it is worth writing."""
    started = time.monotonic()
    try:
        result = section()
        if isinstance(result, Iterator):
            record |= {"error": "stopped before its end", "result": {}, "seconds_each": {}}
            before = started
            for part, value in result:
                now = time.monotonic()
                record["result"][part], record["seconds_each"][part] = value, round(now - before, 1)
                record["seconds"], before = round(now - started, 1), now
                print(f"  {part}: {json.dumps(value)} ({record['seconds_each'][part]} s)", flush=True)
                yield
            del record["error"]
        else:
            record["result"] = result
    except Exception as error:  # whatever it is, the other sections are still worth having
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}"
    record["seconds"] = round(time.monotonic() - started, 1)
    yield
