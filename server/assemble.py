"""Assembles what surrounds a tritonserver: its backends folder and its environment variables.

Writes into one folder that the caller owns and removes; never into an installation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from server.find import Installation

OWN_BACKENDS = Path(__file__).resolve().parent / "backends"


def backends_folder(installation: Installation, into: Path) -> Path:
    """A folder with the installation's backends, plus our python-based ones for the names that it lacks."""
    own = [folder for folder in sorted(OWN_BACKENDS.iterdir()) if (folder / "model.py").is_file()]
    missing = [folder for folder in own if not (installation.backends / folder.name).exists()]
    if not missing and installation.stub is None:
        return installation.backends
    backends = into / "backends"
    backends.mkdir()
    for folder in installation.backends.iterdir():
        if folder.name == "python" and installation.stub:
            _copy_python_backend(folder, installation.stub, backends / "python")
        else:
            (backends / folder.name).symlink_to(folder)
    for folder in missing:
        (backends / folder.name).symlink_to(folder)
    return backends


def _copy_python_backend(source: Path, stub: Path, target: Path) -> None:
    """The wheel keeps the stub of each Python minor apart; the python backend wants it beside its library."""
    # Copies (6 MB): Triton refuses a backend library that is a link out of its folder.
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, target / stub.name)


def python_based(backends: Path) -> list[str]:
    """Names of the backends that run in stub processes: the python backend, and those written for it."""
    return ["python", *sorted(folder.parent.name for folder in backends.glob("*/model.py"))]


def environment(installation: Installation, into: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the server: `base`, and where the wheel's stub finds Python and its libraries."""
    env = dict(base)
    if installation.libpython and installation.wheel_libraries:
        # That one library alone: the lib folder of, say, conda would shadow libstdc++ and OpenSSL too.
        libraries = into / "lib"
        libraries.mkdir()
        (libraries / installation.libpython.name).symlink_to(installation.libpython)
        _prepend(env, "LD_LIBRARY_PATH", libraries, installation.wheel_libraries)
    if installation.python_bin:
        _prepend(env, "PATH", installation.python_bin)
    return env


def _prepend(env: dict[str, str], name: str, *folders: Path) -> None:
    present = [env[name]] if env.get(name) else []
    env[name] = os.pathsep.join([*map(str, folders), *present])
