"""Runs perf_analyzer 2.51: its input file, command line and record of the requests; and Triton's counts.

Starts no server and looks at no image. docs/perf_analyzer.md says what each flag is for.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving.analyzer.attempts import run_to_end
from benchmarks.serving.analyzer.fetch import environment
from server.channel import EVERYBODY, connect
from server.health import DECODERS, NETWORKS
from server.security import Access
from training.files import write_text

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

    from benchmarks.harness.wire import Counts

UNARY, STREAM = MODELS = ("mri_ldm", "mri_ldm_stream")
REPORT = "report.txt"
SECRET = "BRATS_LDM_SECRET"
TIMEOUT_S = 20.0
SPARE = 16
"""Entries of the input file beyond the requests that are asked for: at a rate, one or two more may be sent."""
TLS_FLAGS = {
    "root_certificates": "--ssl-grpc-root-certifications-file",
    "certificate_chain": "--ssl-grpc-certificate-chain-file",
    "private_key": "--ssl-grpc-private-key-file",
}


class AnalyzerError(RuntimeError):
    """perf_analyzer has failed; says how, in one line."""


@dataclass(frozen=True)
class Load:
    """`requests` in all: `value` in flight all the time (kind "concurrency"), or `value` a second ("request-rate")."""

    kind: str
    value: float
    requests: int

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.kind}-{self.value:g}"


@dataclass(frozen=True)
class Target:
    """A model behind the gRPC address `url`, and what lets a client in."""

    url: str
    model: str = UNARY
    access: Access = EVERYBODY


@dataclass(frozen=True)
class Request:
    """When it was sent, and when each of its responses came; seconds of one clock. The last has the image."""

    sent: float
    answers: Sequence[float]

    @property
    def seconds(self) -> float:
        """Until the image."""
        return self.answers[-1] - self.sent


@dataclass(frozen=True)
class Run:
    """One run of perf_analyzer that has ended. failure: why, in one line; empty where there is none.

    mean_rows: rows in a call of each network.
    """

    report: str
    failure: str = ""
    requests: Sequence[Request] = ()
    mean_rows: Mapping[str, float] = field(default_factory=dict)


def input_data(seeds: Iterable[int], **fields: int | str) -> dict[str, Any]:
    """The content of its input file: an entry a request, with a seed of its own and the same `fields` (steps=50)."""
    same = {name: [value] for name, value in fields.items()}
    return {"data": [{"seed": [seed], **same} for seed in seeds]}


def run(
    program: Path,
    target: Target,
    client: InferenceServerClient,
    load: Load,
    content: Mapping[str, Any],
    folder: Path,
    more: Sequence[str] = (),
    timeout_s: float | None = None,
) -> Run:
    """Run it in `folder` with the input file `content`; the files there have the name of the load.

    Raises:
        AnalyzerError: its record cannot be read, or Triton has no counts.
    """
    data, profile = folder / f"{load.name}.input.json", folder / f"{load.name}.requests.json"
    write_text(data, json.dumps(content))
    profile.unlink(missing_ok=True)  # it refuses to write over one
    networks = _networks(content)
    before = _counts(client, target.access, networks)
    arguments = [*_command(target, load, before), "--input-data", data.name, "--profile-export-file", profile.name]
    arguments += ["-f", f"{load.name}.csv", *more]
    command, env = [str(program), *arguments], environment(program.parent)
    done = run_to_end(command, folder, env, lambda: _answers(client, target), load.requests, timeout_s)
    if done is None:
        raise AnalyzerError(f"perf_analyzer does not end, although all {load.requests} requests were answered")
    report = f"$ perf_analyzer {shlex.join(arguments)}\n{done.stdout}{done.stderr}"
    if done.returncode:
        return Run(report, f"perf_analyzer ended with exit status {done.returncode}: {_reason(done.stderr)}")
    answered = _requests(profile)
    if len(answered) < load.requests:
        return Run(report, f"{len(answered)} of {load.requests} requests were answered")
    after = {name: now.since(before[name]) for name, now in _counts(client, target.access, networks).items()}
    mean_rows = {name: counted.rows / max(1, counted.calls) for name, counted in after.items()}
    return Run(report, requests=answered, mean_rows=mean_rows)


def _answers(client: InferenceServerClient, target: Target) -> int:
    """Requests that the model has answered since the server started. Raises AnalyzerError if Triton does not say."""
    from tritonclient.utils import InferenceServerException

    headers = dict(target.access.headers) or None
    try:
        statistics = client.get_inference_statistics(target.model, headers=headers, client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        raise AnalyzerError(f"the server's statistics of {target.model} cannot be had: {error}") from error
    return int(statistics.model_stats[0].inference_stats.success.count)


def _command(target: Target, load: Load, networks: Iterable[str]) -> list[str]:
    """Its arguments, but for files; `networks` are those that the model calls."""
    # A stream wants it; and at a rate, four threads would each wait for an answer before they send again.
    asynchronous = target.model == STREAM or load.kind == "request-rate"
    channel = target.access.channel
    return [
        *("-m", target.model, "-i", "grpc", "-u", target.url),
        *(f"--{load.kind}-range", f"{load.value:g}", "--request-count", str(load.requests)),
        *(["--async"] if asynchronous else []),
        *(["--streaming"] if target.model == STREAM else []),
        *("--bls-composing-models", ",".join(networks), "--percentile", "90"),
        *(["--ssl-grpc-use-ssl", "true"] if channel.get("ssl") else []),
        *(word for name, flag in TLS_FLAGS.items() if channel.get(name) for word in (flag, str(channel[name]))),
        *(word for name, value in target.access.headers.items() for word in ("-H", f"{name}:{value}")),
    ]


def _reason(words: str) -> str:
    """Of a failure, without the list of its options. Many threads have the same to say."""
    lines = (
        re.sub(r"^Thread \[\d+\] had error: ", "", line.strip()) for line in words.partition("Usage:")[0].splitlines()
    )
    return " ".join(dict.fromkeys(filter(None, lines)))[:800]


def _requests(path: Path) -> list[Request]:
    """Those that were answered. The record is kept without outputs: every pixel is in there as text, 1.3 MB a request.

    Raises:
        AnalyzerError: it has written none, or one that is no JSON, as with batches (-b).
    """

    def without_outputs(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("response_outputs", None)
        return entry

    try:
        profile = json.loads(path.read_text(), object_hook=without_outputs)
    except (OSError, ValueError) as error:
        raise AnalyzerError(f"perf_analyzer's record of the requests cannot be read: {error}") from error
    write_text(path, json.dumps(profile))
    return [
        Request(request["timestamp"] / 1e9, [answer / 1e9 for answer in request["response_timestamps"]])
        for experiment in profile["experiments"]
        for request in experiment["requests"]
        if request["response_timestamps"]
    ]


def _networks(content: Mapping[str, Any]) -> list[str]:
    """Those that its requests may call. perf_analyzer fails over a network that was not called once."""
    decoder = content["data"][0].get("decoder", ["full"])[0]
    unused = set(DECODERS.values()) - {DECODERS[decoder]}
    return [name for name in NETWORKS if name not in unused]


def _counts(client: InferenceServerClient, access: Access, networks: Iterable[str]) -> dict[str, Counts]:
    """Those so far of the networks that are there. Raises AnalyzerError where Triton has none."""
    from tritonclient.utils import InferenceServerException

    from benchmarks.harness import wire  # with NumPy, which --help is spared

    headers = dict(access.headers) or None
    try:
        ready = [name for name in networks if client.is_model_ready(name, headers=headers, client_timeout=TIMEOUT_S)]
        return {network: wire.counts(client, network, access.headers, TIMEOUT_S) for network in ready}
    except InferenceServerException as error:
        raise AnalyzerError(f"the server's statistics of its networks cannot be had: {error}") from error


# --- load after load on one server


def measure(
    program: Path,
    target: Target,
    loads: Sequence[Load],
    first_seed: int,
    fields: Mapping[str, int | str],
    folder: Path,
    more: Sequence[str] = (),
) -> None:
    """Measure each load, print its report and what it does not say, and keep both in `folder` with all files.

    Seeds count up from `first_seed`, through all loads. fields: the inputs besides the seed, the same in all requests.
    more: further arguments of perf_analyzer.

    Raises:
        AnalyzerError: it has failed, or a request was not answered.
    """
    seeds, words = count(first_seed), []
    with connect(target.url, target.access) as client:
        for load in loads:
            print(f"{load.requests} requests to {target.model}, {load.kind} {load.value:g} ...", flush=True)
            content = input_data(islice(seeds, load.requests + SPARE), **fields)
            result = run(program, target, client, load, content, folder, more)
            summary = "" if result.failure else _summary(load, result)
            words.append(f"{_without_secrets(result.report, target.access)}\n{summary}")
            write_text(folder / REPORT, "\n".join(words) + "\n")
            print(words[-1], flush=True)
            if result.failure:
                raise AnalyzerError(f"{result.failure}; the report is in {folder}")
    print(f"Kept in {folder}: {REPORT}, and for each load what was sent, its table and the times of each request")


def _without_secrets(text: str, access: Access) -> str:
    for value in access.headers.values():
        text = text.replace(value, f"${SECRET}")
    return text


def _summary(load: Load, result: Run) -> str:
    """What perf_analyzer rounds to whole seconds, or leaves to be divided."""
    answered = result.requests
    seconds = max(request.answers[-1] for request in answered) - min(request.sent for request in answered)
    calls = ", ".join(f"{mean:.2f} rows in a call of {network}" for network, mean in result.mean_rows.items())
    lines = [
        f"{load.kind} {load.value:g}: all {len(answered)} requests answered in {seconds:.1f} s",
        f"  {len(answered) / seconds:.3g} images/s; seconds until the image: "
        + _percentiles([request.seconds for request in answered]),
        f"  {calls}",
    ]
    if any(len(request.answers) > 1 for request in answered):
        first = _percentiles([request.answers[0] - request.sent for request in answered])
        lines.append(f"  seconds until the first preview: {first}")
    return "\n".join([*lines, ""])


def _percentiles(values: Sequence[float]) -> str:
    """Each is one of the values, the one that perf_analyzer would take."""
    ranked, last = sorted(values), len(values) - 1
    return ", ".join(f"p{share} {ranked[math.floor(share / 100 * last + 0.5)]:.3f}" for share in (50, 90, 99))
