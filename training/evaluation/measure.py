"""The figures of an evaluation: the distance of two folders of slices, their diversity, and the copies among them.

Draws nothing and writes nothing.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.metrics import MMDMetric
from numpy.typing import NDArray
from prdc import compute_prdc
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm import tqdm

from training.evaluation import FEWEST
from training.evaluation.features import Extractor, extract
from training.evaluation.memorisation import Memorisation, find_copies
from training.evaluation.slices import SliceError, Slices, read_slices
from training.metrics import ms_ssim

NEAREST_K = 5  # of precision, recall, density and coverage, as their authors chose it
ROUGH = 200  # with fewer held-out slices than this the threshold of the memorisation check is rough


@dataclass(frozen=True)
class Evaluation:
    """Everything that the page and the report show.

    metrics: by row of the table, the value of the synthetic slices and its reference: the same value of the real
        slices, of their pairs or of one half of them against the other.
    """

    compared: dict[str, Slices]  # "real" and "synthetic", as in the next two
    features: dict[str, Tensor]
    pairs: dict[str, NDArray[np.float32]]  # MS-SSIM
    training: Slices | None
    metrics: dict[str, tuple[float, float]]
    memorisation: Memorisation | None
    notes: list[str]


def read_folders(real: Path, synthetic: Path, training: Path | None) -> dict[str, Slices]:
    """The slices of all folders by name: real, synthetic and, if there is one, training.

    Raises:
        SliceError: folders that cannot be read; all are named.
        ValueError: a folder holds too few slices.
    """
    folders = {"real": real, "synthetic": synthetic} | ({} if training is None else {"training": training})
    slices: dict[str, Slices] = {}
    problems = []
    for name, folder in folders.items():
        try:
            slices[name] = read_slices(folder)
        except SliceError as error:
            problems.append(str(error))
    if problems:
        raise SliceError("\n".join(problems))
    for name, part in slices.items():
        if len(part.images) < FEWEST:
            raise ValueError(f"--{name} {folders[name]} holds {len(part.images)} slices: at least {FEWEST} are needed")
    return slices


def evaluate(
    slices: dict[str, Slices], extractor: Extractor, origin: str, device: torch.device, pairs: int, seed: int
) -> Evaluation:
    """Compare the slices that `read_folders` returned.

    extractor, origin: of `load_extractor`, on `device`. pairs: random pairs for MS-SSIM, in each folder.
    """
    compared = {name: slices[name] for name in ("real", "synthetic")}
    real, synthetic, training = slices["real"], slices["synthetic"], slices.get("training")
    vectors = {name: extract(extractor, part.images, device, name) for name, part in compared.items()}
    similarity = {name: pair_similarity(part.images, pairs, seed, name) for name, part in compared.items()}
    metrics = _with_reference(vectors["real"], vectors["synthetic"], seed)
    metrics["MS-SSIM of pairs"] = float(similarity["synthetic"].mean()), float(similarity["real"].mean())
    memorisation = None if training is None else find_copies(synthetic.images, training.images, real.images, seed)
    notes = [f"features: {origin}", *_notes(vectors, memorisation)]
    return Evaluation(compared, vectors, similarity, training, metrics, memorisation, notes)


def _with_reference(real: Tensor, synthetic: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    measured = distribution_metrics(real, synthetic, seed)
    half = len(real) // 2  # in the order of files, so that a volume lies in one half
    reference = distribution_metrics(real[:half], real[half:], seed)
    return {name: (value, reference[name]) for name, value in measured.items()}


def distribution_metrics(real: Tensor, synthetic: Tensor, seed: int) -> dict[str, float]:
    """How far apart two samples of features lie, float64 [n, d] and [m, d]; n and m above NEAREST_K + 1.

    FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) by torchmetrics, MMD with a linear kernel (Gretton et al.
    2012) by MONAI, on equally many slices of both; precision, recall (Kynkaanniemi et al. 2019), density and coverage
    (Naeem et al. 2020) by prdc. The result depends on the arguments alone. Seeds torch's generator.
    """
    generator = torch.manual_seed(seed)
    fewest = min(len(real), len(synthetic))
    identity = torch.nn.Identity()  # the features are extracted already
    identity.num_features = real.shape[1]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # a warning about a buffer, prints
        warnings.simplefilter("ignore", UserWarning)
        fid = FrechetInceptionDistance(identity).set_dtype(torch.float64)
        kid = KernelInceptionDistance(identity, subset_size=min(1000, fewest)).set_dtype(torch.float64)
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


def pair_similarity(images: NDArray[np.float32], pairs: int, seed: int, name: str) -> NDArray[np.float32]:
    """MS-SSIM of random pairs of different slices of `images`, float32 [n, H, W]; [pairs]."""
    rng = np.random.default_rng(seed)
    first = rng.integers(len(images), size=pairs)
    second = (first + rng.integers(1, len(images), size=pairs)) % len(images)
    batches = [torch.from_numpy(images[index])[:, None].split(16) for index in (first, second)]
    bar = tqdm(zip(*batches, strict=True), f"MS-SSIM, {name}", len(batches[0]), leave=False)
    return torch.cat([ms_ssim(one, other) for one, other in bar]).numpy()


def _notes(features: dict[str, Tensor], memorisation: Memorisation | None) -> list[str]:
    """Remarks that help to read the figures."""
    notes = []
    fewest, dimensions = min(len(part) for part in features.values()), features["real"].shape[1]
    if fewest <= dimensions:
        notes.append(f"FID of {fewest} slices in {dimensions} dimensions is far too high: take more slices, or the KID")
    if memorisation is None:
        return [
            *notes,
            "memorisation: not checked; give --training, the folder of all slices that the model trained on",
        ]
    return notes + memorisation_notes(memorisation)


def memorisation_notes(result: Memorisation) -> list[str]:
    """What the check found, and how far to trust it."""
    held_out = len(result.new_similarity)
    notes = [
        f"memorisation: {result.copies.sum()} of {len(result.copies)} synthetic slices are copies of training slices; "
        f"control: {result.controls_found} of {result.controls} planted copies found, "
        f"{result.held_out_alarms} of {held_out} held-out slices above the threshold"
    ]
    if result.controls_found < result.controls:
        notes.append(
            "memorisation: planted copies are missed, expect more: do held-out and training slices share volumes?"
        )
    if held_out < ROUGH:
        notes.append(f"memorisation: {held_out} held-out slices give a rough threshold; {ROUGH} are better")
    return notes
