"""Turns the results of a request's rows into answers: previews, images and records, for its `Reply`."""

import base64
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .job_queue import Array
from .png import png
from .reply import Reply, Tensors
from .request import RowParameters
from .settings import Settings

DECODED = frozenset(("image", "png"))
"""The outputs that need the decoder."""


class Responder:
    """The batcher's `Listener` for one request."""

    def __init__(self, reply: Reply, rows: Sequence[RowParameters], settings: Settings) -> None:
        self._reply, self._rows, self._settings = reply, rows, settings
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
        tensors: Tensors = {"step": steps[:, None]}
        if "preview" in self._reply.wanted and self._has_room(steps, estimates):
            tensors["preview"] = estimates
            self._preview_bytes += estimates.nbytes
        self._reply.preview(tensors)

    def _has_room(self, steps: NDArray[np.int32], estimates: Array) -> bool:
        """Triton keeps unread answers in memory. Previews are spread over the steps, so that late steps have some."""
        most = self._settings.max_preview_mb * 2**20
        if self._previews_due * estimates.nbytes > most:
            most = int(most * steps.sum() / self._steps)
        return self._preview_bytes + estimates.nbytes <= most

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


def _strings(rows: Iterable[bytes]) -> NDArray[np.object_]:
    return np.array([[content] for content in rows], dtype=np.object_)
