"""Our server as a contestant, by each of the ways to ask it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.wire import ask_http, image_feeds
from benchmarks.serving.worker import Array
from brats_ldm_client import Client, Generation
from server.channel import connect
from server.process import TritonServer

SIZE = 240


class Ours:
    """A tritonserver on `repository` and the client that users have. Close it."""

    def __init__(self, repository: Path, profile: str = "cpu") -> None:
        self.server = TritonServer(repository, profile)
        self.server.start()
        self.client = Client(self.server.grpc_url, rows_per_request=1, concurrency=64)
        self.raw = connect(self.server.grpc_url)

    @property
    def pid(self) -> int:
        """The leader of its processes."""
        return self.server.pid

    def generate(self, seeds: Sequence[int], steps: int, sampler: str = "ddim") -> Array:
        """gRPC unary: all seeds at once, each in a request of its own."""
        return self.client.generate(list(seeds), steps=steps, sampler=sampler).images

    def stream(self, seeds: Sequence[int], steps: int) -> Array:
        """gRPC stream, one request, told of every step."""
        *_, result = self.client.stream(list(seeds), steps=steps)
        assert isinstance(result, Generation)
        return result.images

    def http(self, seeds: Sequence[int], steps: int) -> Array:
        """HTTP, one request."""
        shape = (len(seeds), SIZE, SIZE)
        return ask_http(self.server.http_url, "mri_ldm", "image", image_feeds(seeds, steps), shape)

    def close(self) -> None:
        """Stop the server."""
        self.client.close()
        self.raw.close()
        self.server.stop()
