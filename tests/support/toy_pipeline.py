"""Both front models as they are, on toy networks of a few operations, and the same rows computed in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from benchmarks.harness.engine import Engine
from export.configs import write_condition
from mri_ldm.request import RowParameters
from mri_ldm.settings import Settings
from support.common import ROOT
from support.toy_models import tensor, write_model

Array = np.ndarray[Any, Any]
LATENT, CONDITION, DECODED = (1, 64, 64), (4, 64, 64), (1, 256, 256)
ALIGNED = [[999, 640, 250, 40], [999, 800, 610, 430, 280, 150, 60, 12]]
"""Timesteps as `training.align_steps` finds them, for four and for eight steps."""


def write_pipeline(repository: Path) -> Path:
    """A repository with profile "cpu": the committed front models and profiles, other weights."""
    for model in ("mri_ldm", "mri_ldm_stream"):
        shutil.copytree(
            ROOT / "model_repository" / model, repository / model, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in repository.glob("mri_ldm*/1/model.json"):
        record = json.loads(path.read_text()) | {"aligned_timesteps": ALIGNED, "conditioning": "labels"}
        path.write_text(json.dumps(record))
    _write_unet(repository)
    plane = np.linspace(-1, 1, 256 * 256, dtype=np.float32).reshape(1, *DECODED)
    _write_decoder(repository, "vae_decoder", plane)
    _write_decoder(repository, "vae_decoder_tiny", -plane)
    for model in ("unet", "vae_decoder", "vae_decoder_tiny"):
        shutil.copytree(ROOT / "model_repository" / model / "configs", repository / model / "configs")
        shutil.copy(ROOT / "model_repository" / model / "config.pbtxt", repository / model / "config.pbtxt")
    write_condition(repository / "unet", repository / "unet", CONDITION[0])
    return repository


def _write_unet(repository: Path) -> None:
    """pred = tanh(0.8 latent + timestep / 700 + weights * condition), the weights of the condition's channels.

    Of that row alone, so that rows mixed up cannot go unseen.
    """
    write_model(
        repository,
        "unet",
        "",
        [
            helper.make_node("Mul", ["latent", "share"], ["part"]),
            helper.make_node("Cast", ["timesteps"], ["t"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["t", "column"], ["level"]),
            helper.make_node("Mul", ["level", "rate"], ["shift"]),
            helper.make_node("Mul", ["condition", "weights"], ["weighed"]),
            helper.make_node("ReduceSum", ["weighed", "channels"], ["labels"], keepdims=1),
            helper.make_node("Add", ["part", "shift"], ["unlabelled"]),
            helper.make_node("Add", ["unlabelled", "labels"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["pred"]),
        ],
        [
            tensor("latent", TensorProto.FLOAT, ["B", *LATENT]),
            tensor("condition", TensorProto.FLOAT, ["B", *CONDITION]),
            tensor("timesteps", TensorProto.INT32, ["B", 1]),
        ],
        [tensor("pred", TensorProto.FLOAT, ["B", *LATENT])],
        {
            "share": np.float32(0.8),
            "rate": np.float32(1 / 700),
            "column": np.array([-1, 1, 1, 1]),
            "weights": np.array([0.3, -0.5, 0.7, 0.1], np.float32).reshape(-1, 1, 1),
            "channels": np.array([1]),
        },
    )


def _write_decoder(repository: Path, model: str, plane: Array) -> None:
    """Each latent pixel fills 4 x 4 pixels, on a plane that differs everywhere, so that a shifted crop shows."""
    write_model(
        repository,
        model,
        "",
        [
            helper.make_node("Reshape", ["latent", "split"], ["cells"]),
            helper.make_node("Expand", ["cells", "larger"], ["many"]),
            helper.make_node("Reshape", ["many", "joined"], ["picture"]),
            helper.make_node("Add", ["picture", "plane"], ["image"]),
        ],
        [tensor("latent", TensorProto.FLOAT, ["B", *LATENT])],
        [tensor("image", TensorProto.FLOAT, ["B", *DECODED])],
        {
            "split": np.array([-1, 1, 64, 1, 64, 1]),
            "larger": np.array([1, 1, 1, 4, 1, 4]),
            "joined": np.array([-1, *DECODED]),
            "plane": plane,
        },
    )


class Reference:
    """What a server with `write_pipeline` must answer, bit for bit: the engine over the same files, row by row."""

    def __init__(self, repository: Path) -> None:
        self._engine = Engine(repository)
        self.settings: Settings = self._engine.settings
        self._row = cache(self._compute)

    def rows(self, rows: Sequence[RowParameters]) -> tuple[Array, Array]:
        """Final latents [B, 1, 64, 64] and images [B, 1, 240, 240]."""
        latents, images = zip(*(self._one(row) for row in rows), strict=True)
        return np.stack(latents), np.stack(images)

    def _one(self, row: RowParameters) -> tuple[Array, Array]:
        start, labels = (None if array is None else array.tobytes() for array in (row.latent, row.labels))
        words = (row.timestep_grid, row.decoder)
        return self._row(row.seed, row.steps, row.sampler, row.eta, *words, start, labels, row.guidance)

    def _compute(
        self,
        seed: int,
        steps: int,
        sampler: str,
        eta: float,
        grid: str,
        decoder: str,
        start: bytes | None,
        map_: bytes | None,
        guidance: float,
    ) -> tuple[Array, Array]:
        latent = None if start is None else np.frombuffer(start, np.float32).reshape(LATENT)
        labels = None if map_ is None else np.frombuffer(map_, np.uint8).reshape(1, 240, 240)
        row = RowParameters(
            *(seed, steps, sampler, eta, latent),
            timestep_grid=grid,
            decoder=decoder,
            labels=labels,
            guidance=guidance,
        )
        latents, images = self._engine.generate([row])
        assert images is not None
        return latents[0], images[0]
