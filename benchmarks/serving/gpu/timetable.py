"""The sections of a run on a GPU, in their order, and about how long each takes. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

SERVED = {
    "export_s": 40, "start_s": 40, "image_ms": 8, "throughput": 15, "computes": 0, "steps_a_call": 30, "poisson": 6,
    "parity": 15, "network_ms": 4,
}  # fmt: skip
# Seconds, estimated for an H100 and the bundle's networks. The records of a run have what each took (seconds_each).
PARTS = {
    "served-torch": SERVED,
    "served-compiled": {**SERVED, "export_s": 130},
    "pytorch": {"tf32": 12, "amp": 16, "fp32": 14},
    "programs": {
        "channels_last": 12, "contiguous": 12, "channels_last-float32_norms": 25, "contiguous-float32_norms": 6,
    },
    "served-tensorrt": {**SERVED, "export_s": 200},
    "tests": {"summary": 60},
}  # fmt: skip
START_S = 15
"""Until the first section begins."""


def order(weights: Sequence[str], tensorrt: bool, tests: bool, compiled: bool = True) -> list[str]:
    """Names of the sections, the most wanted first: WEIGHTS-KIND, and tests.

    The first of the weights is measured in every way, the others only as served, which checks their parity.
    """
    first, *others = weights
    sections = [f"{first}-served-torch", f"{first}-pytorch"]
    sections += [f"{first}-served-compiled"] if compiled else []
    sections += [f"{name}-served-torch" for name in others]
    sections += [f"{first}-programs"]
    sections += [f"{name}-served-tensorrt" for name in weights if tensorrt]
    return [*sections, "tests"] if tests else sections


def kind(section: str) -> str:
    """The key of PARTS."""
    return section.partition("-")[2] or section


def lines(sections: Sequence[str]) -> Iterator[str]:
    """A line for each part: when it begins and how long it takes, both in seconds and estimated."""
    yield "  from   takes   (seconds, estimated for an H100)"
    yield f"{0:6} {START_S:7}   start"
    at = START_S
    for section in sections:
        for part, seconds in PARTS[kind(section)].items():
            yield f"{at:6} {seconds:7}   {section}: {part}"
            at += seconds
    yield f"{at:6}           end"
