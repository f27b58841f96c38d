"""`python -m benchmarks.serving.analyzer`: perf_analyzer against a server that runs, or one started for it.

Argument parsing and the server only; `run` does the work.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import COMMITTED, ROOT
from benchmarks.serving.analyzer import fetch
from benchmarks.serving.analyzer.run import (
    MODELS,
    SECRET,
    STREAM,
    TIMEOUT_S,
    UNARY,
    AnalyzerError,
    Load,
    Target,
    measure,
)
from server.channel import connect
from server.errors import ServerError
from server.health import probe
from server.process import TritonServer
from server.security import GRPC_PREFIX, INFERENCE_HEADER, Access
from training.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure each load, report; returns the exit status."""
    options = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a server of its own must not outlive it
    fields = {"steps": options.steps, "sampler": options.sampler}
    fields |= {"preview_every": options.preview_every} if options.preview_every else {}
    fields |= {"decoder": "tiny"} if options.decoder == "tiny" else {}
    try:
        if not (options.tool / fetch.BINARY).is_file():
            print(f"Fetching perf_analyzer into {options.tool} ...", flush=True)
        program = fetch.fetch(options.tool)
        with _target(options) as target:
            measure(program, target, options.loads, options.seed, fields, options.out, options.more)
    except (AnalyzerError, ServerError, fetch.FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    kind = "request-rate" if options.request_rate else "concurrency"
    values = options.request_rate or options.concurrency
    options.loads = [Load(kind, value, options.requests or max(16, math.ceil(4 * value))) for value in values]
    wrong = {
        f"--requests {options.requests} is less than --{kind} {max(values):g}: perf_analyzer wants more":
            any(load.requests < load.value for load in options.loads),
        f"--preview-every is for --model {STREAM}: {UNARY} answers once":
            options.preview_every and options.model != STREAM,
        "give both --tls-cert and --tls-key, or neither": (options.tls_cert is None) != (options.tls_key is None),
        "--tls-cert needs --tls-ca, the authority of the server's certificate":
            options.tls_cert and not options.tls_ca,
        "--tls-ca is for a server that runs: give its --url": options.tls_ca and options.url is None,
    }  # fmt: skip
    for message in (message for message, is_so in wrong.items() if is_so):
        parser.error(message)
    options.out = (options.out or Path("out/perf_analyzer") / time.strftime("%Y%m%d-%H%M%S")).resolve()
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.analyzer",
        description="Measure with Triton's perf_analyzer, which is fetched where it is missing. "
        "docs/perf_analyzer.md says what its lines mean, and has the plain command.",
    )
    further = "for perf_analyzer as it is, e.g. -- --request-distribution poisson"
    parser.add_argument("more", nargs="*", metavar="-- OPTION", help=further)
    add = parser.add_argument_group("load").add_mutually_exclusive_group().add_argument
    in_flight = "requests in flight all the time (1 4)"
    add("--concurrency", type=_positive, nargs="+", default=[1, 4], metavar="N", help=in_flight)
    add("--request-rate", type=_rate, nargs="+", metavar="R", help="requests a second, instead of --concurrency")
    add = parser.add_argument_group("requests: one image each, no two with the same seed").add_argument
    at_least = "at each load (4 for each in flight or a second, at least 16)"
    add("--requests", type=_positive, metavar="N", help=at_least)
    add("--model", choices=MODELS, default=UNARY, help="one response, or a stream (%(default)s)")
    add("--steps", type=_positive, default=50, help="denoising steps (%(default)s)")
    add("--sampler", default="ddim", help="ddim, ddpm, dpmpp_2m, dpmpp_3m or unipc (%(default)s)")
    add("--decoder", choices=("full", "tiny"), default="full", help="of the images (%(default)s)")
    add("--seed", type=int, default=0, help="the first seed; the others count up (%(default)s)")
    add("--preview-every", type=_positive, metavar="N", help="for a stream: a preview every N steps (none)")
    add = parser.add_argument_group("server: one of its own, unless --url is given").add_argument
    add("--repository", type=Path, default=COMMITTED, help="model repository for a server of its own")
    add("--profile", default="cpu", help="profile of that server (%(default)s)")
    add("--url", metavar="HOST:PORT", help=f"gRPC of a server that runs; ${SECRET} is sent to it")
    add("--tls-ca", type=Path, metavar="PEM", help="encrypt, and trust the authorities in this file")
    add("--tls-cert", type=Path, metavar="PEM", help="this client's certificate, for mutual TLS")
    add("--tls-key", type=Path, metavar="PEM", help="key of that certificate")
    add = parser.add_argument_group("files").add_argument
    add("--out", type=Path, metavar="DIR", help="folder for the results (out/perf_analyzer/DATE-TIME)")
    add(
        "--tool",
        type=Path,
        default=ROOT / fetch.FOLDER,
        metavar="DIR",
        help="folder of perf_analyzer; it is fetched if it is missing",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate


@contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    """What is measured, once it has generated something."""
    if options.url is not None:
        access = _access(options)
        _look_for_model(options.url, options.model, access)
        probe(options.url, access=access)
        yield Target(options.url, options.model, access)
        return
    print(f"Starting tritonserver with {options.repository}, profile {options.profile} ...", flush=True)
    profile = None if options.profile == "default" else options.profile
    with TritonServer(options.repository, profile, log_path=options.out / "tritonserver.log") as server:
        server.probe()
        _look_for_model(server.grpc_url, options.model, server.access)
        yield Target(server.grpc_url, options.model, server.access)


def _access(options: argparse.Namespace) -> Access:
    files = {"root_certificates": options.tls_ca, "certificate_chain": options.tls_cert, "private_key": options.tls_key}
    channel = {name: str(path.resolve(strict=True)) for name, path in files.items() if path is not None}
    secret = os.environ.get(SECRET)
    headers = {GRPC_PREFIX + INFERENCE_HEADER: secret} if secret else {}
    return Access({"ssl": True, **channel} if channel else {}, headers)


def _look_for_model(url: str, model: str, access: Access) -> None:
    """Raise ServerError where no server answers, or not with that model."""
    from tritonclient.utils import InferenceServerException

    try:
        with connect(url, access) as client:
            ready = client.is_model_ready(model, headers=dict(access.headers), client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        raise ServerError(f"no server answers at {url} ({error}): see --url, or leave it out") from error
    if not ready:
        raise ServerError(f"the server at {url} has no model {model}, or it is not ready")


if __name__ == "__main__":
    run_command(main)
