"""What the container runs: `prepare` builds plans on its GPU, `serve` runs Triton, `health` asks, `drain` lets finish.

Standard library only, so that the stock image needs nothing else. Plans are stamped in manifest.json as
`python -m export` does it, and `python -m export check` reads them too.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TRTEXEC = os.environ.get("TRTEXEC", "/usr/src/tensorrt/bin/trtexec")
INPUTS = {"unet": {"latent": "1x64x64", "timesteps": "1"}, "vae_decoder": {"latent": "1x64x64"}}
"""Network to its inputs and their dims for a row."""
BEST_ROWS = {"unet": 8, "vae_decoder": 4}
ONNX = {"fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx", "tf32": "model.onnx", "fp32": "model.onnx"}
PLAN, CACHE = "model.plan", "timing.cache"
# The network ports are published by whoever runs the container; inside it all addresses are its own.
SAFE_FLAGS = (
    *("--model-control-mode=none", "--disable-auto-complete-config", "--exit-on-error=true"),
    *("--strict-readiness=true", "--exit-timeout-secs=5", "--log-format=ISO8601"),
)
DRAIN_VARIABLE = "BRATS_LDM_DRAIN_FOLDER"
DRAIN = Path(os.environ.get(DRAIN_VARIABLE, "/tmp/brats-ldm-drain"))
REFUSE_S, KILL_AFTER_S = 2.0, 8.0  # after the grace period: to refuse what is left, and for Triton's own end
RESTRICTED = "shared-memory,model-repository,trace,logging"
Json = dict[str, Any]


class Refusal(Exception):
    """Something that cannot or must not be done; the message says what to do."""


def prepare(source: Path, into: Path, precision: str, dry_run: bool) -> None:
    """Copy the repository, and build the plans that are not there for this TensorRT, this GPU and these weights."""
    if dry_run:
        for network in INPUTS:
            print(shlex.join(build_command(source, into / network / "1" / PLAN, network, precision, "10.0.0")))
        return
    version, gpu = tensorrt_version(), this_gpu()
    manifest = copy_repository(source, into)
    for network in INPUTS:
        wanted = stamp(source, network, precision, version, gpu)
        plan = into / network / "1" / PLAN
        if reason := stale(into, manifest, wanted):
            print(f"{network}: building a plan, since {reason}; minutes, once for each GPU and TensorRT", flush=True)
            temporary = plan.with_name(PLAN + ".tmp")
            subprocess.run(build_command(source, temporary, network, precision, version), check=True)
            os.replace(temporary, plan)
            others = [each for each in manifest.get("plans", []) if each["file"] != wanted["file"]]
            manifest["plans"] = [*others, wanted]
            manifest["sha256"][wanted["file"]] = sha256(plan)
            write_json(into / "manifest.json", manifest)
        print(f"{network}: {plan} is of TensorRT {version} for {gpu['name']}", flush=True)


def copy_repository(source: Path, into: Path) -> Json:
    """Everything but plans; what the source no longer has goes. Returns the manifest with our plans."""
    manifest: Json = json.loads((source / "manifest.json").read_text())
    if (into / "manifest.json").is_file():
        kept: Json = json.loads((into / "manifest.json").read_text())
        ours = {each["file"]: kept["sha256"][each["file"]] for each in kept.get("plans", [])}
        manifest["plans"] = kept.get("plans", [])
    else:
        ours, manifest["plans"] = {}, []
    theirs = {name: digest for name, digest in manifest["sha256"].items() if not name.endswith(".plan")}
    manifest["sha256"] = theirs | ours
    names = {path.relative_to(source) for path in files(source) if path.suffix != ".plan"}
    for path in files(into):
        if path.relative_to(into) not in names and path.suffix != ".plan" and path.name != CACHE:
            path.unlink()
    for name in sorted(names - {Path("manifest.json")}):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        temporary = into / name.with_name(name.name + ".tmp")
        shutil.copyfile(source / name, temporary)
        os.replace(temporary, into / name)
    write_json(into / "manifest.json", manifest)
    return manifest


def files(folder: Path) -> Iterator[Path]:
    """Every file, also in the linked version folder of the source repository; no compiled Python."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(root, name) for name in names)


def build_command(source: Path, plan: Path, network: str, precision: str, version: str) -> list[str]:
    """The trtexec command line. What is computed in fp16 is what the graph says, so the network is strongly typed."""
    rows = profile(source, network)
    shapes = {
        limit: ",".join(f"{name}:{rows[limit]}x{dims}" for name, dims in INPUTS[network].items()) for limit in rows
    }
    # From TensorRT 11 on there are no others, and no flag to say so.
    typed = ["--stronglyTyped"] if version.startswith("10.") else []
    return [
        TRTEXEC,
        f"--onnx={source / network / '1' / ONNX[precision]}",
        f"--saveEngine={plan}",
        *(f"--{limit}Shapes={shape}" for limit, shape in shapes.items()),
        *typed,
        *([] if precision == "tf32" else ["--noTF32"]),
        "--skipInference",
        f"--timingCacheFile={plan.parents[2] / CACHE}",
    ]


def profile(source: Path, network: str) -> dict[str, int]:
    """Rows that the plan takes: 1, those it is best at, and the most that Triton sends."""
    most = json.loads((source / "mri_ldm" / "1" / "model.json").read_text())["max_batch_size"]
    return {"min": 1, "opt": BEST_ROWS[network], "max": most[network]}


def stamp(source: Path, network: str, precision: str, version: str, gpu: Json) -> Json:
    """What manifest.json says of a plan that is built now."""
    onnx = source / network / "1" / ONNX[precision]
    if not onnx.is_file():
        raise Refusal(f"{onnx} does not exist: export with --onnx {precision}, or choose another --precision")
    return {
        "model": network,
        "file": f"{network}/1/{PLAN}",
        "runtime": "tensorrt",
        "version": version,
        "gpu": gpu,
        "precision": precision,
        "onnx_sha256": sha256(onnx),
        "profile": profile(source, network),
        "options": {"version_compatible": False, "hardware": "none"},
        "parity": None,
        "parity_not_measured": "built by trtexec, which knows no reference",
    }


def stale(into: Path, manifest: Json, wanted: Json) -> str:
    """Why the plan in place is not the wanted one; empty where it is."""
    present: Json = next((each for each in manifest.get("plans", []) if each["file"] == wanted["file"]), {})
    path = into / wanted["file"]
    if not present or not path.is_file():
        return "there is none yet"
    if different := [key for key in wanted if present.get(key) != wanted[key]]:
        return ", ".join(f"{key} was {present.get(key)!r} and is {wanted[key]!r}" for key in different)
    return "" if sha256(path) == manifest["sha256"].get(wanted["file"]) else "the file has been changed"


def check(repository: Path) -> None:
    """Raise Refusal where a plan is missing, changed, or of another TensorRT or GPU than this container's."""
    manifest, version, gpu = json.loads((repository / "manifest.json").read_text()), tensorrt_version(), this_gpu()
    present = {each["model"]: each for each in manifest.get("plans", [])}
    for network in INPUTS:
        precision = present.get(network, {}).get("precision", "fp16")
        if reason := stale(repository, manifest, stamp(repository, network, precision, version, gpu)):
            raise Refusal(f"{network}: the plan is not for this container: {reason}; run `prepare` again")


def serve(repository: Path, extra: Sequence[str], grace: float) -> int:
    """Run tritonserver, once the plans are known to fit; its exit status. A SIGTERM or SIGINT drains it first: Triton
    24.10 breaks off every generation when it stops, and from 25.05 on lets each go on for --exit-timeout-secs."""
    check(repository)
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


def health(url: str) -> None:
    """Raise where no slice comes back, asked past any proxy: ready models may call dead ones. Busy is no fault."""
    tensors = {"seed": "INT64", "steps": "INT32"}
    inputs = [{"name": name, "datatype": kind, "shape": [1, 1], "data": [1]} for name, kind in tensors.items()]
    outputs = [{"name": "image", "parameters": {"binary_data": True}}]
    body = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    request = urllib.request.Request(f"{url}/v2/models/mri_ldm/infer", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=15) as response:
            size = len(response.read()) - int(response.headers["Inference-Header-Content-Length"])
    except urllib.error.HTTPError as error:
        if b"the queue " in error.read():
            return
        raise
    if size != 240 * 240 * 4:
        raise Refusal(f"the image of seed 1 has {size} bytes and should have {240 * 240 * 4}")


def tensorrt_version() -> str:
    """Of trtexec, and so of the Triton beside it: "10.13.3" from "[TensorRT v101303]"."""
    try:
        shown = subprocess.run([TRTEXEC, "--help"], capture_output=True, text=True, timeout=120).stdout
    except OSError as error:
        raise Refusal(f"{error}: no trtexec, so this is no Triton image; TRTEXEC can say where it is") from error
    if found := re.search(r"\[TensorRT v([\d.]+)\]", shown):
        text = found[1]
        return text if "." in text else f"{int(text[:-4])}.{int(text[-4:-2])}.{int(text[-2:])}"
    raise Refusal(f"{TRTEXEC} --help does not say its version")


def this_gpu() -> Json:
    """Name and compute capability of the first GPU that the container sees."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise Refusal(f"no GPU in this container ({error!r}): give it one, or serve the cpu profile") from error
    name, capability = first.rsplit(",", 1)
    return {"name": name.strip(), "capability": capability.strip()}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, content: Json) -> None:
    path.with_name(path.name + ".tmp").write_text(json.dumps(content, indent=2) + "\n")
    os.replace(path.with_name(path.name + ".tmp"), path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="copy a repository and build its plans on this GPU")
    preparing.add_argument("--source", type=Path, required=True, help="folder that `python -m export` wrote")
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
        if options.command == "prepare":
            prepare(options.source, options.into, options.precision, options.dry_run)
        else:
            health(options.url)
    except (Refusal, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
