"""The figures of a run on a GPU (`make gpu`), as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness.markdown import Lines, Record, table

SERVED = {"torch": "profile torch", "compiled": "profile torch, compiled", "tensorrt": "profile tensorrt"}


def sections(records: Mapping[str, Record]) -> Lines:
    """The tables of one kind of weights; `records` by section."""
    yield _machine(next(iter(records.values()))["machine"])
    for part in (_speed, _batches, _steps, _others):
        lines = list(part(records))
        yield from ["", *lines] if lines else []
    if failures := [
        f"{name} ({record['error'].splitlines()[0]})" for name, record in records.items() if "error" in record
    ]:
        yield from ["", f"Not measured to the end: {', '.join(failures)}."]
    if not any("gpu" in record["machine"] for record in records.values()):
        yield from ["", "**None of these are figures of a GPU.**"]


def _machine(machine: Record) -> str:
    where = f"{machine['gpu']}, driver {machine['driver']}" if "gpu" in machine else f"CPU, {machine['cores']} cores"
    return f"{where}; torch {machine['versions']['torch']}; {machine['date']}."


def _result(records: Mapping[str, Record], section: str) -> Record:
    return dict(records.get(section, {}).get("result") or {})


def _served(records: Mapping[str, Record]) -> dict[str, Record]:
    """By the title of the profile."""
    results = {title: _result(records, f"served-{kind}") for kind, title in SERVED.items()}
    return {title: result for title, result in results.items() if result}


def _speed(records: Mapping[str, Record]) -> Lines:
    """The rows of the bundle's own speed table, batch 1."""
    columns: dict[str, tuple[Any, Any, Any]] = {}
    for mode, times in _result(records, "pytorch").items():
        columns[f"torch {mode}"] = (times["unet_ms"]["1"], times["autoencoder_ms"], times["image_ms"])
    served, program = _served(records), _result(records, "programs").get("channels_last", {})
    for title in SERVED.values():
        calls = program if title == SERVED["torch"] else {}
        unet, decoder = (calls.get(name, {}).get("call_ms", {}).get("1") for name in ("unet", "vae_decoder"))
        if title in served or unet is not None:
            columns[title] = (unet, decoder, served.get(title, {}).get("image_ms", {}).get("p50"))
    labels = ("UNet, ms", "autoencoder (profiles: decoder), ms", "end to end, ms")
    rows = [[label, *(_cell(values[row]) for values in columns.values())] for row, label in enumerate(labels)]
    yield from table(["", *columns], rows)


def _batches(records: Mapping[str, Record]) -> Lines:
    columns: dict[str, dict[str, float]] = {}
    for mode, times in _result(records, "pytorch").items():
        columns[f"UNet, torch {mode}"] = times["unet_ms"]
    for layout, networks in _result(records, "programs").items():
        columns |= {f"{name}, program, {layout}": values["call_ms"] for name, values in networks.items()}
    for title, result in _served(records).items():
        columns |= {f"{name}, served, {title}": times for name, times in result.get("network_ms", {}).items()}
    batches = sorted({int(batch) for times in columns.values() for batch in times})
    rows = [[name, *(_cell(times.get(str(batch))) for batch in batches)] for name, times in columns.items()]
    yield from table(["ms by batch", *batches], rows)


def _steps(records: Mapping[str, Record]) -> Lines:
    """By steps a call: one image over gRPC, and a step of so many rows with the share that is not the network's."""
    rows: list[list[Any]] = []
    head = ["", "steps a call", "one image, p50 ms", "p90 ms"]
    batches: list[str] = []
    for title, result in _served(records).items():
        for name, values in result.get("steps_a_call", {}).items():
            batches = list(values["step"])
            cells = [
                f"{step['step_ms']:.2f}, of it {step['overhead_ms']:.2f} ({step['outside']:.0%})"
                for step in values["step"].values()
            ]
            chosen = f"{values['step'][batches[0]]['steps_a_call']:.0f}, its own choice" if name == "own" else name
            image = values["image_ms"]
            rows.append([title, chosen, _cell(image["p50"]), _cell(image["p90"]), *cells])
    if rows:
        beside = [f"a step of {batch} rows, of it beside the network, ms" for batch in batches]
        yield from table([*head, *beside], rows)


def _others(records: Mapping[str, Record]) -> Lines:
    """The other figures of each server, and the error of programs."""
    rows = [[title, name, figure] for title, result in _served(records).items() for name, figure in _figures(result)]
    for layout, networks in _result(records, "programs").items():
        for name, values in networks.items():
            rows.append([f"program, {layout}", f"{name} against fp32, relative L2", f"{values['relative_l2']:.1e}"])
    if rows:
        yield from table(["", "what", "figure"], rows)


def _figures(result: Record) -> Iterator[tuple[str, str]]:
    if throughput := result.get("throughput"):
        yield "images a second", f"{throughput['images_per_s']:.1f}"
    if poisson := result.get("poisson"):
        latency = f"mean {1e3 * poisson['mean']:.0f} ms, p99 {1e3 * poisson['p99']:.0f} ms"
        yield f"mixed steps at {poisson['load']:.0%} load, {poisson['rate']:.1f} a second", latency
    if parity := result.get("parity"):
        yield "final latents against fp32, relative L2", f"{parity['latent_relative_l2']:.1e}"
        yield "images alone against in a batch, largest difference", f"{parity['alone_against_batch_max_abs']:.1e}"


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
