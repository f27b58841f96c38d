"""What the commands of all benchmarks share: the options of the same name, and records as files."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks import COMMITTED
from benchmarks.harness.markdown import Record
from training.files import write_text

OPTIONS: dict[str, dict[str, Any]] = {
    "repository": {
        "type": Path,
        "default": COMMITTED,
        "help": "model repository to measure (default: the demo weights)",
    },
    "profile": {"default": "cpu", "help": "profile of the server (default: %(default)s)"},
    "rounds": {"type": int, "help": "rounds of timing (default: %(default)s)"},
    "quick": {"action": "store_true", "help": "try the benchmark itself with few steps; the figures mean nothing"},
    "out": {"type": Path, "metavar": "FILE", "help": "also write the figures as JSON"},
}


def parser(module: str, description: str | None, *options: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser for `python -m module` with the named OPTIONS. `defaults` replaces their default values."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description, formatter_class=formatter)
    for name in options:
        parser.add_argument(f"--{name}", **OPTIONS[name])
    parser.set_defaults(**defaults)
    return parser


def tool(name: str) -> str:
    """A program that PyPI does not have: from PATH, or from beside the Python, where `make .venv/.tools` puts it.

    Raises:
        FileNotFoundError: there is none.
    """
    program = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise FileNotFoundError(f"no {name} here: put it on PATH, or run `make .venv/.tools`")
    return program


def heed_sigterm() -> None:
    """SIGTERM ends the command in order, so that the servers it has started end too."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def read_record(path: Path) -> Record:
    """The record at `path`; empty where there is none."""
    record: Record = json.loads(path.read_text()) if path.is_file() else {}
    return record


def write_record(path: Path, record: Record) -> None:
    """Write `record` as JSON, whole or not at all."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
