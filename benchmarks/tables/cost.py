"""How time and memory grow: the record of `python -m benchmarks.cost` as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.markdown import Lines, Reader, Record, around, cores, formatted, table

DECODER = "vae_decoder"
AXES = {
    "steps": "steps of one image",
    "rows": "images in one request",
    "clients": "clients of one image each",
    "images": "images of one call of the client",
}


def cost(read: Reader) -> Lines:
    """The recorded run."""
    return tables(read("cost"))


def tables(record: Record) -> Lines:
    """What the calibration found, times, memory."""
    machine, model = record["machine"], record["calibration"]["model"]
    yield (
        f"{machine['date']}, {record['model']}, profile `{record['profile']}`, {cores(record)} "
        f"({', '.join(machine['instructions'])}), load at the start {machine['load'][0]}, "
        f"{sum(record['seconds'].values()) / 60:.1f} minutes; `{record['command']}`."
    )
    yield ""
    yield (
        f"Calibrated: a step takes {1e3 * model['step_base']:.2g} ms + {1e3 * model['step_row']:.3g} ms a row, "
        f"decoding {1e3 * model['decode']:.3g} ms an image, a request {1e3 * model['request']:.2g} ms; off by at most "
        f"{model['worst']:.1%} on its own requests, whose repeats differ by up to {model['spread']:.0%}; "
        f"{record['calibration']['others']:.0%} of the cores' time went to others."
    )
    for part in (_panels, _times, _memory, _decoder):
        yield from ["", *part(record)]


def apart(point: Record) -> int:
    """MB of all processes but the decoder's."""
    resident: int = point["together"]["rss"] - point["processes"].get(DECODER, {"rss": 0})["rss"]
    return resident


def _panels(record: Record) -> Lines:
    return formatted(
        "seconds against | largest error | machine slower by | largest error without that"
        " | the same image all along, s | cores used by others",
        "{axis} | {worst:+.1%} | {drift:+.1%} | {worst_steady:+.1%} | {reference} | {others:.0%}",
        (
            {**record[name], "axis": axis, "reference": around(record[name]["reference_s"])}
            for name, axis in AXES.items()
        ),
    )


def _times(record: Record) -> Lines:
    return formatted(
        "what | steps | measured, s | range, s | n | predicted, s | error | error without drift",
        "{axis}: {at} | {steps} | {seconds[median]:.3g} | {range} | {seconds[n]} | {predicted:.3g} | {error:+.1%}"
        " | {steady_error:+.1%}",
        (
            {**point, "axis": axis, "range": around(point["seconds"])}
            for name, axis in AXES.items()
            for point in record[name]["points"]
        ),
    )


def _memory(record: Record) -> Lines:
    memory = record["memory_mb"]
    points, lines = memory["points"], memory["peak_lines"]
    rows: list[list[Any]] = []
    for name in points[0]["processes"]:
        line = _line(lines[name]) if name in lines else ["by its calls, below", None]
        rows.append([f"`{name}`", *(_both(point["processes"][name]) for point in points), *line])
    rows.append([f"resident together without `{DECODER}`", *map(apart, points), *_line(memory["together_line"])])
    sums = {
        "sum of the peaks": "peaks",
        "resident together, what is shared counted once": "rss",
        "of that, /dev/shm": "shared",
    }
    rows += [[name, *(point["together"][key] for point in points), None, None] for name, key in sums.items()]
    heads = [{0: "idle", 1: "1 row"}.get(point["rows"], f"{point['rows']} rows") for point in points]
    return table(["resident / peak, MB", *heads, "line", "off by at most"], rows)


def _decoder(record: Record) -> Lines:
    decoder = record["decoder_mb"]
    heads = [f"{point['rows']} a call" for point in decoder["points"]]
    row = [f"`{DECODER}`", *map(_both, decoder["points"]), *_line(decoder["peak_line"])]
    return table(["resident / peak, MB", *heads, "line", "off by at most"], [row])


def _both(process: Record) -> str:
    return f"{process['rss']} / {process['peak']}"


def _line(line: Record) -> list[str]:
    return [f"{line['base']:.0f} + {line['row']:.2g}·rows", f"{line['worst']:.0%}"]
