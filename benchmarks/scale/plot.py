"""The makespan against the size of shards, by policy."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.markdown import Record
from benchmarks.harness.picture import ACCENT, OTHERS, OURS, errors, figure_in

COLOURS = {"own server": OTHERS, "in turn": ACCENT, "least busy": OURS}


def draw(result: Record, path: Path) -> None:
    """A line for each policy: median and range over the seeds. `result` is that of the section `fleet`."""
    sizes = list(result["shard_sizes"])
    at = [int(size) for size in sizes]
    with figure_in(path, (9, 5), dpi=90) as figure:
        axes = figure.subplots()
        for policy in result["shard_sizes"][sizes[0]]:
            sharing, finding = policy.split(", ")
            stretch = [result["shard_sizes"][size][policy]["stretch"] for size in sizes]
            style = "o-" if sharing == "dynamic" else "s--"
            middle, label = [value["median"] for value in stretch], f"shards {sharing}, servers: {finding}"
            axes.errorbar(
                at, middle, errors(stretch), fmt=style, color=COLOURS[finding], capsize=3, lw=1.3, ms=4, label=label
            )
        axes.axhline(1, color="black", lw=0.6)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(at, [str(size) for size in at])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        fleet = result["fleet"]
        axes.set(
            xlabel="images in a shard", ylabel="time / time of a fleet that always works",
            title=f"{fleet['images']:,} images on {fleet['servers']} servers, with every mishap",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
