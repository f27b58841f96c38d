"""The record of an image: what is known of it, the part that stands in its files, and that part as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# The image depends on these. Server versions and times are in provenance.json only, so that files are reproducible.
_CORE = ("synthetic", "seed", "sampler", "steps", "eta", "model_name", "model_digest")


class Slices(Protocol):
    """The part of a `Generation` that is written. `Generation` imports the writers, so it cannot be named here."""

    @property
    def images(self) -> npt.NDArray[np.float32]: ...
    @property
    def latents(self) -> npt.NDArray[np.float32] | None: ...
    @property
    def seeds(self) -> npt.NDArray[np.int64]: ...
    @property
    def sampler(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def eta(self) -> float: ...
    @property
    def provenance(self) -> Sequence[Mapping[str, Any]]: ...
    def __len__(self) -> int: ...


def record_of(generation: Slices, index: int) -> dict[str, Any]:
    """The provenance of one image: the server's record, with the request's values for missing entries."""
    requested = {
        "synthetic": True,
        "seed": int(generation.seeds[index]),
        "sampler": generation.sampler,
        "steps": generation.steps,
        "eta": generation.eta,
    }
    return {**requested, **generation.provenance[index], "synthetic": True}


def core(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that stands in the image's own file."""
    return {key: record[key] for key in _CORE if key in record}


def describe(record: Mapping[str, Any]) -> str:
    """One line for the 79 ASCII characters of NIfTI's descrip; a very long seed shortens the digest."""
    digest = str(record.get("model_digest", "unknown")).removeprefix("sha256:")[:12]
    text = "SYNTHETIC seed={seed} {sampler} steps={steps} eta={eta:g} model=".format_map(record)
    return (text + digest).encode("ascii", "replace").decode()[:79]
