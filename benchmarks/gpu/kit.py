"""python -m benchmarks.gpu.kit: one archive with all that `make gpu` needs on a machine that has PyTorch and a GPU.

Nothing is installed there and nothing fetched: the archive holds a Python of its own with its packages, a trimmed
tritonserver, this checkout's code and the demo snapshot. From the machine comes PyTorch, and so the CUDA libraries.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from server.find import WHEEL_PYTHONS
from training.files import whole_file

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MB = 60
# What is imported on the way, without what that would install: MONAI asks for torch, which the machine has.
PACKAGES = (
    *("nvidia-pytriton", "numpy", "monai", "einops", "safetensors", "tqdm"),
    *("tritonclient", "grpcio", "protobuf", "python-rapidjson", "ml-dtypes"),
    *("cattrs", "attrs", "typing-extensions", "tyro", "docstring-parser", "typeguard"),
    *("pytest", "pluggy", "iniconfig", "packaging", "pygments"),
)
CODE = ("benchmarks", "client", "export", "model_repository", "server", "tests", "training")
UNUSED_STDLIB = ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "config-*")
# Libraries of the system that Python's own modules load; a bare machine may lack them.
LIBRARIES = ("libffi.so", "libz.so", "libbz2.so", "liblzma.so")


class KitError(Exception):
    """A kit that cannot be made; the message says what is missing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, pack, report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kit", description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="a Python with a shared library and pip, of the minor version that the machine's PyTorch is for "
        "(default: this one)",
    )
    parser.add_argument("--snapshot", type=Path, default=Path("runs/demo/diffusion/snapshot"), help="the demo weights")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-kit"), help="where it is laid out")
    arguments = parser.parse_args(argv)
    try:
        lay_out(arguments.python, arguments.snapshot, arguments.folder)
        archive = arguments.folder.with_name(arguments.folder.name + ".tar.xz")
        megabytes = pack(arguments.folder, archive)
    except (KitError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{archive}: {megabytes:.1f} MB. On the machine: tar xf {archive.name} && {arguments.folder.name}/run")
    if megabytes > LIMIT_MB:
        print(f"error: more than the {LIMIT_MB} MB that a kit may have", file=sys.stderr)
        return 1
    return 0


def lay_out(python: Path, snapshot: Path, folder: Path) -> None:
    """Fill `folder`, emptied before, with python/, checkout/ and run.

    Raises:
        KitError: the Python is none that the server runs with, or has no shared library.
    """
    shutil.rmtree(folder, ignore_errors=True)
    minor, base = describe(python)
    copy_python(base, minor, folder / "python")
    print(f"installing {len(PACKAGES)} packages for Python {minor} ...", flush=True)
    site = folder / "python" / "lib" / f"python{minor}" / "site-packages"
    pins = [f"{name}=={version(name)}" for name in PACKAGES]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--target", str(site), *pins], check=True)
    trim(site, minor)
    strip(
        [
            *folder.rglob("lib/libpython*"),
            *folder.rglob("lib-dynload/*.so"),
            *site.glob("rapidjson*.so"),
            *site.glob("ml_dtypes/*.so"),
        ]
    )
    copy_code(folder / "checkout")
    copy_snapshot(snapshot, folder / "checkout")
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
    return minor, Path(base)


def copy_python(base: Path, minor: str, into: Path) -> None:
    """A Python that runs wherever it lies, without its tests and tools; `run` tells it where its libraries are."""
    (into / "bin").mkdir(parents=True)
    shutil.copy2((base / "bin" / f"python{minor}").resolve(), into / "bin" / "python3")
    (into / "lib").mkdir()
    library = into / "lib" / f"libpython{minor}.so.1.0"
    shutil.copy2(base / "lib" / library.name, library)
    stdlib = into / "lib" / f"python{minor}"
    ignore = shutil.ignore_patterns("__pycache__", *UNUSED_STDLIB)
    shutil.copytree(base / "lib" / f"python{minor}", stdlib, ignore=ignore)
    for needed in _libraries([*stdlib.glob("lib-dynload/*.so")]):
        shutil.copy2(needed, into / "lib" / needed.name)


def _libraries(modules: Iterable[Path]) -> set[Path]:
    """Where the system keeps the LIBRARIES that `modules` load, under the names that they ask for."""
    told = subprocess.run(["ldd", *map(str, modules)], capture_output=True, text=True, check=True).stdout
    paths = {line.split()[2] for line in told.splitlines() if line.strip().startswith(LIBRARIES) and "=> /" in line}
    return {Path(path) for path in paths}


def trim(site: Path, minor: str) -> None:
    """Take out what the benchmark does not touch: three quarters of the server's wheel, tests, other Pythons."""
    server = site / "pytriton" / "tritonserver"
    for path in [*server.glob("python_backend_stubs/*"), server / "caches"]:
        if path.name != minor:
            shutil.rmtree(path)
    for path in (site / "nvidia_pytriton.libs").glob("libpython*"):  # of the stub for 3.13
        path.unlink()
    for path in [*(site / "pytriton").glob("*"), *site.glob("numpy/**/tests")]:
        if path.is_dir() and path != server and not path.name.startswith("_"):
            shutil.rmtree(path)
    for path in site.glob("bin/*"):
        path.unlink()

    for path in (site / "nvidia_pytriton.libs").glob("libicudata*"):
        blank_section(path, ".rodata")


def strip(libraries: Sequence[Path]) -> None:
    """Take the debugging symbols out, if binutils are here: three quarters of a Python built from source."""
    if tool := shutil.which("strip"):
        subprocess.run([tool, "--strip-unneeded", *map(str, libraries)], check=True)


def blank_section(library: Path, name: str) -> None:
    """Zero a section of a 64-bit ELF library, which then packs to nothing.

    For ICU's tables, a third of the trimmed server: XML in other character sets than Unicode, which it never reads.

    Raises:
        KitError: there is no such section.
    """
    data = bytearray(library.read_bytes())
    (sections,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, sections + size * index) for index in range(count)]
    names = headers[names_index][4]
    for offset_of_name, _, _, _, offset, length in headers:
        start = names + offset_of_name
        if data[start : data.index(0, start)].decode() == name:
            data[offset : offset + length] = bytes(length)
            library.write_bytes(data)
            return
    raise KitError(f"{library} has no section {name}")


def copy_code(into: Path) -> None:
    """The tracked and the new files of the code, without weights and pictures."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *CODE, "pyproject.toml"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        source, target = ROOT / name, into / name
        if source.suffix in (".onnx", ".png") or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            shutil.copy2(source, target)


def copy_snapshot(snapshot: Path, checkout: Path) -> None:
    """The demo weights, to where the benchmark looks for them."""
    if (snapshot / "snapshot.json").is_file():
        shutil.copytree(snapshot, checkout / "runs" / "demo" / "diffusion" / "snapshot")
    else:
        print(f"{snapshot} is no snapshot: the kit has no demo weights, and measures the bundle's networks alone")


def pack(folder: Path, archive: Path) -> float:
    """Write `archive` with `folder` inside; its megabytes."""
    print(f"packing {folder} (a minute or two) ...", flush=True)
    with whole_file(archive) as temporary, tarfile.open(temporary, "w:xz", preset=6) as tar:
        tar.add(folder, folder.name)
    return archive.stat().st_size / 1e6


if __name__ == "__main__":
    sys.exit(main())
