"""The recorded figures as a picture for each kind of weights. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from benchmarks.harness.markdown import Record
from benchmarks.harness.picture import figure_in
from benchmarks.tables.serving import KINDS, NAMES, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERVER, RIVAL = "#1b6ca8", "#b0b0b0"


def draw(folder: Path) -> list[Path]:
    """WEIGHTS.png in `folder`: speed beside the rivals, latency under load, cost by rows, the layers."""
    parts = {"single": _speed, "load": _load, "cost": _cost, "layers": _layers}
    pictures = []
    for weights, records in read_records(folder).items():
        results = {name: record["result"] for name, record in records.items() if "result" in record}
        if weights not in NAMES or not parts.keys() & results.keys():
            continue
        pictures.append(folder / f"{weights}.png")
        with figure_in(pictures[-1], (13, 9)) as figure:
            for axes, (name, part) in zip(figure.subplots(2, 2).flat, parts.items(), strict=True):
                if name in results:
                    part(axes, results[name])
                else:
                    axes.set_axis_off()
            figure.suptitle(NAMES[weights])
    return pictures


def _speed(axes: Axes, result: Record) -> None:
    ranked = sorted(result["contestants"].items(), key=lambda item: item[1]["faster_than_baseline"]["median"])
    ratios = [values["faster_than_baseline"] for _, values in ranked]
    middle = [ratio["median"] for ratio in ratios]
    around = [
        [max(0.0, ratio["median"] - ratio["min"]) for ratio in ratios],
        [max(0.0, ratio["max"] - ratio["median"]) for ratio in ratios],
    ]
    colours = [SERVER if name.startswith("tritonserver") else RIVAL for name, _ in ranked]
    labels = [fill(name.replace("tritonserver, this repository", "ours"), 40) for name, _ in ranked]
    axes.barh(labels, middle, xerr=around, color=colours)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(title="One image", xlabel="times as fast as the bundle's loop")


def _load(axes: Axes, result: Record) -> None:
    loads = [100 * point["load"] for point in result["points"]]
    for kind, line in zip(KINDS, ("o-", "--", ":"), strict=True):
        for percentile, colour in (("p50", SERVER), ("p99", "#c0392b")):
            values = [point[kind][f"{percentile}_over_alone"] for point in result["points"]]
            axes.plot(loads, values, line, color=colour, label=f"{percentile}, {kind}")
    axes.set(title="Requests that come at random", xlabel="load, % of capacity", ylabel="times one image alone")
    axes.set_yscale("log")
    axes.legend()


def _cost(axes: Axes, result: Record) -> None:
    rows = [int(count) for count in result["rows"]]
    measured = [values["image_s"] for values in result["rows"].values()]
    axes.plot(rows, measured, "o", color=SERVER, label="measured")
    fitted = [values["fitted_image_s"] for values in result["rows"].values()]
    axes.plot(rows, fitted, color=SERVER, label="a + b·rows a step")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.2 * max(measured))
    axes.set(title="Cost by rows of a request", xlabel="rows", ylabel="seconds an image")
    axes.legend()


def _layers(axes: Axes, result: Record) -> None:
    bars: dict[str, Any] = {
        f"{name}, {concurrent} at once": values["tax"]["median"]
        for concurrent, layers in result["concurrent"].items()
        for name, values in layers.items()
    }
    axes.barh(list(bars)[::-1], list(bars.values())[::-1], color=SERVER)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(title="Layers", xlabel="time over that of the engine in process", xlim=(0.8, max(1.1, *bars.values())))
