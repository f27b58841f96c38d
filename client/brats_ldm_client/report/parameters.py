"""How images were made, in few words: groups of images with the same parameters, and their seeds as ranges."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._presets import DEFAULTS

_OF_ONE_IMAGE = {"file", "sha256", "seed", "index", "labels_sha256"}
_SAID_ONCE = {"synthetic", "notice", "digital_source_type", "made_by"}
_WEIGHTS = ("model_digest", "weights_sha256")
_FIRST = ("model_name", *_WEIGHTS, "sampler", "steps", "eta", *DEFAULTS, "guidance")  # in this order
_RANGES = 60  # shown


@dataclass
class Group:
    """Images that were made in the same way."""

    parameters: Mapping[str, str]
    """Names and values as words; empty if nobody knows."""
    count: int
    """Images."""
    seeds: str
    """As ranges; empty if nobody knows."""


def groups(records: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The images by how they were made, the largest group first; a record may come from anyone."""
    counts, seeds = Counter[tuple[tuple[str, str], ...]](), defaultdict[tuple[tuple[str, str], ...], list[int]](list)
    for record in records:
        parameters = tuple(parameters_of(record).items())
        counts[parameters] += 1
        seed = record.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool):
            seeds[parameters].append(seed)
    return [Group(dict(key), count, ranges(seeds.get(key, ()))) for key, count in counts.most_common()]


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
    """The digests of the weights, of the groups that have one."""
    return {group.parameters[name] for group in of for name in _WEIGHTS if name in group.parameters}


def ranges(seeds: Iterable[int]) -> str:
    """Whole numbers as ranges: "0-99, 104", with dashes between; numbers that come twice are counted."""
    counted = Counter(seeds)
    twice = sum(count > 1 for count in counted.values())
    return joined((seed, seed) for seed in sorted(counted)) + (f" ({twice:,} of them more than once)" if twice else "")


def joined(parts: Iterable[tuple[int, int]]) -> str:
    """Ranges, each with its first and last number, in ascending order, as words; neighbours become one."""
    runs: list[tuple[int, int]] = []
    for first, last in parts:
        if runs and first == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    shown = [_range(first, last) for first, last in runs[:_RANGES]]
    more = [f"and {len(runs) - _RANGES:,} more ranges"] if len(runs) > _RANGES else []
    return ", ".join(shown + more)


def _range(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first} to {last}" if first < 0 else f"{first}\N{EN DASH}{last}"
