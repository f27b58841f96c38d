"""All slices in one NumPy archive that loads without pickle."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..pictures import NOTICE, SOURCE_TYPE
from .record import Slices, core


def npz(generations: Sequence[Slices], records: Sequence[Mapping[str, Any]]) -> bytes:
    first = generations[0]
    arrays: dict[str, Any] = {
        "images": np.concatenate([generation.images for generation in generations]),
        "seeds": np.concatenate([generation.seeds for generation in generations]),
        "sampler": first.sampler,
        "steps": first.steps,
        "eta": first.eta,
        "notice": NOTICE,
        "digital_source_type": SOURCE_TYPE,
        "provenance": np.array([json.dumps(core(record), sort_keys=True) for record in records]),
    }
    latents = [generation.latents for generation in generations if generation.latents is not None]
    if len(latents) == len(generations):
        arrays["latents"] = np.concatenate(latents)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
