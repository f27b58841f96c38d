"""All slices in one NumPy archive that loads without pickle."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._presets import DEFAULTS
from ..pictures import NOTICE, SOURCE_TYPE
from .record import core

if TYPE_CHECKING:
    from .._types import Slice


_HOW = ("sampler", "steps", "eta", *DEFAULTS, "guidance")


def npz(slices: Sequence[Slice]) -> bytes:
    first = slices[0].record
    arrays: dict[str, Any] = {
        "images": np.stack([made.image for made in slices]),
        "seeds": np.array([made.seed for made in slices], np.int64),
        **{name: value for name, value in core(first).items() if name in _HOW},
        "notice": NOTICE,
        "digital_source_type": SOURCE_TYPE,
        "provenance": np.array([json.dumps(core(made.record), sort_keys=True) for made in slices]),
    }
    latents = [made.latent for made in slices if made.latent is not None]
    if len(latents) == len(slices):
        arrays["latents"] = np.stack(latents)
    labels = [made.labels for made in slices if made.labels is not None]
    if len(labels) == len(slices):
        arrays["labels"] = np.stack(labels)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
