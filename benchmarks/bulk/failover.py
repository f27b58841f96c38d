"""A bulk run over two servers, one of which is killed on the way; then the folder is verified and read."""

from __future__ import annotations

import io
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bulk.command import await_shards, end, kill, start
from benchmarks.harness.command import tool
from server.process import TritonServer

FORMATS = "webdataset,nifti,dicom"
SAMPLER = "dpmpp_2m"


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    images: int
    steps: int
    shard_size: int
    sample: int


FULL = Amount(images=2000, steps=10, shard_size=100, sample=64)
QUICK = Amount(images=40, steps=2, shard_size=8, sample=4)


def measure(repository: Path, profile: str, work: Path, amount: Amount) -> dict[str, Any]:
    """What happened, counted, and the seconds of the run and of verifying."""
    folder = work / "failover"
    shutil.rmtree(folder, ignore_errors=True)
    with TritonServer(repository, profile) as doomed, TritonServer(repository, profile) as survivor:
        doomed.probe()
        survivor.probe()
        began = time.monotonic()
        how = ("--count", amount.images, "--shard-size", amount.shard_size, "--steps", amount.steps)
        process = start(
            "bulk", "--url", f"{doomed.grpc_url},{survivor.grpc_url}", "--out", folder, "--format", FORMATS,
            "--sampler", SAMPLER, *map(str, how),
        )  # fmt: skip
        before = await_shards(folder, process, max(1, amount.images // amount.shard_size // 3))
        kill(doomed)
        end(process)
        made = time.monotonic()
        verified = end(start("verify", folder, "--url", survivor.grpc_url, "--sample", str(amount.sample)))
    return {
        **vars(amount),
        "sampler": SAMPLER,
        "shards_before_the_kill": before,
        "seconds": round(made - began, 1),
        "verify_seconds": round(time.monotonic() - made, 1),
        "verify": verified.splitlines()[-1].removeprefix(f"{folder}: "),
        "read": {
            "webdataset": _webdataset(folder.glob("*.tar")),
            "nibabel": _nibabel(folder.glob("*-nifti/*.nii.gz")),
            "pydicom": _pydicom(folder.glob("*-dicom/*.dcm")),
        },
        "dciodvfy": _dciodvfy(sorted(folder.glob("*-dicom/*.dcm"))),
    }


def _webdataset(tars: Iterable[Path]) -> int:
    """Images that webdataset decodes, with a record of the same seed."""
    import webdataset

    data = webdataset.WebDataset(sorted(map(str, tars)), shardshuffle=False).decode("l")
    return sum(f"{sample['json']['seed']:09d}" in sample["__key__"] and sample["png"].shape == (240, 240)
               for sample in data)  # fmt: skip


def _nibabel(files: Iterable[Path]) -> int:
    """Volumes of one slice with voxels of 1 mm that say that they are synthetic."""
    import nibabel

    volumes: Iterable[Any] = map(nibabel.load, files)
    return sum(
        volume.get_fdata().shape == (240, 240, 1)
        and volume.header.get_zooms() == (1, 1, 1)
        and b"SYNTHETIC" in volume.header["descrip"].tobytes()
        for volume in volumes
    )


def _pydicom(files: Iterable[Path]) -> int:
    """Objects with pixels, a UID of their own and Synthetic Data YES."""
    import pydicom

    uids = set()
    for file in files:
        data = pydicom.dcmread(io.BytesIO(file.read_bytes()))
        if data.pixel_array.shape == (240, 240) and data.SyntheticData == "YES":
            uids.add(data.SOPInstanceUID)
    return len(uids)


def _dciodvfy(files: list[Path]) -> dict[str, Any]:
    """How many files, how many errors, and what the warnings are, each once.

    Lines about the attribute Synthetic Data do not count: Debian's dciodvfy of 2022 does not know it yet.

    Raises:
        FileNotFoundError: there is no dciodvfy.
    """
    program = tool("dciodvfy")
    errors, warnings = 0, set[str]()
    for file in files:
        done = subprocess.run([program, str(file)], capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if "(0x0008,0x001c)" not in line]
        errors += sum(line.startswith("Error - ") for line in lines) + bool(done.returncode)
        warnings |= {line.removeprefix("Warning - ") for line in lines if line.startswith("Warning - ")}
    return {"files": len(files), "errors": errors, "warnings": sorted(warnings)}
