"""The figures of a run on a GPU (`make gpu`), as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness.markdown import Lines, Record, table

SERVED = {"torch": "profile torch", "compiled": "profile torch, compiled", "tensorrt": "profile tensorrt"}


def sections(records: Mapping[str, Record]) -> Lines:
    """The tables of one kind of weights; `records` by section."""
    machine = next(iter(records.values()))["machine"]
    where = f"{machine['gpu']}, driver {machine['driver']}" if "gpu" in machine else f"CPU, {machine['cores']} cores"
    yield f"{where}; torch {machine['versions']['torch']}; {machine['date']}."
    results = {name: dict(record.get("result") or {}) for name, record in records.items()}
    served = {title: results[f"served-{kind}"] for kind, title in SERVED.items() if results.get(f"served-{kind}")}
    yield from ["", *_speed(results, served)]
    if rows := [row for title, result in served.items() for row in _steps(title, result.pop("steps_a_call", {}))]:
        yield from [
            "",
            *table(["", "steps a call", "one image, p50 ms", "p90 ms", "a step, and of it the network"], rows),
        ]
    yield from ["", *table(["section", "what", "figure"], _others(results))]
    if failed := [
        f"{name} ({record['error'].splitlines()[0]})" for name, record in records.items() if "error" in record
    ]:
        yield from ["", f"Not measured to the end: {', '.join(failed)}."]
    if "gpu" not in machine:
        yield from ["", "**None of these are figures of a GPU.**"]


def _speed(results: Mapping[str, Record], served: Mapping[str, Record]) -> Lines:
    """The rows of the bundle's own speed table, batch 1."""
    columns: dict[str, tuple[Any, Any, Any]] = {}
    for mode, times in results.get("pytorch", {}).items():
        columns[f"torch {mode}"] = (times["unet_ms"]["1"], times["autoencoder_ms"], times["image_ms"])
    for title, result in served.items():
        networks = result.get("network_ms", {})
        calls = (networks.get(name, {}).get("1") for name in ("unet", "vae_decoder"))
        columns[title] = (*calls, result.get("image_ms", {}).get("p50"))
    labels = ("UNet, ms", "autoencoder (profiles: decoder), ms", "end to end, ms")
    return table(
        ["", *columns],
        [[label, *(_cell(cells[row]) for cells in columns.values())] for row, label in enumerate(labels)],
    )


def _steps(title: str, by_steps: Record) -> Iterator[list[Any]]:
    """By steps a call: one image over gRPC, and a step of so many rows with the share that is the network's."""
    for name, values in by_steps.items():
        steps = (
            f"a step of {rows} rows {step['step_ms']:.2f} ms, network {step['network_ms']:.2f} ms"
            for rows, step in values["step"].items()
        )
        chosen = "its own choice" if name == "own" else name
        yield [title, chosen, _cell(values["image_ms"]["p50"]), _cell(values["image_ms"]["p90"]), "; ".join(steps)]


def _others(results: Mapping[str, Record]) -> Iterator[list[Any]]:
    """Every other figure by its path in the record."""
    for section, result in results.items():
        for path, value in _leaves(result):
            yield [section, path, f"{value:.4g}" if isinstance(value, float) else value]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path} {key}".strip())
    else:
        yield path, value


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
