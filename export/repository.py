"""A snapshot and the source repository to a complete, servable model repository with its manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.compare import Parity
from export.configs import (
    FRONT_MODELS,
    STEPS_MODEL,
    STEPS_PER_CALL,
    STEPS_TEMPLATES,
    TINY_MODEL,
    TINY_TEMPLATES,
    check_configs,
    check_image_size,
    takes_condition,
    write_condition,
    write_steps_configs,
    write_tiny_configs,
)
from export.graphs import UNET, VAE_DECODER, VAE_DECODER_TINY, Graph, Network, graphs_of, unet, unet_steps, with_steps
from export.manifest import MANIFEST, Manifest, RepositoryError, is_exported, read_manifest, read_model
from export.onnx.reduced import write_reduced
from export.onnx.run import compare_onnx
from export.onnx.steps import add_steps
from export.onnx.write import OPSET, export_onnx, onnx_file
from export.precision import Precision
from export.rewrite import rewritten
from export.tensorrt.build import BuildOptions, load_runtime
from export.tensorrt.plans import add_plans
from export.torch.compiled import check_compiler
from export.torch.program import add_programs, share_programs
from training.checkpoint import Snapshot
from training.conditioning import extra_channels
from training.files import is_utf8, sha256, whole_folder, write_text

SOURCE = Path(__file__).parent.parent / "model_repository"
FORMAT_VERSION = 1
WEIGHTS = ("*.onnx", "*.plan", "*.pt2")
OPTIONAL_MODELS = (STEPS_MODEL, TINY_MODEL)
MOST_STEPS = 50
"""In a call: a whole image of the default sampler. Graphs and plans grow with the number."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Extras:
    """What a repository gets besides model.onnx, which is float32."""

    onnx: tuple[Precision, ...] = ()
    """Also model.fp16.onnx or model.bf16.onnx."""
    plan: BuildOptions | None = None
    """Also model.plan, and the ONNX file from which it is built."""
    torch: Precision | None = None
    """Also model.pt2, for the profile torch."""
    compiled: bool = False
    """Also model.compiled.pt2 beside model.pt2, for the device of this machine."""
    monai_layers: bool = False
    """True: model.onnx keeps MONAI's layers, from which `snapshot_from_onnx` reads the weights back; slower on CPUs."""
    with_onnx: bool = True
    """False: only model.pt2, on a machine without ONNX."""
    steps_per_call: int | None = None
    """Steps in a call of unet_steps, 1: no such network; None: STEPS_PER_CALL if another extra is for a GPU, else 1."""

    def __post_init__(self) -> None:
        if not self.with_onnx and (self.torch is None or self.onnx or self.plan):
            raise RepositoryError(
                "--no-onnx writes files for the profile torch only: "
                "give --torch PRECISION, and neither --onnx nor a plan"
            )
        if self.monai_layers and not self.with_onnx:
            raise RepositoryError("--monai-layers is about model.onnx, which --no-onnx leaves out: give one of them")
        if self.steps_per_call is not None and not 1 <= self.steps_per_call <= MOST_STEPS:
            raise RepositoryError(f"--steps-per-call is {self.steps_per_call}; it must be 1 to {MOST_STEPS}")

    def steps(self) -> int:
        """Steps in a call of the network, 1 or more."""
        if self.steps_per_call is not None:
            return self.steps_per_call
        return STEPS_PER_CALL if self.onnx or self.plan or self.torch else 1

    def reduced(self) -> list[Precision]:
        """The precisions of the ONNX files, without duplicates and without float32."""
        wanted = [*self.onnx, *([self.plan.precision] if self.plan else [])]
        return [precision for precision in dict.fromkeys(wanted) if onnx_file(precision) != "model.onnx"]


def export_repository(
    snapshot: Snapshot, into: Path, name: str, report: Report = print, extras: Extras = Extras()
) -> Manifest:
    """Write a repository for `snapshot` to `into` and return its manifest.

    `into` may be the source repository, which then gets the weights. Any other folder becomes a self-contained copy,
    built beside `into` and moved there at the end. `report` gets a line about each stage.

    Raises:
        CompileError, ConfigMismatch, GraphError, ParityError, PlanError, CheckpointError: `into` is as it was then.
        NotWritten: the disk is full, or the like; `into` is as it was too.
        RepositoryError: `into` holds something that export has not written.
    """
    _check_before(snapshot, into, extras)
    with _new_repository(into) as folder:
        return _write_weights(snapshot, folder, name, report, extras)


def _check_before(snapshot: Snapshot, into: Path, extras: Extras) -> None:
    """Find what would fail in the end, before the work."""
    if extras.plan is not None:
        load_runtime(extras.plan.runtime)
    if extras.compiled:
        check_compiler()
    if not is_utf8(into):
        raise RepositoryError(
            f"{into} is not UTF-8, and neither ONNX Runtime nor Triton can open it: give another folder"
        )
    if not _in_place(into) and into.exists() and not is_exported(into):
        raise RepositoryError(f"{into} exists and is not an exported repository: give another folder, or remove it")
    check_configs(unet(takes_condition(SOURCE / UNET.name)), SOURCE / UNET.name)
    check_configs(VAE_DECODER, SOURCE / VAE_DECODER.name)
    check_configs(unet_steps(STEPS_PER_CALL), STEPS_TEMPLATES)
    check_configs(VAE_DECODER_TINY, TINY_TEMPLATES)
    for model in FRONT_MODELS:
        check_image_size(snapshot.config.data.size, SOURCE / model / "config.pbtxt")


def _in_place(into: Path) -> bool:
    return into.resolve() == SOURCE.resolve()


@contextmanager
def _new_repository(into: Path) -> Iterator[Path]:
    """A folder for the weights, which become those of `into` if the block ends well."""
    if _in_place(into):
        staging = into.with_name(into.name + ".staging")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            yield staging
            _replace_weights(staging, into)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return
    ignore = shutil.ignore_patterns("__pycache__", *WEIGHTS, "model.json", MANIFEST, *OPTIONAL_MODELS)
    with whole_folder(into) as new:
        shutil.copytree(SOURCE, new, ignore=ignore, dirs_exist_ok=True)  # follows the link, so it is self-contained
        yield new


def add_to_repository(folder: Path, options: BuildOptions, report: Report = print) -> None:
    """Build plans from the ONNX files of an exported repository, place them, and record them in its manifest.

    Raises:
        RepositoryError: there is no manifest, or an ONNX file is not the one that it describes.
        PlanError, ParityError: nothing has been changed then.
    """
    manifest = read_manifest(folder)
    graphs = _graphs_of(folder)
    for graph in graphs:
        for file in (f"{graph.name}/1/model.onnx", f"{graph.name}/1/{onnx_file(options.precision)}"):
            if (folder / file).is_file() and sha256(folder / file) != manifest["sha256"].get(file):
                raise RepositoryError(f"{folder / file} is not the file that {MANIFEST} describes: export again")
    stamps = add_plans(folder, options, report, graphs)
    new = {stamp["file"] for stamp in stamps}
    manifest["plans"] = [stamp for stamp in manifest.get("plans", []) if stamp["file"] not in new] + stamps
    manifest["sha256"] |= {file: sha256(folder / file) for file in sorted(new)}
    _write_json(folder / MANIFEST, manifest)


def _graphs_of(repository: Path) -> tuple[Graph, ...]:
    """The networks of an exported repository, as its model.json lists them."""
    record = read_model(repository)
    labels = record.get("conditioning") == "labels"
    return with_steps(record.get("steps_per_call", 1), tiny=TINY_MODEL in record["max_batch_size"], labels=labels)


def _write_weights(snapshot: Snapshot, folder: Path, name: str, report: Report, extras: Extras) -> Manifest:
    steps = extras.steps()
    _write_configs(snapshot, folder, steps)
    parity, reduced = _write_onnx(snapshot, folder, report, extras) if extras.with_onnx else ({}, [])
    plans = add_plans(folder, extras.plan, report, graphs_of(snapshot, steps)) if extras.plan else []
    programs = []
    if extras.torch:
        programs = add_programs(snapshot, folder, extras.torch, report, compiled=extras.compiled)
        if steps > 1:
            share_programs(folder, STEPS_MODEL)
    for model in FRONT_MODELS:
        # In the source repository the second folder is a link to the first; only a copy has both.
        if model == "mri_ldm" or (folder / model).is_dir():
            _write_json(folder / model / "1" / "model.json", _model_record(snapshot, folder, name, steps))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "precision": "fp32" if extras.with_onnx else extras.torch,
        "onnx_opset": OPSET if extras.with_onnx else None,
        "scale_factor": snapshot.scale_factor,
        "parity": {model: result.record() for model, result in parity.items()},
        "reduced_onnx": reduced,
        "plans": plans,
        "programs": programs,
        "training": {"config": asdict(snapshot.config), "history": snapshot.history},
        "sha256": {str(path.relative_to(folder)): sha256(path) for path in files},
    }
    _write_json(folder / MANIFEST, manifest)
    return manifest


def _write_configs(snapshot: Snapshot, folder: Path, steps: int) -> None:
    """The configs that depend on the weights: of the denoiser, of several steps of it, of the tiny decoder."""
    channels = extra_channels(snapshot.config.unet)
    write_condition(SOURCE / UNET.name, folder / UNET.name, channels)
    check_configs(unet(bool(channels)), folder / UNET.name)
    if snapshot.tiny_decoder is not None:
        write_tiny_configs(folder / TINY_MODEL)
    if steps > 1:
        write_steps_configs(folder / STEPS_MODEL, steps)
        write_condition(folder / STEPS_MODEL, folder / STEPS_MODEL, channels)
        check_configs(unet_steps(steps, bool(channels)), folder / STEPS_MODEL)


def _write_onnx(
    snapshot: Snapshot, folder: Path, report: Report, extras: Extras
) -> tuple[dict[str, Parity], list[dict[str, Any]]]:
    """All ONNX files. Returns the parity of the float32 files by model, and the manifest entries of the others."""
    parity, reduced = {}, []
    for graph in graphs_of(snapshot):
        module = graph.build(snapshot)
        served = module if extras.monai_layers else rewritten(module)
        parity[graph.name] = _write_network(graph, module, served, folder, report)
        reduced += [write_reduced(graph, module, folder, precision, report) for precision in extras.reduced()]
    if extras.steps() > 1:
        parity[STEPS_MODEL], unrolled = add_steps(snapshot, folder, extras.steps(), extras.reduced(), report)
        reduced += unrolled
    return parity, reduced


def _write_network(graph: Graph, module: Network, served: Network, folder: Path, report: Report) -> Parity:
    """Write model.onnx of `served` and compare it with `module`, which is the same function."""
    report(f"{graph.name}: exporting")
    path = folder / graph.name / "1" / "model.onnx"
    export_onnx(graph, served, path)
    parity: Parity = compare_onnx(graph, module, path)
    megabytes = path.stat().st_size / 1e6
    report(f"{graph.name}: {megabytes:.1f} MB, differs from PyTorch by {parity.relative_l2:.1e} (relative L2)")
    return parity


def _model_record(snapshot: Snapshot, folder: Path, name: str, steps: int) -> dict[str, Any]:
    """What the sampling loop must know: model.json."""
    graphs, conditioning = graphs_of(snapshot, steps), snapshot.config.unet.conditioning
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "digest": _weights_digest(folder, graphs, snapshot.aligned_timesteps),
        "prediction_type": "epsilon",
        **({"conditioning": conditioning} if conditioning != "none" else {}),
        "noise_schedule": asdict(snapshot.config.noise_schedule),
        "decoded_size": VAE_DECODER.output.shape[-1],
        "image_size": snapshot.config.data.size,
        "max_batch_size": {graph.name: graph.max_batch_size for graph in graphs},
        **({"aligned_timesteps": snapshot.aligned_timesteps} if snapshot.aligned_timesteps else {}),
        **({"steps_per_call": steps} if steps > 1 else {}),
    }


def _weights_digest(folder: Path, graphs: tuple[Graph, ...], aligned: tuple[tuple[int, ...], ...]) -> str:
    """A digest of all that images depend on besides the request: the files of all networks (model.onnx, or model.pt2
    where there is no ONNX file) and the aligned timesteps."""
    lines = ""
    for graph in graphs:
        version = folder / graph.name / "1"
        file = next(path for path in (version / "model.onnx", version / "model.pt2") if path.is_file())
        lines += f"{graph.name} {sha256(file)}\n"
    if aligned:
        lines += f"aligned_timesteps {json.dumps(aligned)}\n"
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _replace_weights(staging: Path, into: Path) -> None:
    """Move the files of `staging` into place; remove the weights and the optional models that they do not replace."""
    new = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
    for path in sorted(new):
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, into / path)
    for model in OPTIONAL_MODELS:
        if not (staging / model).is_dir():
            shutil.rmtree(into / model, ignore_errors=True)  # a folder without a model stops a server
    for path in (path for kind in WEIGHTS for path in into.rglob(kind)):
        if path.relative_to(into) not in new:
            path.unlink()  # it belongs to the weights before
