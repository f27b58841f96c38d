"""How images were made, in few words: groups of images with the same parameters, and their seeds as ranges."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_OF_ONE_IMAGE = {"file", "sha256", "seed", "index"}
_SAID_ONCE = {"synthetic", "notice", "digital_source_type", "made_by"}
_WEIGHTS = ("model_digest", "weights_sha256")
_FIRST = ("model_name", *_WEIGHTS, "sampler", "steps", "eta")  # in this order
_RANGES = 60  # shown


@dataclass
class Group:
    """Images that were made in the same way."""

    parameters: Mapping[str, str]
    """Names and values as words; empty if nobody knows."""
    count: int = 0
    seeds: list[int] = field(default_factory=list)


def groups(records: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The images by how they were made, the largest group first; a record may come from anyone."""
    found: dict[tuple[tuple[str, str], ...], Group] = {}
    for record in records:
        parameters = parameters_of(record)
        group = found.setdefault(tuple(parameters.items()), Group(parameters))
        group.count += 1
        seed = record.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool):
            group.seeds.append(seed)
    return sorted(found.values(), key=lambda group: -group.count)


def parameters_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What of a record holds for more images than one, as words."""
    left = sorted(record.keys() - {*_FIRST} - _OF_ONE_IMAGE - _SAID_ONCE)
    return {name: _words(record[name]) for name in (*_FIRST, *left) if name in record}


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and all(isinstance(each, (str, int, float)) for each in value.values()):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def weights(of: Sequence[Group]) -> set[str]:
    """The weights of the groups that name theirs."""
    return {group.parameters[name] for group in of for name in _WEIGHTS if name in group.parameters}


def ranges(seeds: Iterable[int]) -> str:
    """Whole numbers as ranges: "0-99, 104", with dashes between; numbers that come twice are counted."""
    counted = Counter(seeds)
    runs: list[list[int]] = []
    for seed in sorted(counted):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    shown = [_range(first, last) for first, last in runs[:_RANGES]]
    more = [f"and {len(runs) - _RANGES:,} more ranges"] if len(runs) > _RANGES else []
    twice = sum(count > 1 for count in counted.values())
    return ", ".join(shown + more) + (f" ({twice:,} of them more than once)" if twice else "")


def _range(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first} to {last}" if first < 0 else f"{first}\N{EN DASH}{last}"
