"""The commands of the container: `prepare` builds plans on its GPU, `serve` runs Triton, `health` checks it, `drain`
lets requests finish.

Standard library only, so that the stock image needs nothing else.
"""

import argparse
import contextlib
import json
import math
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from plans import BEST_ROWS, ONNX, Refusal, inputs, prepare, print_commands, require_plans

# Inside the container Triton listens on all addresses; docker publishes the ports.
SAFE_FLAGS = (
    *("--model-control-mode=none", "--disable-auto-complete-config", "--exit-on-error=true"),
    *("--strict-readiness=true", "--exit-timeout-secs=5", "--log-format=ISO8601"),
)
DRAIN_VARIABLE = "BRATS_LDM_DRAIN_FOLDER"
DRAIN = Path(os.environ.get(DRAIN_VARIABLE, "/tmp/brats-ldm-drain"))
REFUSE_S, KILL_AFTER_S = 2.0, 8.0  # after the grace period: to refuse what is left, and for Triton's own end
RESTRICTED = "shared-memory,model-repository,trace,logging"
SHARED_MEMORY, SHARED_MEMORY_BYTES = Path("/dev/shm"), 24 * 2**20  # of a request of 64 rows, the most that one has
REGIONS = "brats_ldm_{}_"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy: the server is on this machine
HEALTH_S = 15
BUSY, DEADLINE = "BUSY", "DEADLINE"  # tokens of errors: docs/errors.md
IMAGE = struct.Struct(f"<{240 * 240}f")
FIRST_IMAGE = "first-image"
TOLERANCE = 1e-2
"""Of the norm: half precision differs by 1e-3 between the kernels of two batch sizes, a dead network by far more."""


def serve(repository: Path, profile: str | None, extra: Sequence[str], grace: float) -> int:
    """Run tritonserver if it can serve that profile here (None: plans); returns its exit status.

    SIGTERM or SIGINT drains it first: Triton 24.10 ends every generation when it stops, and from 25.05 on lets them
    continue for --exit-timeout-secs.
    """
    if profile is None:
        require_plans(repository)
    else:
        require_profile(repository, profile)
    DRAIN.mkdir(mode=0o700, parents=True, exist_ok=True)
    regions = new_region_prefix(SHARED_MEMORY)
    check_shared_memory(SHARED_MEMORY)
    # Of a container that was started again:
    for old in (DRAIN / "drain", DRAIN / "over", DRAIN / FIRST_IMAGE, *DRAIN.glob("*.serving")):
        old.unlink(missing_ok=True)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    os.environ[DRAIN_VARIABLE] = str(DRAIN)
    flags = [] if profile is None else [f"--model-config-name={profile}"]
    flags.append(f"--backend-config=python,shm-region-prefix-name={regions}")
    server = subprocess.Popen(server_command(repository, [*flags, *extra]), start_new_session=True)
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
    """Let requests finish and refuse new ones; returns whether all have finished within `grace` seconds."""
    program = repository / "mri_ldm" / "1" / "drain.py"
    return subprocess.run([sys.executable, program, DRAIN, f"--grace={grace}", *more], check=False).returncode == 0


def server_command(repository: Path, extra: Sequence[str] = ()) -> list[str]:
    """Triton without model control; restricted APIs need a secret that nobody knows."""
    secret = secrets.token_hex(16)
    return [
        "tritonserver",
        f"--model-repository={repository}",
        *SAFE_FLAGS,
        f"--http-restricted-api={RESTRICTED}:admin-key={secret}",
        f"--grpc-restricted-protocol={RESTRICTED}:admin-key={secret}",
        *extra,
    ]


def require_profile(repository: Path, profile: str) -> None:
    """Raise Refusal if a network lacks the profile: Triton would silently take config.pbtxt, which is for plans."""
    for network in inputs(repository):
        configs = repository / network / "configs"
        if not (configs / f"{profile}.pbtxt").is_file():
            known = ", ".join(sorted(path.stem for path in configs.glob("*.pbtxt")))
            raise Refusal(f"--profile {profile!r}: {network} has no such profile, only {known}")


def new_region_prefix(shared_memory: Path) -> str:
    """A prefix for this server's regions in shared memory. Removes those of the server before it in this container.

    A server that was killed leaves its regions. In Kubernetes, /dev/shm outlives a container that is started again.
    """
    record, new = DRAIN / "regions", secrets.token_hex(6)
    with contextlib.suppress(FileNotFoundError):
        for region in shared_memory.glob(REGIONS.format(record.read_text()) + "*"):
            region.unlink(missing_ok=True)
    record.write_text(new)
    return REGIONS.format(new)


def check_shared_memory(folder: Path, needed: int = SHARED_MEMORY_BYTES) -> None:
    """Raise Refusal if less than `needed` bytes are left for the tensors between Triton's processes."""
    if (left := shutil.disk_usage(folder).free) < needed:
        raise Refusal(
            f"{folder} has {left / 2**20:.0f} MB left, and a server needs {needed / 2**20:.0f} MB: "
            "docker run --shm-size=1g"
        )


def health(url: str) -> None:
    """Raise if the image of seed 0 in one step does not come, or is not that of the first check (docs/errors.md).

    Triton calls a model ready even if the networks behind it are dead. A busy server is healthy: it has no room now, or
    is late while its networks answer other calls.
    """
    calls = network_calls(url)
    try:
        image = one_step_image(url)
    except (urllib.error.HTTPError, TimeoutError) as error:
        token = DEADLINE if isinstance(error, TimeoutError) else token_of(error)
        if token == BUSY or (token == DEADLINE and network_calls(url) > calls):
            return
        raise
    check_same(image)


def one_step_image(url: str) -> bytes:
    """The image of seed 0 in one step, as little-endian float32."""
    tensors = {"seed": ("INT64", 0), "steps": ("INT32", 1)}
    inputs = [{"name": name, "datatype": kind, "shape": [1, 1], "data": [n]} for name, (kind, n) in tensors.items()]
    outputs = [{"name": "image", "parameters": {"binary_data": True}}]
    # In microseconds. Without it the server would continue with an image for which nobody waits any more.
    parameters = {"timeout": HEALTH_S * 10**6}
    body = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    request = urllib.request.Request(f"{url}/v2/models/mri_ldm/infer", body, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=HEALTH_S + 1) as response:
        content: bytes = response.read()
        return content[int(response.headers["Inference-Header-Content-Length"]) :]


def token_of(error: urllib.error.HTTPError) -> str:
    """The token of an error of our models, such as BUSY; empty for an error of Triton itself."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if token := re.match(r"\[([A-Z_]+)", json.load(error)["error"]):
            return token[1]
    return ""


def first_image(image: bytes) -> bytes:
    """The image of the first check since the server of this container started; this image if it is the first."""
    file = DRAIN / FIRST_IMAGE
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    with contextlib.suppress(FileNotFoundError):  # no folder: the server runs in another container
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(image)
        temporary.replace(file)
    return image


def check_same(image: bytes) -> None:
    """Raise Refusal if the image is not whole and finite, or differs from the first by more than TOLERANCE."""
    if len(image) != IMAGE.size:
        raise Refusal(f"the image of seed 0 has {len(image)} bytes and should have {IMAGE.size}")
    values = IMAGE.unpack(image)
    if not all(map(math.isfinite, values)):
        raise Refusal("the image of seed 0 holds values that are not finite")
    first = IMAGE.unpack(first_image(image))
    difference = math.dist(values, first) / max(math.hypot(*first), 1e-12)
    if difference > TOLERANCE:
        raise Refusal(f"the image of seed 0 differs by {difference:.2g} of its norm from that of the first check")


def network_calls(url: str) -> int:
    """Calls that the networks have answered since the server started; 0 if the server does not say."""
    try:
        with DIRECT.open(f"{url}/v2/models/stats", timeout=2) as response:
            models = json.load(response)["model_stats"]
    except OSError:
        return 0
    return sum(int(model["execution_count"]) for model in models if model["name"] in BEST_ROWS)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command. `extra`: what stands after --, for tritonserver.

    By hand, as argparse refuses a -- that comes after an option.
    """
    own = list(argv[: argv.index("--")] if "--" in argv else argv)
    parser = command_line()
    options = parser.parse_args(own, argparse.Namespace(extra=list(argv[len(own) + 1 :])))
    if options.extra and options.command != "serve":
        parser.error(f"-- {options.extra[0]}: flags for tritonserver are for `serve`")
    return options


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="copy a repository and build its plans on this GPU")
    preparing.add_argument("--source", type=Path, required=True, help="folder that `python -m export repository` wrote")
    preparing.add_argument("--into", type=Path, required=True, help="folder that Triton will serve")
    preparing.add_argument(
        "--precision", choices=sorted(ONNX), default="fp16", help="precision of the plans (default: %(default)s)"
    )
    preparing.add_argument("--dry-run", action="store_true", help="print the trtexec commands and change nothing")
    serving = commands.add_parser(
        "serve", help="start Triton on a repository", epilog="Flags for tritonserver come after all others and --."
    )
    draining = commands.add_parser("drain", help="let running requests finish and refuse new ones; the server stays up")
    for command in (serving, draining):
        command.add_argument("repository", type=Path, help="model repository; for plans, that of `prepare`")
        command.add_argument(
            "--grace",
            type=float,
            default=30.0,
            metavar="S",
            help="seconds for running requests to finish (default: %(default)s)",
        )
    serving.add_argument(
        "--profile", metavar="NAME", help="serve configs/NAME.pbtxt of the networks, such as cpu (default: their plans)"
    )
    asking = commands.add_parser("health", help="check that a server generates the image of seed 0 in one step")
    asking.add_argument(
        "--url", default="http://127.0.0.1:8000", help="HTTP address of the server (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        if options.command == "serve":
            return serve(options.repository, options.profile, options.extra, options.grace)
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
