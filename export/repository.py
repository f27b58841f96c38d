"""A snapshot and the source repository to a complete, servable model repository with its manifest."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.compare import Parity, compare
from export.compiled import check_compiler
from export.configs import (
    STEPS_MODEL,
    STEPS_PER_CALL,
    STEPS_TEMPLATES,
    check_configs,
    check_image_size,
    write_steps_configs,
)
from export.graphs import GRAPHS, VAE_DECODER, Decoder, Denoiser, Graph, unet_steps
from export.plans import add_plans
from export.precision import Precision
from export.reduced import write_reduced
from export.rewrite import rewritten
from export.steps import add_steps, served_graphs, with_steps
from export.to_onnx import OPSET, export_onnx, onnx_file
from export.to_tensorrt import BuildOptions, load_runtime
from export.to_torch import add_programs, share_programs
from training.checkpoint import Snapshot
from training.files import is_utf8, sha256, whole_folder, write_text

SOURCE = Path(__file__).parent.parent / "model_repository"
FORMAT_VERSION = 1
WEIGHTS = ("*.onnx", "*.plan", "*.pt2")
MOST_STEPS = 50
"""In a call: a whole image of the default sampler. Graphs and plans grow with them."""


class RepositoryError(ValueError):
    """A folder that is no exported repository, where one is needed."""


def exported_name(repository: Path) -> str:
    """The name that its weights were exported under. Raises RepositoryError: nothing was exported there."""
    path = repository / "manifest.json"
    if not path.is_file():
        raise RepositoryError(f"{repository} is no exported repository: python -m export writes one")
    name: str = json.loads(path.read_text())["name"]
    return name


@dataclass(frozen=True)
class Extras:
    """What a repository gets besides model.onnx, which is float32."""

    onnx: tuple[Precision, ...] = ()
    """Also model.fp16.onnx or model.bf16.onnx."""
    plan: BuildOptions | None = None
    """Also model.plan, and the ONNX file that it is built from."""
    torch: Precision | None = None
    """Also model.pt2, for the profile torch."""
    compiled: bool = False
    """And model.compiled.pt2 beside it, for the device that is here."""
    with_onnx: bool = True
    """False: model.pt2 alone, on a machine without ONNX."""
    steps_per_call: int | None = None
    """Steps in a call of unet_steps, 1: no such network; None: STEPS_PER_CALL if another extra is for a GPU, else 1."""

    def __post_init__(self) -> None:
        if not self.with_onnx and (self.torch is None or self.onnx or self.plan):
            raise RepositoryError(
                "--no-onnx leaves the profile torch alone: give --torch PRECISION, and neither --onnx nor a plan"
            )
        if self.steps_per_call is not None and not 1 <= self.steps_per_call <= MOST_STEPS:
            raise RepositoryError(f"steps in a call are {self.steps_per_call}; they must be 1 to {MOST_STEPS}")

    def steps(self) -> int:
        """Steps in a call of the network, 1 or more."""
        if self.steps_per_call is not None:
            return self.steps_per_call
        return STEPS_PER_CALL if self.onnx or self.plan or self.torch else 1

    def reduced(self) -> list[Precision]:
        """The precisions of the ONNX files, each once."""
        wanted = [*self.onnx, *([self.plan.precision] if self.plan else [])]
        return [precision for precision in dict.fromkeys(wanted) if onnx_file(precision) != "model.onnx"]


def export_repository(
    snapshot: Snapshot, into: Path, name: str, report: Callable[[str], None] = print, extras: Extras = Extras()
) -> dict[str, Any]:
    """Write a repository for `snapshot` to `into` and return its manifest.

    `into` may be the source repository, which then gets the weights; anything else becomes a self-contained copy,
    built beside `into` and moved there at the end. `report` is told about each stage.

    Raises:
        CompileError, ConfigMismatch, ParityError, PlanError, CheckpointError: nothing has been changed at `into` then.
        NotWritten: the disk is full, or the like; nothing has been changed either.
        RepositoryError: `into` holds something that export has not written.
    """
    if extras.plan is not None:  # before the work, not after it
        load_runtime(extras.plan.runtime)
    if extras.compiled:
        check_compiler()
    if not is_utf8(into):
        raise RepositoryError(f"{into} is not UTF-8, and neither ONNX Runtime nor Triton opens it: give another folder")
    in_place = into.resolve() == SOURCE.resolve()
    if not in_place and into.exists() and not (into / "manifest.json").is_file():
        raise RepositoryError(f"{into} exists and is not an exported repository: give another folder, or remove it")
    for graph in GRAPHS:
        check_configs(graph, SOURCE / graph.name)
    check_configs(unet_steps(STEPS_PER_CALL), STEPS_TEMPLATES)
    for model in ("mri_ldm", "mri_ldm_stream"):
        check_image_size(snapshot.config.data.size, SOURCE / model / "config.pbtxt")
    if in_place:
        staging = into.with_name(into.name + ".staging")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            manifest = _write_weights(snapshot, staging, name, report, extras)
            _replace_weights(staging, into)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return manifest
    ignore = shutil.ignore_patterns("__pycache__", *WEIGHTS, "model.json", "manifest.json", STEPS_MODEL)
    with whole_folder(into) as new:
        shutil.copytree(SOURCE, new, ignore=ignore, dirs_exist_ok=True)  # follows the link, so it is self-contained
        return _write_weights(snapshot, new, name, report, extras)


def add_to_repository(folder: Path, options: BuildOptions, report: Callable[[str], None] = print) -> None:
    """Build plans from the ONNX files of an exported repository, place them, and say so in its manifest.

    Raises:
        RepositoryError: no manifest, or an ONNX file that is not the one it describes.
        PlanError, ParityError: nothing has been changed then.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    graphs = served_graphs(folder)
    for graph in graphs:
        for file in (f"{graph.name}/1/model.onnx", f"{graph.name}/1/{onnx_file(options.precision)}"):
            if (folder / file).is_file() and sha256(folder / file) != manifest["sha256"].get(file):
                raise RepositoryError(f"{folder / file} is not the file that manifest.json describes: export it anew")
    stamps = add_plans(folder, options, report, graphs)
    new = {stamp["file"] for stamp in stamps}
    manifest["plans"] = [stamp for stamp in manifest.get("plans", []) if stamp["file"] not in new] + stamps
    manifest["sha256"] |= {file: sha256(folder / file) for file in sorted(new)}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _write_weights(
    snapshot: Snapshot, folder: Path, name: str, report: Callable[[str], None], extras: Extras
) -> dict[str, Any]:
    parity, reduced = {}, []
    for graph in GRAPHS if extras.with_onnx else ():
        module = graph.build(snapshot)
        parity[graph.name] = _write_network(graph, module, folder, report)
        reduced += [write_reduced(graph, module, folder, precision, report) for precision in extras.reduced()]
    if extras.steps() > 1:
        write_steps_configs(folder / STEPS_MODEL, extras.steps())
        check_configs(unet_steps(extras.steps()), folder / STEPS_MODEL)
        if extras.with_onnx:
            parity[STEPS_MODEL], unrolled = add_steps(snapshot, folder, extras.steps(), extras.reduced(), report)
            reduced += unrolled
    plans = add_plans(folder, extras.plan, report, with_steps(extras.steps())) if extras.plan else []
    programs = []
    if extras.torch:
        programs = add_programs(snapshot, folder, extras.torch, report, compiled=extras.compiled)
        if extras.steps() > 1:
            share_programs(folder, STEPS_MODEL)
    record = json.dumps(_model_record(snapshot, folder, name, extras.steps()), indent=2) + "\n"
    for model in ("mri_ldm", "mri_ldm_stream"):
        # In the source repository the second folder is a link to the first; only a copy has both.
        if model == "mri_ldm" or (folder / model).is_dir():
            write_text(folder / model / "1" / "model.json", record)
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
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def _write_network(graph: Graph, module: Denoiser | Decoder, folder: Path, report: Callable[[str], None]) -> Parity:
    report(f"{graph.name}: exporting")
    path = folder / graph.name / "1" / "model.onnx"
    export_onnx(graph, rewritten(module), path)
    parity = compare(graph, module, path)
    megabytes = path.stat().st_size / 1e6
    report(f"{graph.name}: {megabytes:.1f} MB, differs from PyTorch by {parity.relative_l2:.1e} (relative L2)")
    return parity


def _model_record(snapshot: Snapshot, folder: Path, name: str, steps: int) -> dict[str, Any]:
    """What the sampling loop must know: model.json."""
    graphs = with_steps(steps)
    folders = [folder / graph.name / "1" for graph in graphs]
    files = [next(path for path in (each / "model.onnx", each / "model.pt2") if path.is_file()) for each in folders]
    digests = "".join(f"{graph.name} {sha256(file)}\n" for graph, file in zip(graphs, files, strict=True))
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "digest": "sha256:" + hashlib.sha256(digests.encode()).hexdigest(),
        "prediction_type": "epsilon",
        "noise_schedule": asdict(snapshot.config.noise_schedule),
        "decoded_size": VAE_DECODER.output.shape[-1],
        "image_size": snapshot.config.data.size,
        "max_batch_size": {graph.name: graph.max_batch_size for graph in graphs},
        **({"steps_per_call": steps} if steps > 1 else {}),
    }


def _replace_weights(staging: Path, into: Path) -> None:
    """Move the files of `staging` into place, and remove the weights and the unet_steps that they do not replace."""
    new = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
    for path in sorted(new):
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, into / path)
    if not (staging / STEPS_MODEL).is_dir():
        shutil.rmtree(into / STEPS_MODEL, ignore_errors=True)  # a folder without a model stops a server
    for path in (path for kind in WEIGHTS for path in into.rglob(kind)):
        if path.relative_to(into) not in new:
            path.unlink()  # of the weights before
