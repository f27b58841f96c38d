"""The chart of README: an image by the bundle's loop and by each preset, in seconds, and how good it is.

Two records: times of the bundle's networks, of benchmarks.serving; quality of the demo weights, of benchmarks.quality.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import ROOT
from benchmarks.harness.command import read_record
from benchmarks.harness.markdown import Record, number
from benchmarks.harness.picture import OTHERS, OURS, errors, figure_in
from benchmarks.serving.names import BASELINE, IN_BF16, by_preset
from benchmarks.serving.names import OURS as IN_FLOAT32
from benchmarks.tables.quality import of_presets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOP = "MONAI bundle's\nPyTorch loop"
SHOWN = ("standard", "fast", "draft")
SERVERS = {IN_FLOAT32: ("float32", OURS), IN_BF16: ("OpenVINO in bf16", "#7fb3d5")}
SIZE, DPI = (9.0, 3.7), 200  # readable at 900 pixels


def draw_recorded() -> None:
    """docs/presets.png from the records of this repository, once both are there."""
    times = read_record(ROOT / "benchmarks" / "serving" / "bundle-presets.json").get("result")
    quality = read_record(ROOT / "benchmarks" / "quality.json").get("distance")
    if times and quality:
        draw(times, quality, ROOT / "docs" / "presets.png")


def draw(times: Record, quality: Record, path: Path) -> None:
    """A line for the loop and for each preset: seconds as bars, and quality as figures at the right."""
    with figure_in(path, SIZE, DPI) as figure:
        bars, words = figure.subplots(1, 2, width_ratios=[13, 7], sharey=True)
        _bars(bars, times["contestants"])
        _words(words, quality)
        bars.set_yticks(range(len(SHOWN) + 1), [LOOP, *SHOWN])
        bars.set_ylim(len(SHOWN) + 0.5, -0.9)


def _bars(axes: Axes, contestants: Record) -> None:
    loop = contestants[BASELINE]
    _bar(axes, 0, loop, f"{number(loop['median'])} s", color=OTHERS, height=0.5)
    measured = [server for server in SERVERS if by_preset(server, SHOWN[0]) in contestants]
    height = 0.8 / len(measured)
    for index, server in enumerate(measured):
        label, colour = SERVERS[server]
        axes.barh([0], [0], color=colour, label=label)  # for the legend
        for line, preset in enumerate(SHOWN, start=1):
            if values := contestants.get(by_preset(server, preset)):
                y = line + (index - (len(measured) - 1) / 2) * height
                faster = number(values["faster_than_baseline"]["median"])
                text = f"{number(values['median'])} s, {faster} times as fast"
                _bar(axes, y, values, text, color=colour, height=0.9 * height)
    axes.set_xlim(0, 1.2 * loop["max"])
    axes.set_xlabel("seconds for one image, the bundle's networks")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, title="this server")


def _bar(axes: Axes, y: float, values: Record, text: str, color: str, height: float) -> None:
    axes.barh(y, values["median"], height, xerr=errors([values]), color=color, ecolor="#444444")
    axes.annotate(text, (values["max"], y), xytext=(4, 0), textcoords="offset points", va="center")


def _words(axes: Axes, quality: Record) -> None:
    """The loop's images are those of `standard`."""
    rows = of_presets(quality)
    columns = {0.3: f"SSIM to {quality['reference']['steps']}\nsteps of DDIM", 0.8: "Fréchet distance\nto real slices"}
    for x, title in columns.items():
        axes.text(x, -0.75, title, ha="center", va="center", weight="bold", fontsize=9)
    for line, preset in enumerate((SHOWN[0], *SHOWN)):
        if row := rows.get(preset):
            real = f"{1000 * row['to_real']['frechet']:.0f}" if row["to_real"] else "not measured"
            for x, text in zip(columns, (f"{row['paired']['ssim_mean']:.3f}", real), strict=True):
                axes.text(x, line, text, ha="center", va="center")
    axes.set_xlabel("demo weights; distance x 1000", fontsize=9)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
