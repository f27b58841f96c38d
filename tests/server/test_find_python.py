"""Which Python `make` takes, with a PATH that holds only what a case puts there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.find import WHEEL_PYTHONS
from support.common import ROOT

REAL = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
LACKS_ENSUREPIP = f'#!/bin/sh\ncase "$*" in *"import ensurepip"*) exit 1;; esac\nexec "{REAL}" "$@"\n'
LACKS_PIP_TOO = LACKS_ENSUREPIP.replace("*) exit", '*|*"import pip"*) exit')
UV_FETCHES = """#!/bin/sh
[ "$*" = "python install 3.12" ] && [ "$UV_PYTHON_INSTALL_BIN" = 0 ] || exit 1
mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython-3.12-linux/bin" "$UV_PYTHON_INSTALL_DIR/cpython-3.12.16-linux/bin"
touch "$UV_PYTHON_INSTALL_DIR/cpython-3.12.16-linux/bin/python3.12"
"""
# What uv 0.13 says.
UV_FINDS_NO_NETWORK = """#!/bin/sh
echo "error: Failed to install cpython-3.12.16-linux-x86_64-gnu" >&2
echo "  cause: client error (Connect)" >&2
echo "  cause: failed to lookup address information: Name or service not known" >&2
exit 1
"""


def find_python(folder: Path, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """programs: name to its script, or to the file that it links to."""
    path = folder / "on path"
    path.mkdir()
    tools = ("basename", "dirname", "grep", "mkdir", "mktemp", "rm", "sh", "tail", "touch", "uname")
    for name in tools:
        (path / name).symlink_to(str(shutil.which(name)))
    for name, script in programs.items():
        if script.startswith("#!"):
            (path / name).write_text(script)
            (path / name).chmod(0o755)
        else:
            (path / name).symlink_to(script)
    command = [str(ROOT / "server" / "find_python.sh"), "cpython"]
    env = {"PATH": str(path), "HOME": str(folder), "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("programs", "taken"),
    [
        ({"python3": str(REAL), "python3.10": LACKS_ENSUREPIP}, "on path/python3"),
        ({"python3": LACKS_ENSUREPIP, "python3.12": LACKS_ENSUREPIP, "python3.11": str(REAL)}, "on path/python3.11"),
        ({"python3.10": str(REAL), "uv": UV_FINDS_NO_NETWORK}, "on path/python3.10"),
    ],
)
def test_a_python_that_fits_is_taken_from_path(tmp_path: Path, programs: dict[str, str], taken: str) -> None:
    done = find_python(tmp_path, programs)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / taken}\n", "")


def test_else_cpython_is_fetched_by_uv_and_that_is_told_in_a_line(tmp_path: Path) -> None:
    done = find_python(tmp_path, {"python3": LACKS_ENSUREPIP, "uv": UV_FETCHES})
    assert (done.returncode, done.stdout) == (0, "cpython/cpython-3.12.16-linux/bin/python3.12\n")
    assert done.stderr == (
        "no Python 3.10 to 3.12 with venv and a shared libpython on PATH: "
        "fetching CPython 3.12 into cpython with uv ...\n"
    )


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({"uv": UV_FINDS_NO_NETWORK}, "failed to lookup address information: Name or service not known"),
        ({"python3": LACKS_PIP_TOO}, "there is no uv, and no python3 with pip or venv to install it"),
        ({}, "there is no uv, and no python3 with pip or venv to install it"),
    ],
)
def test_without_one_a_line_says_what_to_install(tmp_path: Path, programs: dict[str, str], reason: str) -> None:
    done = find_python(tmp_path, programs)
    assert (done.returncode, done.stdout) == (1, "")
    _, line = done.stderr.splitlines()
    assert line == (
        f"error: CPython 3.12 could not be fetched ({reason}): install Python 3.12 with venv and run make again, "
        "or name a Python 3.10 to 3.12 with PYTHON="
    )
    assert not list(tmp_path.glob("tmp.*"))


@pytest.mark.parametrize(("given", "taken"), [("PYTHON=mine", '"mine"'), ("OTHER=x", '"$(server/find_python.sh ')])
def test_a_python_that_is_named_wins(given: str, taken: str) -> None:
    command = ["make", "-n", "VENV=absent", given, "absent/bin/python"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert f"python={taken}" in shown


def test_everything_names_the_same_pythons() -> None:
    low, high = (f"3.{minor}" for _, minor in WHEEL_PYTHONS)
    script = (ROOT / "server" / "find_python.sh").read_text()
    named = re.findall(r"python(3\.\d+)", re.findall(r"for python in (.*);", script)[0])
    assert sorted(named) == [f"3.{minor}" for minor in range(WHEEL_PYTHONS[0][1], WHEEL_PYTHONS[1][1] + 1)]
    assert set(re.findall(r"Python (3\.\d+) to (3\.\d+)", script)) == {(low, high)}
    readme, project = ((ROOT / name).read_text() for name in ("README.md", "pyproject.toml"))
    assert f"Server, training and tests need Python {low} to {high}" in readme
    assert f"All are for Python {low} to {high}" in project
    newest = re.findall(r"The client runs on Python 3\.10 to 3\.(\d+)", readme)[0]
    assert f'requires-python = ">=3.10,<3.{int(newest) + 1}"' in project
