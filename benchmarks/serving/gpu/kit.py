"""python -m benchmarks.serving.gpu.kit: an archive with what `make gpu` needs on a machine without network.

It holds a Python with its headers, a trimmed tritonserver and PACKAGES. The machine has PyTorch, the CUDA libraries and
what images for PyTorch usually have beside it: grpcio, ml-dtypes, onnx, psutil, safetensors, einops, tqdm, pytest. A
checkout there has the code and the demo weights. Left out: files that nothing needs, and symbols. `run` sets the paths.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import ROOT
from server.find import WHEEL_PYTHONS
from training.cli import run_command
from training.files import whole_file

ARCHIVE = ROOT / "build" / "gpu-kit.tar.xz"
NAME = "gpu-kit"
LIMIT_MB = 44  # 64 MiB may travel to the machine at a time, and the checkout has 21 MB
PACKAGES = (
    *("nvidia-pytriton", "numpy", "monai", "tritonclient", "protobuf", "python-rapidjson"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("tyro", "docstring-parser", "typeguard"),
)
UNUSED = (
    *("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "__pycache__", "config-*"),
    *("_test*.so", "_codecs_*.so", "tests", "*.pyi", "RECORD", "libpython*", "caches", "f2py", "_simd*"),
)
# A filter for x86-64 code, and a dictionary that spans the archive: the server and its library have much in common.
XZ = ({"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 28})


class KitError(Exception):
    """A kit that cannot be made; the message says what is missing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, pack, report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.gpu.kit", description=(__doc__ or "").partition("\n")[0]
    )
    python = "with a shared library and pip, of the minor version of the machine's PyTorch (default: this one)"
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help=python)
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="file to write (default: build/gpu-kit.tar.xz)")
    arguments = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="brats-ldm-kit-") as work:
            lay_out(arguments.python, Path(work))
            megabytes = pack(Path(work), arguments.archive)
    except (KitError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    name = arguments.archive.name
    print(f"{name}: {megabytes:.1f} MB. In a checkout on the machine: tar xf {name} -C /tmp && /tmp/{NAME}/run")
    if megabytes > LIMIT_MB:
        print(f"error: more than {LIMIT_MB} MB: install binutils (strip), or pack a smaller Python", file=sys.stderr)
        return 1
    return 0


def lay_out(python: Path, folder: Path) -> None:
    """Fill `folder` with python/ and run. Raises KitError as `describe` does."""
    minor, base = describe(python)
    copy_python(base, minor, folder / "python")
    print(f"installing {len(PACKAGES)} packages for Python {minor} ...", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    packages = folder / "packages"
    pins = [f"{name}=={version(name)}" for name in PACKAGES]
    subprocess.run([*pip, "--only-binary=:all:", "--target", str(packages), *pins], check=True)
    stubs = [name for name in ("3.8", "3.9", "3.10", "3.11", "3.12") if name != minor]
    site = folder / "python" / "lib" / f"python{minor}" / "site-packages"
    shutil.copytree(packages, site, ignore=shutil.ignore_patterns(*UNUSED, *stubs), symlinks=True)
    shutil.rmtree(packages)
    shutil.copy2(Path(__file__).with_name("run_kit.sh"), folder / "run")


def describe(python: Path) -> tuple[str, Path]:
    """Minor version and prefix, of the Python that a virtual environment was made from.

    Raises:
        KitError: the server does not run with this Python, or it lacks its shared library or its headers.
    """
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.base_prefix, sep='\\n')"
    minor, prefix = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.split()
    base, (low, high) = Path(prefix), ("{}.{}".format(*allowed) for allowed in WHEEL_PYTHONS)
    if not WHEEL_PYTHONS[0] <= tuple(map(int, minor.split("."))) <= WHEEL_PYTHONS[1]:
        raise KitError(f"{python} is Python {minor}; the server runs models with {low} to {high}")
    if not (base / "lib" / f"libpython{minor}.so.1.0").is_file():
        raise KitError(f"{base}/lib has no libpython{minor}.so.1.0, which the server needs: give --python another one")
    if not (base / "include" / f"python{minor}" / "Python.h").is_file():
        raise KitError(f"{base}/include has no Python.h, which torch.compile needs: give --python another one")
    return minor, base


def copy_python(base: Path, minor: str, into: Path) -> None:
    """A Python that runs wherever it lies, with headers, without packages; `run` tells it where its library is."""
    ignore = shutil.ignore_patterns(*UNUSED, "site-packages")
    for folder in (Path("lib", f"python{minor}"), Path("include", f"python{minor}")):
        shutil.copytree(base / folder, into / folder, ignore=ignore)
    (into / "bin").mkdir()
    shutil.copy2((base / "bin" / f"python{minor}").resolve(), into / "bin" / "python3")
    shutil.copy2(base / "lib" / f"libpython{minor}.so.1.0", into / "lib")
    if strip := shutil.which("strip"):  # symbols are three quarters of a Python built from source
        files = [into / "bin" / "python3", *into.rglob("*.so*")]
        subprocess.run([strip, "--strip-unneeded", *map(str, files)], check=True)


def pack(folder: Path, archive: Path) -> float:
    """Write `archive` with `folder` inside, as NAME; its megabytes."""
    print("packing (some minutes) ...", flush=True)
    with (
        whole_file(archive) as temporary,
        lzma.open(temporary, "wb", filters=XZ) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(folder, NAME)
    return archive.stat().st_size / 1e6


if __name__ == "__main__":
    run_command(main)
