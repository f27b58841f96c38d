"""Preflight of a model repository: `python -m export check DIR` says what would go wrong before a server does.

Reads files, the version of TensorRT and what nvidia-smi shows. Runs no network, and imports no torch.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.configs import STEPS_MODEL, ConfigMismatch, as_profile, declared, parse_config, profiles
from export.executed import openvino_core
from export.machine import Gpu, Machine, this_machine
from export.plans_check import check_plan
from training.cli import run_command
from training.files import sha256

MODEL_FILES = (".onnx", ".plan", ".pt2")
FRONT_MODELS = ("mri_ldm", "mri_ldm_stream")
"""Parameter of the front models, and the network whose rows in one call it limits."""
CALLS = {"max_rows_in_flight": "unet", "decode_batch": "vae_decoder"}
Configs = dict[str, dict[str, ModelConfig]]


def main(argv: Sequence[str] | None = None) -> int:
    """Check, report; returns 0 where nothing is wrong, else 1."""
    arguments = _parse(argv)
    folder: Path = arguments.repository
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        machine = _machine(arguments, bool(manifest.get("plans")))
        configs, problems = read_configs(folder)
        problems += check_files(folder, manifest["sha256"])
        if not problems:  # what follows reads those files
            problems += check_limits(folder, configs)
            problems += [
                problem for stamp in _stamps(manifest) for problem in check_plan(folder, stamp, configs, machine)
            ]
            problems += check_profile(folder, configs, arguments.profile, machine)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems = [f"{folder}: {error!r}: not a repository that `python -m export` wrote, or a damaged one"]
    if problems:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return 1
    print("\n".join(report(folder, manifest, configs, machine)))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export check", description=__doc__)
    parser.add_argument("repository", type=Path, help="folder of the model repository")
    parser.add_argument("--profile", help="the profile that will be served; 'default' is config.pbtxt")
    parser.add_argument(
        "--tensorrt", metavar="VERSION", help="TensorRT of the serving machine or container, if it is not this one's"
    )
    parser.add_argument(
        "--capability", metavar="X.Y", help="compute capability of the serving machine's GPU, if it is not this one's"
    )
    return parser.parse_args(argv)


def _machine(arguments: argparse.Namespace, plans: bool) -> Machine:
    machine = this_machine() if plans else Machine({}, ())
    versions = {"tensorrt": arguments.tensorrt} if arguments.tensorrt else machine.versions
    gpus = (Gpu("as given", arguments.capability),) if arguments.capability else machine.gpus
    return Machine(versions, gpus)


def _stamps(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return list(manifest.get("plans", ()))


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
        if config.name != model.name:
            yield f"{profiles(model)[profile]}: name is {config.name!r}, but the folder is {model.name!r}: use one name"
        elif "default" in configs and (found := declared(config)) != (
            expected := declared(as_profile(configs["default"], profile))
        ):
            extra, missing = [line for line in found if line not in expected], [x for x in expected if x not in found]
            yield (
                f"{profiles(model)[profile]}: has {extra} where config.pbtxt has {missing}: "
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
    problems = []
    for model in FRONT_MODELS:
        record = json.loads((folder / model / "1" / "model.json").read_text())
        for network, most in record["max_batch_size"].items():
            if (declared_most := configs[network]["default"].max_batch_size) != most:
                problems.append(
                    f"{model}/1/model.json: {network} takes {most} rows, but its config.pbtxt says {declared_most}: "
                    "make them equal, or export again"
                )
        said, steps = record.get("steps_per_call", 0), _steps_declared(configs)
        if said != steps:
            problems.append(
                f"{model}/1/model.json: steps_per_call is {said}, but {STEPS_MODEL} has {steps}: export again"
            )
        for parameter, network in CALLS.items():
            rows = configs[model]["default"].parameters[parameter].string_value
            if not rows.isdecimal() or int(rows) > configs[network]["default"].max_batch_size:
                problems.append(
                    f"{model}/config.pbtxt: {parameter} is {rows!r}, but {network} takes "
                    f"{configs[network]['default'].max_batch_size} rows at most: lower it"
                )
    return problems


def _steps_declared(configs: Configs) -> int:
    """Steps in a call of unet_steps, 0 where there is none."""
    if STEPS_MODEL not in configs:
        return 0
    return next(int(t.dims[0]) for t in configs[STEPS_MODEL]["default"].input if t.name == "timesteps")


def check_profile(folder: Path, configs: Configs, profile: str | None, machine: Machine) -> list[str]:
    """Whether the networks have the profile, and the files that it serves on this machine."""
    if profile is None:
        return []
    networks = [network for network in (*CALLS.values(), STEPS_MODEL) if network in configs]
    missing = [network for network in networks if profile not in configs[network]]
    if missing:
        known = sorted(set.intersection(*(set(configs[network]) for network in networks)))
        return [f"{', '.join(missing)}: no profile {profile!r}, and Triton would take config.pbtxt: choose of {known}"]
    absent = [
        f"{network}/1/{name}: missing, and profile {profile!r} serves it: " + _remedy(name)
        for network in networks
        for name in served_files(configs[network][profile], machine)
        if not (folder / network / "1" / name).is_file()
    ]
    return absent + [problem for network in networks for problem in check_bf16(configs[network][profile], profile)]


def _remedy(file: str) -> str:
    if file.endswith(".plan"):
        return "build it with `python -m export --tensorrt` or deploy/"
    return "export again with --torch PRECISION" if file.endswith(".pt2") else "export again, without --no-onnx"


def check_bf16(config: ModelConfig, profile: str) -> list[str]:
    """Whether this machine's CPU computes in the bf16 that a config for OpenVINO asks for, as OpenVINO tells."""
    told = {key: value.string_value.strip().lower() for key, value in config.parameters.items()}
    if config.backend != "openvino" or "HINT_BF16" not in told or told.get("ALLOW_EMULATED_BF16") == "yes":
        return []
    asks = f"{config.name}: profile {profile!r} asks for bf16 (HINT_BF16)"
    try:
        found = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError:
        return [
            f"{asks}, and without openvino it is not known whether this CPU has it: pip install '.[server-openvino]'"
        ]
    return [] if "BF16" in found else [f"{asks}, which this CPU has not ({', '.join(found)}): take it out"]


def served_files(config: ModelConfig, machine: Machine) -> list[str]:
    """What a config serves on the GPUs of a machine, or anywhere."""
    by_capability = config.cc_model_filenames
    names = [by_capability.get(gpu.capability, config.default_model_filename) for gpu in machine.gpus]
    return sorted(set(names)) or [config.default_model_filename]


def report(folder: Path, manifest: dict[str, Any], configs: Configs, machine: Machine) -> list[str]:
    """What is there, as lines for people."""
    gpus = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in machine.gpus) or "none"
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items()) or "none"
    lines = [f"{folder}: {manifest['name']}, {len(manifest['sha256'])} files as recorded"]
    for model, by_profile in configs.items():
        lines.append(f"  {model:<16}{', '.join(f'{profile} ({c.backend})' for profile, c in by_profile.items())}")
    for stamp in _stamps(manifest):
        rows = stamp["profile"]
        gpu = f"{stamp['gpu']['name']} ({stamp['gpu']['capability']})" if stamp["gpu"] else "no GPU in particular"
        parity = "parity measured" if stamp.get("parity") else f"parity: {stamp.get('parity_not_measured')}"
        lines.append(
            f"  {stamp['file']}: {stamp['runtime']} {stamp['version']}, {stamp['precision']}, "
            f"{rows['min']} to {rows['max']} rows, for {gpu}; {parity}"
        )
    for program in manifest.get("programs", ()):
        measured = "measured" if program.get("parity") else "not measured"
        device = f", for {program['name']}" if "device" in program else ""
        lines.append(
            f"  {program['file']}: torch {program['torch']}, {program['precision']}{device}; parity {measured}"
        )
    if not _stamps(manifest):
        there = [name for name in configs["unet"] if not check_profile(folder, configs, name, machine)]
        return [*lines, f"No plans; there are the files of these profiles: {', '.join(there) or 'none'}."]
    lines.append(f"This machine: TensorRT {versions}; GPU {gpus}.")
    if not machine.versions or not machine.gpus:
        lines.append("What it lacks could not be compared with the plans; say --tensorrt and --capability instead.")
    return lines


if __name__ == "__main__":
    run_command(main)
