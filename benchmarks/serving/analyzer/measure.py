"""Load after load on one server: perf_analyzer's report, printed and kept, with a line of what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, islice
from pathlib import Path

from benchmarks.serving.analyzer import tool
from benchmarks.serving.analyzer.tool import AnalyzerError, Load, Request, Target
from server.channel import connect
from training.files import write_text

REPORT = "report.txt"
SECRET = "BRATS_LDM_SECRET"
SPARE = 16
"""Entries of the input file beyond the requests that are asked for: at a rate, one or two more may be sent."""


def measure(
    program: Path,
    target: Target,
    loads: Sequence[Load],
    first_seed: int,
    fields: Mapping[str, int | str],
    folder: Path,
    more: Sequence[str] = (),
) -> None:
    """Measure each load, print its report, and keep it in `folder` with input files and records.

    Seeds count up from `first_seed`, through all loads. fields: the inputs besides the seed, the same in all requests.
    more: further arguments of perf_analyzer.

    Raises:
        AnalyzerError: it has failed, or a request was not answered; the report has its words.
    """
    seeds, words = count(first_seed), []

    def tell(text: str) -> None:
        words.append(text)
        write_text(folder / REPORT, "\n".join(words) + "\n")
        print(text, flush=True)

    with connect(target.url, target.access) as client:
        for load in loads:
            print(f"{load.requests} requests to {target.model}, {load.kind} {load.value:g} ...", flush=True)
            content = tool.input_data(islice(seeds, load.requests + SPARE), **fields)
            run = tool.run(program, target, client, load, content, folder, more)
            tell(_without_secrets(run.report, target))
            tell(_summary(load, run.requests(), run.mean_rows()))
    print(f"Kept in {folder}: {REPORT}, and for each load what was sent, its table and the times of each request")


def _without_secrets(text: str, target: Target) -> str:
    for value in target.access.headers.values():
        text = text.replace(value, f"${SECRET}")
    return text


def _summary(load: Load, answered: Sequence[Request], rows: Mapping[str, float]) -> str:
    """What perf_analyzer rounds to whole seconds, or leaves to be divided."""
    if len(answered) < load.requests:
        raise AnalyzerError(f"{len(answered)} of {load.requests} requests were answered")
    nanoseconds = max(request.answers[-1] for request in answered) - min(request.sent for request in answered)
    seconds = nanoseconds / 1e9
    images = _percentiles([request.seconds for request in answered])
    calls = ", ".join(f"{mean:.2f} rows in a call of {network}" for network, mean in rows.items())
    lines = [
        f"{load.kind} {load.value:g}: all {len(answered)} requests answered in {seconds:.1f} s",
        f"  {len(answered) / seconds:.3g} images/s; seconds until the image: {images}",
        f"  {calls}",
    ]
    if any(len(request.answers) > 1 for request in answered):
        first = _percentiles([request.first_seconds for request in answered])
        lines.append(f"  seconds until the first preview: {first}")
    return "\n".join([*lines, ""])


def _percentiles(values: Sequence[float]) -> str:
    return ", ".join(f"p{share} {tool.percentile(values, share / 100):.3f}" for share in (50, 90, 99))
