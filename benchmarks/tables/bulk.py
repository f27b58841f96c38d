"""What `python -m benchmarks.bulk` has recorded."""

from __future__ import annotations

from benchmarks.harness.markdown import Lines, Reader, Record, ranged, table, where_and_when


def bulk(read: Reader) -> Lines:
    """Both tables."""
    yield from tables(read("bulk"))


def tables(record: Record) -> Lines:
    """The rate by format, and what became of the run that lost a server."""
    yield from rate(record["rate"]["result"])
    yield from ["", f"{where_and_when(record['rate'])}.", ""]
    yield from failover(record["failover"]["result"])
    yield from ["", f"{where_and_when(record['failover'])}."]


def rate(result: Record) -> Lines:
    """Images a second of the whole command, and its share of the bare server's."""
    rows = []
    for name, times in result["contestants"].items():
        per_second = result["images"] / times["median"]
        share = ranged(times["faster_than_baseline"]) if name != "bare server" else "1"
        rows.append([name, f"{per_second:.2f}", share])
    yield f"{result['images']} images of {result['steps']} steps ({result['sampler']}):"
    yield ""
    yield from table(["what", "images/s", "share of the bare server"], rows)


def failover(result: Record) -> Lines:
    """Counts of the run with two servers."""
    read, checked = result["read"], result["dciodvfy"]
    rows = [
        ["images asked for, two servers", result["images"]],
        ["shards written when one server was killed", result["shards_before_the_kill"]],
        ["`brats-ldm verify`", result["verify"].split(";")[0]],
        ["images that it made again and compared bit for bit", result["sample"]],
        ["read by webdataset, nibabel, pydicom", ", ".join(str(read[k]) for k in ("webdataset", "nibabel", "pydicom"))],
        ["files checked by dciodvfy", checked["files"]],
        ["its errors, but for an attribute that it does not know", checked["errors"]],
        ["its warnings", f"{len(checked['warnings'])} kinds"],
    ]
    yield from table(["what", "result"], rows)
