"""Names for a sampler with its steps, chosen by what was measured (docs/quality.md). The server knows none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ._errors import InvalidRequest


@dataclass(frozen=True)
class Preset:
    """A sampler and its steps, with eta 0: for given weights, an image depends on its seed alone."""

    sampler: str
    steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset("dpmpp_2m", 20),
        "standard": Preset("ddim", 50),  # the bundle's
        "reference": Preset("ddim", 1000),  # all steps of the training: what the others are measured by
    }
)
"""Presets by name: "fast", "standard" and "reference"."""


def resolve(preset: str | None, steps: int | None, sampler: str | None, eta: float) -> Preset:
    """Sampler and steps as asked for: by name, or one by one with those of `standard` for what is left out.

    Raises:
        InvalidRequest: no such preset, or one together with what it says.
    """
    if preset is None:
        standard = PRESETS["standard"]
        return Preset(standard.sampler if sampler is None else sampler, standard.steps if steps is None else steps)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InvalidRequest(f"preset {preset!r} is unknown: choose {', '.join(PRESETS)}, or give sampler and steps")
    chosen = PRESETS[preset]
    given = {"sampler": sampler, "steps": steps, "eta": eta or None}
    if too_many := [f"{name}={value!r}" for name, value in given.items() if value is not None]:
        raise InvalidRequest(
            f"preset {preset!r} means {chosen.sampler} with {chosen.steps} steps: "
            f"leave out {' and '.join(too_many)}, or the preset"
        )
    return chosen
