"""Compare a folder of synthetic slices with a folder of real ones: a table, evaluation.json and evaluation.png.

    python -m training.evaluate --real REAL --synthetic SYNTHETIC --training TRAINING

`python -m training.slices` writes REAL (validation volumes) and TRAINING; the client writes SYNTHETIC. Distances by the
default features, the encoder of training/encoder, are relative only: they rank models among themselves.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.command import exit_status, run_command

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from training.memorisation import Memorisation
    from training.slices import Slices

# This project's own encoder: the demo autoencoder, trained on phantoms. Relative, so that records name no machine.
ENCODER = Path(os.path.relpath(Path(__file__).with_name("encoder")))
NEAREST_K = 5  # of precision, recall, density and coverage, as their authors chose it
FEWEST = 20  # slices a folder; its halves are compared too, and those need more than NEAREST_K + 1
ROUGH = 200  # held-out slices below which the threshold of the memorisation check is rough

# What a row of the table is read against.
READING = {
    "FID": "lower is better; depends on the number of slices",
    "KID": "lower is better; unbiased, 0 for equal distributions",
    "MMD": "lower is better; unbiased, linear kernel",
    "precision": "share of synthetic slices among the real",
    "recall": "share of real slices among the synthetic",
    "density": "1 for equal distributions; robust precision",
    "coverage": "share of real slices with a synthetic neighbour",
    "MS-SSIM of pairs": "diversity: higher than the reference = less diverse",
}


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    real: Path
    """Folder of real slices that no stage trained on: .npz, .nii.gz or .png."""
    synthetic: Path
    """Folder of synthetic slices, as the client writes them."""
    features: Path = ENCODER
    """What compares distributions: a snapshot folder (its encoder; relative only), or a file of ResNet-50 weights."""
    out: Path = Path("out/evaluation")
    """Folder that gets evaluation.json and evaluation.png; made if it is not there."""
    training: Path | None = None
    """Folder of the slices that the model was trained on, all of them; without it memorisation is not checked."""
    pairs: int = 500
    """Random pairs of slices for MS-SSIM, in each folder."""
    seed: int = 0
    """Draws pairs and subsets; the same seed gives the same figures."""


def distribution_metrics(real: "Tensor", synthetic: "Tensor", seed: int) -> dict[str, float]:
    """How far apart two samples of features lie, float64 [n, d] and [m, d]; n and m above NEAREST_K + 1.

    FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) by torchmetrics, MMD with a linear kernel (Gretton et al.
    2012) by MONAI, on equally many slices of both; precision, recall (Kynkaanniemi et al. 2019), density and coverage
    (Naeem et al. 2020) by prdc. A function of its arguments; leaves torch's generator seeded.
    """
    import contextlib
    import io
    import warnings

    import torch
    from monai.metrics import MMDMetric
    from prdc import compute_prdc
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    generator = torch.manual_seed(seed)
    fewest = min(len(real), len(synthetic))
    ready = torch.nn.Identity()  # the features are extracted already
    ready.num_features = real.shape[1]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # a buffer warned of, counts printed
        warnings.simplefilter("ignore", UserWarning)
        fid = FrechetInceptionDistance(ready).set_dtype(torch.float64)
        kid = KernelInceptionDistance(ready, subset_size=min(1000, fewest)).set_dtype(torch.float64)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(synthetic, real=False)
        kid_mean, _ = kid.compute()
        prdc = compute_prdc(real.numpy(), synthetic.numpy(), nearest_k=NEAREST_K)
    equal = (part[torch.randperm(len(part), generator=generator)[:fewest]] for part in (real, synthetic))
    return {
        "FID": float(fid.compute()),
        "KID": float(kid_mean),
        "MMD": float(MMDMetric()(*equal)),
        **{name: float(prdc[name]) for name in ("precision", "recall", "density", "coverage")},
    }


def pair_similarity(images: "np.ndarray", pairs: int, seed: int, name: str) -> "np.ndarray":
    """MS-SSIM of random pairs of different slices of `images`, float32 [n, H, W]; [pairs]."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from training.metrics import ms_ssim

    rng = np.random.default_rng(seed)
    first = rng.integers(len(images), size=pairs)
    second = (first + rng.integers(1, len(images), size=pairs)) % len(images)
    batches = [torch.from_numpy(images[index])[:, None].split(16) for index in (first, second)]
    bar = tqdm(zip(*batches, strict=True), f"MS-SSIM, {name}", len(batches[0]), leave=False)
    return torch.cat([ms_ssim(one, other) for one, other in bar]).numpy()


@dataclass(frozen=True)
class Evaluation:
    """What a page shows.

    metrics: by row of the table, the value of the synthetic slices and its reference, that of the real slices: of
        their pairs, or of one half of them against the other.
    """

    compared: dict[str, "Slices"]  # "real" and "synthetic", as in the next two
    features: dict[str, "Tensor"]
    pairs: dict[str, "np.ndarray"]  # MS-SSIM
    training: "Slices | None"
    metrics: dict[str, tuple[float, float]]
    memorisation: "Memorisation | None"
    notes: list[str]


def evaluate(arguments: Arguments) -> Evaluation:
    """Read, measure, compare.

    Raises:
        SliceError, CheckpointError, ValueError: a folder, the features or a number that cannot be used.
    """
    import torch

    from training.features import extract, load_extractor
    from training.memorisation import find_copies
    from training.slices import SliceError, read_slices

    # Everything that the user may have to mend comes before the long work.
    if arguments.pairs < 2:
        raise ValueError(f"--pairs is {arguments.pairs}: give 2 or more")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor, origin = load_extractor(arguments.features, device)
    folders = {"real": arguments.real, "synthetic": arguments.synthetic}
    if arguments.training is not None:
        folders["training"] = arguments.training
    slices, wrong = {}, []
    for name, folder in folders.items():
        try:
            slices[name] = read_slices(folder)
        except SliceError as error:
            wrong.append(str(error))
    if wrong:
        raise SliceError("\n".join(wrong))
    for name, found in slices.items():
        if len(found.images) < FEWEST:
            raise ValueError(f"--{name} {folders[name]} holds {len(found.images)} slices: at least {FEWEST} are needed")
    arguments.out.mkdir(parents=True, exist_ok=True)

    training = slices.pop("training", None)
    real, synthetic = slices["real"], slices["synthetic"]
    features = {name: extract(extractor, part.images, device, name) for name, part in slices.items()}
    pairs = {name: pair_similarity(part.images, arguments.pairs, arguments.seed, name) for name, part in slices.items()}
    measured = distribution_metrics(features["real"], features["synthetic"], arguments.seed)
    half = len(real.images) // 2  # in the order of files, so that a volume lies in one half
    reference = distribution_metrics(features["real"][:half], features["real"][half:], arguments.seed)
    metrics = {name: (value, reference[name]) for name, value in measured.items()}
    metrics["MS-SSIM of pairs"] = float(pairs["synthetic"].mean()), float(pairs["real"].mean())
    memorisation = None
    if training is not None:
        memorisation = find_copies(synthetic.images, training.images, real.images, arguments.seed)
    notes = [f"features: {origin}", *_notes(features, memorisation)]
    return Evaluation(slices, features, pairs, training, metrics, memorisation, notes)


def _notes(features: dict[str, "Tensor"], found: "Memorisation | None") -> list[str]:
    """What the figures do not say themselves."""
    notes = []
    fewest, dimensions = min(len(part) for part in features.values()), features["real"].shape[1]
    if fewest <= dimensions:
        notes.append(f"FID of {fewest} slices in {dimensions} dimensions is far too high: take more slices, or the KID")
    if found is None:
        notes.append("memorisation: not checked; give --training, the folder of all slices that the model trained on")
        return notes
    held_out = len(found.new_similarity)
    notes.append(
        f"memorisation: {found.copies.sum()} of {len(found.copies)} synthetic slices are copies of training slices; "
        f"control: {found.controls_found} of {found.controls} planted copies found, "
        f"{found.held_out_alarms} of {held_out} held-out slices above the threshold"
    )
    if found.controls_found < found.controls:
        notes.append("memorisation: planted copies are missed, expect more: do --real and --training share volumes?")
    if held_out < ROUGH:
        notes.append(f"memorisation: {held_out} held-out slices give a rough threshold; --real with {ROUGH} is better")
    return notes


def table(evaluation: Evaluation) -> str:
    """The metrics and notes as text."""
    lines = [f"{'':<17} {'synthetic':>10} {'reference':>10}"]
    for name, values in evaluation.metrics.items():
        lines.append(f"{name:<17} {values[0]:>10.4g} {values[1]:>10.4g}   {READING[name]}")
    counts = ", ".join(f"{len(slices.names)} {name} slices" for name, slices in evaluation.compared.items())
    reference = "reference: one half of the real slices against the other; for MS-SSIM pairs of real slices"
    return "\n".join([*lines, "", counts, reference, *evaluation.notes])


def record(arguments: Arguments, evaluation: Evaluation) -> dict[str, Any]:
    """The content of evaluation.json; floats, counts and strings."""
    import importlib.metadata
    from dataclasses import asdict

    packages = ("torch", "monai", "torchmetrics", "prdc", "numpy")
    found, training = evaluation.memorisation, evaluation.training
    content: dict[str, Any] = {
        "arguments": {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(arguments).items()
        },
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "slices": {name: len(slices.names) for name, slices in evaluation.compared.items()},
        "metrics": {name: {"synthetic": a, "reference": b} for name, (a, b) in evaluation.metrics.items()},
        "notes": evaluation.notes,
        "memorisation": None,
    }
    if found is not None and training is not None:
        content["slices"]["training"] = len(training.names)
        content["memorisation"] = {
            "copies": int(found.copies.sum()),
            "threshold": found.threshold,
            "planted_copies": found.controls,
            "planted_copies_found": found.controls_found,
            "held_out_alarms": found.held_out_alarms,
            "slices": [
                {
                    "synthetic": name,
                    "copy": bool(found.copies[i]),
                    "score": float(found.score[i]),
                    "training": training.names[found.training.index[i]],
                    "similarity_training": float(found.training.similarity[i]),
                    "held_out": evaluation.compared["real"].names[found.held_out.index[i]],
                    "similarity_held_out": float(found.held_out.similarity[i]),
                }
                for i, name in enumerate(evaluation.compared["synthetic"].names)
            ],
        }
    return content


def run(arguments: Arguments) -> None:
    """Evaluate, then print the table and write both files."""
    import json

    from training.evaluation_page import draw_page
    from training.files import write_text

    evaluation = evaluate(arguments)
    draw_page(evaluation, arguments.out / "evaluation.png", arguments.seed)
    write_text(arguments.out / "evaluation.json", json.dumps(record(arguments, evaluation), indent=1) + "\n")
    print(table(evaluation))
    print(f"\n{arguments.out / 'evaluation.json'}\n{arguments.out / 'evaluation.png'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m training.evaluate", description=__doc__, args=argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    run_command(main)
