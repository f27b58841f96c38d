"""A run as one record: the points beside what its calibration predicts, the lines through memory; and its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.cost.memory import DECODER, line
from benchmarks.serving.table import markdown
from brats_ldm_client._calibrate import Calibration

Record = dict[str, Any]
AXES = {
    "steps": "steps of one image",
    "rows": "images in one request",
    "clients": "clients of one image each",
    "images": "images of one call of the client",
}


def assemble(sections: Mapping[str, Record]) -> Record:
    """The sections' files as one record.

    Points get `predicted` and `error`, which is predicted over measured, minus 1; panels `worst`, the largest of them,
    `drift`, how much slower the machine was than at the calibration, and `worst_steady`, with that taken out.
    """
    calibration = sections["calibration"]["result"]
    record: Record = {
        **{name: sections["calibration"][name] for name in ("machine", "command", "profile", "model")},
        "seconds": {name: section["seconds"] for name, section in sections.items()},
        "calibration": calibration,
    }
    for name in AXES:
        record[name] = _judged(sections[name]["result"], calibration)
    return {**record, **_lines(sections["memory"]["result"], sections["decoder"]["result"])}


def _judged(panel: Record, calibration: Record) -> Record:
    found, drift = (
        Calibration(**calibration["model"]),
        panel["reference_s"]["median"] / calibration["reference_s"]["median"] - 1,
    )
    points = []
    for point in panel["points"]:
        predicted = found.predict(point["images"], point["steps"], point["in_flight"])
        error, steady = (seconds / point["seconds"]["median"] - 1 for seconds in (predicted, predicted * (1 + drift)))
        points.append({**point, "predicted": predicted, "error": error, "steady_error": steady})
    worst, worst_steady = (max((point[kind] for point in points), key=abs) for kind in ("error", "steady_error"))
    return {**panel, "points": points, "drift": drift, "worst": worst, "worst_steady": worst_steady}


def _lines(memory: Record, decoder: Record) -> Record:
    """base + row * rows of each process but the decoder's, which is by the rows of its calls, and of all but it."""
    loaded = [point for point in memory["points"] if point["rows"]]
    rows = [point["rows"] for point in loaded]
    names = [name for name in loaded[0]["processes"] if name != DECODER]
    lines = {name: line(rows, [point["processes"][name]["peak"] for point in loaded]) for name in names}
    others = line(rows, [apart(point) for point in loaded])
    calls = line([point["rows"] for point in decoder["points"]], [point["peak"] for point in decoder["points"]])
    return {
        "memory_mb": {**memory, "peak_lines": lines, "together_line": others},
        "decoder_mb": {**decoder, "peak_line": calls},
    }


def apart(point: Record) -> int:
    """MB of all processes but the decoder's."""
    own: int = point["processes"].get(DECODER, {"rss": 0})["rss"]
    return int(point["together"]["rss"]) - own


def tables(record: Record) -> str:
    """Markdown: what the calibration found, times, memory."""
    parts = (_machine(record), _panels(record), _times(record), _memory(record), _decoder(record))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _machine(record: Record) -> Iterator[str]:
    machine, model = record["machine"], record["calibration"]["model"]
    yield (
        f"{machine['date']}, {record['model']}, profile `{record['profile']}`, {machine['cores']} cores of "
        f"{machine['processor']} ({', '.join(machine['instructions'])}), load at the start {machine['load'][0]}, "
        f"{sum(record['seconds'].values()) / 60:.1f} minutes; `{record['command']}`."
    )
    yield ""
    yield (
        f"Calibrated: a step takes {1e3 * model['step_base']:.2g} ms + {1e3 * model['step_row']:.3g} ms a row, "
        f"decoding {1e3 * model['decode']:.3g} ms an image, a request {1e3 * model['request']:.2g} ms; off by at most "
        f"{model['worst']:.1%} on its own requests, whose repeats differ by up to {model['spread']:.0%}; "
        f"{record['calibration']['others']:.0%} of the cores' time went to others."
    )


def _panels(record: Record) -> Iterator[str]:
    rows = []
    for name, axis in AXES.items():
        panel = record[name]
        shares = [f"{panel[key]:+.1%}" for key in ("worst", "drift", "worst_steady")]
        same = panel["reference_s"]
        rows.append([axis, *shares, f"{same['min']:.3g} to {same['max']:.3g}", f"{panel['others']:.0%}"])
    heads = ["seconds against", "largest error", "machine slower by", "largest error without that"]
    yield from markdown([*heads, "the same image all along, s", "cores used by others"], rows)


def _times(record: Record) -> Iterator[str]:
    rows = []
    for name, axis in AXES.items():
        for point in record[name]["points"]:
            seconds = point["seconds"]
            rows.append(
                [f"{axis}: {point['at']}", point["steps"], f"{seconds['median']:.3g}",
                 f"{seconds['min']:.3g} to {seconds['max']:.3g}", seconds["n"], f"{point['predicted']:.3g}",
                 f"{point['error']:+.1%}", f"{point['steady_error']:+.1%}"]
            )  # fmt: skip
    yield from markdown(
        ["what", "steps", "measured, s", "range, s", "n", "predicted, s", "error", "error without drift"], rows
    )


def _memory(record: Record) -> Iterator[str]:
    memory = record["memory_mb"]
    points, lines = memory["points"], memory["peak_lines"]
    rows: list[list[Any]] = []
    for name in points[0]["processes"]:
        cells = [f"{point['processes'][name]['rss']} / {point['processes'][name]['peak']}" for point in points]
        rows.append([f"`{name}`", *cells, *(_line(lines[name]) if name in lines else ("by its calls, below", None))])
    rows.append([f"resident together without `{DECODER}`", *map(apart, points), *_line(memory["together_line"])])
    for head, key in (
        ("sum of the peaks", "peaks"),
        ("resident together, what is shared counted once", "rss"),
        ("of that, /dev/shm", "shared"),
    ):
        rows.append([head, *(point["together"][key] for point in points), None, None])
    heads = [_rows(point["rows"]) for point in points]
    yield from markdown(["resident / peak, MB", *heads, "line", "off by at most"], rows)


def _decoder(record: Record) -> Iterator[str]:
    decoder = record["decoder_mb"]
    heads = [f"{point['rows']} a call" for point in decoder["points"]]
    row = [f"`{DECODER}`", *(f"{point['rss']} / {point['peak']}" for point in decoder["points"])]
    yield from markdown(
        ["resident / peak, MB", *heads, "line", "off by at most"], [[*row, *_line(decoder["peak_line"])]]
    )


def _rows(count: int) -> str:
    return {0: "idle", 1: "1 row"}.get(count, f"{count} rows")


def _line(fitted: Record) -> list[str]:
    return [f"{fitted['base']:.0f} + {fitted['row']:.2g}·rows", f"{fitted['worst']:.0%}"]
