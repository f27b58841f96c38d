"""The recorded figures as curves, and some images of each setting side by side. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.in_process import Array
from benchmarks.quality.generate import FIRST_SEED
from benchmarks.quality.plan import SAMPLERS, Setting
from brats_ldm_client import PRESETS
from brats_ldm_client.pictures import sheet, to_display
from training.files import whole_file
from training.pictures import FOOT_GREY, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
COLOURS = {"ddim": "#1b6ca8", "dpmpp_2m": "#c0392b", "ddpm": "#555555"}
SHOWN = 3  # seeds


def draw_curves(record: Record, path: Path) -> None:
    """PSNR to the reference, Frechet distance to it, and that to real slices, by seconds (or steps) of an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    settings = record["distance"]["settings"]
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    paired, reference, real = figure.subplots(1, 3)
    time = record.get("time")
    _paired(paired, settings, time)
    _reference(reference, settings, time)
    _real(real, settings, time)
    for axes in (paired, reference, real):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.margins(x=0.15)
        axes.set_xlabel("steps of an image" if time is None else "seconds an image, one at a time on this machine")
        if axes.has_data():
            axes.legend(fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _cost(each: Record, time: Record | None) -> float:
    return float(each["steps"] if time is None else time["settings"][each["setting"]]["median"])


def _curves(
    axes: Axes, settings: Sequence[Record], time: Record | None, value: Callable[[Record], float | None], **line: Any
) -> None:
    """A curve for each sampler over the settings that have a value; the presets are named on it."""
    for sampler, colour in COLOURS.items():
        points = [each for each in settings if each["sampler"] == sampler and value(each) is not None]
        if points:
            costs, values = [_cost(each, time) for each in points], [value(each) for each in points]
            label = " ".join([SAMPLERS[sampler], line.get("label", "")])
            axes.plot(costs, values, color=colour, **{"marker": "o", **line, "label": label})


def _name_presets(
    axes: Axes, settings: Sequence[Record], time: Record | None, value: Callable[[Record], float | None]
) -> None:
    for name, preset in PRESETS.items():
        for each in settings:
            height = value(each) if (each["sampler"], each["steps"]) == (preset.sampler, preset.steps) else None
            if height is not None:
                axes.annotate(
                    name,
                    (_cost(each, time), height),
                    xytext=(0, 8),
                    textcoords="offset points",
                    fontsize=9,
                    weight="bold",
                    ha="center",
                )


def _paired(axes: Axes, settings: Sequence[Record], time: Record | None) -> None:
    def mean(each: Record) -> float | None:
        return None if each["paired"] is None else float(each["paired"]["psnr_mean"])

    def worst(each: Record) -> float | None:
        return None if each["paired"] is None else float(each["paired"]["psnr_min"])

    _curves(axes, settings, time, mean, label="mean")
    _curves(axes, settings, time, worst, label="worst", linestyle=":", marker=".")
    _name_presets(axes, settings, time, mean)
    axes.set(title="The image that 1000 steps of DDIM make of the seed?", ylabel="PSNR, dB")


def _reference(axes: Axes, settings: Sequence[Record], time: Record | None) -> None:
    def other(each: Record) -> float | None:
        return 1000 * float((each["to_reference"] or each["reference_to_itself"])["frechet"])

    def same(each: Record) -> float | None:
        return None if each["paired"] is None else 1000 * float(each["paired"]["frechet"])

    _curves(axes, settings, time, other, label="other seeds")
    _curves(axes, settings, time, same, label="same seeds", linestyle=":", marker=".")
    _name_presets(axes, settings, time, other)
    floor = 1000 * settings[0]["reference_to_itself"]["frechet"]
    axes.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="the reference to itself")
    axes.set(title="Distance to the images of 1000 steps", ylabel="Fréchet distance x 1000", yscale="log")


def _real(axes: Axes, settings: Sequence[Record], time: Record | None) -> None:
    def value(each: Record) -> float | None:
        return None if each["to_real"] is None else 1000 * float(each["to_real"]["frechet"])

    known = [each for each in settings if each["to_real"] is not None]
    _curves(axes, known, time, value)
    for each in known:
        error = 1000 * each["to_real"]["frechet_change_error"]
        axes.errorbar(_cost(each, time), value(each), yerr=error, color=COLOURS[each["sampler"]], capsize=3)
    _name_presets(axes, known, time, value)
    axes.set(title="Distance to real slices held out", ylabel="Fréchet distance x 1000")


def draw_slices(images: Callable[[Setting, int], Array], settings: Sequence[Setting], path: Path) -> None:
    """The first seeds by each of `settings`, a row a seed; `images` gives a chunk of a setting."""
    found = {setting: images(setting, 0)[:SHOWN].clip(0, 1) for setting in settings}
    rows = [
        [(to_display(_halved(found[setting][seed])), setting.title) for setting in settings] for seed in range(SHOWN)
    ]
    seeds = f"{FIRST_SEED} to {FIRST_SEED + SHOWN - 1}"
    foot = [f"SYNTHETIC. Rows: seeds {seeds}, not chosen. A pixel here is the mean of four."]
    save_picture(sheet(rows, [(line, FOOT_GREY) for line in foot]), path)


def _halved(image: Array) -> Array:
    """Means of two by two pixels."""
    height, width = image.shape
    small: Array = np.asarray(image.reshape(height // 2, 2, width // 2, 2).mean((1, 3)))
    return small
