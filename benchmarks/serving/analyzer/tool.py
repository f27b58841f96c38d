"""One run of perf_analyzer 2.51: its input file, command line and record of the requests; and Triton's counts.

Starts no server and looks at no image. docs/perf_analyzer.md says what each flag is for.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving.analyzer.fetch import environment
from server.channel import EVERYBODY
from server.health import NETWORKS
from server.security import Access
from training.files import write_text

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

    from benchmarks.harness.wire import Counts

UNARY, STREAM = MODELS = ("mri_ldm", "mri_ldm_stream")
TLS_FLAGS = {
    "root_certificates": "--ssl-grpc-root-certifications-file",
    "certificate_chain": "--ssl-grpc-certificate-chain-file",
    "private_key": "--ssl-grpc-private-key-file",
}
TIMEOUT_S = 20.0


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
    """When it was sent, and when each of its responses came; nanoseconds of one clock."""

    sent: int
    answers: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Until the last response, which has the image."""
        return (self.answers[-1] - self.sent) / 1e9

    @property
    def first_seconds(self) -> float:
        """Until the first response: of a stream with previews, the first of them."""
        return (self.answers[0] - self.sent) / 1e9


def input_data(seeds: Iterable[int], **fields: int | str) -> dict[str, Any]:
    """The content of its input file: an entry a request, with a seed of its own and the same `fields` (steps=50)."""
    same = {name: [value] for name, value in fields.items()}
    return {"data": [{"seed": [seed], **same} for seed in seeds]}


def command(target: Target, load: Load, data: Path, profile: Path, networks: Iterable[str]) -> list[str]:
    """Its arguments, for a run in the folder of `data` and `profile`; `networks` are those that the model calls."""
    # A stream wants it; and at a rate, four threads would each wait for an answer before they send again.
    asynchronous = target.model == STREAM or load.kind == "request-rate"
    return [
        *("-m", target.model, "-i", "grpc", "-u", target.url, "--input-data", data.name),
        *(f"--{load.kind}-range", f"{load.value:g}", "--request-count", str(load.requests)),
        *(["--async"] if asynchronous else []),
        *(["--streaming"] if target.model == STREAM else []),
        *("--bls-composing-models", ",".join(networks), "--percentile", "90"),
        *("--profile-export-file", profile.name),
        *_access_flags(target.access),
    ]


def _access_flags(access: Access) -> list[str]:
    flags = ["--ssl-grpc-use-ssl", "true"] if access.channel.get("ssl") else []
    for name, flag in TLS_FLAGS.items():
        if access.channel.get(name):
            flags += [flag, str(access.channel[name])]
    for name, value in access.headers.items():
        flags += ["-H", f"{name}:{value}"]
    return flags


@dataclass(frozen=True)
class Run:
    """One run of perf_analyzer that has ended. `command` and `report` have its words."""

    arguments: list[str]
    done: subprocess.CompletedProcess[str]
    profile: Path
    before: Mapping[str, Counts]
    after: Mapping[str, Counts]

    @property
    def report(self) -> str:
        """The command and what it printed."""
        return f"$ perf_analyzer {shlex.join(self.arguments)}\n{self.done.stdout}{self.done.stderr}"

    def requests(self) -> list[Request]:
        """Those that were answered; the record is kept without outputs. Raises AnalyzerError for a run that failed."""
        check(self.done)
        record = read_profile(self.profile)
        write_text(self.profile, json.dumps(record))
        return requests(record)

    def mean_rows(self) -> dict[str, float]:
        """Rows in a call of each network."""
        return mean_rows(self.before, self.after)


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
    """Run it in `folder` with the input file `content`; the files there have the name of the load."""
    data, profile = folder / f"{load.name}.input.json", folder / f"{load.name}.requests.json"
    write_text(data, json.dumps(content))
    profile.unlink(missing_ok=True)  # it refuses to write over one
    before = counts(client, target.access)
    arguments = [*command(target, load, data, profile, before), "-f", f"{load.name}.csv", *more]
    done = subprocess.run(
        [str(program), *arguments], cwd=folder, env=environment(program.parent), capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip
    return Run(arguments, done, profile, before, counts(client, target.access))


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Raise AnalyzerError for a run that has failed."""
    if done.returncode:
        reason = done.stderr.partition("Usage:")[0]  # all of its options follow
        lines = (re.sub(r"^Thread \[\d+\] had error: ", "", line.strip()) for line in reason.splitlines())
        words = " ".join(dict.fromkeys(filter(None, lines)))  # many threads have the same to say
        raise AnalyzerError(f"perf_analyzer ended with exit status {done.returncode}: {words[:800]}")


def read_profile(path: Path) -> dict[str, Any]:
    """Its record of one load, without the outputs: every pixel is in there as text, 1.3 MB a request.

    Raises:
        AnalyzerError: it has written none, or one that is no JSON, as with batches (-b).
    """

    def without_outputs(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("response_outputs", None)
        return entry

    try:
        profile: dict[str, Any] = json.loads(path.read_text(), object_hook=without_outputs)
    except (OSError, ValueError) as error:
        raise AnalyzerError(f"perf_analyzer's record of the requests cannot be read: {error}") from error
    return profile


def requests(profile: dict[str, Any]) -> list[Request]:
    """Those that were answered."""
    answered = [request for run in profile["experiments"] for request in run["requests"]]
    times = [(request["timestamp"], tuple(request["response_timestamps"])) for request in answered]
    return [Request(sent, answers) for sent, answers in times if answers]


def percentile(values: Sequence[float], share: float) -> float:
    """One of the values, the one that perf_analyzer would take."""
    return sorted(values)[math.floor(share * (len(values) - 1) + 0.5)]


def counts(client: InferenceServerClient, access: Access) -> dict[str, Counts]:
    """Those so far, by network, of the networks that are there. Raises AnalyzerError where Triton has none."""
    from tritonclient.utils import InferenceServerException

    from benchmarks.harness import wire  # with NumPy, which --help is spared

    headers = dict(access.headers) or None
    try:
        ready = [name for name in NETWORKS if client.is_model_ready(name, headers=headers, client_timeout=TIMEOUT_S)]
        return {network: wire.counts(client, network, access.headers, TIMEOUT_S) for network in ready}
    except InferenceServerException as error:
        raise AnalyzerError(f"the server's statistics of its networks cannot be had: {error}") from error


def mean_rows(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> dict[str, float]:
    """Rows in a call of each network, between two counts."""
    return {
        name: (now.rows - before[name].rows) / max(1, now.calls - before[name].calls) for name, now in after.items()
    }
