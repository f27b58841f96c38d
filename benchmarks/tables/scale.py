"""What `python -m benchmarks.scale` has recorded, and what follows on paper for a large run."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.harness.device import Device
from benchmarks.harness.markdown import Lines, Reader, Record, number, ranged, table, where_and_when
from benchmarks.scale import paper
from benchmarks.scale.paper import DAY_S, Folder, Limit, Server
from benchmarks.serving.names import few_steps

STEPS = 20
COUNTS = (10**6, 10**9)
SHARD_SIZES = (1000, 10_000)


def tables(record: Record) -> Lines:
    """All sections that are recorded."""
    parts = {"fleet": fleet, "folder": folder, "sizes": sizes}
    for name, lines in parts.items():
        yield from [*lines(record[name]["result"]), "", f"{where_and_when(record[name])}.", ""]


def scale_fleet(read: Reader) -> Lines:
    """The block of the page."""
    record = read("scale")["fleet"]
    yield from fleet(record["result"])
    yield from ["", f"Simulated, {record['machine']['date'][:10]}."]


def scale_folder(read: Reader) -> Lines:
    """The block of the page."""
    record = read("scale")["folder"]
    yield from [*folder(record["result"]), "", f"{where_and_when(record)}."]


def scale_sizes(read: Reader) -> Lines:
    """The block of the page: what was measured, and the same for large numbers of images."""
    record = read("scale")["sizes"]
    yield from [*sizes(record["result"]), "", f"{where_and_when(record)}. The rest follows from it:", ""]
    yield from _storage(record["result"])
    yield from ["", *_folders(record["result"])]


def scale_servers(read: Reader) -> Lines:
    """The block of the page: servers for a deadline, and what the clients must stand."""
    record = read("scale")
    deadlines = record["paper"]["result"]["deadlines_s"]
    rows = [
        [_power(count), server.name, _large(server.hours(count))]
        + [_large(server.needed(count, seconds)) for seconds in deadlines.values()]
        for count in COUNTS
        for server in servers(read)
    ]
    yield from table(["images", "server", "server-hours", *(f"servers for {name}" for name in deadlines)], rows)
    yield ""
    yield from _demands(record["sizes"]["result"], deadlines)


def scale_limits(read: Reader) -> Lines:
    """The block of the page: what breaks first, for a faster fleet and for a larger folder."""
    measured, all_servers = read("scale")["sizes"]["result"], servers(read)
    speed = [
        [limit.what, _large(limit.at), *(_large(limit.at / server.per_s) for server in all_servers), limit.then]
        for limit in paper.limits_of_speed(measured)
    ]
    heads = [f"= {server.name}" for server in all_servers]
    yield from table(["as the fleet grows", "breaks at images/s", *heads, "what to do"], speed)
    yield ""
    yield from _limits(paper.limits_of_size(measured))


def servers(read: Reader) -> list[Server]:
    """By kind, at 20 steps of DPM-Solver++."""
    bulk, offline = read("bulk")["rate"]["result"], read("serving/bundle-offline")["result"]
    gpu = Device(**read("scale")["paper"]["result"]["gpu_estimate"])
    bundle = offline["images"] / offline["contestants"][few_steps(STEPS)]["median"]
    return [
        Server("2 CPU cores, demo weights", bulk["images"] / bulk["contestants"]["webdataset"]["median"]),
        Server("2 CPU cores, bundle's networks", bundle),
        Server("H200, bundle's networks (estimated, **not measured**)", paper.device_rate(gpu, STEPS)),
    ]


def fleet(result: Record) -> Lines:
    """Time over the ideal time by mishap and policy; then what was lost, for the mildest policy and all of it."""
    facts = result["fleet"]
    yield (
        f"{facts['images']:,} images on {facts['servers']} servers by {facts['workers']} workers, shards of "
        f"{facts['shard_size']}, {number(facts['image_s'])} s an image ({facts['steps']} steps, demo weights), "
        f"{number(facts['shard_s'])} s between two shards of a worker; {facts['seeds']} runs of each:"
    )
    mishaps = result["mishaps"]
    *_, worst = mishaps
    policies = list(mishaps[worst])
    yield ""
    rows = [[name, *(_stretch(mishaps[name][policy]) for policy in policies)] for name in mishaps]
    yield from table(["time / ideal time", *policies], rows)
    yield ""
    last = mishaps[worst]
    shares = {"stretch": "time / ideal time", "tail": "tail", "idle": "servers idle", "twice": "images made again"}
    rows = [
        [policy, _stretch(last[policy]), *(f"{100 * last[policy][name]['median']:.1f} %" for name in [*shares][1:])]
        for policy in policies
    ]
    yield from table([worst, *shares.values()], rows)
    yield ""
    sizes = result["shard_sizes"]
    rows = [[size, *(_stretch(sizes[size][policy]) for policy in policies)] for size in sizes]
    yield from table([f"images in a shard, {worst}", *policies], rows)


def folder(result: Record) -> Lines:
    """Counts of what was done to the folder."""
    counts = result["counts"]
    rows = [
        ["workers, images, images in a shard", f"{result['workers']}, {result['images']}, {result['shard_size']}"],
        ["processes that made a shard", counts["attempts"] + counts["twins"]],
        ["of them the second at work on the same shard", counts["twins"]],
        ["whole runs that began beside them", counts["drivers"]],
        ["processes killed (SIGKILL)", counts["killed"]],
        ["temporary folders that they left, until the last run", counts["leftovers"]],
        ["files that differ from an undisturbed folder", f"{len(result['different'])} of {result['files']}"],
        ["faults that `check_hashes` finds", len(result["faults"])],
    ]
    yield from table(["what", "number"], rows)


def sizes(result: Record) -> Lines:
    """Bytes, files and CPU seconds of an image."""
    answer = result["answer"]
    yield (
        f"An answer has {answer['bytes'] / 1e3:.0f} kB an image; the client takes {1e3 * answer['receive_cpu_s']:.1f} "
        "ms of a core to receive it."
    )
    yield ""
    rows = [
        [f"`{name}`", f"{one['bytes'] / 1e3:.1f}", number(one["files"]), number(1 + one["files_of_shard"]),
         f"{1e3 * one['write_cpu_s']:.1f}"]
        for name, one in result["formats"].items()
    ]  # fmt: skip
    yield from table(
        ["format", "kB an image", "files an image", "files a shard", "ms of a core to write an image"], rows
    )


def _storage(result: Record) -> Lines:
    rows = [
        [f"`{name}`", *(cell for count in COUNTS for cell in _stored(Folder(count, 1000, name, result)))]
        for name in result["formats"]
    ]
    heads = [f"{name}, {_power(count)}" for count in COUNTS for name in ("size", "files")]
    yield from table(["shards of 1000", *heads], rows)


def _stored(one: Folder) -> list[str]:
    return [_bytes(one.bytes), _large(one.files)]


def _folders(result: Record) -> Lines:
    rows = []
    for count in COUNTS:
        for size in SHARD_SIZES:
            one = Folder(count, size, "webdataset", result)
            cells = [_bytes(one.manifest_bytes), _seconds(one.open_s), _seconds(one.finish_s)]
            rows.append([_power(count), _power(size), _power(one.shards), *cells])
    heads = ["images", "in a shard", "shards", "manifest", "CPU time to open", "CPU time of summary and manifest"]
    yield from table(heads, rows)


def _demands(result: Record, deadlines: Record) -> Lines:
    core = paper.client_cpu_s(result, "webdataset")
    rows = []
    for count in COUNTS:
        for name, seconds in deadlines.items():
            rate = count / seconds
            gigabits = f"{8e-9 * rate * result['answer']['bytes']:.2g}"
            rows.append([_power(count), name, _large(rate), gigabits, f"{rate * core:.2g}"])
    yield from table(["images", "in", "images/s", "network, Gbit/s", "cores of clients, webdataset"], rows)


def _limits(limits: Iterable[Limit]) -> Lines:
    rows = [[limit.what, _large(limit.at), limit.then] for limit in limits]
    yield from table(["as a folder grows (shards of 1000)", "breaks at images", "what to do"], rows)


def _stretch(figures: Record) -> str:
    """The range only where there is one."""
    values = figures["stretch"]
    return ranged(values) if values["n"] > 1 else f"{values['median']:.2f}"


def _power(count: int) -> str:
    """A power of ten as people write it."""
    return f"10{str(len(str(count)) - 1).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _large(value: float) -> str:
    """Three digits; thousands, millions and more by their names."""
    for size, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 10 else number(value)


def _bytes(value: float) -> str:
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _seconds(value: float) -> str:
    for size, unit in ((DAY_S, "days"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2g} s"
