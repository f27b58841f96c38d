"""Finds a tritonserver on this machine: $TRITONSERVER, then PATH, then the nvidia-pytriton wheel.

Starts nothing and writes nothing. A `NoServerError` says in one sentence what a machine lacks.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from server.errors import NoServerError
from server.terminal import say

WHEEL_GLIBC = (2, 35)
# Its stub for 3.13 too fails with NumPy 2, on every string, and NumPy 1 has no wheels beyond 3.12.
WHEEL_PYTHONS = ((3, 10), (3, 12))
CONTAINER_BACKENDS = Path("/opt/tritonserver/backends")


@dataclass(frozen=True)
class Host:
    """What the search needs to know about a machine and its Python environment."""

    system: str
    glibc: tuple[int, int] | None
    python: tuple[int, int]
    executable: Path
    libpython: Path | None
    numpy: str | None
    env_binary: Path | None
    path_binary: Path | None
    wheel: Path | None

    @classmethod
    def here(cls) -> Host:
        env_binary, path_binary = os.environ.get("TRITONSERVER"), shutil.which("tritonserver")
        return cls(
            system=platform.system(),
            glibc=_glibc(),
            python=(sys.version_info.major, sys.version_info.minor),
            executable=Path(sys.executable),
            libpython=_libpython(),
            numpy=_version("numpy"),
            env_binary=Path(env_binary) if env_binary else None,
            path_binary=Path(path_binary) if path_binary else None,
            wheel=_wheel(),
        )


@dataclass(frozen=True)
class Installation:
    """A tritonserver and its surroundings. The fields after `backends` are for the wheel."""

    binary: Path
    backends: Path
    stub: Path | None = None
    libpython: Path | None = None
    wheel_libraries: Path | None = None
    python_bin: Path | None = None

    @property
    def origin(self) -> str:
        return "nvidia-pytriton wheel" if self.stub else str(self.binary)


def find(host: Host | None = None) -> Installation:
    """The tritonserver to use on `host` (default: this machine). Raises NoServerError."""
    host = host or Host.here()
    if host.system != "Linux":
        raise NoServerError(f"tritonserver runs on Linux only, and this is {host.system}: use a container.")
    if host.env_binary:
        if not os.access(host.env_binary, os.X_OK) or host.env_binary.is_dir():
            raise NoServerError(f"$TRITONSERVER is {str(host.env_binary)!r}, which is not an executable file.")
        return _at(host.env_binary.resolve(), host)
    if host.path_binary:
        return _at(host.path_binary.resolve(), host)
    check_wheel_runs(host)
    if host.wheel is None:
        raise NoServerError(
            f"No tritonserver: none in $TRITONSERVER, on PATH or in the environment of {host.executable}; "
            "`pip install --group server` installs one."
        )
    binary = host.wheel / "tritonserver" / "bin" / "tritonserver"
    if not binary.is_file():
        raise NoServerError(f"{host.wheel} holds no tritonserver; `pip install --group server` installs one that does.")
    return _at(binary, host)


def check_wheel_runs(host: Host) -> None:
    """Raise NoServerError where the wheel's tritonserver cannot run, installed or not."""
    version, low, high = _dotted(host.python), *map(_dotted, WHEEL_PYTHONS)
    if host.glibc is None or host.glibc < WHEEL_GLIBC:
        have = "another C library" if host.glibc is None else f"glibc {_dotted(host.glibc)}"
        raise NoServerError(
            f"No tritonserver on PATH, and the one in the nvidia-pytriton wheel needs glibc "
            f"{_dotted(WHEEL_GLIBC)} or newer but this machine has {have}: use a container."
        )
    if not WHEEL_PYTHONS[0] <= host.python <= WHEEL_PYTHONS[1]:
        raise NoServerError(
            f"The tritonserver of the nvidia-pytriton wheel runs models with Python {low} to {high}, "
            f"and {host.executable} is Python {version}: make a new environment with one of those "
            "(`rm -r .venv`, then `make demo` finds or fetches one). The client alone runs with newer ones."
        )
    if host.libpython is None:
        raise NoServerError(
            f"The tritonserver of the nvidia-pytriton wheel needs the shared library "
            f"{_soname(host.python)}, which {host.executable} lacks: `apt install libpython{version}`, "
            "or use a Python built with --enable-shared."
        )


def _at(binary: Path, host: Host) -> Installation:
    root = binary.parent.parent
    if (root / "python_backend_stubs").is_dir():
        return _in_wheel(binary, host)
    for backends in (root / "backends", CONTAINER_BACKENDS):
        if backends.is_dir():
            return Installation(binary, backends)
    raise NoServerError(
        f"No backends folder for {binary}: neither {root / 'backends'} nor {CONTAINER_BACKENDS} exists."
    )


def _in_wheel(binary: Path, host: Host) -> Installation:
    """The wheel has one stub per Python minor, which embeds *this* environment's interpreter and NumPy."""
    check_wheel_runs(host)
    root = binary.parent.parent
    stub = root / "python_backend_stubs" / _dotted(host.python) / "triton_python_backend_stub"
    if not stub.is_file():
        raise NoServerError(f"{root} holds no stub for Python {_dotted(host.python)}.")
    if host.numpy is None or int(host.numpy.split(".")[0]) >= 2:
        have = "has none" if host.numpy is None else f"has {host.numpy}, with which models silently return nothing"
        raise NoServerError(
            f"The tritonserver of the nvidia-pytriton wheel needs NumPy 1, and the environment of "
            f"{host.executable} {have}: `pip install 'numpy<2'`."
        )
    python_bin = host.executable.parent
    # The stub takes its site-packages from the first `python3` on PATH, whatever started the server.
    if (python_bin / "python3").resolve() != host.executable.resolve():
        raise NoServerError(
            f"{python_bin / 'python3'} is not {host.executable}: run the server from a virtual environment."
        )
    return Installation(
        binary=binary,
        backends=root / "backends",
        stub=stub,
        libpython=host.libpython,
        wheel_libraries=root.parent.parent / "nvidia_pytriton.libs",
        python_bin=python_bin,
    )


def _glibc() -> tuple[int, int] | None:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = version.split(".")[:2]
    except (AttributeError, OSError, ValueError):  # not Linux, or musl
        return None
    return (int(major), int(minor)) if name == "glibc" else None


def _libpython() -> Path | None:
    # By its fixed name, not INSTSONAME: that is an archive in conda's Pythons, which do ship the library.
    name = _soname((sys.version_info.major, sys.version_info.minor))
    libdir, multiarch = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("MULTIARCH") or ""
    folders = [Path(libdir), Path(libdir, multiarch)] if libdir else []
    folders += [Path(sys.base_prefix, "lib"), Path(sys.base_prefix, "lib", multiarch)]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _soname(python: tuple[int, int]) -> str:
    return f"libpython{_dotted(python)}.so.1.0"


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def main() -> int:
    """Before anything is installed: print whether this machine has a tritonserver, or can run that of the wheel."""
    host = Host.here()
    try:
        if host.system != "Linux" or host.env_binary or host.path_binary:
            find(host)
        else:
            check_wheel_runs(host)
    except NoServerError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
