"""python -m benchmarks.gpu.kit: one archive with all that `make gpu` needs beside a checkout, a GPU and PyTorch.

Nothing is installed on that machine and nothing fetched: the archive holds a Python of its own with its headers, its
packages, and a trimmed tritonserver. From the machine come PyTorch and the CUDA libraries, from a checkout there the
code and the demo weights.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from server.find import WHEEL_PYTHONS
from training.cli import run_command
from training.files import whole_file

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "build" / "gpu-kit.tar.xz"
NAME = "gpu-kit"
LIMIT_MB = 44  # 64 MiB may travel to the machine at a time, and the checkout has 20 MB
# What is imported on the way, without what that would install: MONAI asks for torch, which the machine has.
PACKAGES = (
    *("nvidia-pytriton", "numpy", "monai", "einops", "safetensors", "tqdm"),
    *("tritonclient", "grpcio", "protobuf", "python-rapidjson", "onnx", "ml-dtypes"),
    *("cattrs", "attrs", "typing-extensions", "tyro", "docstring-parser", "typeguard"),
    *("pytest", "pluggy", "iniconfig", "packaging", "pygments"),
)
UNUSED_STDLIB = (
    *("test", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3", "pydoc_data"),
    *("site-packages", "config-*", "__pycache__", "_codecs_*", "_test*", "_xxtest*"),
)
# Of the packages: three quarters of the server's wheel, other Pythons' library, tests, sources, languages to colour.
UNUSED_PACKAGES = (
    *("pytriton/[!t_]*", "pytriton/tritonserver/caches", "nvidia_pytriton.libs/libpython*"),
    *("bin", "*.dist-info/RECORD", "*.dist-info/licenses"),
    *("numpy/**/tests", "numpy/core/_simd*", "numpy/distutils", "numpy/f2py"),
    *("onnx/backend/test", "onnx/defs/**/*.cc", "onnx/defs/**/*.h", "**/*.pyi"),
    *("pygments/lexers/[!_dp]*", "pygments/lexers/_*_builtins.py"),
)
# Some libraries break when they are stripped. These do not, and they are nine tenths of the gain.
STRIPPED = (
    *("lib/libpython*", "lib/python*/lib-dynload/*.so", "lib/python*/site-packages/rapidjson*.so"),
    *("lib/python*/site-packages/ml_dtypes/*.so", "lib/python*/site-packages/pytriton/tritonserver/bin/tritonserver"),
    *("lib/python*/site-packages/nvidia_pytriton.libs/libtritonserver*",),
)
# A filter for x86-64 code, and a dictionary that spans the archive: the server and its library have much in common.
XZ = ({"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 28})
# Libraries of the system that Python's own modules load; a bare machine may lack them.
LIBRARIES = ("libffi.so", "libz.so", "libbz2.so", "liblzma.so")


class KitError(Exception):
    """A kit that cannot be made; the message says what is missing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, pack, report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.kit", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="a Python with a shared library and pip, of the minor version that the machine's PyTorch is for "
        "(default: this one)",
    )
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="default: build/gpu-kit.tar.xz")
    arguments = parser.parse_args(argv)
    archive: Path = arguments.archive
    try:
        with tempfile.TemporaryDirectory(prefix="brats-ldm-kit-") as work:
            lay_out(arguments.python, Path(work))
            megabytes = pack(Path(work), archive)
    except (KitError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{archive}: {megabytes:.1f} MB. In a checkout on the machine: tar xf {archive.name} -C /tmp && /tmp/{NAME}/run"
    )
    if megabytes > LIMIT_MB:
        print(f"error: more than the {LIMIT_MB} MB that a kit may have", file=sys.stderr)
        return 1
    return 0


def lay_out(python: Path, folder: Path) -> None:
    """Fill `folder` with python/ and run.

    Raises:
        KitError: the Python is none that the server runs with, or lacks its shared library or its headers.
    """
    minor, base = describe(python)
    copy_python(base, minor, folder / "python")
    print(f"installing {len(PACKAGES)} packages for Python {minor} ...", flush=True)
    site = folder / "python" / "lib" / f"python{minor}" / "site-packages"
    pins = [f"{name}=={version(name)}" for name in PACKAGES]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--target", str(site), *pins], check=True)
    trim(site, minor)
    strip([path for pattern in STRIPPED for path in (folder / "python").glob(pattern)])
    shutil.copy2(Path(__file__).with_name("run_kit.sh"), folder / "run")


def describe(python: Path) -> tuple[str, Path]:
    """Minor version and prefix, of the Python that a virtual environment was made from."""
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.base_prefix, sep='\\n')"
    minor, base = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.split()
    low, high = (f"{major}.{minor}" for major, minor in WHEEL_PYTHONS)
    if not WHEEL_PYTHONS[0] <= tuple(map(int, minor.split("."))) <= WHEEL_PYTHONS[1]:
        raise KitError(f"{python} is Python {minor}; the server runs models with {low} to {high}")
    if not (Path(base) / "lib" / f"libpython{minor}.so.1.0").is_file():
        raise KitError(f"{base}/lib has no libpython{minor}.so.1.0, which the server needs: give --python another one")
    if not (Path(base) / "include" / f"python{minor}" / "Python.h").is_file():
        raise KitError(f"{base}/include has no Python.h, which torch.compile needs: give --python another one")
    return minor, Path(base)


def copy_python(base: Path, minor: str, into: Path) -> None:
    """A Python that runs wherever it lies, headers and all, without tests; `run` tells it where its libraries are."""
    (into / "bin").mkdir(parents=True)
    shutil.copy2((base / "bin" / f"python{minor}").resolve(), into / "bin" / "python3")
    (into / "lib").mkdir()
    library = into / "lib" / f"libpython{minor}.so.1.0"
    shutil.copy2(base / "lib" / library.name, library)
    stdlib = into / "lib" / f"python{minor}"
    ignore = shutil.ignore_patterns(*UNUSED_STDLIB)
    shutil.copytree(base / "lib" / f"python{minor}", stdlib, ignore=ignore)
    headers = Path("include", f"python{minor}")
    shutil.copytree(base / headers, into / headers)
    for needed in _libraries([*stdlib.glob("lib-dynload/*.so")]):
        shutil.copy2(needed, into / "lib" / needed.name)


def _libraries(modules: Iterable[Path]) -> set[Path]:
    """Where the system keeps the LIBRARIES that `modules` load, under the names that they ask for."""
    told = subprocess.run(["ldd", *map(str, modules)], capture_output=True, text=True, check=True).stdout
    paths = {line.split()[2] for line in told.splitlines() if line.strip().startswith(LIBRARIES) and "=> /" in line}
    return {Path(path) for path in paths}


def trim(site: Path, minor: str) -> None:
    """Take out what the benchmark does not touch."""
    stubs = site / "pytriton" / "tritonserver" / "python_backend_stubs"
    unused = [path for pattern in UNUSED_PACKAGES for path in site.glob(pattern)]
    for path in [*unused, *(stub for stub in stubs.iterdir() if stub.name != minor)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def strip(libraries: Sequence[Path]) -> None:
    """Take the symbols out, if binutils are here: three quarters of a Python built from source."""
    if tool := shutil.which("strip"):
        subprocess.run([tool, "--strip-unneeded", *map(str, libraries)], check=True)


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
