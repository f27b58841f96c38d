"""One page of figures for an evaluation: sample grids, nearest pairs, distributions. Measures nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from brats_ldm_client.pictures import to_display
from training.evaluation.measure import Evaluation
from training.files import whole_file
from training.pictures import grid

COLOURS = {"real": "tab:blue", "synthetic": "tab:orange"}
SHOWN = 20  # random slices of a folder, in two rows
NEAREST = 6  # nearest pairs, those with the highest score first


def draw_page(evaluation: Evaluation, path: Path, seed: int) -> None:
    """Write the page as PNG, 1100 x 1400 pixels, completely or not at all; `seed` draws the samples."""
    figure = Figure(figsize=(11, 14), layout="constrained")
    FigureCanvasAgg(figure)  # needs no window system
    parts: Any = figure.subfigures(3, 1, height_ratios=(5, 6, 3))  # its type in matplotlib says one figure
    samples, nearest, distributions = parts
    _draw_samples(samples.subplots(2, 1), evaluation, seed)
    _draw_nearest(nearest, evaluation)
    _draw_distributions(distributions.subplots(1, 3), evaluation)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_samples(panels: Sequence[Axes], evaluation: Evaluation, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for panel, (name, slices) in zip(panels, evaluation.compared.items(), strict=True):
        drawn = slices.images[rng.choice(len(slices.images), SHOWN, replace=False)]
        panel.imshow(grid([drawn[: SHOWN // 2], drawn[SHOWN // 2 :]]), cmap="gray", vmin=0, vmax=255)
        panel.set_title(f"{name} slices, drawn at random", fontsize=10)
        panel.axis("off")


def _draw_nearest(figure: SubFigure, evaluation: Evaluation) -> None:
    """One column per synthetic slice: the slice, its nearest training slice, its nearest held-out slice."""
    result, training = evaluation.memorisation, evaluation.training
    if result is None or training is None:
        figure.suptitle("memorisation not checked: give --training", fontsize=10)
        return
    real, synthetic = evaluation.compared["real"], evaluation.compared["synthetic"]
    figure.suptitle(
        "the synthetic slices that are most like a training slice; similarity over flips, shifts and gain", fontsize=10
    )
    chosen = np.argsort(-result.score, kind="stable")[:NEAREST]
    for column, i in zip(figure.subplots(3, NEAREST).T, chosen, strict=True):
        near, far = result.training, result.held_out
        verdict = "COPY" if result.copies[i] else "no copy"
        _show(column[0], synthetic.images[i], f"{synthetic.names[i]}\n{verdict}, score {result.score[i]:.2f}")
        _show(column[1], training.images[near.index[i]], f"training: {near.similarity[i]:.3f}")
        _show(column[2], real.images[far.index[i]], f"held-out: {far.similarity[i]:.3f}")


def _show(panel: Axes, image: NDArray[np.float32], title: str) -> None:
    panel.imshow(to_display(image), cmap="gray", vmin=0, vmax=255)
    panel.set_title(title, fontsize=7)
    panel.axis("off")


def _draw_distributions(panels: Sequence[Axes], evaluation: Evaluation) -> None:
    """MS-SSIM of pairs, the features' first two principal components, similarity to the training slices."""
    result = evaluation.memorisation
    joined = torch.cat(list(evaluation.features.values()))
    centre = joined.mean(0)
    directions = torch.linalg.svd(joined - centre, full_matrices=False).Vh[:2].T
    for name, colour in COLOURS.items():
        panels[0].hist(
            evaluation.pairs[name], 40, range=(0, 1), density=True, alpha=0.6, color=colour, label=f"{name} pairs"
        )
        x, y = ((evaluation.features[name] - centre) @ directions).T
        panels[1].scatter(x, y, 4, color=colour, alpha=0.5, label=name)
    panels[0].set(title="diversity: MS-SSIM of random pairs", xlabel="MS-SSIM", ylabel="density")
    panels[1].set(title="features: first two principal components", xlabel="1st", ylabel="2nd")
    if result is not None:
        shown = {"real": (result.new_similarity, "held-out"), "synthetic": (result.training.similarity, "synthetic")}
        for name, (values, label) in shown.items():
            panels[2].hist(values, 40, range=(0, 1), density=True, alpha=0.6, color=COLOURS[name], label=label)
        panels[2].axvline(result.least_similarity, color="black", linestyle=":", label="copies lie above")
        panels[2].set(title="similarity to the nearest training slice", xlabel="similarity")
    else:
        panels[2].axis("off")
    for panel in panels[: 3 if result is not None else 2]:
        panel.legend(fontsize=8)
        panel.title.set_fontsize(10)
