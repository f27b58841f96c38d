"""Compare a folder of synthetic slices with a folder of real ones: a table, evaluation.json and evaluation.png.

    python -m training.evaluation --real REAL --synthetic SYNTHETIC --training TRAINING

`python -m training.evaluation.slices` writes REAL (validation volumes) and TRAINING; the client writes SYNTHETIC.
Distances by the default features, the encoder of training/encoder, are relative only: they rank models among
themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.cli import exit_status, run_command
from training.evaluation import ENCODER


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    real: Path
    """Folder of real slices that no stage trained on: .npz, .nii.gz or .png."""
    synthetic: Path
    """Folder of synthetic slices, as the client writes them."""
    features: Path = ENCODER
    """Features that are compared: a snapshot folder (its encoder; relative only), or a file of ResNet-50 weights."""
    out: Path = Path("out/evaluation")
    """Folder that gets evaluation.json and evaluation.png; it is made if needed."""
    training: Path | None = None
    """Folder of all slices that the model was trained on; without it there is no check for memorisation."""
    pairs: int = 500
    """Random pairs of slices for MS-SSIM, in each folder."""
    seed: int = 0
    """Draws pairs and subsets; the same seed gives the same figures."""


def run(arguments: Arguments) -> None:
    """Evaluate, then print the table and write both files.

    Raises:
        SliceError, CheckpointError, ValueError: a folder, the features or a number that cannot be used.
    """
    import json

    import torch

    from training.evaluation.features import load_extractor
    from training.evaluation.measure import evaluate, read_folders
    from training.evaluation.page import draw_page
    from training.evaluation.report import record, table
    from training.files import write_text

    # Whatever the user may have to correct is found before the long work.
    if arguments.pairs < 2:
        raise ValueError(f"--pairs is {arguments.pairs}: give 2 or more")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor, origin = load_extractor(arguments.features, device)
    slices = read_folders(arguments.real, arguments.synthetic, arguments.training)
    arguments.out.mkdir(parents=True, exist_ok=True)

    evaluation = evaluate(slices, extractor, origin, device, arguments.pairs, arguments.seed)
    page, figures = arguments.out / "evaluation.png", arguments.out / "evaluation.json"
    draw_page(evaluation, page, arguments.seed)
    write_text(figures, json.dumps(record(vars(arguments), evaluation), indent=1) + "\n")
    print(table(evaluation))
    print(f"\n{figures}\n{page}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m training.evaluation", description=__doc__, args=argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    run_command(main)
