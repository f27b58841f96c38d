"""Measure whether synthetic slices follow the label maps that they were made from.

    python -m training.evaluation.labels --data DIR --pairs PAIRS

A small segmenter, trained on real slices, looks for the lesions of the label maps in synthetic slices and in held-out
real ones. Others, trained on synthetic slices or with them, show what these are worth as training data. It writes a
table, evaluation_labels.json and evaluation_labels.png.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.cli import exit_status, run_command


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    data: Path
    """Folder that holds Task01_BrainTumour, with label maps; the model must not have trained on its validation part."""
    pairs: Path
    """Synthetic slices and their label maps, in the layout of Task01_BrainTumour, as the client writes them."""
    out: Path = Path("out/evaluation_labels")
    """Folder that gets evaluation_labels.json and evaluation_labels.png; it is made if needed."""
    updates: int = 1200
    """Updates, of 8 slices, of each of the four segmenters."""
    seed: int = 0
    """Draws slices, first weights and augmentation; on one machine the same seed gives the same figures."""


def run(arguments: Arguments) -> None:
    """Evaluate, then print the table and write both files.

    Raises:
        SliceError, DataError, ValueError: a folder or a number that cannot be used.
    """
    import json

    import torch

    from training.evaluation.following import measure
    from training.evaluation.labels_page import draw_page
    from training.evaluation.labels_report import record, table
    from training.evaluation.pairs import draw, read_pairs, read_section
    from training.files import write_text

    # Whatever the user may have to correct is found before the long work.
    if arguments.updates < 1:
        raise ValueError(f"--updates is {arguments.updates}: give 1 or more")
    synthetic = read_pairs(arguments.pairs)
    held_out = draw(read_section(arguments.data, "validation"), arguments.seed)
    training = read_section(arguments.data, "training")
    arguments.out.mkdir(parents=True, exist_ok=True)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(training, held_out, synthetic, arguments.updates, arguments.seed, device)
    page, figures = arguments.out / "evaluation_labels.png", arguments.out / "evaluation_labels.json"
    draw_page(result, page, arguments.seed)
    write_text(figures, json.dumps(record(vars(arguments), result), indent=1) + "\n")
    print(table(result))
    print(f"\n{figures}\n{page}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m training.evaluation.labels", description=__doc__, args=argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    run_command(main)
