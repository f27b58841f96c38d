"""Prepares the surroundings of a tritonserver: backends folder, environment variables, paths of plain characters.

Writes into folders that the caller owns and removes; never into an installation.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from server.errors import ServerError
from server.find import Installation
from server.resources import check_runs_programs

OWN_BACKENDS = Path(__file__).resolve().parent / "backends"
PLAIN = re.compile(r"[A-Za-z0-9_./+=@%,-]+")


def plain(path: Path, link: Path) -> Path:
    """The path, or else a `link` to it where it has more than plain characters.

    Triton starts the process of a Python model by `bash -c` with paths as they are, the process opens them as ASCII,
    and the variables that list folders cannot have their separators in one.
    """
    if PLAIN.fullmatch(str(path)):
        return path
    link.symlink_to(path)
    return link


def check_model_names(repository: Path) -> None:
    """Raise ServerError for a model whose name would not be plain, which no link to the repository mends."""
    for config in sorted(repository.glob("*/config.pbtxt")):
        if not PLAIN.fullmatch(name := config.parent.name):
            raise ServerError(f"{repository} has a model {name!r}: name it by ASCII letters, digits and _.-")


def backends_folder(installation: Installation, into: Path) -> Path:
    """A folder with the installation's backends, plus our python-based ones for the names that it lacks.

    Raises ServerError where the copies that it needs could not run in `into`.
    """
    ours = [folder for folder in sorted(OWN_BACKENDS.iterdir()) if (folder / "model.py").is_file()]
    missing = [folder for folder in ours if not (installation.backends / folder.name).exists()]
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
    """The wheel has one stub for each Python minor version, apart; the python backend expects it beside its library."""
    # Copies (6 MB): Triton refuses a backend library that is a link out of its folder.
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    check_runs_programs(Path(shutil.copy2(stub, target / stub.name)))


def python_based(backends: Path) -> list[str]:
    """Names of the backends that run in stub processes: the python backend, and those written for it."""
    return ["python", *sorted(folder.parent.name for folder in backends.glob("*/model.py"))]


def environment(installation: Installation, links: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the server: `base`, and the paths where the wheel's stub finds Python and its libraries.

    links: a folder for links, itself with a plain path.
    """
    env = dict(base)
    if installation.libpython and installation.wheel_libraries:
        # Only this library: the whole lib folder of conda, for example, would also replace libstdc++ and OpenSSL.
        libraries = links / "lib"
        libraries.mkdir()
        (libraries / installation.libpython.name).symlink_to(installation.libpython)
        _prepend(env, "LD_LIBRARY_PATH", libraries, plain(installation.wheel_libraries, links / "wheel_libraries"))
    if installation.python_bin:
        _prepend(env, "PATH", _plain_python(installation.python_bin, links))
    return env


def _plain_python(python_bin: Path, links: Path) -> Path:
    """The folder of the interpreter, or one like it with a plain path: Python looks for its packages around it.

    The pyvenv.cfg of a virtual environment says where Python itself is, which the stub takes in ASCII too.
    """
    environment, config = python_bin.parent, python_bin.parent / "pyvenv.cfg"
    text = config.read_text("utf-8", "surrogateescape") if config.is_file() else ""
    home = re.search(r"^home *= *(.*)$", text, re.MULTILINE)
    if home is None or PLAIN.fullmatch(home[1]):
        return plain(environment, links / "python") / python_bin.name
    like = links / "python"
    like.mkdir()
    for part in environment.iterdir():
        if part.name != config.name:
            (like / part.name).symlink_to(part)
    base = plain(Path(home[1]).parent, links / "base") / Path(home[1]).name
    (like / config.name).write_text(text.replace(home[0], f"home = {base}"), "utf-8", "surrogateescape")
    return like / python_bin.name


def _prepend(env: dict[str, str], name: str, *folders: Path) -> None:
    present = [env[name]] if env.get(name) else []
    env[name] = os.pathsep.join([*map(str, folders), *present])
