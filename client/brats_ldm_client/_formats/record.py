"""The part of an image's record that stands in its files, and the same as a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._presets import DEFAULTS, LABEL_FIELDS, named

# The image depends on these. Server versions and times are in provenance.json only, so that files are reproducible.
_CORE = ("synthetic", "seed", "sampler", "steps", "eta", *DEFAULTS, *LABEL_FIELDS, "model_name", "model_digest")


def core(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that stands in the image's own file; without grid and decoder if they are the default."""
    return named({key: record[key] for key in _CORE if key in record})


def how_words(record: Mapping[str, Any]) -> str:
    """Sampler, steps and eta; grid and decoder too, if they are not the default; guidance, if there were labels."""
    others = named({key: record[key] for key in DEFAULTS if key in record})
    labels = [f"guidance={record['guidance']:g}"] if "guidance" in record else []
    return " ".join(["{sampler} steps={steps} eta={eta:g}".format_map(record), *map(str, others.values()), *labels])


def describe(record: Mapping[str, Any]) -> str:
    """One line for the 79 ASCII characters of NIfTI's descrip; a very long seed shortens the digest."""
    digest = str(record.get("model_digest", "unknown")).removeprefix("sha256:")[:12]
    text = f"SYNTHETIC seed={record['seed']} {how_words(record)} model="
    return (text + digest).encode("ascii", "replace").decode()[:79]
