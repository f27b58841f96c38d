"""The recorded figures as curves, and some images of each setting side by side. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.engine import Array
from benchmarks.harness.markdown import Record
from benchmarks.harness.picture import ACCENT, OURS, figure_in
from benchmarks.quality.latents import FIRST_SEED
from benchmarks.quality.settings import SAMPLERS, Setting
from brats_ldm_client import PRESETS
from brats_ldm_client.pictures import sheet, to_display
from training.pictures import FOOT_GREY, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Callable[[Record], float]
COLOURS = {"ddim": OURS, "dpmpp_2m": ACCENT, "ddpm": "#555555"}
DOTTED: dict[str, Any] = {"linestyle": ":", "marker": "."}
SHOWN = 3  # seeds


def draw_curves(record: Record, path: Path) -> None:
    """PSNR to the reference, Frechet distance to it, and that to real slices, by seconds (or steps) of an image."""
    settings, time = record["distance"]["settings"], record.get("time")
    for setting in settings:
        setting["cost"] = time["settings"][setting["setting"]]["median"] if time else setting["steps"]
    with figure_in(path, (14, 4.5)) as figure:
        panels = figure.subplots(1, 3)
        for axes, draw in zip(panels, (_paired, _reference, _real), strict=True):
            draw(axes, settings)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.margins(x=0.15)
            axes.set_xlabel("seconds an image, one at a time on this machine" if time else "steps of an image")
            if axes.has_data():
                axes.legend(fontsize=8)


def _curves(axes: Axes, settings: Sequence[Record], value: Value, label: str = "", **line: Any) -> None:
    """A curve for each sampler."""
    for sampler, colour in COLOURS.items():
        points = [(setting["cost"], value(setting)) for setting in settings if setting["sampler"] == sampler]
        if points:
            style = {"marker": "o", "color": colour, **line, "label": f"{SAMPLERS[sampler]} {label}"}
            axes.plot(*zip(*points, strict=True), **style)


def _name_presets(axes: Axes, settings: Sequence[Record], value: Value) -> None:
    names = {(preset.sampler, preset.steps): name for name, preset in PRESETS.items()}
    for setting in settings:
        if name := names.get((setting["sampler"], setting["steps"])):
            axes.annotate(
                name, (setting["cost"], value(setting)), xytext=(0, 8), textcoords="offset points", fontsize=9,
                weight="bold", ha="center",
            )  # fmt: skip


def _paired(axes: Axes, settings: Sequence[Record]) -> None:
    paired = [setting for setting in settings if setting["paired"]]

    def psnr(setting: Record) -> float:
        return float(setting["paired"]["psnr_mean"])

    _curves(axes, paired, psnr, "mean")
    _curves(axes, paired, lambda setting: float(setting["paired"]["psnr_min"]), "worst", **DOTTED)
    _name_presets(axes, paired, psnr)
    axes.set(title="The image that 1000 steps of DDIM make of the seed?", ylabel="PSNR, dB")


def _reference(axes: Axes, settings: Sequence[Record]) -> None:
    def other(setting: Record) -> float:
        return 1000 * float((setting["to_reference"] or setting["reference_to_itself"])["frechet"])

    paired = [setting for setting in settings if setting["paired"]]
    _curves(axes, settings, other, "other seeds")
    _curves(axes, paired, lambda setting: 1000 * float(setting["paired"]["frechet"]), "same seeds", **DOTTED)
    _name_presets(axes, settings, other)
    floor = 1000 * settings[0]["reference_to_itself"]["frechet"]
    axes.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="the reference to itself")
    axes.set(title="Distance to the images of 1000 steps", ylabel="Fréchet distance x 1000", yscale="log")


def _real(axes: Axes, settings: Sequence[Record]) -> None:
    def real(setting: Record) -> float:
        return 1000 * float(setting["to_real"]["frechet"])

    known = [setting for setting in settings if setting["to_real"]]
    _curves(axes, known, real)
    for setting in known:
        error, colour = 1000 * setting["to_real"]["frechet_change_error"], COLOURS[setting["sampler"]]
        axes.errorbar(setting["cost"], real(setting), yerr=error, color=colour, capsize=3)
    _name_presets(axes, known, real)
    axes.set(title="Distance to real slices held out", ylabel="Fréchet distance x 1000")


def draw_slices(images: Callable[[Setting, int], Array], settings: Sequence[Setting], path: Path) -> None:
    """The first seeds by each of `settings`, a row a seed; `images` gives a chunk of a setting."""
    first = {setting: images(setting, 0)[:SHOWN].clip(0, 1) for setting in settings}
    rows = [
        [(to_display(_halved(first[setting][seed])), setting.title) for setting in settings] for seed in range(SHOWN)
    ]
    seeds = f"{FIRST_SEED} to {FIRST_SEED + SHOWN - 1}"
    foot = f"SYNTHETIC. Rows: seeds {seeds}, not chosen. A pixel here is the mean of four."
    save_picture(sheet(rows, [(foot, FOOT_GREY)]), path)


def _halved(image: Array) -> Array:
    """Means of two by two pixels."""
    height, width = image.shape
    small: Array = image.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return small
