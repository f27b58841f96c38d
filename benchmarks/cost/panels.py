"""A record as one picture: dots are measured, lines are predicted by the one calibration, or fitted to memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.markdown import Record
from benchmarks.harness.picture import ACCENT, OURS, errors, figure_in
from benchmarks.tables.cost import AXES, DECODER, apart
from brats_ldm_client._calibrate import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(record: Record, path: Path) -> None:
    """Six panels: steps, rows, clients, images, memory by rows, memory by the decoder's batch."""
    with figure_in(path, (14, 8), dpi=90) as figure:
        *times, memory, decoder = figure.subplots(2, 3).flat
        for name, axes in zip(AXES, times, strict=True):
            _time(axes, record, name)
        _memory(memory, record["memory_mb"])
        points = record["decoder_mb"]["points"]
        _line(decoder, points, [point["peak"] for point in points], record["decoder_mb"]["peak_line"], DECODER)
        decoder.set(xlabel="latents in a call of the decoder (decode_batch)", title="Peak memory of the decoder")
        for axes in (memory, decoder):
            axes.set(ylabel="MB", ylim=(0, 1.3 * axes.get_ylim()[1]))
        for axes in (*times, memory, decoder):
            axes.grid(alpha=0.3)
            axes.legend(loc="upper left", fontsize="small")
        figure.suptitle(f"{record['model']}, profile {record['profile']}, {record['machine']['cores']} CPU cores")


def _time(axes: Axes, record: Record, name: str) -> None:
    panel = record[name]
    points, drift = panel["points"], panel["drift"]
    at, seconds = [point["at"] for point in points], [point["seconds"] for point in points]
    line, predicted = _predicted(record, name)
    axes.plot(line, predicted, color=ACCENT, label="predicted by one calibration")
    axes.plot(line, (1 + drift) * predicted, "--", color=ACCENT, lw=0.8, label="the same, with the machine's drift")
    middle = [values["median"] for values in seconds]
    axes.errorbar(at, middle, errors(seconds), fmt="o", color=OURS, capsize=3, label="measured, median and range")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    steps = "" if name == "steps" else f", {points[0]['steps']} steps"
    speed = f"machine {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} than at the calibration"
    title = f"off by at most {abs(panel['worst']):.0%}\n{speed}; without that {abs(panel['worst_steady']):.0%}"
    axes.set(xlabel=AXES[name] + steps, ylabel="seconds")
    axes.set_title(title, fontsize="small")


def _predicted(record: Record, name: str) -> tuple[Sequence[int], np.ndarray[Any, Any]]:
    """All values of the axis, and their seconds."""
    model, points = Calibration(**record["calibration"]["model"]), record[name]["points"]
    at, first = range(points[0]["at"], points[-1]["at"] + 1), points[0]
    if name == "steps":
        return at, np.array([model.predict(1, steps, 1) for steps in at])
    fixed = first["in_flight"] if name == "images" else None
    return at, np.array([model.predict(images, first["steps"], fixed or images) for images in at])


def _memory(axes: Axes, memory: Record) -> None:
    loaded = [point for point in memory["points"] if point["rows"]]
    for name, fitted in memory["peak_lines"].items():
        _line(axes, loaded, [point["processes"][name]["peak"] for point in loaded], fitted, name)
    _line(axes, loaded, [apart(point) for point in loaded], memory["together_line"], "resident, all but the decoder")
    axes.set(xlabel="rows in flight", title="Peak memory of each process")


def _line(axes: Axes, points: Sequence[Record], values: Sequence[float], fitted: Record, name: str) -> None:
    rows = np.array([point["rows"] for point in points])
    (dots,) = axes.plot(rows, values, "o")
    label = f"{name}: {fitted['base']:.0f} + {fitted['row']:.2g} a row"
    axes.plot(rows, fitted["base"] + fitted["row"] * rows, color=dots.get_color(), label=label)
