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
from brats_ldm_client.pictures import sheet, to_display
from training.pictures import FOOT_GREY, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES: dict[str, dict[str, Any]] = {
    "ddim": {"color": "#777777", "marker": ".", "linestyle": ":"},
    "dpmpp_2m": {"color": OURS, "marker": "o"},
    "dpmpp_3m": {"color": "#2e8b57", "marker": "s"},
    "unipc": {"color": ACCENT, "marker": "^"},
}
SHOWN = 3  # seeds


def draw_curves(record: Record, path: Path) -> None:
    """PSNR to the reference by steps: a panel for each grid, a line for each sampler; DDIM on its own grid in all."""
    sweep, baseline = record["sweep"], record["baseline"]
    grids = list(dict.fromkeys(setting["timestep_grid"] for setting in sweep))
    with figure_in(path, (14, 4.2)) as figure:
        panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
        for axes, grid in zip(panels, grids, strict=True):
            _panel(
                axes, [setting for setting in sweep if grid == setting["timestep_grid"] or _is_ddim(setting)], baseline
            )
            axes.set(title=f"grid {grid}", xlabel="steps of an image")
        panels[0].set_ylabel(f"PSNR to {record['reference']['steps']} steps of DDIM, dB")
        panels[0].legend(fontsize=8)


def _is_ddim(setting: Record) -> bool:
    return bool(setting["sampler"] == "ddim")


def _panel(axes: Axes, settings: Sequence[Record], baseline: str) -> None:
    for sampler, style in STYLES.items():
        points = sorted(
            (setting["steps"], setting["psnr_mean"])
            for setting in settings
            if setting["sampler"] == sampler and setting["setting"] != baseline
        )
        if points:
            axes.plot(*zip(*points, strict=True), label=SAMPLERS[sampler], **style)
    for setting in settings:
        if setting["setting"] == baseline:
            label = f"{SAMPLERS[setting['sampler']]}, {setting['steps']} steps"
            axes.axhline(setting["psnr_mean"], color="black", linewidth=0.8, linestyle="--", label=label)
    steps = sorted({setting["steps"] for setting in settings if setting["setting"] != baseline})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def draw_slices(images: Callable[[Setting, int], Array], settings: Sequence[Setting], path: Path) -> None:
    """The first seeds by each of `settings`, a row a seed; `images` gives a chunk of a setting."""
    first = {setting: images(setting, 0)[:SHOWN].clip(0, 1) for setting in settings}
    rows = [
        [(to_display(_halved(first[setting][seed])), _caption(setting)) for setting in settings]
        for seed in range(SHOWN)
    ]
    seeds = f"{FIRST_SEED} to {FIRST_SEED + SHOWN - 1}"
    foot = f"SYNTHETIC. Rows: seeds {seeds}, not chosen. A pixel here is the mean of four."
    save_picture(sheet(rows, [(foot, FOOT_GREY)]), path)


def _caption(setting: Setting) -> str:
    """Short, as it stands above a small picture."""
    return f"{setting.sampler} {setting.steps}" + ("" if setting.decoder == "full" else f" {setting.decoder}")


def _halved(image: Array) -> Array:
    """Means of two by two pixels."""
    height, width = image.shape
    small: Array = image.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return small
