"""What `python -m benchmarks.scale` has recorded of real runs: with a second server, and by engines."""

from __future__ import annotations

from benchmarks.harness.markdown import Lines, Reader, Record, ranged, table, where_and_when

WAYS = {
    "waiting": "one client, two servers that wait",
    "waiting ray": "Ray, two servers that wait",
    "waiting dask": "Dask, two servers that wait",
    "cores": "one client, two servers on a core each",
}


def tables(record: Record) -> Lines:
    """All sections that are recorded."""
    for name, lines in {"servers": servers, "unequal": unequal, "engines": engines}.items():
        yield from [*lines(record[name]["result"]), "", f"{where_and_when(record[name])}.", ""]


def scale_efficiency(read: Reader) -> Lines:
    """The block of the page."""
    record = read("scale")["servers"]
    yield from [*servers(record["result"]), "", f"{where_and_when(record)}."]


def scale_unequal(read: Reader) -> Lines:
    """The block of the page."""
    record = read("scale")["unequal"]
    yield from [*unequal(record["result"]), "", f"{where_and_when(record)}."]


def scale_engines(read: Reader) -> Lines:
    """The block of the page."""
    record = read("scale")["engines"]
    yield from [*engines(record["result"]), "", f"{where_and_when(record)}."]


def servers(result: Record) -> Lines:
    """Images a second of one server and of two."""
    rows = []
    for name in filter(result.__contains__, WAYS):
        measured = result[name]
        one, two = (measured[who]["median"] for who in ("one", "two"))
        rates = f"{measured['images'] / one:.1f}", f"{2 * measured['images'] / two:.1f}"
        start = f"{measured['start']['median']:.1f} s"
        rows.append([WAYS[name], *rates, start, ranged(measured["efficiency"])])
    yield from table(["what", "images/s, one server", "two servers", "of it start and end", "efficiency"], rows)


def unequal(result: Record) -> Lines:
    """Two servers, of which one is slow: measured and simulated."""
    alone, simulated = result["contestants"]["fast alone"], result["simulated"]
    best = 1 + 1 / result["slower"]
    rows = [["the fast server alone", f"{result['images'] / alone['median']:.1f}", "1", "1"]]
    for name, way in {"in turn": "both, in turn", "least connections": "both, by least connections"}.items():
        measured = result["contestants"][name]
        speed = ranged(measured["faster_than_baseline"])
        rows.append([way, f"{result['images'] / measured['median']:.1f}", speed, f"{simulated[name]:.2f}"])
    rows.append(["both, if neither ever waited", "", f"{best:.2f}", f"{best:.2f}"])
    yield from table(["requests go to", "images/s", "times the fast one alone", "simulated"], rows)


def engines(result: Record) -> Lines:
    """What happened to the runs that lost a worker and a server, beside the folder of a calm one."""
    calm, rows = result["calm"], []
    for name in filter(result.__contains__, ("ray", "dask")):
        run = result[name]
        killed, shards = run["shards_when_killed"], run["shards"]
        whole = [f"{killed[what]} of {shards}" for what in ("worker", "server")]
        rows.append([name.capitalize(), run["workers"], *whole, f"{run['files_that_differ']} of {run['files']}"])
    yield f"{calm['images']} images of {calm['steps']} steps ({calm['sampler']}), two servers:"
    yield ""
    head = ["engine", "workers", "shards when a worker was killed", "when a server was", "files that differ"]
    yield from table(head, rows)
