"""A record as one picture: dots are measured, lines are predicted by the one calibration, or fitted to memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness.markdown import Record
from benchmarks.harness.picture import figure_in
from benchmarks.tables.cost import AXES, DECODER, apart
from brats_ldm_client._calibrate import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOGETHER = "resident, all but the decoder"
DOTS, MODEL = "#1b6ca8", "#c0392b"


def draw(record: Record, path: Path) -> None:
    """Six panels: steps, rows, clients, images, memory by rows, memory by the decoder's batch."""
    with figure_in(path, (14, 8), dpi=90) as figure:
        panels = figure.subplots(2, 3).flat
        for name, axes in zip(AXES, panels, strict=False):
            _time(axes, record, name)
        _memory(panels[4], record)
        _decoder(panels[5], record)
        figure.suptitle(f"{record['model']}, profile {record['profile']}, {record['machine']['cores']} CPU cores")


def _time(axes: Axes, record: Record, name: str) -> None:
    from matplotlib.ticker import LogLocator

    points = record[name]["points"]
    at, seconds = [point["at"] for point in points], [point["seconds"] for point in points]
    low, middle, high = (np.array([values[key] for values in seconds]) for key in ("min", "median", "max"))
    line, predicted = _model_line(record, name)
    axes.plot(line, predicted, color=MODEL, label="predicted by one calibration")
    drifted = (1 + record[name]["drift"]) * np.array(predicted)
    axes.plot(line, drifted, "--", color=MODEL, linewidth=0.8, label="the same, with the machine's drift")
    axes.errorbar(
        at,
        middle,
        np.maximum([middle - low, high - middle], 0),
        fmt="o",
        color=DOTS,
        capsize=3,
        label="measured, median and range",
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", subs=())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(at, list(map(str, at)))
    steps = "" if name == "steps" else f", {points[0]['steps']} steps"
    axes.set(xlabel=AXES[name] + steps, ylabel="seconds")
    axes.set_title(_title(record[name]), fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _title(panel: Record) -> str:
    steady, drift = abs(panel["worst_steady"]), panel["drift"]
    speed = f"machine {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} than at the calibration"
    return f"off by at most {abs(panel['worst']):.0%}\n{speed}; without that {steady:.0%}"


def _model_line(record: Record, name: str) -> tuple[list[int], list[float]]:
    model, points = Calibration(**record["calibration"]["model"]), record[name]["points"]
    at = list(range(points[0]["at"], points[-1]["at"] + 1))
    first = points[0]
    if name == "steps":
        return at, [model.predict(1, steps, 1) for steps in at]
    in_flight = [first["in_flight"] if name == "images" else images for images in at]
    return at, [model.predict(images, first["steps"], many) for images, many in zip(at, in_flight, strict=True)]


def _memory(axes: Axes, record: Record) -> None:
    memory = record["memory_mb"]
    loaded = [point for point in memory["points"] if point["rows"]]
    rows = np.array([point["rows"] for point in loaded])
    shown = {
        name: ([point["processes"][name]["peak"] for point in loaded], fitted)
        for name, fitted in memory["peak_lines"].items()
    }
    shown[TOGETHER] = ([apart(point) for point in loaded], memory["together_line"])
    for number, (name, (values, fitted)) in enumerate(sorted(shown.items(), key=lambda item: -item[1][0][-1])):
        colour = "black" if name == TOGETHER else f"C{number}"
        axes.plot(rows, values, "o", color=colour)
        axes.plot(rows, fitted["base"] + fitted["row"] * rows, color=colour, label=_label(name, fitted, "a row"))
    axes.set(xlabel="rows in flight", ylabel="MB", title="Peak memory of each process")
    axes.set_ylim(0, 1.7 * max(max(values) for values, _ in shown.values()))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize="small")


def _decoder(axes: Axes, record: Record) -> None:
    decoder = record["decoder_mb"]
    rows = np.array([point["rows"] for point in decoder["points"]])
    fitted = decoder["peak_line"]
    axes.plot(rows, [point["peak"] for point in decoder["points"]], "o", color=DOTS)
    axes.plot(rows, fitted["base"] + fitted["row"] * rows, color=MODEL, label=_label(DECODER, fitted, "a latent"))
    axes.set(xlabel="latents in a call of the decoder (decode_batch)", ylabel="MB", title="Peak memory of the decoder")
    axes.set_xticks(rows)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _label(name: str, fitted: Record, unit: str) -> str:
    return f"{name}: {fitted['base']:.0f} + {fitted['row']:.2g} {unit}"
