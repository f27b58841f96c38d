"""The result of `training.evaluation.labels` as text and as the content of its JSON file."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.conditioning import LABELS
from training.evaluation.following import HELD_OUT, SAME_MAP, SYNTHETIC, TARGET, Following
from training.evaluation.measure import memorisation_notes
from training.evaluation.report import memorisation_record, provenance
from training.evaluation.segmenter import REGIONS


def table(result: Following) -> str:
    """The figures and notes as text."""
    lines = [_row("Dice: trained on", "tested on", REGIONS)]
    lines += [_row(*arm, _texts(values, "{:.3f}")) for arm, values in result.dice.items()]
    lines += [_row("synthetic / real", "", (f"{ratio:.3f}" for ratio in result.ratios())), ""]
    lines += [_row("lesion contrast", "", LABELS.values())]
    lines += [_row(name, "", _texts(values, "{:.3f} ± {:.3f}")) for name, values in result.contrast.items()]
    return "\n".join([*lines, "", *notes(result)])


def _row(first: str, second: str, cells: Iterable[str]) -> str:
    return f"{first:<22} {second:<14}" + "".join(f"{cell:>22}" for cell in cells)


def _texts(values: NDArray[np.floating[Any]], form: str) -> list[str]:
    """Mean and standard deviation of each column, or a dash where it has no value."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return [form.format(column.mean(), column.std()) if len(column) else "-" for column in columns]


def verdict(result: Following) -> str:
    """pass or miss: whether the whole lesion reaches the target."""
    return "pass" if result.ratios()[0] >= TARGET else "miss"  # NaN misses


def notes(result: Following) -> list[str]:
    """Sentences on the target, the slices and the copies."""
    same, copies = result.same_maps(), result.memorisation.copies
    lesions = result.synthetic.with_lesion().sum()
    return [
        f"whole lesion, synthetic / real: {result.ratios()[0]:.3f}, and the target is {TARGET}: {verdict(result)}",
        ", ".join(f"{count} {name} slices" for name, count in _counts(result).items()),
        *memorisation_notes(result.memorisation),
        f"maps: {same.sum()} of {lesions} synthetic maps with a lesion are those of training slices, as expected where "
        "maps were taken from the training data",
        f"pairs: {(same & copies).sum()} synthetic slices are copies with such a map",
    ]


def _counts(result: Following) -> dict[str, int]:
    names = {"training": result.training, HELD_OUT: result.held_out, SYNTHETIC: result.synthetic}
    return {"drawn training": result.drawn, **{name: len(pairs.names) for name, pairs in names.items()}}


def record(arguments: Mapping[str, Any], result: Following) -> dict[str, Any]:
    """The content of evaluation_labels.json: numbers, strings, and null for a mean of nothing."""
    near, same = result.maps_nearest, result.same_maps()
    names = result.synthetic.names, result.training.names, result.held_out.names
    return {
        **provenance(arguments),
        "slices": _counts(result),
        "dice": [
            {"trained_on": trained, "tested_on": tested, "regions": _summary(REGIONS, values)}
            for (trained, tested), values in result.dice.items()
        ],
        "synthetic_over_real": dict(zip(REGIONS, map(_number, result.ratios()), strict=True)),
        "target": TARGET,
        "verdict": verdict(result),
        "contrast": {name: _summary(LABELS.values(), values) for name, values in result.contrast.items()},
        "memorisation": memorisation_record(result.memorisation, *names),
        "maps": {
            "same_from": SAME_MAP,
            "same": int(same.sum()),
            "same_and_copies": int((same & result.memorisation.copies).sum()),
            "slices": [
                {"synthetic": name, "training": result.training.names[index], "dice": float(dice)}
                for name, index, dice in zip(names[0], near.index, near.similarity, strict=True)
            ],
        },
        "notes": notes(result),
    }


def _summary(names: Iterable[str], values: NDArray[np.floating[Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation of each column of `values` [n, names], and in how many slices it has a value."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return {
        name: {
            "mean": _number(column.mean()) if len(column) else None,
            "std": _number(column.std()) if len(column) else None,
            "slices": len(column),
        }
        for name, column in zip(names, columns, strict=True)
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
