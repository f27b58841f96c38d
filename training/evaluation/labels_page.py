"""One page of figures for `training.evaluation.labels`: outlines, Dice by region, contrast. Measures nothing."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from brats_ldm_client.pictures import as_rows
from training.conditioning import LABELS
from training.evaluation.following import TARGET, Following, means
from training.evaluation.page import COLOURS
from training.evaluation.segmenter import REGIONS
from training.files import whole_file
from training.pictures import grid

COLUMNS = 7
SHOWN = 2 * COLUMNS
WANTED, FOUND = "tab:green", "tab:red"  # colours of outlines


def draw_page(result: Following, path: Path, seed: int) -> None:
    """Write the page as PNG, 1100 x 1000 pixels, completely or not at all; `seed` draws the samples."""
    figure = Figure(figsize=(11, 10), layout="constrained")
    FigureCanvasAgg(figure)  # needs no window system
    parts: Any = figure.subfigures(2, 1, height_ratios=(2, 3))  # its type in matplotlib says one figure
    samples, measures = parts
    _draw_outlines(samples.subplots(), result, seed)
    bars, boxes = measures.subplots(2, 1)
    _draw_dice(bars, result)
    _draw_contrast(boxes, result)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_outlines(panel: Axes, result: Following, seed: int) -> None:
    """Synthetic slices with a lesion, the whole lesion that was asked for, and the one that is found."""
    numbers = np.flatnonzero(result.synthetic.with_lesion())
    chosen = np.resize(np.random.default_rng(seed).permutation(numbers), SHOWN).reshape(-1, COLUMNS)
    panel.imshow(grid(list(result.synthetic.images[chosen])), cmap="gray", vmin=0, vmax=255)
    for maps, colour in ((result.synthetic.maps, WANTED), (result.found, FOUND)):
        if (lesions := _sheet(maps[chosen] > 0)).any():
            panel.contour(lesions, levels=[0.5], colors=colour, linewidths=0.8)
    keys = {"in the label map": WANTED, "found in the image": FOUND}
    lines = [Line2D([], [], color=colour, label=name) for name, colour in keys.items()]
    panel.legend(handles=lines, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    panel.set_title("synthetic slices, drawn at random, with outlines of the whole lesion", fontsize=10)
    panel.axis("off")


def _sheet(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks [rows, columns, H, W] placed as `grid` places images."""
    return np.concatenate([np.concatenate([as_rows(mask) for mask in row], axis=1) for row in masks])


def _draw_dice(panel: Axes, result: Following) -> None:
    """A group of bars for each region, in it a bar for each arm."""
    width, places = 0.8 / len(result.dice), np.arange(len(REGIONS))
    for i, ((trained, tested), values) in enumerate(result.dice.items()):
        label = f"trained on {trained}, tested on {tested}"
        panel.bar(places + (i + 0.5) * width - 0.4, means(values), 0.9 * width, label=label)
    whole = means(next(iter(result.dice.values())))[0]
    panel.hlines(TARGET * whole, -0.4, 0.4, colors="black", linestyles="dotted", label="target")
    panel.set_xticks(places, list(REGIONS))
    panel.set_ylim(0, 1)
    panel.set_title("mean Dice of slices with the region", fontsize=10)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_contrast(panel: Axes, result: Following) -> None:
    """For each label, boxes of real and synthetic slices: median, quartiles, and the range of 1.5 of their distance."""
    for offset, values, (name, colour) in zip((-0.2, 0.2), result.contrast.values(), COLOURS.items(), strict=True):
        columns = [column[np.isfinite(column)] for column in values.T]
        boxes = panel.boxplot(
            columns,
            positions=np.arange(len(LABELS)) + offset,
            widths=0.3,
            patch_artist=True,
            sym=".",
            manage_ticks=False,
        )
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.6)
        panel.plot([], [], "s", color=colour, alpha=0.6, label=name)
    panel.axhline(0, color="black", linewidth=0.5)
    panel.set_xticks(np.arange(len(LABELS)), list(LABELS.values()))
    panel.set_title("contrast: mean of a label less mean of the brain without label, by slice", fontsize=10)
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
