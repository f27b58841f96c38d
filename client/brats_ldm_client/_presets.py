"""How an image is made of its noise, and names for ways of it, chosen by what was measured (docs/quality.md).

The server knows no presets: it gets what they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ._errors import InvalidRequest

GRID, DECODER = "leading", "full"
DEFAULTS: Mapping[str, str] = MappingProxyType({"timestep_grid": GRID, "decoder": DECODER})
"""What it means where a request, a record or a plan does not name them, as older ones do not."""
GUIDANCE = 1.0
"""The guidance if none is given: an image follows its labels as the weights have learned it."""
LABEL_FIELDS = ("labels_sha256", "guidance")
"""What the record of an image has only if it was made with labels."""


@dataclass(frozen=True)
class Sampling:
    """How images are made. With the weights and its seed, an image depends on this and nothing else."""

    sampler: str
    steps: int
    eta: float = 0.0
    """The share of fresh noise in a step of DDIM. With 0, the seed is all that is random."""
    timestep_grid: str = GRID
    """Which timesteps the steps are at."""
    decoder: str = DECODER
    """What makes the image of the final latent."""


PRESETS: Mapping[str, Sampling] = MappingProxyType(
    {
        "draft": Sampling("unipc", 7, timestep_grid="log_snr", decoder="tiny"),
        "fast": Sampling("unipc", 10, timestep_grid="log_snr"),
        "standard": Sampling("ddim", 50),  # the bundle's
        "reference": Sampling("ddim", 1000),  # all steps of the training: what the others are measured by
    }
)
"""Presets by name: "draft", "fast", "standard" and "reference"."""


_EXAMPLES = {"sampler": PRESETS["standard"].sampler, **DEFAULTS}


def resolve(
    preset: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float = 0.0,
    timestep_grid: str | None = None,
    decoder: str | None = None,
) -> Sampling:
    """What was asked for: by name, or one by one with what `standard` has for the rest.

    A decoder beside a preset takes the place of the preset's: the latent that is decoded stays the same.

    Raises:
        InvalidRequest: no such preset, one together with what else it says, or a name that is no text.
    """
    names: dict[str, Any] = {"sampler": sampler, "timestep_grid": timestep_grid, "decoder": decoder}
    for name, value in names.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise InvalidRequest(f"{name} must be a name such as {_EXAMPLES[name]!r}, not {value!r}")
    if preset is None:
        how, given = PRESETS["standard"], {"steps": steps, "eta": eta, **names}
    else:
        how = _preset(preset, {"sampler": sampler, "steps": steps, "eta": eta or None, "timestep_grid": timestep_grid})
        given = {"decoder": decoder}
    return replace(how, **{name: value for name, value in given.items() if value is not None})


def _preset(name: str, given: Mapping[str, Any]) -> Sampling:
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidRequest(f"preset {name!r} is unknown: choose {', '.join(PRESETS)}, or give sampler and steps")
    how = PRESETS[name]
    if too_many := [f"{key}={value!r}" for key, value in given.items() if value is not None]:
        grid = f" on the grid {how.timestep_grid}" if how.timestep_grid != GRID else ""
        raise InvalidRequest(
            f"preset {name!r} means {how.sampler} with {how.steps} steps{grid}: "
            f"leave out {' and '.join(too_many)}, or the preset"
        )
    return how


def named(what: Mapping[str, Any]) -> dict[str, Any]:
    """Without grid and decoder where they are the default.

    So plans and files that have no others keep the bytes they had before there were others.
    """
    return {name: value for name, value in what.items() if name not in DEFAULTS or value != DEFAULTS[name]}
