"""A run of `python -m benchmarks.cost` as one record: the points beside what its calibration predicts, and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.harness.markdown import Record
from benchmarks.tables.cost import AXES, DECODER, apart
from brats_ldm_client._calibrate import Calibration


def assemble(sections: Mapping[str, Record]) -> Record:
    """The sections' files as one record.

    Points get `predicted` and `error`, which is predicted over measured, minus 1. Panels get `worst`, its largest;
    `drift`, how much slower the machine was than at the calibration; and `worst_steady`, the error without drift.
    """
    first, results = sections["calibration"], {name: section["result"] for name, section in sections.items()}
    return {
        **{name: first[name] for name in ("machine", "command", "profile", "model")},
        "seconds": {name: section["seconds"] for name, section in sections.items()},
        "calibration": results["calibration"],
        **{name: _judged(results[name], results["calibration"]) for name in AXES},
        "memory_mb": _with_lines(results["memory"]),
        "decoder_mb": {**results["decoder"], "peak_line": _peak_line(results["decoder"]["points"])},
    }


def _judged(panel: Record, calibration: Record) -> Record:
    model = Calibration(**calibration["model"])
    drift = panel["reference_s"]["median"] / calibration["reference_s"]["median"] - 1
    points = []
    for point in panel["points"]:
        predicted = model.predict(point["images"], point["steps"], point["in_flight"])
        error, steady = (seconds / point["seconds"]["median"] - 1 for seconds in (predicted, predicted * (1 + drift)))
        points.append({**point, "predicted": predicted, "error": error, "steady_error": steady})
    worst, worst_steady = (max((point[kind] for point in points), key=abs) for kind in ("error", "steady_error"))
    return {**panel, "points": points, "drift": drift, "worst": worst, "worst_steady": worst_steady}


def _with_lines(memory: Record) -> Record:
    """base + row * rows of each process. The decoder's is by the rows of its calls, and left out of `together`."""
    loaded = [point for point in memory["points"] if point["rows"]]
    lines = {
        name: _peak_line([{"rows": point["rows"], **point["processes"][name]} for point in loaded])
        for name in loaded[0]["processes"]
        if name != DECODER
    }
    together = line([point["rows"] for point in loaded], [apart(point) for point in loaded])
    return {**memory, "peak_lines": lines, "together_line": together}


def _peak_line(points: Sequence[Record]) -> dict[str, float]:
    return line([point["rows"] for point in points], [point["peak"] for point in points])


def line(rows: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Least squares of base + row * rows; `worst` is the largest error, relative to the value."""
    slope, base = np.polyfit(rows, values, 1)
    fitted = base + slope * np.asarray(rows)
    return {"base": float(base), "row": float(slope), "worst": float(np.abs(fitted / np.asarray(values) - 1).max())}
