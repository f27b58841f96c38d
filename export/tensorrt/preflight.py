"""One plan against its stamp, the repository and the machine: reasons why it would not load, or compute nonsense."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.tensorrt.machine import Gpu, Machine
from training.files import sha256

REBUILD = "build it again with `python -m export repository DIR --tensorrt PRECISION` or deploy/"
AMPERE = (8, 0)
Stamp = dict[str, Any]


def check_plan(folder: Path, stamp: Stamp, configs: dict[str, dict[str, ModelConfig]], machine: Machine) -> list[str]:
    """Problems of one entry of `plans` in manifest.json, one line each: what, why, what to do."""
    name = stamp["file"]
    if not (folder / name).is_file():
        return [f"{name}: missing, but manifest.json has its stamp: {REBUILD}"]
    problems = [*_source(folder, stamp), *_rows(stamp, configs[stamp["model"]]), *_version(stamp, machine)]
    return [f"{name}: {problem}" for problem in [*problems, *_gpu(stamp, configs[stamp["model"]], machine)]]


def _source(folder: Path, stamp: Stamp) -> Iterator[str]:
    graphs = sorted((folder / stamp["file"]).parent.glob("*.onnx"))
    if stamp["onnx_sha256"] not in [sha256(path) for path in graphs]:
        names = [path.name for path in graphs] or "no ONNX file"
        yield f"built from another ONNX file than those beside it ({names}), so from other weights: {REBUILD}"


def _rows(stamp: Stamp, configs: dict[str, ModelConfig]) -> Iterator[str]:
    """Triton merges calls up to max_batch_size, so the plan must accept 1 to that many rows."""
    rows, most = stamp["profile"], configs["default"].max_batch_size
    if rows["min"] > 1 or rows["max"] < most or not rows["min"] <= rows["opt"] <= rows["max"]:
        yield f"takes {rows['min']} to {rows['max']} rows (best {rows['opt']}), but Triton sends 1 to {most}: {REBUILD}"


def _version(stamp: Stamp, machine: Machine) -> Iterator[str]:
    runtime, built = stamp["runtime"], stamp["version"]
    here = machine.versions.get(runtime)
    if here is None:
        if machine.versions:
            yield f"built for {runtime} {built}, but this machine has only {machine.versions}: install it, or {REBUILD}"
    elif not _runs(_numbers(built), _numbers(here), bool(stamp.get("options", {}).get("version_compatible"))):
        yield f"built by {runtime} {built}, but it will be run by {here}, which refuses it: {REBUILD}"


def _runs(built: tuple[int, ...], here: tuple[int, ...], version_compatible: bool) -> bool:
    """A version compatible plan runs on later releases of its major version; any other only on its own release."""
    shorter = min(len(built), len(here))  # trtexec gives three numbers of the version, Python four
    same = built[:shorter] == here[:shorter]
    return same or (version_compatible and built[0] == here[0] and built <= here)


def _gpu(stamp: Stamp, configs: dict[str, ModelConfig], machine: Machine) -> Iterator[str]:
    file = Path(stamp["file"]).name
    for gpu in machine.gpus:
        by_capability = {name for config in configs.values() for name in config.cc_model_filenames.values()}
        for_this_gpu = {config.cc_model_filenames.get(gpu.capability) for config in configs.values()}
        if file in by_capability and file not in for_this_gpu:
            continue  # the plan of another GPU of a mixed fleet
        if stamp["runtime"] == "tensorrt_rtx":
            yield from _rtx(gpu)
        elif not _fits(stamp, gpu):
            built = f"{stamp['gpu']['name']} ({stamp['gpu']['capability']})" if stamp["gpu"] else "an unknown GPU"
            yield f"built on {built}, but this machine has {gpu.name} ({gpu.capability}): {REBUILD} here"


def _fits(stamp: Stamp, gpu: Gpu) -> bool:
    built = stamp["gpu"]["capability"] if stamp["gpu"] else None
    portable = stamp.get("options", {}).get("hardware") == "ampere_plus"
    return built == gpu.capability or (portable and _numbers(gpu.capability) >= AMPERE)


def _rtx(gpu: Gpu) -> Iterator[str]:
    capability = _numbers(gpu.capability)
    if capability != (7, 5) and capability[0] not in (8, 12):
        yield (
            f"built by TensorRT-RTX, which runs on capabilities 7.5, 8.x and 12.x, not on {gpu.name} "
            f"({gpu.capability}): build a plan with tensorrt"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
