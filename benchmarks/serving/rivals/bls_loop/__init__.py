"""One request at a time: a Python model that calls `unet` in a loop inside execute(), as public tutorials do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.harness.wire import ask, image_feeds
from benchmarks.serving.worker import Array
from server.channel import connect
from server.process import TritonServer

HERE = Path(__file__).parent
MODEL = "bls_loop"


class BlsLoop:
    """A tritonserver with this model beside the networks of `repository`. Close it."""

    def __init__(self, repository: Path, folder: Path) -> None:
        write_repository(repository, folder)
        self._server = TritonServer(folder)
        self._server.start()
        self._client = connect(self._server.grpc_url)

    @property
    def pid(self) -> int:
        """The leader of its processes."""
        return self._server.pid

    def generate(self, seeds: Sequence[int], steps: int) -> Array:
        """All seeds at once, each in a request of its own."""
        with ThreadPoolExecutor(len(seeds)) as pool:
            return np.stack(list(pool.map(lambda seed: self._image(seed, steps), seeds)))

    def _image(self, seed: int, steps: int) -> Array:
        return ask(self._client, MODEL, "image", image_feeds([seed], steps))[0, 0, 8:-8, 8:-8]

    def close(self) -> None:
        """Stop the server."""
        self._client.close()
        self._server.stop()


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
