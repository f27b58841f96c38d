"""Gets perf_analyzer and the three libraries that it needs, by their package names.

perf_analyzer comes with the wheel of tritonclient 2.51.0, the last that runs on glibc 2.36, and is of the server's
version. Its libb64.so.0d is Debian's (and Ubuntu's) libb64-0d, its libcudart.so.12 the wheel nvidia-cuda-runtime-cu12;
where the machine has them, nothing is fetched. Nothing is installed.

It runs with jemalloc (Debian's libjemalloc2), which fills memory with zeros. 2.51 records an output that a response
leaves out, such as start_latent, as one value of memory that nobody has set. If that is no number, the record of the
requests ends there, and the exit status is still 0.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from training.cli import run_command
from training.files import whole_file

FOLDER = Path("build/perf_analyzer")
WHEEL, BINARY = "tritonclient==2.51.0", "perf_analyzer"
ALLOCATOR = "libjemalloc.so.2"
LIBRARIES = {"libb64.so.0d": "libb64-0d", "libcudart.so.12": "nvidia-cuda-runtime-cu12", ALLOCATOR: "libjemalloc2"}


class FetchError(RuntimeError):
    """A part could not be had; says which, and how to put it there by hand."""


def fetch(folder: Path) -> Path:
    """The program in `folder`, ready to run from anywhere with `environment`. Raises FetchError."""
    folder = folder.resolve()  # downloads and runs have working folders of their own
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / BINARY).is_file():
        _get(WHEEL, folder / BINARY)
        (folder / BINARY).chmod(0o755)
    for library, package in LIBRARIES.items():
        if not (folder / library).is_file() and not _on_this_machine(library):
            _get(package, folder / library)
    run = [str(folder / BINARY), "--version"]
    done = subprocess.run(run, env=environment(folder), capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise FetchError(f"{folder / BINARY} does not run here: {(done.stderr or done.stdout).strip()[-300:]}")
    return folder / BINARY


def environment(folder: Path) -> dict[str, str]:
    """The environment in which the program finds its libraries, and goes past any proxy to what it measures."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    libraries = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    return kept | {"LD_LIBRARY_PATH": libraries, "LD_PRELOAD": ALLOCATOR, "MALLOC_CONF": "zero:true"}


def _on_this_machine(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _get(package: str, target: Path) -> None:
    """The file of `target`'s name in a package: Debian's if its name begins with lib, else a wheel."""
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        work = Path(temporary)
        if package.startswith("lib"):
            _run(["apt-get", "download", package], work, target)
            _run(["dpkg-deb", "-x", *map(str, work.glob("*.deb")), "unpacked"], work, target)
        else:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
            _run(pip, work, target)
            for wheel in work.glob("*.whl"):
                shutil.unpack_archive(wheel, work / "unpacked", "zip")
        for path in (work / "unpacked").rglob(target.name):
            if path.is_file():
                with whole_file(target) as copy:
                    shutil.copy(path, copy)  # follows a link to the library's full name
                return
    raise FetchError(f"no {target.name} in the package {package}: put one at {target}")


def _run(command: list[str], folder: Path, target: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{command[0]}: {error}; put the file at {target} by hand") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise FetchError(f"`{' '.join(command)}` failed: {' '.join(words)}; put the file at {target} by hand")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch; print where it is."""
    parser = argparse.ArgumentParser("python -m benchmarks.serving.analyzer.fetch", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=FOLDER, help="folder for perf_analyzer (default: %(default)s)"
    )
    try:
        print(fetch(parser.parse_args(argv).folder))
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
