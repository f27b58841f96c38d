"""What a large run needs, on paper: pure functions of measured sizes and rates."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from benchmarks.harness.device import Device
from benchmarks.harness.markdown import Record

DAY_S = 86_400.0
LINK_BYTES = 10e9 / 8
"""A second, of a network of 10 Gbit/s."""
DISK_BYTES = 500e6
"""A second, of a disk."""
INODE_BYTES = 16_384
"""Of the disk for each inode, as ext4 makes them by default."""
DISK_TB = 1e12
NAMES = 10**6
"""In one folder: more make listings slow."""
SIX_DIGITS = 10**6
"""Shards, until the numbers in their names need a seventh digit."""
MANIFEST_BYTES = 100e6
"""A manifest that every reader of the folder loads: larger is a nuisance."""
OPEN_S = 600.0
"""A start that takes longer is a nuisance."""
H200 = Device(base=0.0004, row=0.000032, decode=0.0005)
"""An estimate for the bundle's networks: twice the time that memory and arithmetic need at least, and a fixed cost.
Nothing here was measured on a GPU."""


DEADLINES = {"1 day": DAY_S, "1 week": 7 * DAY_S, "30 days": 30 * DAY_S}


def inputs() -> Record:
    """What the tables assume and nobody has measured, for the record."""
    return {"gpu_estimate": asdict(H200), "deadlines_s": DEADLINES}


@dataclass(frozen=True)
class Server:
    """`per_s`: images a second of one server."""

    name: str
    per_s: float

    def hours(self, images: float) -> float:
        """Of one server."""
        return images / self.per_s / 3600

    def needed(self, images: float, deadline_s: float) -> float:
        """Whole servers, if all always work."""
        servers = round(images / self.per_s / deadline_s, 9)
        return math.ceil(servers) if math.isfinite(servers) else servers  # a record without figures has none


def device_rate(device: Device, steps: int, rows: int = 64) -> float:
    """Images a second of a device whose calls always have so many rows."""
    return rows / (steps * device.step(rows) + rows * device.decode)


@dataclass(frozen=True)
class Folder:
    """A folder of many shards of one format. `sizes` is the record of `sizes.measure`."""

    images: int
    shard_size: int
    format: str
    sizes: Record

    @property
    def shards(self) -> int:
        """How many."""
        return math.ceil(self.images / self.shard_size)

    @property
    def bytes(self) -> float:
        """Of images, marks and manifest."""
        return self.images * self.sizes["formats"][self.format]["bytes"] + self._of("marks") + self._of("manifest")

    @property
    def manifest_bytes(self) -> float:
        """Of manifest.json when the run has ended."""
        return self._of("manifest")

    @property
    def files(self) -> float:
        """Marks among them."""
        one = self.sizes["formats"][self.format]
        return self.shards * (one["files_of_shard"] + 1) + self.images * one["files"]

    @property
    def open_s(self) -> float:
        """CPU seconds until a run that goes on knows what is missing."""
        return self._of("open_cpu_s")

    @property
    def finish_s(self) -> float:
        """CPU seconds of the summary page and the manifest."""
        return self._of("finish_cpu_s")

    def _of(self, name: str) -> float:
        cost = self.sizes["folder"][name]
        return float(self.shards * cost["shard"] + self.images * cost["image"])


def client_cpu_s(sizes: Record, format: str) -> float:
    """CPU seconds of the client for an image: to receive it and to write it."""
    return float(sizes["answer"]["receive_cpu_s"] + sizes["formats"][format]["write_cpu_s"])


@dataclass(frozen=True)
class Limit:
    """`at`: images a second, or images in one folder, where `what` is full. `then`: what to do."""

    what: str
    at: float
    then: str


def limits_of_speed(sizes: Record) -> list[Limit]:
    """What a faster fleet meets, the lowest first. `at` is in images a second."""
    answer, formats = sizes["answer"]["bytes"], sizes["formats"]
    return sorted(
        (
            Limit("one core of a client, webdataset", 1 / client_cpu_s(sizes, "webdataset"), "more workers"),
            Limit("one core of a client, nifti", 1 / client_cpu_s(sizes, "nifti"), "more workers, or webdataset"),
            Limit("one client's network, 10 Gbit/s", LINK_BYTES / answer, "workers on several machines"),
            Limit("a disk of 500 MB/s, hdf5", DISK_BYTES / formats["hdf5"]["bytes"], "webdataset, or several disks"),
            Limit(
                "a disk of 500 MB/s, webdataset",
                DISK_BYTES / formats["webdataset"]["bytes"],
                "several folders on several disks",
            ),
        ),
        key=lambda limit: limit.at,
    )


def limits_of_size(sizes: Record, shard_size: int = 1000) -> list[Limit]:
    """What a larger folder meets, the lowest first. `at` is in images."""
    one = Folder(shard_size, shard_size, "webdataset", sizes)
    several = "several folders, each with its own `--seed-base`"
    smaller = {"nifti": "webdataset", "hdf5": "webdataset, if grey levels do", "png": "webdataset"}
    return sorted(
        (
            *(_disk(Folder(shard_size, shard_size, format, sizes), smaller[format]) for format in smaller),
            _disk(one, "several folders on several disks"),
            Limit("ten CPU minutes to open the folder", shard_size * OPEN_S / one.open_s, several),
            Limit("a million names in one folder", shard_size * NAMES / one.files, f"larger shards, or {several}"),
            Limit("a manifest of 100 MB", shard_size * MANIFEST_BYTES / one.manifest_bytes, "larger shards"),
            Limit("six digits in the names of shards", shard_size * SIX_DIGITS, "larger shards"),
        ),
        key=lambda limit: limit.at,
    )


def _disk(one: Folder, then: str) -> Limit:
    """How many images fill a disk of 1 TB, or use up its inodes."""
    by_bytes, by_files = one.images * DISK_TB / one.bytes, one.images * (DISK_TB / INODE_BYTES) / one.files
    full = "bytes" if by_bytes < by_files else "inodes"
    return Limit(f"the {full} of a disk of 1 TB, {one.format}", min(by_bytes, by_files), then)
