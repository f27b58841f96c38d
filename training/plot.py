"""Draw the curves of training runs from their TensorBoard events, as PNG.

    python -m training.plot RUN

One panel per scalar: all values faint, the running mean on top, validation as dots. Writes RUN/curves.png for each
run, or one picture of all runs with --out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from training.cli import exit_status, run_command
from training.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders: the --out folders of training stages."""
    out: Path | None = None
    """One PNG with the curves of all runs; without it each run gets its own RUN/curves.png."""


def save(figure: Figure, path: Path) -> None:
    """Write a PNG completely or not at all, and print its path."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    print(path)


def name_of(run: Path) -> str:
    """The path of a run as text that can be drawn, with question marks for bytes that are not UTF-8."""
    return os.fsencode(run).decode("utf-8", "replace")


def plot(runs: Sequence[Path], out: Path | None) -> None:
    """Read all `runs`, then draw one picture into `out` or, if that is None, RUN/curves.png for each run.

    Raises:
        ValueError: there is no run, or a run without scalars.
    """
    from tqdm import tqdm

    from training.curves import draw, read_scalars

    if not runs:
        raise ValueError("give at least one run folder")
    with tqdm(runs, desc="reading events", unit="run") as bar:
        scalars = {run: read_scalars(run) for run in bar}
    if out is not None:
        save(draw({name_of(run): curves for run, curves in scalars.items()}), out)
        return
    for run in runs:
        save(draw({name_of(run): scalars[run]}), run / "curves.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = tyro.cli(Arguments, prog="python -m training.plot", description=__doc__, args=argv)
    return exit_status(lambda: plot(arguments.runs, arguments.out))


if __name__ == "__main__":
    run_command(main)
