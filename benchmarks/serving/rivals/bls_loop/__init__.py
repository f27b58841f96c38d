"""One request at a time: a Python model that calls `unet` in a loop inside execute(), as public tutorials do."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.harness.wire import ask, image_feeds
from benchmarks.serving.worker import Array, Running, one_request_each
from server.channel import connect
from server.process import TritonServer

HERE = Path(__file__).parent
MODEL = "bls_loop"


def bls_loop(repository: Path, folder: Path) -> Running:
    """A tritonserver with this model beside the networks of `repository`."""
    write_repository(repository, folder)
    server = TritonServer(folder)
    server.start()
    client = connect(server.grpc_url)

    def image(seed: int, steps: int) -> Array:
        return ask(client, MODEL, "image", image_feeds([seed], steps))[0, 0, 8:-8, 8:-8]

    def close() -> None:
        client.close()
        server.stop()

    return Running(server.pid, one_request_each(image), close)


def write_repository(repository: Path, folder: Path) -> None:
    """The networks of `repository` and this model; schedule and noise are those of mri_ldm."""
    shutil.rmtree(folder, ignore_errors=True)
    for network in ("unet", "vae_decoder"):
        shutil.copytree(repository / network, folder / network)
    source, version = repository / "mri_ldm" / "1", folder / MODEL / "1"
    shutil.copytree(source / "mri_ldm", version / "mri_ldm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "model.json", version)
    shutil.copy(HERE / "model.py", version)
    shutil.copy(HERE / "config.pbtxt", folder / MODEL)
