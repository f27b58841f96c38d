"""The recorded figures as a page of tables. Reads what `python -m benchmarks.gpu` has written; measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.files import write_text

NAMES = {
    "bundle": "The bundle's networks, random weights",
    "demo": "Demo weights (small networks)",
    "small": "Tiny networks, to try the benchmark",
}
SERVED = {"torch": "profile torch", "compiled": "profile torch, compiled", "tensorrt": "profile tensorrt"}


def write_table(folder: Path) -> Path:
    """table.md in `folder`, from the *.json beside it."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    lines = [
        "# Figures of `make gpu`",
        "",
        "Written by `python -m benchmarks.gpu`; benchmarks/README.md explains the rows.",
    ]
    for weights, title in NAMES.items():
        own = {
            key.removeprefix(f"{weights}-"): value for key, value in records.items() if key.startswith(f"{weights}-")
        }
        if own:
            lines += ["", f"## {title}", "", _machine(next(iter(own.values()))["machine"]), ""]
            lines += [*_speed(own), "", *_batches(own), "", *_steps(own), *_details(own)]
    if not any("gpu" in record["machine"] for record in records.values()):
        lines += ["", "**None of these are figures of a GPU.**"]
    path = folder / "table.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _machine(machine: dict[str, Any]) -> str:
    where = f"{machine['gpu']}, driver {machine['driver']}" if "gpu" in machine else f"CPU, {machine['cores']} cores"
    return f"{where}; torch {machine['torch']}; {machine['date']}."


def _speed(own: dict[str, Any]) -> Iterable[str]:
    """The rows of the bundle's own speed table, batch 1."""
    columns: dict[str, tuple[Any, Any, Any]] = {}
    for mode, times in _result(own, "pytorch").items():
        columns[f"torch {mode}"] = (times["unet_ms"]["1"], times["autoencoder_ms"], times["image_ms"])
    program = _result(own, "programs").get("channels_last", {})
    for kind, title in SERVED.items():
        served = _result(own, f"served-{kind}")
        calls = program if kind == "torch" else {}
        unet, decoder = (calls.get(name, {}).get("call_ms", {}).get("1") for name in ("unet", "vae_decoder"))
        if served or unet is not None:
            columns[title] = (unet, decoder, served.get("image_ms", {}).get("p50"))
    yield from _rows(
        ["", *columns],
        [
            [label, *(values[row] for values in columns.values())]
            for row, label in enumerate(("UNet, ms", "autoencoder (profiles: decoder), ms", "end to end, ms"))
        ],
    )


def _batches(own: dict[str, Any]) -> Iterable[str]:
    columns: dict[str, dict[str, float]] = {}
    for mode, times in _result(own, "pytorch").items():
        columns[f"UNet, torch {mode}"] = times["unet_ms"]
    for layout, networks in _result(own, "programs").items():
        for name, values in networks.items():
            columns[f"{name}, program, {layout}"] = values["call_ms"]
    for kind, title in SERVED.items():
        for name, times in _result(own, f"served-{kind}").get("network_ms", {}).items():
            columns[f"{name}, served, {title}"] = times
    batches = sorted({int(batch) for times in columns.values() for batch in times})
    yield from _rows(
        ["ms by batch", *map(str, batches)],
        [[name, *(times.get(str(batch)) for batch in batches)] for name, times in columns.items()],
    )


def _steps(own: dict[str, Any]) -> Iterable[str]:
    """By steps a call: one image over gRPC, and a step of so many rows with the share that is not the network's."""
    rows: list[list[Any]] = []
    head = ["", "steps a call", "one image, p50 ms", "p90 ms"]
    batches: list[str] = []
    for kind, title in SERVED.items():
        for name, found in _result(own, f"served-{kind}").get("steps_a_call", {}).items():
            batches = list(found["step"])
            steps = [(each["step_ms"], each["overhead_ms"], each["outside"]) for each in found["step"].values()]
            cells = [f"{step:.2f}, of it {beside:.2f} ({outside:.0%})" for step, beside, outside in steps]
            own_choice = f"{found['step'][batches[0]]['steps_a_call']:.0f}, its own choice" if name == "own" else name
            rows.append([title, own_choice, found["image_ms"]["p50"], found["image_ms"]["p90"], *cells])
    if rows:
        yield from _rows([*head, *(f"a step of {each} rows, of it beside the network, ms" for each in batches)], rows)
        yield ""


def _details(own: dict[str, Any]) -> Iterable[str]:
    """What there is of each server, a line for each figure."""
    for kind, title in SERVED.items():
        served = _result(own, f"served-{kind}")
        told = []
        if image := served.get("image_ms"):
            told.append(f"one image over gRPC p50 {image['p50']:.1f} ms, p90 {image['p90']:.1f} ms")
        if throughput := served.get("throughput"):
            told.append(f"{throughput['images_per_s']:.1f} images a second")
        if poisson := served.get("poisson"):
            told.append(
                f"of mixed steps at {poisson['load']:.0%} load, {poisson['rate']:.1f} a second, mean "
                f"{1e3 * poisson['mean']:.0f} ms, p99 {1e3 * poisson['p99']:.0f} ms"
            )
        if parity := served.get("parity"):
            told.append(f"final latents within {parity['latent_relative_l2']:.1e} of fp32 (relative L2)")
            told.append(f"images alone and in a batch within {parity['alone_against_batch_max_abs']:.1e}")
        if told:
            yield f"{title[0].upper()}{title[1:]}: {'; '.join(told)}."
    if differences := [
        f"{name}, {layout}, {values['relative_l2']:.1e}"
        for layout, networks in _result(own, "programs").items()
        for name, values in networks.items()
    ]:
        yield f"Programs against fp32 (relative L2 of a call): {'; '.join(differences)}."
    failures = [f"{name} ({record['error'].splitlines()[0]})" for name, record in own.items() if "error" in record]
    if failures:
        yield f"Not measured to the end: {', '.join(failures)}."


def _result(own: dict[str, Any], section: str) -> dict[str, Any]:
    return dict(own.get(section, {}).get("result") or {})


def _rows(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.2f}"
