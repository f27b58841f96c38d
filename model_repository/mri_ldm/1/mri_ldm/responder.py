"""Turns the results of a request's rows into answers: previews, images and records, for its `Reply`.

Also the answers to requests that take no step.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .job_queue import Array
from .png import png
from .preview_decoder import PreviewDecoder
from .reply import Reply, Tensors
from .request import RowParameters
from .settings import Settings

DECODED = frozenset(("image", "png"))
"""The outputs that need the decoder."""


class Responder:
    """The batcher's `Listener` for one request."""

    def __init__(
        self, reply: Reply, rows: Sequence[RowParameters], settings: Settings, decoder: PreviewDecoder
    ) -> None:
        """decoder: of previews, if a row asks for it."""
        self._reply, self._rows, self._settings, self._decoder = reply, rows, settings, decoder
        self._shows_images = "preview_image" in reply.wanted and any(row.preview_decoder == "tiny" for row in rows)
        self._steps = sum(row.steps for row in rows)
        # How often a row is due: as many answers with previews at most, since one may be for several rows.
        self._previews_due = sum(row.steps // row.preview_every for row in rows if row.preview_every)
        self._preview_bytes = 0

    def late(self) -> bool:
        """See `Reply.late`."""
        return self._reply.late()

    def gone(self) -> bool:
        """See `Reply.gone`."""
        return self._reply.gone()

    def preview(self, steps: NDArray[np.int32], estimates: Array) -> None:
        """One answer before the images: steps done and, as long as `max_preview_mb` allows, the x0 estimates."""
        self._reply.preview({"step": steps[:, None], **self._shown(steps, estimates)})

    def _shown(self, steps: NDArray[np.int32], estimates: Array) -> Tensors:
        """The estimates, and where they are to be had and there is room for both, their images."""
        latents = estimates.nbytes if "preview" in self._reply.wanted else 0
        decodes = self._shows_images and self._decoder.ready()
        size = latents + (self._decoder.size(len(estimates)) if decodes else 0)
        if not self._has_room(steps, size):
            return {}
        images = self._decoder.images(estimates) if decodes else None
        source = b"latent" if images is None else b"tiny"
        tensors: Tensors = {"preview": estimates, "preview_source": _strings(source for _ in self._rows)}
        if images is not None:
            tensors["preview_image"] = images
        self._preview_bytes += latents + (0 if images is None else images.nbytes)
        return tensors

    def _has_room(self, steps: NDArray[np.int32], size: int) -> bool:
        """Triton keeps unread answers in memory. Previews are spread over the steps, so that late steps have some."""
        most = self._settings.max_preview_mb * 2**20
        if self._previews_due * size > most:
            most = int(most * steps.sum() / self._steps)
        return self._preview_bytes + size <= most

    def finished(self, latents: Array, images: Array | None) -> None:
        """The last answer: image, final latent, provenance and PNG, as far as they were requested."""
        try:
            tensors = self._tensors(latents, images)
        except Exception as error:  # whatever it is, it concerns only this request
            self._reply.failed(error)
        else:
            self._reply.finished(tensors, len(self._rows))

    def _tensors(self, latents: Array, images: Array | None) -> Tensors:
        tensors: Tensors = {"final_latent": latents}
        if images is not None:
            tensors["image"] = images
        if "provenance" in self._reply.wanted:
            tensors["provenance"] = _strings(row.provenance(self._settings).encode() for row in self._rows)
        if images is not None and "png" in self._reply.wanted:
            tensors["png"] = _strings(map(self._png, self._rows, images))
        return tensors

    def _png(self, row: RowParameters, image: Array) -> bytes:
        """As text, since Triton's JSON cannot carry bytes. Under a millisecond: the sampling loop waits for it."""
        return base64.b64encode(png(image[0], row.record(self._settings)))

    def failed(self, error: Exception) -> None:
        """See `Reply.failed`."""
        self._reply.failed(error)

    def cancelled(self, rows: int) -> None:
        """See `Reply.cancelled`."""
        self._reply.cancelled(rows, len(self._rows))


def looked_up(rows: Sequence[RowParameters], queue: Mapping[str, object]) -> Tensors:
    """The outputs of a look-up: the start noise of each row, and the queue, the same in each."""
    told = json.dumps(queue).encode()
    return {"start_latent": np.stack([row.start() for row in rows]), "queue": _strings(told for _ in rows)}


def _strings(rows: Iterable[bytes]) -> NDArray[np.object_]:
    return np.array([[content] for content in rows], dtype=np.object_)
