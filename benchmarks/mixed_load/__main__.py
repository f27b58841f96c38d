"""Mean latency of requests of 10, 25 and 50 steps, at a share of what request-level batching can do.

    python -m benchmarks.mixed_load --simulated --requests 1000 --out benchmarks/mixed_load.json

Simulated: the batcher itself on a device whose step takes base + row * n seconds. Served: tritonserver with the demo
weights on this machine, against request-level batching of the same graphs in process; `make bench` records that.
And, simulated, what several steps in a call of the network do to the latency (benchmarks/mixed_load/several.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.machine import describe
from training.cli import run_command

GPU_LIKE = (0.004, 0.0003, 0.002)
RIVAL_ROWS = (1, 8, 32)


def simulate(name: str, base: float, row: float, decode: float, load: float, count: int) -> list[dict[str, Any]]:
    """A record for each batch size of the rival, on one device."""
    from benchmarks.mixed_load.simulated import Device, capacity, request_level, step_level
    from benchmarks.mixed_load.workload import arrivals, summary

    device, records = Device(base, row, decode), []
    for most in RIVAL_ROWS:
        workload = arrivals(count, load * capacity(device, most), seed=1)
        rival = summary(workload, request_level(workload, device, most))
        ours = summary(workload, step_level(workload, device, 64))
        records.append({"where": name, "device": [base, row, decode], **_record(most, load, rival, ours)})
    return records


def serve(repository: Path, most: int, load: float, count: int) -> list[dict[str, Any]]:
    """The record of this machine, and those of the simulation with its measured device."""
    from benchmarks.mixed_load.served import WholeRequests, request_level, step_level
    from benchmarks.mixed_load.simulated import capacity
    from benchmarks.mixed_load.workload import arrivals, summary

    networks = WholeRequests(repository)
    device = networks.measure()
    workload = arrivals(count, load * capacity(device, most), seed=2)
    print(f"serving {count} requests twice, {workload[-1].seconds:.0f} s each ...", file=sys.stderr)
    rival = summary(workload, request_level(workload, networks, most))
    ours = summary(workload, step_level(workload, repository))
    shape = (device.base, device.row, device.decode)
    real = {"where": "tritonserver, this machine", "device": [*shape], **_record(most, load, rival, ours)}
    return [real, *simulate("simulated, as this machine", *shape, load, 10 * count)]


def _record(most: int, load: float, rival: dict[str, float], ours: dict[str, float]) -> dict[str, Any]:
    ratios = {f"{name}_ratio": ours[name] / rival[name] for name in ("mean", "p99")}
    return {"rival_rows": most, "load": load, "request_level": rival, "step_level": ours, **ratios}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown; seconds."""
    lines = [
        "| where | rival's rows | mean, request-level | mean, step-level | ratio of means | ratio of p99 |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        means = [record[kind]["mean"] for kind in ("request_level", "step_level")]
        lines.append(
            f"| {record['where']} | {record['rival_rows']} | {means[0]:.3g} | {means[1]:.3g} "
            f"| {record['mean_ratio']:.2f} | {record['p99_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="default: the demo weights")
    parser.add_argument("--load", type=float, default=0.75, help="of the rival's capacity (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=150, help="in real time (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="the served rival's batch (default: %(default)s)")
    parser.add_argument("--simulated", action="store_true", help="no server: the GPU-like device alone, in a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args(argv)
    machine = describe()
    records = simulate("simulated, as a GPU", *GPU_LIKE, options.load, 10 * options.requests)
    if not options.simulated:
        records = serve(options.repository, options.rows, options.load, options.requests) + records
    from benchmarks.mixed_load import several

    calls = several.compare(several.GPU, min(2000, 10 * options.requests))
    print(table(records), several.table(calls), sep="\n\n")
    if options.out is not None:
        from training.files import write_text

        command = f"python -m benchmarks.mixed_load --requests {options.requests} --load {options.load}"
        command += " --simulated" if options.simulated else ""
        figures = {"machine": machine, "command": command, "records": records, "several_steps": calls}
        write_text(options.out, json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
