"""An evaluation as text and as the content of evaluation.json."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.measure import Evaluation
from training.evaluation.memorisation import Memorisation

PACKAGES = ("torch", "monai", "torchmetrics", "prdc", "numpy")

# How to read each row of the table.
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


def table(evaluation: Evaluation) -> str:
    """The metrics and notes as text."""
    lines = [f"{'':<17} {'synthetic':>10} {'reference':>10}"]
    for name, values in evaluation.metrics.items():
        lines.append(f"{name:<17} {values[0]:>10.4g} {values[1]:>10.4g}   {READING[name]}")
    counts = ", ".join(f"{len(slices.names)} {name} slices" for name, slices in evaluation.compared.items())
    reference = "reference: one half of the real slices against the other; for MS-SSIM pairs of real slices"
    return "\n".join([*lines, "", counts, reference, *evaluation.notes])


def record(arguments: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """The content of evaluation.json: floats, counts and strings."""
    content: dict[str, Any] = {
        **provenance(arguments),
        "slices": {name: len(slices.names) for name, slices in evaluation.compared.items()},
        "metrics": {name: {"synthetic": a, "reference": b} for name, (a, b) in evaluation.metrics.items()},
        "reading": {name: READING[name] for name in evaluation.metrics},
        "notes": evaluation.notes,
        "memorisation": None,
    }
    if evaluation.memorisation is not None and evaluation.training is not None:
        content["slices"]["training"] = len(evaluation.training.names)
        names = {**evaluation.compared, "training": evaluation.training}
        content["memorisation"] = memorisation_record(
            evaluation.memorisation, *(names[name].names for name in ("synthetic", "training", "real"))
        )
    return content


def provenance(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that says how it was made: arguments of the command, and versions of packages."""
    return {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def memorisation_record(
    result: Memorisation, synthetic: Sequence[str], training: Sequence[str], held_out: Sequence[str]
) -> dict[str, Any]:
    """The check as JSON has it. synthetic, training, held_out: names of the slices."""
    return {
        "copies": int(result.copies.sum()),
        "threshold": result.threshold,
        "planted_copies": result.controls,
        "planted_copies_found": result.controls_found,
        "held_out_alarms": result.held_out_alarms,
        "slices": [
            {
                "synthetic": name,
                "copy": bool(result.copies[i]),
                "score": float(result.score[i]),
                "training": training[result.training.index[i]],
                "similarity_training": float(result.training.similarity[i]),
                "held_out": held_out[result.held_out.index[i]],
                "similarity_held_out": float(result.held_out.similarity[i]),
            }
            for i, name in enumerate(synthetic)
        ],
    }
