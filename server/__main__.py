"""`python -m server`: runs a tritonserver on this machine until Ctrl-C or SIGTERM; running requests may finish.

Argument parsing and printing only; `server.supervisor` does the work.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from server import security_options
from server.channel import connect
from server.errors import ServerError
from server.process import TritonServer
from server.supervisor import Policy, Supervisor
from server.terminal import open_standard_files, say

DEFAULT_PROFILE = "default"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:split])
    open_standard_files()
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop = Stop()
    for number, handler in previous.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup ignores SIGHUP, and so it must stay
            signal.signal(number, stop)
    try:
        _import_extensions()
        _serve(options, arguments[split + 1 :], stop)
        return 0
    except KeyboardInterrupt:
        say("Stopped.")
        return 0
    except (ServerError, OSError, ImportError) as error:
        say(f"error: {error}", sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _import_extensions() -> None:
    """Import tritonclient, with the signals blocked meanwhile: NumPy turns a KeyboardInterrupt into an ImportError."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        import tritonclient.grpc  # noqa: F401
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Names the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start a tritonserver on this machine, check its health, and restart it after a failure. "
        "The program is $TRITONSERVER, or else tritonserver on PATH, or else that of the pip wheel.",
        epilog="Arguments after -- are passed to tritonserver unchanged, for example: -- --log-verbose=1",
        formatter_class=_Defaults,
    )
    parser.add_argument(
        "--profile",
        default="cpu",
        help=f"configs/PROFILE.pbtxt of each model; '{DEFAULT_PROFILE}' is config.pbtxt (TensorRT)",
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="model repository folder")
    parser.add_argument("--host", default="127.0.0.1", help="address or host name where gRPC listens")
    parser.add_argument("--http-port", type=int, default=8000, help="HTTP port")
    parser.add_argument("--grpc-port", type=int, default=8001, help="gRPC port")
    parser.add_argument("--metrics-port", type=int, default=8002, help="port of the Prometheus metrics")
    parser.add_argument(
        "--log-file",
        type=Path,
        default=None,
        help="append the log of tritonserver to this file; without it the log is temporary",
    )
    parser.add_argument(
        "--startup-timeout", type=float, default=120.0, metavar="S", help="seconds for the server to become ready"
    )
    security_options.add_arguments(parser)
    stay = parser.add_argument_group(
        "health checks, restarts and stopping", "docs/lifecycle.md explains these options."
    )
    stay.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds for running requests to finish at a stop"
    )
    stay.add_argument(
        "--drain-folder", type=Path, default=None, help="folder for mri_ldm/1/drain.py; without it, a private folder"
    )
    stay.add_argument(
        "--health-interval", type=float, default=10.0, metavar="S", help="seconds between health checks; 0: no checks"
    )
    stay.add_argument(
        "--health-timeout", type=float, default=30.0, metavar="S", help="seconds for the answer to a health check"
    )
    stay.add_argument(
        "--max-restarts", type=int, default=3, metavar="N", help="restarts within the window before giving up; 0: none"
    )
    stay.add_argument(
        "--restart-window", type=float, default=600.0, metavar="S", help="seconds in which restarts are counted"
    )
    return parser


def _serve(options: argparse.Namespace, extra_args: Sequence[str], stop: Stop) -> None:
    profile = None if options.profile == DEFAULT_PROFILE else options.profile
    _check_profile(options.repository, profile)
    make = partial(
        TritonServer,
        options.repository,
        profile,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        extra_args=extra_args,
        log_path=options.log_file,
        startup_timeout_s=options.startup_timeout,
        drain_folder=options.drain_folder,
        security=security_options.security(options),
    )
    policy = Policy(
        grace_s=options.grace,
        health_interval_s=options.health_interval,
        health_timeout_s=options.health_timeout,
        max_restarts=options.max_restarts,
        restart_window_s=options.restart_window,
        startup_timeout_s=options.startup_timeout,
        bitwise=options.profile in ("cpu", "openvino"),
    )
    say(f"Starting tritonserver with {options.repository}, profile {options.profile} ...")
    started = time.monotonic()
    asked, hurry = (lambda: stop.signals > 0), (lambda: stop.signals > 1)
    supervisor = Supervisor(make, policy, asked=asked, hurry=hurry, report=say)
    supervisor.run(lambda server, busy: _announce(server, options.profile, time.monotonic() - started, busy))


def _check_profile(repository: Path, profile: str | None) -> None:
    """Refuse a profile that no model has: Triton would use config.pbtxt without a warning."""
    if profile is None or any(repository.glob(f"*/configs/{profile}.pbtxt")) or not repository.is_dir():
        return
    known = sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})
    raise ServerError(f"no model in {repository} has a profile {profile!r}; there are {[DEFAULT_PROFILE, *known]}")


def _announce(server: TritonServer, profile: str, took_s: float, busy: bool) -> None:
    headers = dict(server.access.headers)
    with connect(server.grpc_url, server.access) as client:
        version = client.get_server_metadata(headers, client_timeout=10).version
        index = client.get_model_repository_index(headers, client_timeout=10)
    notes = security_options.warnings(server.security, server.host, server.concealed)
    generation = "others keep it from a one-step generation" if busy else "a one-step generation was answered"
    drain = [str(server.repository / "mri_ldm" / "1" / "drain.py"), str(server.drain_folder)]
    asking = f"--url {shlex.quote(server.grpc_url)}{security_options.client_options(server.security)}"
    origin = server.installation.origin if server.installation else ""
    say(
        f"Ready after {took_s:.1f} s: {generation}.\n"
        f"  server      tritonserver {version} ({origin}), process {server.pid}\n"
        f"  repository  {server.repository}, profile {profile}\n"
        f"  models      {', '.join(sorted(model.name for model in index.models))}\n"
        f"  gRPC        {server.grpc_url}\n"
        f"  HTTP        {'off' if server.security.http == 'off' else server.http_url}\n"
        f"  metrics     {'off' if server.security.metrics == 'off' else server.metrics_url}\n"
        f"  log         {server.log_path}\n"
        f"  drain       python {shlex.join(drain)}\n"
        + "".join(f"note: {note}\n" for note in notes)
        + f"Try: brats-ldm generate {asking}\n"
        "Ctrl-C stops the server, once what runs has finished."
    )


class Stop:
    """Signal handler. The first signal raises KeyboardInterrupt, which stops the server. Further ones are only counted,
    so that they cannot interrupt the stop."""

    def __init__(self) -> None:
        self.signals = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals == 1:
            raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
