"""The recorded figures as curves, and some images of each setting side by side. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.engine import Array
from benchmarks.harness.markdown import Record
from benchmarks.harness.picture import figure_in
from benchmarks.quality.latents import FIRST_SEED
from benchmarks.quality.settings import SAMPLERS, Setting
from brats_ldm_client import PRESETS
from brats_ldm_client.pictures import sheet, to_display
from training.pictures import FOOT_GREY, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Callable[[Record], float | None]
COLOURS = {"ddim": "#1b6ca8", "dpmpp_2m": "#c0392b", "ddpm": "#555555"}
SHOWN = 3  # seeds


def draw_curves(record: Record, path: Path) -> None:
    """PSNR to the reference, Frechet distance to it, and that to real slices, by seconds (or steps) of an image."""
    from matplotlib.ticker import FormatStrFormatter

    settings, time = record["distance"]["settings"], record.get("time")
    with figure_in(path, (14, 4.5)) as figure:
        for axes, draw in zip(figure.subplots(1, 3), (_paired, _reference, _real), strict=True):
            draw(axes, settings, time)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.margins(x=0.15)
            axes.set_xlabel("steps of an image" if time is None else "seconds an image, one at a time on this machine")
            if axes.has_data():
                axes.legend(fontsize=8)


def _cost(setting: Record, time: Record | None) -> float:
    return float(setting["steps"] if time is None else time["settings"][setting["setting"]]["median"])


def _curves(axes: Axes, settings: Sequence[Record], time: Record | None, value: Value, **line: Any) -> None:
    """A curve for each sampler over the settings that have a value."""
    for sampler, colour in COLOURS.items():
        points = [
            (_cost(setting, time), height)
            for setting in settings
            if setting["sampler"] == sampler and (height := value(setting)) is not None
        ]
        if points:
            label = " ".join([SAMPLERS[sampler], line.get("label", "")])
            axes.plot(*zip(*points, strict=True), color=colour, **{"marker": "o", **line, "label": label})


def _name_presets(axes: Axes, settings: Sequence[Record], time: Record | None, value: Value) -> None:
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "weight": "bold", "ha": "center"}
    for name, preset in PRESETS.items():
        for setting in settings:
            height = (
                value(setting) if (setting["sampler"], setting["steps"]) == (preset.sampler, preset.steps) else None
            )
            if height is not None:
                axes.annotate(name, (_cost(setting, time), height), xytext=(0, 8), **style)


def _in_pairs(figure: str) -> Value:
    """That figure of the images of the same seeds."""
    return lambda setting: None if setting["paired"] is None else float(setting["paired"][figure])


def _frechet(of: str) -> Value:
    return lambda setting: None if setting[of] is None else 1000 * float(setting[of]["frechet"])


def _paired(axes: Axes, settings: Sequence[Record], time: Record | None) -> None:
    _curves(axes, settings, time, _in_pairs("psnr_mean"), label="mean")
    _curves(axes, settings, time, _in_pairs("psnr_min"), label="worst", linestyle=":", marker=".")
    _name_presets(axes, settings, time, _in_pairs("psnr_mean"))
    axes.set(title="The image that 1000 steps of DDIM make of the seed?", ylabel="PSNR, dB")


def _reference(axes: Axes, settings: Sequence[Record], time: Record | None) -> None:
    def other(setting: Record) -> float:
        return 1000 * float((setting["to_reference"] or setting["reference_to_itself"])["frechet"])

    _curves(axes, settings, time, other, label="other seeds")
    _curves(axes, settings, time, _frechet("paired"), label="same seeds", linestyle=":", marker=".")
    _name_presets(axes, settings, time, other)
    floor = 1000 * settings[0]["reference_to_itself"]["frechet"]
    axes.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="the reference to itself")
    axes.set(title="Distance to the images of 1000 steps", ylabel="Fréchet distance x 1000", yscale="log")


def _real(axes: Axes, settings: Sequence[Record], time: Record | None) -> None:
    value = _frechet("to_real")
    known = [setting for setting in settings if setting["to_real"] is not None]
    _curves(axes, known, time, value)
    for setting in known:
        error, colour = 1000 * setting["to_real"]["frechet_change_error"], COLOURS[setting["sampler"]]
        axes.errorbar(_cost(setting, time), 1000 * setting["to_real"]["frechet"], yerr=error, color=colour, capsize=3)
    _name_presets(axes, known, time, value)
    axes.set(title="Distance to real slices held out", ylabel="Fréchet distance x 1000")


def draw_slices(images: Callable[[Setting, int], Array], settings: Sequence[Setting], path: Path) -> None:
    """The first seeds by each of `settings`, a row a seed; `images` gives a chunk of a setting."""
    first = {setting: images(setting, 0)[:SHOWN].clip(0, 1) for setting in settings}
    rows = [
        [(to_display(_halved(first[setting][seed])), setting.title) for setting in settings] for seed in range(SHOWN)
    ]
    seeds = f"{FIRST_SEED} to {FIRST_SEED + SHOWN - 1}"
    foot = [f"SYNTHETIC. Rows: seeds {seeds}, not chosen. A pixel here is the mean of four."]
    save_picture(sheet(rows, [(line, FOOT_GREY) for line in foot]), path)


def _halved(image: Array) -> Array:
    """Means of two by two pixels."""
    height, width = image.shape
    small: Array = np.asarray(image.reshape(height // 2, 2, width // 2, 2).mean((1, 3)))
    return small
