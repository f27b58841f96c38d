"""Curves of training runs: read from TensorBoard's events, drawn as one figure. Writes no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot, which would look for a display
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tb_logging import get_logger

from training.files import utf8_name

ORDER = ("l1", "kl", "adversarial", "discriminator", "loss", "diffusion_loss")
VALIDATION = "validation/"
COLUMNS = 3
# The running mean's window as a share of the run.
SMOOTHING = 0.02

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def read_scalars(run: Path) -> dict[str, Curve]:
    """By tag: steps int64 [n], each once and ascending, and their values float64 [n].

    An interrupted run wrote the steps after its last saved state twice; the later value is used.

    Raises:
        ValueError: there are no events, or no scalars among them.
    """
    get_logger().setLevel("ERROR")  # it warns about every resumed run
    folder = run / "events"
    if not any(folder.glob("*tfevents*")):
        raise ValueError(f"{folder} holds no events: give the --out folder of a training stage")
    with utf8_name(folder) as readable:
        events = EventAccumulator(readable, size_guidance={"scalars": 0, "images": 1}).Reload()  # 0 = all of them
    curves = {}
    for tag in events.Tags()["scalars"]:
        written = sorted(events.Scalars(tag), key=lambda event: event.wall_time)
        last = sorted({event.step: event.value for event in written}.items())
        steps, values = zip(*last, strict=True)
        curves[tag] = (np.array(steps, np.int64), np.array(values, np.float64))
    if not curves:
        raise ValueError(f"{folder} holds no scalars yet: wait for the first iterations")
    return curves


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over up to `window` neighbours, fewer at the ends; centred, so without lag. [n] to [n]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first = np.maximum(places - window // 2, 0)
    end = np.minimum(places + window // 2 + 1, len(values))
    return (total[end] - total[first]) / (end - first)


def ordered(tags: Iterable[str]) -> list[str]:
    """Losses as the recipe names them, then other scalars, validation, and the learning rate last."""

    def place(tag: str) -> tuple[bool, bool, int, str]:
        known = ORDER.index(tag) if tag in ORDER else len(ORDER)
        return tag == "learning_rate", tag.startswith(VALIDATION), known, tag

    return sorted(tags, key=place)


def limits(shown: Sequence[NDArray[np.float64]], logarithmic: bool) -> tuple[float, float]:
    """Bounds of an axis that holds all of `shown`, with 5 % of room at either end."""
    low, high = min(values.min() for values in shown), max(values.max() for values in shown)
    if logarithmic:
        room = (high / low) ** 0.05
        return low / room, high * room
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def draw_panel(axes: Axes, tag: str, curves: Mapping[str, Curve], colours: Mapping[str, str]) -> None:
    """One scalar of all runs that have it.

    The axis is logarithmic if all values are positive and a curve spans more than a factor of 5. It leaves out one
    percent of extreme values, mostly of the first iterations, which would flatten the rest. It also leaves out values
    that are not finite, such as the gradient norm of an update that fp16 skips.
    """
    shown, logarithmic, positive = [], False, True
    for run, (steps, values) in curves.items():
        finite = np.isfinite(values)
        steps, values, colour = steps[finite], values[finite], colours[run]
        if not len(values):
            continue
        if tag.startswith(VALIDATION) or tag == "learning_rate":
            line, usual = values, values
            axes.plot(steps, line, "o-" if tag.startswith(VALIDATION) else "-", color=colour, markersize=4, linewidth=1)
        else:
            line, usual = (
                running_mean(values, max(1, round(SMOOTHING * len(values)))),
                np.percentile(values, [0.5, 99.5]),
            )
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.5)
            axes.plot(steps, line, color=colour, linewidth=1.5)
        shown += [line, usual]
        positive &= bool(values.min() > 0)
        logarithmic |= bool(line.max() > 5 * line.min())
    logarithmic &= positive
    if logarithmic:
        axes.set_yscale("log")
    if shown:
        axes.set_ylim(limits(shown, logarithmic))
    axes.set_title(tag)
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)


def draw(runs: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """All curves of `runs`, a mapping from a run's name to its scalars; a panel for each tag, a colour for each run."""
    tags = ordered({tag for scalars in runs.values() for tag in scalars})
    colours = {run: f"C{i}" for i, run in enumerate(runs)}
    columns = min(COLUMNS, len(tags))
    rows = -(-len(tags) // columns)
    figure = Figure(figsize=(max(4.6 * columns, 6), 3.2 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, tag in zip(panels, tags, strict=False):
        draw_panel(axes, tag, {run: scalars[tag] for run, scalars in runs.items() if tag in scalars}, colours)
    for axes in panels[len(tags) :]:
        axes.set_visible(False)
    title = next(iter(runs)) if len(runs) == 1 else "Training curves"
    figure.suptitle(f"{title}\nfaint: single values; line: running mean over {SMOOTHING:.0%} of the run", fontsize=10)
    if len(runs) > 1:
        handles = [Line2D([], [], color=colour, label=run) for run, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
