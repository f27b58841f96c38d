"""What the container runs: `prepare` builds plans on its GPU, `serve` runs Triton, `health` asks, `drain` lets finish.

Standard library only, so that the stock image needs nothing else.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from plans import BEST_ROWS, ONNX, Refusal, prepare, print_commands, require_plans

# The network ports are published by whoever runs the container; inside it all addresses are its own.
SAFE_FLAGS = (
    *("--model-control-mode=none", "--disable-auto-complete-config", "--exit-on-error=true"),
    *("--strict-readiness=true", "--exit-timeout-secs=5", "--log-format=ISO8601"),
)
DRAIN_VARIABLE = "BRATS_LDM_DRAIN_FOLDER"
DRAIN = Path(os.environ.get(DRAIN_VARIABLE, "/tmp/brats-ldm-drain"))
REFUSE_S, KILL_AFTER_S = 2.0, 8.0  # after the grace period: to refuse what is left, and for Triton's own end
RESTRICTED = "shared-memory,model-repository,trace,logging"
SHARED_MEMORY, SHARED_MEMORY_BYTES = Path("/dev/shm"), 24 * 2**20  # of a request of 64 rows, the most that one has
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy: it asks its own machine
HEALTH_S = 15


def serve(repository: Path, extra: Sequence[str], grace: float) -> int:
    """Run tritonserver, once the plans are known to fit; its exit status. A SIGTERM or SIGINT drains it first: Triton
    24.10 breaks off every generation when it stops, and from 25.05 on lets each go on for --exit-timeout-secs."""
    require_plans(repository)
    check_shared_memory(SHARED_MEMORY)
    DRAIN.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in (DRAIN / "drain", DRAIN / "over", *DRAIN.glob("*.serving")):  # of a container that was started again
        old.unlink(missing_ok=True)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    os.environ[DRAIN_VARIABLE] = str(DRAIN)
    server = subprocess.Popen(server_command(repository, extra), start_new_session=True)
    while server.poll() is None and not asked:
        time.sleep(0.1)
    if asked:
        if not drain(repository, grace):
            drain(repository, REFUSE_S, "--refuse")
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.wait(KILL_AFTER_S)
        os.killpg(server.pid, signal.SIGKILL)
    return server.wait()


def drain(repository: Path, grace: float, *more: str) -> bool:
    """Let requests finish and refuse new ones; whether all have within `grace` seconds."""
    program = repository / "mri_ldm" / "1" / "drain.py"
    return subprocess.run([sys.executable, program, DRAIN, f"--grace={grace}", *more], check=False).returncode == 0


def server_command(repository: Path, extra: Sequence[str] = ()) -> list[str]:
    """Triton without model control; what is restricted needs a secret header that nobody knows."""
    secret = secrets.token_hex(16)
    return [
        "tritonserver",
        f"--model-repository={repository}",
        *SAFE_FLAGS,
        f"--http-restricted-api={RESTRICTED}:admin-key={secret}",
        f"--grpc-restricted-protocol={RESTRICTED}:admin-key={secret}",
        *extra,
    ]


def check_shared_memory(folder: Path, needed: int = SHARED_MEMORY_BYTES) -> None:
    """Raise Refusal where less than `needed` bytes are left for the tensors between Triton's processes."""
    if (left := shutil.disk_usage(folder).free) < needed:
        raise Refusal(
            f"{folder} has {left / 2**20:.0f} MB left, and a server needs {needed / 2**20:.0f} MB: "
            "docker run --shm-size=1g"
        )


def health(url: str) -> None:
    """Raise where no slice comes back: Triton calls models ready that call dead ones. To be busy is no fault."""
    tensors = {"seed": "INT64", "steps": "INT32"}
    inputs = [{"name": name, "datatype": kind, "shape": [1, 1], "data": [1]} for name, kind in tensors.items()]
    outputs = [{"name": "image", "parameters": {"binary_data": True}}]
    # In microseconds: or what comes too late would still be made, as Triton does not see who hangs up over HTTP.
    parameters = {"timeout": HEALTH_S * 10**6}
    body = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    request = urllib.request.Request(f"{url}/v2/models/mri_ldm/infer", body, {"Content-Type": "application/json"})
    calls = network_calls(url)
    try:
        with DIRECT.open(request, timeout=HEALTH_S + 1) as response:
            size = len(response.read()) - int(response.headers["Inference-Header-Content-Length"])
    except (urllib.error.HTTPError, TimeoutError) as error:
        words = error.read() if isinstance(error, urllib.error.HTTPError) else b""
        late = isinstance(error, TimeoutError) or b"deadline has passed" in words
        if b"the queue " in words or (late and network_calls(url) > calls):
            return
        raise
    if size != 240 * 240 * 4:
        raise Refusal(f"the image of seed 1 has {size} bytes and should have {240 * 240 * 4}")


def network_calls(url: str) -> int:
    """Calls that the networks have answered since the server started; 0 where it does not say."""
    try:
        with DIRECT.open(f"{url}/v2/models/stats", timeout=2) as response:
            models = json.load(response)["model_stats"]
    except OSError:
        return 0
    return sum(int(model["execution_count"]) for model in models if model["name"] in BEST_ROWS)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="copy a repository and build its plans on this GPU")
    preparing.add_argument("--source", type=Path, required=True, help="folder that `python -m export repository` wrote")
    preparing.add_argument("--into", type=Path, required=True, help="folder to serve from")
    preparing.add_argument("--precision", choices=sorted(ONNX), default="fp16", help="default: %(default)s")
    preparing.add_argument("--dry-run", action="store_true", help="print the trtexec command lines, and do nothing")
    serving = commands.add_parser("serve", help="start Triton on a prepared repository")
    draining = commands.add_parser("drain", help="let requests finish and refuse new ones; the server stays up")
    for each in (serving, draining):
        each.add_argument("repository", type=Path)
        each.add_argument("--grace", type=float, default=30.0, metavar="S", help="for requests: %(default)s s")
    serving.add_argument("extra", nargs="*", help="after --, flags for tritonserver")
    asking = commands.add_parser("health", help="ask a server for a slice")
    asking.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        if options.command == "serve":
            return serve(options.repository, options.extra, options.grace)
        if options.command == "drain":
            return 0 if drain(options.repository, options.grace) else 1
        if options.command == "prepare" and options.dry_run:
            print_commands(options.source, options.into, options.precision)
        elif options.command == "prepare":
            prepare(options.source, options.into, options.precision)
        else:
            health(options.url)
    except (Refusal, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
