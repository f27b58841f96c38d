"""Previews as images, as long as decoding them holds up the sampling loop for moments only. Imports no Triton."""

import time
from collections.abc import Callable

import numpy as np

from .job_queue import Array

LONGEST_SECONDS = 2.0
"""For one call of the decoder, and for the calls of one preview together before another one is begun."""
REST_SHARE = 20
"""After a failure, pause this many times as long as it took: failures cost a twentieth of the time."""
SHORTEST_REST_SECONDS = 1.0


class PreviewDecoder:
    """Decodes the previews of all requests. Where that fails, it says so once and pauses: previews are an extra."""

    def __init__(
        self,
        decode: Callable[[Array], Array],
        *,
        image_size: int,
        batch: int,
        warn: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """decode: latents [n, 1, 64, 64] -> images [n, 1, image_size, image_size], for n up to `batch`."""
        self._decode, self._batch, self._warn, self._clock = decode, batch, warn, clock
        self._shape = (1, image_size, image_size)
        self._bytes = 4 * image_size**2
        self._failing, self._rests_until = False, clock()

    def ready(self) -> bool:
        """Whether `images` is worth a try."""
        return self._clock() >= self._rests_until

    def size(self, rows: int) -> int:
        """Bytes of the images of so many rows."""
        return rows * self._bytes

    def images(self, latents: Array) -> Array | None:
        """Images [n, 1, image_size, image_size] of latents [n, 1, 64, 64]; None where they cannot be had."""
        began = self._clock()
        try:
            images = self._in_batches(latents, began)
        except Exception as error:  # whatever it is, the request goes on without
            now = self._clock()
            self._rests_until = now + max(SHORTEST_REST_SECONDS, REST_SHARE * (now - began))
            if not self._failing:
                self._warn(f"previews are latents for now: {error}")
            self._failing = True
            return None
        self._failing = False
        return images

    def _in_batches(self, latents: Array, began: float) -> Array:
        images = np.empty((len(latents), *self._shape), np.float32)
        for first in range(0, len(latents), self._batch):
            if (took := self._clock() - began) > LONGEST_SECONDS:
                raise TimeoutError(f"{first} of {len(latents)} took {took:.1f} s")
            images[first : first + self._batch] = self._decode(latents[first : first + self._batch])
        return images
