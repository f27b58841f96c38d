"""The serving engine without a server: the batcher over ONNX Runtime sessions of a repository, in this process."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mri_ldm.batcher import Batcher
from mri_ldm.conditioning import CONDITION_SHAPE
from mri_ldm.job_queue import Job
from mri_ldm.request import RowParameters, conditions_of_request
from mri_ldm.settings import TINY_DECODER, read_settings
from mri_ldm.stepping import SingleSteps
from server.health import DECODERS

Array = NDArray[Any]


class Engine:
    """The networks of a repository, as the profile `cpu` serves them.

    threads: of a network's call; 0 leaves it to ONNX Runtime, as the profile does: one a core.
    Threads may share an engine; `generate` serves one at a time, as a batcher belongs to one loop.
    """

    def __init__(self, repository: Path, threads: int = 0) -> None:
        self.settings = read_settings({}, repository / "mri_ldm" / "1")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        files = {network: repository / network / "1" / "model.onnx" for network in ("unet", *DECODERS.values())}
        self._networks = {
            network: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for network, file in files.items()
            if network != TINY_DECODER or file.is_file()
        }
        self._batchers: dict[int, Batcher] = {}
        self._one_at_a_time = Lock()

    def unet(self, latents: Array, timesteps: Array, conditions: Array | None = None) -> Array:
        """Predicted noise [n, 1, 64, 64] of latents [n, 1, 64, 64] at timesteps [n].

        conditions: [n, 4, 64, 64]; None: no labels, also for weights that take them.
        """
        feeds = {"latent": latents, "timesteps": timesteps.astype(np.int32)[:, None]}
        if self.settings.takes_labels:
            none = np.zeros((len(latents), *CONDITION_SHAPE), np.float32)
            feeds["condition"] = none if conditions is None else conditions
        answer: Array = self._networks["unet"].run(["pred"], feeds)[0]
        return answer

    def decode(self, latents: Array, decoder: str = "full") -> Array:
        """Images [n, 1, 240, 240] of scaled latents, by one of the DECODERS."""
        crop = self.settings.crop
        images: Array = self._networks[DECODERS[decoder]].run(["image"], {"latent": latents})[0]
        return images[:, :, crop:-crop, crop:-crop] if crop else images

    def generate(
        self, rows: Sequence[RowParameters], decode: bool = True, batch: int = 64
    ) -> tuple[Array, Array | None]:
        """Final latents [n, 1, 64, 64] and, if asked for, images [n, 1, 240, 240]: what the server answers."""
        answer = _Answer()
        seeds, tables = [row.seed for row in rows], [row.table(self.settings) for row in rows]
        tiny = [row.decoder == "tiny" for row in rows]
        start, conditions = np.stack([row.start() for row in rows]), conditions_of_request(rows, self.settings)
        guidance = [row.guidance for row in rows]
        job = Job(answer, seeds, tables, start, decode=decode, tiny=tiny, conditions=conditions, guidance=guidance)
        with self._one_at_a_time:
            batcher = self._batcher(batch)
            batcher.submit(job)
            while batcher.tick():
                pass
        return answer.latents, answer.images

    def _batcher(self, rows: int) -> Batcher:
        """Kept, as the server's is: it learns how many rows go together."""
        if rows not in self._batchers:
            settings = self.settings
            self._batchers[rows] = Batcher(
                [SingleSteps(self.unet, labels=settings.takes_labels)], self.decode,
                max_rows_in_flight=rows, max_rows_waiting=10**6,
                max_row_steps=10**9, decode_batch=settings.decode_batch,
                tiny_decode=partial(self.decode, decoder="tiny"), tiny_decode_batch=settings.tiny_decode_batch,
            )  # fmt: skip
        return self._batchers[rows]


class _Answer:
    """The listener of the only job."""

    latents: Array
    images: Array | None

    def late(self) -> bool:
        return False

    def gone(self) -> bool:
        return False

    def preview(self, steps: Array, estimates: Array) -> None: ...

    def finished(self, latents: Array, images: Array | None) -> None:
        self.latents, self.images = latents, images

    def failed(self, error: Exception) -> None:
        raise error

    def cancelled(self, rows: int) -> None:
        raise AssertionError("nobody cancels")
