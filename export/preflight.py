"""The preflight of a model repository: finds problems before a server loads it.

Reads files, the version of TensorRT and what nvidia-smi shows. Runs no network, and imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.configs import (
    FRONT_MODELS,
    STEPS_MODEL,
    TINY_MODEL,
    ConfigMismatch,
    as_profile,
    declared,
    parse_config,
    profiles,
)
from export.executed import openvino_core
from export.manifest import Manifest, RepositoryError, read_manifest
from export.tensorrt.machine import Gpu, Machine, this_machine
from export.tensorrt.preflight import check_plan
from training.files import sha256

MODEL_FILES = (".onnx", ".plan", ".pt2")
LIMITED_BY = {"max_rows_in_flight": "unet", "decode_batch": "vae_decoder"}
"""Parameter of the front models -> the network that limits it: the rows of one call."""
Configs = dict[str, dict[str, ModelConfig]]
"""Model -> profile -> config; the profile of config.pbtxt is "default"."""


@dataclass(frozen=True)
class Result:
    """problems: one line each, with what to do. report: lines about the content; empty if there are problems."""

    problems: list[str]
    report: list[str]


def preflight(
    folder: Path, *, profile: str | None = None, tensorrt: str | None = None, capability: str | None = None
) -> Result:
    """Check a repository. The options are those of the command."""
    try:
        manifest = read_manifest(folder)
        machine = _machine(tensorrt, capability, bool(manifest.get("plans")))
        configs, problems = read_configs(folder)
        problems += check_files(folder, manifest["sha256"])
        if not problems:  # what follows reads those files
            problems += check_limits(folder, configs)
            for stamp in manifest.get("plans", ()):
                problems += check_plan(folder, stamp, configs, machine)
            problems += check_profile(folder, configs, profile, machine)
        return Result(problems, [] if problems else describe(folder, manifest, configs, machine))
    except RepositoryError as error:
        return Result([str(error)], [])
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        return Result([f"{folder}: manifest.json or a model.json is damaged ({reason}): export again"], [])


def _machine(tensorrt: str | None, capability: str | None, has_plans: bool) -> Machine:
    """This machine, except for the options given. Only plans depend on it, so it is not examined without plans."""
    machine = this_machine() if has_plans else Machine({}, ())
    versions = {"tensorrt": tensorrt} if tensorrt else machine.versions
    gpus = (Gpu("as given", capability),) if capability else machine.gpus
    return Machine(versions, gpus)


def read_configs(folder: Path) -> tuple[Configs, list[str]]:
    """Every profile of every model by name, and what is wrong with them: syntax, names, tensors that differ."""
    configs: Configs = {}
    problems = []
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        configs[model.name] = {}
        for profile, path in profiles(model).items():
            try:
                configs[model.name][profile] = parse_config(path)
            except (ConfigMismatch, OSError) as error:
                problems.append(f"{' '.join(str(error).split())}: restore the file")
        problems += _differences(model, configs[model.name])
    return configs, problems


def _differences(model: Path, configs: dict[str, ModelConfig]) -> Iterator[str]:
    for profile, config in configs.items():
        path = profiles(model)[profile]
        if config.name != model.name:
            yield f"{path}: name is {config.name!r}, but the folder is {model.name!r}: use one name"
        elif "default" in configs:
            actual, expected = declared(config), declared(as_profile(configs["default"], profile))
            extra, missing = [x for x in actual if x not in expected], [x for x in expected if x not in actual]
            if actual != expected:
                yield (
                    f"{path}: has {extra} where config.pbtxt has {missing}: "
                    "clients and the sampler expect the same tensors of every profile"
                )


def check_files(folder: Path, recorded: dict[str, str]) -> list[str]:
    """Files that manifest.json lists and that are missing or changed, and model files that it does not list."""
    problems = []
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: missing, but manifest.json lists it: export again")
        elif sha256(folder / name) != digest:
            problems.append(f"{name}: changed since manifest.json was written: restore it, or export again")
    known = {(folder / name).resolve() for name in recorded}
    for path in sorted(folder.glob("*/*/*")):
        if path.suffix in MODEL_FILES and path.parent.name.isdecimal() and path.resolve() not in known:
            problems.append(
                f"{path.relative_to(folder)}: not in manifest.json, so nobody knows what it computes: "
                "remove it, or export again"
            )
    return problems


def check_limits(folder: Path, configs: Configs) -> list[str]:
    """Batch limits in model.json, the parameters of the front models, and the networks' configs."""
    return [problem for model in FRONT_MODELS for problem in _limits_of(folder, model, configs)]


def _limits_of(folder: Path, model: str, configs: Configs) -> Iterator[str]:
    record = json.loads((folder / model / "1" / "model.json").read_text())
    for network, rows in record["max_batch_size"].items():
        if (in_config := configs[network]["default"].max_batch_size) != rows:
            yield (
                f"{model}/1/model.json: {network} takes {rows} rows, but its config.pbtxt says {in_config}: "
                "make them equal, or export again"
            )
    recorded, steps = record.get("steps_per_call", 0), _steps_declared(configs)
    if recorded != steps:
        yield f"{model}/1/model.json: steps_per_call is {recorded}, but {STEPS_MODEL} has {steps}: export again"
    conditioning = record.get("conditioning", "none")
    takes_condition = any(tensor.name == "condition" for tensor in configs["unet"]["default"].input)
    if takes_condition != (conditioning == "labels"):
        has = "an input" if takes_condition else "no input"
        yield f"{model}/1/model.json: conditioning is {conditioning}, but unet has {has} condition: export again"
    for parameter, network in LIMITED_BY.items():
        value = configs[model]["default"].parameters[parameter].string_value
        most = configs[network]["default"].max_batch_size
        if not value.isdecimal() or int(value) > most:
            yield f"{model}/config.pbtxt: {parameter} is {value!r}, but {network} takes {most} rows at most: lower it"


def _steps_declared(configs: Configs) -> int:
    """Steps in a call of unet_steps; 0 if there is no unet_steps."""
    if STEPS_MODEL not in configs:
        return 0
    return next(int(t.dims[0]) for t in configs[STEPS_MODEL]["default"].input if t.name == "timesteps")


def check_profile(folder: Path, configs: Configs, profile: str | None, machine: Machine) -> list[str]:
    """Whether the networks have the profile, and the files that it serves on this machine."""
    if profile is None:
        return []
    networks = [network for network in (*LIMITED_BY.values(), TINY_MODEL, STEPS_MODEL) if network in configs]
    missing = [network for network in networks if profile not in configs[network]]
    if missing:
        known = sorted(set.intersection(*(set(configs[network]) for network in networks)))
        return [
            f"{', '.join(missing)}: no profile {profile!r}, and Triton would use config.pbtxt instead: "
            f"choose one of {known}"
        ]
    absent = [
        f"{network}/1/{name}: missing, and profile {profile!r} serves it: " + _remedy(name)
        for network in networks
        for name in served_files(configs[network][profile], machine)
        if not (folder / network / "1" / name).is_file()
    ]
    return absent + [problem for network in networks for problem in check_bf16(configs[network][profile], profile)]


def _remedy(file: str) -> str:
    if file.endswith(".plan"):
        return "build it with `python -m export repository DIR --tensorrt PRECISION` or deploy/"
    return "export again with --torch PRECISION" if file.endswith(".pt2") else "export again, without --no-onnx"


def check_bf16(config: ModelConfig, profile: str) -> list[str]:
    """Whether OpenVINO says that this CPU computes in bf16, if the config asks for bf16."""
    parameters = {key: value.string_value.strip().lower() for key, value in config.parameters.items()}
    emulated = parameters.get("ALLOW_EMULATED_BF16") == "yes"
    if config.backend != "openvino" or "HINT_BF16" not in parameters or emulated:
        return []
    asks = f"{config.name}: profile {profile!r} asks for bf16 (HINT_BF16)"
    try:
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError:
        return [f"{asks}; to know whether this CPU has it, openvino is needed: pip install --group server-openvino"]
    return (
        [] if "BF16" in capabilities else [f"{asks}, which this CPU has not ({', '.join(capabilities)}): take it out"]
    )


def served_files(config: ModelConfig, machine: Machine) -> list[str]:
    """The files that a config serves on the GPUs of a machine; its default file where there is no GPU."""
    by_capability = config.cc_model_filenames
    names = [by_capability.get(gpu.capability, config.default_model_filename) for gpu in machine.gpus]
    return sorted(set(names)) or [config.default_model_filename]


def describe(folder: Path, manifest: Manifest, configs: Configs, machine: Machine) -> list[str]:
    """What the repository holds, as lines for people."""
    lines = [f"{folder}: {manifest['name']}, {len(manifest['sha256'])} files as recorded"]
    for model, by_profile in configs.items():
        lines.append(f"  {model:<18}{', '.join(f'{profile} ({c.backend})' for profile, c in by_profile.items())}")
    lines += _plan_lines(manifest) + _program_lines(manifest)
    if not manifest.get("plans"):
        servable = [name for name in configs["unet"] if not check_profile(folder, configs, name, machine)]
        return [*lines, f"No plans; there are the files of these profiles: {', '.join(servable) or 'none'}."]
    return [*lines, *_machine_lines(machine)]


def _plan_lines(manifest: Manifest) -> list[str]:
    lines = []
    for stamp in manifest.get("plans", ()):
        rows = stamp["profile"]
        gpu = f"{stamp['gpu']['name']} ({stamp['gpu']['capability']})" if stamp["gpu"] else "no GPU in particular"
        parity = "parity measured" if stamp.get("parity") else f"parity: {stamp.get('parity_not_measured')}"
        lines.append(
            f"  {stamp['file']}: {stamp['runtime']} {stamp['version']}, {stamp['precision']}, "
            f"{rows['min']} to {rows['max']} rows, for {gpu}; {parity}"
        )
    return lines


def _program_lines(manifest: Manifest) -> list[str]:
    lines = []
    for program in manifest.get("programs", ()):
        measured = "measured" if program.get("parity") else "not measured"
        device = f", for {program['name']}" if "device" in program else ""
        lines.append(
            f"  {program['file']}: torch {program['torch']}, {program['precision']}{device}; parity {measured}"
        )
    return lines


def _machine_lines(machine: Machine) -> list[str]:
    gpus = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in machine.gpus) or "none"
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items()) or "none"
    lines = [f"This machine: TensorRT {versions}; GPU {gpus}."]
    if not machine.versions or not machine.gpus:
        lines.append("The plans were not compared with what is missing here; give --tensorrt and --capability instead.")
    return lines
