"""`FakeTransport`: what a test of your own code needs in place of a server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from ._protocol import STREAM, UNARY, Rows
from ._request import Request
from ._types import F32, I64, ModelInfo, QueueInfo, ServerInfo
from .labels.maps import digest

DIGEST = "sha256:" + "0" * 64
IMAGE, LATENT = (240, 240), (64, 64)


class FakeTransport:
    """Answers at once, without a server: `Client(transport=FakeTransport())`.

    An image depends on its seed alone; it is noise between 0 and 1, or what `image` makes of the seed.

    Args:
        image: Makes the image [240, 240] of a seed.
        errors: Raised by the next requests, one each; None lets a request pass. After them, all requests pass.
        model_digest: The digest of the weights that the records of the images name.

    Attributes:
        requests: What was asked, in the order in which it came.
    """

    def __init__(
        self,
        image: Callable[[int], F32] | None = None,
        errors: Iterable[Exception | None] = (),
        model_digest: str = DIGEST,
    ) -> None:
        self._image = image or _noise
        self._errors = deque(errors)
        self._lock = threading.Lock()
        self.model_digest = model_digest
        self.requests: list[Request] = []

    def generate(self, request: Request) -> Rows:
        """See `Transport.generate`."""
        with self._lock:
            self.requests.append(request)
            error = self._errors.popleft() if self._errors else None
        if error is not None:
            raise error
        seeds = request.seeds.tolist()
        images = np.stack([self._image(seed) for seed in seeds]).astype(np.float32)
        latents = np.stack([_noise(seed, LATENT) for seed in seeds]) if request.return_latents else None
        return Rows(images, [self._record(request, row) for row in range(len(seeds))], latents)

    def _record(self, request: Request, row: int) -> dict[str, object]:
        start = "seed" if request.latents is None else "given"
        model: dict[str, object] = {"start_noise": start, "model_name": "fake", "model_digest": self.model_digest}
        if request.labels is not None:
            model |= {"labels_sha256": digest(request.labels[row]), "guidance": request.guidance}
        return {"synthetic": True, "seed": int(request.seeds[row]), **request.sampling(), **model}

    def info(self) -> ServerInfo:
        """See `Transport.info`."""
        models = tuple(ModelInfo(name, ready=True, max_batch_size=64) for name in (UNARY, STREAM))
        return ServerInfo("transport", "fake", "0", models, self.model_digest, {"model_digest": self.model_digest})

    def queue(self) -> tuple[QueueInfo, ...]:
        """See `Transport.queue`: nothing to do."""
        return tuple(QueueInfo(name, 0, 0, 0, 64, 256, draining=False, seconds_left=0.0) for name in (UNARY, STREAM))

    def start_noise(self, seeds: I64) -> F32:
        """See `Transport.start_noise`: other noise than a server's."""
        generators = [np.random.default_rng(seed % 2**64) for seed in seeds.tolist()]
        return np.stack([generator.standard_normal(LATENT, np.float32) for generator in generators])


def _noise(seed: int, shape: tuple[int, int] = IMAGE) -> F32:
    return np.random.default_rng(seed % 2**64).random(shape, np.float32)
