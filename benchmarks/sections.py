"""Runs the parts of a benchmark one after the other; each writes its JSON as soon as it is done."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.files import write_text

Section = tuple[str, Callable[[], Any]]


def recorded(path: Path) -> bool:
    """Whether a section has left its result there."""
    return path.is_file() and "result" in json.loads(path.read_text())


def left(sections: Mapping[str, Callable[[], Any]], out: Path, again: bool) -> list[Section]:
    """Those to measure: all of them where `again`, else those without a result in `out`; says which are left out."""
    found = []
    for name, section in sections.items():
        if again or not recorded(out / f"{name}.json"):
            found.append((name, section))
        else:
            print(f"{name}: recorded; --again measures it anew", flush=True)
    return found


def run_sections(
    sections: Sequence[Section], out: Path, facts: Callable[[], Mapping[str, Any]], after_each: Callable[[], object]
) -> list[str]:
    """`out`/<name>.json of each section: `facts` when it begins, its result or its error, its seconds.

    Returns those that failed.
    """
    failed = []
    for name, section in sections:
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        record: dict[str, Any] = dict(facts())
        try:
            record["result"] = section()
        except Exception as error:  # whatever it is, the other sections are still worth having
            traceback.print_exc()
            record["error"] = f"{type(error).__name__}: {error}"
            failed.append(name)
        record["seconds"] = round(time.monotonic() - started, 1)
        write_text(out / f"{name}.json", json.dumps(record, indent=2) + "\n")
        after_each()
        print(f"{name}: {'FAILED' if name in failed else 'done'} after {record['seconds']} s", flush=True)
    return failed
