"""What an image, a shard and a folder need: bytes, files and the client's CPU seconds, by the real code.

CPU seconds are of this process, so other work on the machine hardly moves them. The server is a process of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton

from benchmarks.cost.fit import line
from benchmarks.harness.wire import image_feeds, request
from benchmarks.scale.folder import tiny_image
from brats_ldm_client import Client, Generation
from brats_ldm_client.bulk import FORMATS, Plan, make_all, model_of, plan_for
from brats_ldm_client.bulk.artifacts import mark_name
from brats_ldm_client.bulk.plan import MANIFEST, write_manifest
from brats_ldm_client.bulk.run import finish
from brats_ldm_client.bulk.shard import read_shard, write_shard
from brats_ldm_client.testing import FakeTransport
from server.channel import connect
from server.process import TritonServer

ROWS = 8  # of a request, as `brats-ldm bulk` asks
REPEATS = 5  # of what takes milliseconds; the least is taken


SAMPLING: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 20}


@dataclass(frozen=True)
class Amount:
    """How much of everything. The folder grows to so many `shards` of one image each, and of `large` images each."""

    images: int
    shards: tuple[int, ...]
    large: int
    large_shards: tuple[int, ...]


# More shards than the contact sheet has pictures: until then each shard more is opened for one.
FULL = Amount(images=64, shards=(500, 1000, 2000), large=500, large_shards=(80, 160))
QUICK = Amount(images=8, shards=(10, 20), large=10, large_shards=(2, 4))


def measure(repository: Path, profile: str, work: Path, amount: Amount) -> Iterator[tuple[str, Any]]:
    """`answer`: an image on its way. `formats`: an image on the disk. `folder`: many shards. Bytes and seconds."""
    with TritonServer(repository, profile) as server:
        server.probe()
        with Client(server.grpc_url) as client:
            plan = plan_for(model_of(client), amount.images, FORMATS, shard_size=amount.images, **SAMPLING)
            made: list[Generation] = []
            cpu_s = _cpu_s(lambda: made.append(client.generate(amount.images, seed=0, **SAMPLING)))
        yield "answer", {"bytes": _answer_bytes(server.grpc_url), "receive_cpu_s": cpu_s / amount.images}
    yield "formats", {format: _format(replace(plan, formats=(format,)), work / "sizes", made[0]) for format in FORMATS}
    yield "folder", _folder(work / "growing", amount)


def _answer_bytes(url: str) -> float:
    """Bytes of an answer in protobuf, an image."""
    with connect(url) as client:
        inputs, outputs = request(triton, ("image", "provenance"), image_feeds(range(ROWS), 1))
        answer = client.infer("mri_ldm", inputs, outputs=outputs).get_response()
    return answer.ByteSize() / ROWS


def _format(plan: Plan, folder: Path, images: Generation) -> dict[str, float]:
    """An image of a format, without the marks: they are the shard's. Files: some of a shard, and some of an image."""
    half = replace(plan, shard_size=plan.count // 2)
    (few, _, _), (files, size, cpu_s) = (_shard(which, folder, images) for which in (half, plan))
    per_image = (files - few) / (plan.count - half.shard_size)
    return {
        "bytes": size / plan.count,
        "files_of_shard": files - per_image * plan.count,
        "files": per_image,
        "write_cpu_s": cpu_s / plan.count,
    }


def _shard(plan: Plan, folder: Path, images: Generation) -> tuple[int, int, float]:
    """Files, bytes and CPU seconds of the first shard."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cpu_s = _cpu_s(lambda: write_shard(plan, folder, 0, images))
    files = read_shard(plan, folder, 0)["files"]
    return len(files), sum(entry["bytes"] for entry in files.values()), cpu_s


def _folder(folder: Path, amount: Amount) -> dict[str, Any]:
    """Lines through folders that grow: of shards of one image, and of `large`. The difference is the images'."""
    small = [*_points(folder, 1, amount.shards)]
    large = [*_points(folder, amount.large, amount.large_shards)]
    result: dict[str, Any] = {"points": [*small, *large]}
    for name in ("open_cpu_s", "finish_cpu_s", "marks", "manifest"):
        one, many = (_slope(points, name) for points in (small, large))
        per_image = max(0.0, many - one) / (amount.large - 1)
        result[name] = {"shard": one - per_image, "image": per_image}
    return result


def _slope(points: Sequence[dict[str, Any]], name: str) -> float:
    """What a shard more adds."""
    return float(line([point["shards"] for point in points], [point[name] for point in points])["row"])


def _points(folder: Path, shard_size: int, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A folder with so many shards: a finished run, which a larger plan then goes on with. A shard is one file."""
    shutil.rmtree(folder, ignore_errors=True)
    with Client(transport=FakeTransport(tiny_image)) as client:
        model = model_of(client)
        for number in numbers:
            plan = plan_for(model, number * shard_size, "hdf5", shard_size=shard_size)
            if folder.exists():
                write_manifest(folder, plan)
            make_all(client, plan, folder)
            yield {
                "shards": number,
                "shard_size": shard_size,
                "open_cpu_s": min(_cpu_s(partial(make_all, client, plan, folder)) for _ in range(REPEATS)),
                "finish_cpu_s": min(_cpu_s(partial(finish, plan, folder)) for _ in range(REPEATS)),
                "manifest": (folder / MANIFEST).stat().st_size,
                "marks": sum((folder / mark_name(i)).stat().st_size for i in range(number)),
            }


def _cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    call()
    return time.process_time() - began
