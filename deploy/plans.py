"""TensorRT plans for the GPU of this machine: built by trtexec into a copy of the repository, checked before serving.

Experimental: not yet run on a GPU. Standard library only, so that the stock image needs nothing else. The stamps of the
plans in manifest.json are those of `python -m export repository`, and `python -m export check` reads them too.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRTEXEC = os.environ.get("TRTEXEC", "/usr/src/tensorrt/bin/trtexec")
LATENT = "1x64x64"
CONDITION = "4x64x64"
BEST_ROWS = {"unet": 8, "vae_decoder": 4, "vae_decoder_tiny": 16, "unet_steps": 8}
"""Network -> rows for which TensorRT chooses its kernels; all networks that a repository may have."""
ONNX = {"fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx", "tf32": "model.onnx", "fp32": "model.onnx"}
PLAN, CACHE = "model.plan", "timing.cache"
Json = dict[str, Any]


class Refusal(Exception):
    """Something cannot or must not be done; the message says what to do."""


def print_commands(source: Path, into: Path, precision: str) -> None:
    """The trtexec command lines that `prepare` would run with TensorRT 10."""
    for network in inputs(source):
        print(shlex.join(build_command(source, into / network / "1" / PLAN, network, precision, "10.0.0")))


def prepare(source: Path, into: Path, precision: str) -> None:
    """Copy the repository, and build the plans that are missing for this TensorRT, this GPU and these weights."""
    version, gpu = tensorrt_version(), this_gpu()
    manifest = copy_repository(source, into)
    for network in inputs(source):
        wanted = stamp(source, network, precision, version, gpu)
        if reason := stale(into, manifest, wanted):
            print(f"{network}: building a plan, since {reason}; minutes, once for each GPU and TensorRT", flush=True)
            build(source, into, manifest, wanted)
        print(f"{network}: {into / wanted['file']} is of TensorRT {version} for {gpu['name']}", flush=True)


def build(source: Path, into: Path, manifest: Json, wanted: Json) -> None:
    """Build the plan that the stamp `wanted` describes, place it, and record it in the manifest."""
    plan = into / wanted["file"]
    temporary = plan.with_name(PLAN + ".tmp")
    command = build_command(source, temporary, wanted["model"], wanted["precision"], wanted["version"])
    subprocess.run(command, check=True)
    os.replace(temporary, plan)
    others = [entry for entry in manifest.get("plans", []) if entry["file"] != wanted["file"]]
    manifest["plans"] = [*others, wanted]
    manifest["sha256"][wanted["file"]] = sha256(plan)
    write_json(into / "manifest.json", manifest)


def copy_repository(source: Path, into: Path) -> Json:
    """Copy everything except plans, and remove files that the source no longer has.

    Returns the manifest of the source with the plans of `into`.
    """
    manifest: Json = json.loads((source / "manifest.json").read_text())
    before: Json = {"sha256": {}, "plans": []}
    if (into / "manifest.json").is_file():
        before |= json.loads((into / "manifest.json").read_text())
    manifest["plans"] = before["plans"]
    copied = {name: digest for name, digest in manifest["sha256"].items() if not name.endswith(".plan")}
    manifest["sha256"] = copied | {entry["file"]: before["sha256"][entry["file"]] for entry in before["plans"]}
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
    """Every file except compiled Python; follows the link to the version folder in the source repository."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(root, name) for name in names)


def build_command(source: Path, plan: Path, network: str, precision: str, version: str) -> list[str]:
    """The trtexec command line. The network is strongly typed: the graph says what is computed in fp16."""
    rows, tensors = profile(source, network), inputs(source)[network]
    shapes = {limit: ",".join(f"{name}:{rows[limit]}x{dims}" for name, dims in tensors.items()) for limit in rows}
    # From TensorRT 11 on all networks are strongly typed, and the flag is gone.
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


def inputs(source: Path) -> dict[str, dict[str, str]]:
    """Network of the repository -> its inputs, each with the dims of one row."""
    record = model_record(source)
    seen = {"latent": LATENT} | ({"condition": CONDITION} if record.get("conditioning") == "labels" else {})
    networks = {"unet": seen | {"timesteps": "1"}, "vae_decoder": {"latent": LATENT}}
    if "vae_decoder_tiny" in record["max_batch_size"]:
        networks["vae_decoder_tiny"] = {"latent": LATENT}
    if steps := record.get("steps_per_call"):
        state = seen | {"estimate": LATENT, "earlier_estimate": LATENT}
        networks["unet_steps"] = state | {"timesteps": f"{steps}", "coefficients": f"{steps}x8"}
    return networks


def model_record(source: Path) -> Json:
    """model.json, which export has written for the sampling loop."""
    record: Json = json.loads((source / "mri_ldm" / "1" / "model.json").read_text())
    return record


def profile(source: Path, network: str) -> dict[str, int]:
    """Rows that the plan accepts: 1, the number that it is fastest at, and the most that Triton sends."""
    return {"min": 1, "opt": BEST_ROWS[network], "max": model_record(source)["max_batch_size"][network]}


def stamp(source: Path, network: str, precision: str, version: str, gpu: Json) -> Json:
    """The entry of manifest.json for a plan that is built now."""
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
    """Why the plan in place is not the wanted one; empty if it is."""
    present: Json = next((entry for entry in manifest.get("plans", []) if entry["file"] == wanted["file"]), {})
    path = into / wanted["file"]
    if not present or not path.is_file():
        return "there is none yet"
    if different := [key for key in wanted if present.get(key) != wanted[key]]:
        return ", ".join(f"{key} was {present.get(key)!r} and is {wanted[key]!r}" for key in different)
    return "" if sha256(path) == manifest["sha256"].get(wanted["file"]) else "the file has been changed"


def require_plans(repository: Path) -> None:
    """Raise Refusal if a plan is missing, changed, or of another TensorRT or GPU than this container's."""
    manifest, version, gpu = json.loads((repository / "manifest.json").read_text()), tensorrt_version(), this_gpu()
    present = {entry["model"]: entry for entry in manifest.get("plans", [])}
    for network in inputs(repository):
        precision = present.get(network, {}).get("precision", "fp16")
        if reason := stale(repository, manifest, stamp(repository, network, precision, version, gpu)):
            raise Refusal(f"{network}: the plan is not for this container: {reason}; run `prepare` again")


def tensorrt_version() -> str:
    """The version of trtexec, and so of the Triton beside it: "10.13.3" from "[TensorRT v101303]"."""
    try:
        shown = subprocess.run([TRTEXEC, "--help"], capture_output=True, text=True, timeout=120).stdout
    except OSError as error:
        raise Refusal(f"{error}: no trtexec, so this is no Triton image; TRTEXEC can say where it is") from error
    if match := re.search(r"\[TensorRT v([\d.]+)\]", shown):
        text = match[1]
        return text if "." in text else f"{int(text[:-4])}.{int(text[-4:-2])}.{int(text[-2:])}"
    raise Refusal(f"{TRTEXEC} --help does not say its version")


def this_gpu() -> Json:
    """Name and compute capability of the first GPU that the container sees."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise Refusal(f"no GPU in this container ({error!r}): give it one, or use `serve --profile cpu`") from error
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
    """Write a file whole or not at all."""
    path.with_name(path.name + ".tmp").write_text(json.dumps(content, indent=2) + "\n")
    os.replace(path.with_name(path.name + ".tmp"), path)
