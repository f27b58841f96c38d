"""A load of generations by this project's client, compared with images that were made on an idle server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from brats_ldm_client import BratsLDMError, Client, Generation

STEPS = 20
KEPT_ERRORS = 20
STOP_SECONDS = 30.0
"""Time for running requests when the load ends; then they are cancelled."""


class Load:
    """Threads that generate the same seeds again and again, half of them by streams, until `stop`.

    `known` are the images that each must be, bit for bit; `retry` seconds bridge what is done to the server. Of errors
    all are counted and the words of the first few kept: an exception would hold on to its request and all its images.
    """

    def __init__(
        self, url: str, seeds: Sequence[int], known: np.ndarray, *, threads: int = 4, retry: float = 60
    ) -> None:
        self.url, self.seeds, self.known, self.retry = url, list(seeds), known, retry
        self.images = self.wrong = self.lost = 0
        self.errors: list[str] = []
        self._ending = threading.Event()
        self._lock = threading.Lock()
        options = {"retry_seconds": self.retry, "timeout": 120, "rows_per_request": 2}
        self._clients = [Client(self.url, **options) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(client, index % 2 == 1), daemon=True)
            for index, client in enumerate(self._clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each thread finish what it has begun, within STOP_SECONDS."""
        self._ending.set()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for client in self._clients:
            client.close()

    def _run(self, client: Client, stream: bool) -> None:
        while not self._ending.is_set():
            try:
                generation = self._generate(client, stream)
            except BratsLDMError as error:
                with self._lock:
                    self.lost += 1
                    self.errors += [str(error)] if self.lost <= KEPT_ERRORS else []
                time.sleep(0.05)
            else:
                with self._lock:
                    self.images += len(generation)
                    self.wrong += count_wrong(generation.images, self.known)

    def _generate(self, client: Client, stream: bool) -> Generation:
        if not stream:
            return client.generate(seeds=self.seeds, steps=STEPS)
        # Without progress events, a stream that broke may be begun again.
        *_, last = client.stream(seeds=self.seeds, steps=STEPS, preview_every=0)
        assert isinstance(last, Generation)
        return last


def in_peace(url: str, seeds: Sequence[int]) -> np.ndarray:
    """The images of the seeds."""
    with Client(url) as client:
        return client.generate(seeds=list(seeds), steps=STEPS).images


def count_wrong(images: np.ndarray, known: np.ndarray) -> int:
    """Images that differ in any bit."""
    return sum(not np.array_equal(image, right) for image, right in zip(images, known, strict=True))
