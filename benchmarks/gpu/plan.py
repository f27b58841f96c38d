"""What a run measures, in which order, and about how long each part takes; imports nothing that is slow."""

from __future__ import annotations

from collections.abc import Sequence

SERVED = {
    "export_s": 40,
    "start_s": 40,
    "image_ms": 8,
    "throughput": 15,
    "computes": 0,
    "steps_a_call": 30,
    "poisson": 6,
    "parity": 15,
    "network_ms": 4,
}
# Seconds, estimated for an H100 and the bundle's networks: the records of a run have what each took (seconds_each).
PARTS = {
    "served-torch": SERVED,
    "served-compiled": {**SERVED, "export_s": 130},
    "pytorch": {"tf32": 12, "amp": 16, "fp32": 14},
    "programs": {
        "channels_last": 12,
        "contiguous": 12,
        "channels_last-float32_norms": 25,
        "contiguous-float32_norms": 6,
    },
    "served-tensorrt": {**SERVED, "export_s": 200},
    "tests": {"summary": 60},
}
START_S = 15
"""Until the first section begins."""


def order(weights: Sequence[str], tensorrt: bool, tests: bool, compiled: bool = True) -> list[str]:
    """Names of the sections, the most wanted first: `weights`-kind, and tests.

    The first of the weights is measured in every way, the others as served: for that their parity is held.
    """
    first, *others = weights
    sections = [f"{first}-served-torch", f"{first}-pytorch"]
    sections += [f"{first}-served-compiled"] if compiled else []
    sections += [f"{each}-served-torch" for each in others]
    sections += [f"{first}-programs"]
    sections += [f"{each}-served-tensorrt" for each in weights if tensorrt]
    return [*sections, "tests"] if tests else sections


def kind(section: str) -> str:
    """The key of PARTS."""
    return section.partition("-")[2] or section


def describe(sections: Sequence[str]) -> str:
    """A line for each part: when it begins and how long it takes, both in seconds and estimated."""
    lines, at = ["  from   takes   (seconds, estimated for an H100)", f"{0:6} {START_S:7}   start"], START_S
    for section in sections:
        for part, seconds in PARTS[kind(section)].items():
            lines.append(f"{at:6} {seconds:7}   {section}: {part}")
            at += seconds
    return "\n".join([*lines, f"{at:6}           end"])
