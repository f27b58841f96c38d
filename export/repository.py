"""A snapshot and the source repository to a complete, servable model repository with its manifest."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.configs import check_configs, check_image_size
from export.graphs import GRAPHS, VAE_DECODER, Graph
from export.parity import Parity, compare
from export.to_onnx import OPSET, export_onnx
from training.checkpoint import Snapshot
from training.files import sha256

SOURCE = Path(__file__).parent.parent / "model_repository"
FORMAT_VERSION = 1


class RepositoryError(ValueError):
    """A target folder that export will not write to."""


def export_repository(
    snapshot: Snapshot, into: Path, name: str, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write a repository for `snapshot` to `into` and return its manifest.

    `into` may be the source repository, which then gets the weights; anything else becomes a self-contained copy,
    built beside `into` and moved there at the end. `report` is told about each stage.

    Raises:
        ConfigMismatch, ParityError, CheckpointError: nothing has been changed at `into` then.
        RepositoryError: `into` holds something that export has not written.
    """
    in_place = into.resolve() == SOURCE.resolve()
    if not in_place and into.exists() and not (into / "manifest.json").is_file():
        raise RepositoryError(f"{into} exists and is not an exported repository: give another folder, or remove it")
    for graph in GRAPHS:
        check_configs(graph, SOURCE / graph.name)
    for model in ("mri_ldm", "mri_ldm_stream"):
        check_image_size(snapshot.config.data.size, SOURCE / model / "config.pbtxt")
    staging = into.with_name(into.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)
    if not in_place:
        ignore = shutil.ignore_patterns("__pycache__", "*.onnx", "*.plan", "model.json", "manifest.json")
        shutil.copytree(SOURCE, staging, ignore=ignore)  # follows the symlink, so the copy is self-contained
    try:
        manifest = _write_weights(snapshot, staging, name, report)
        _move(staging, into, in_place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _write_weights(snapshot: Snapshot, folder: Path, name: str, report: Callable[[str], None]) -> dict[str, Any]:
    parity = {graph.name: _write_network(graph, snapshot, folder, report) for graph in GRAPHS}
    record = json.dumps(_model_record(snapshot, folder, name), indent=2) + "\n"
    for model in ("mri_ldm", "mri_ldm_stream"):
        # In the source repository the second folder is a link to the first; only a copy has both.
        if model == "mri_ldm" or (folder / model).is_dir():
            (folder / model / "1").mkdir(parents=True, exist_ok=True)
            (folder / model / "1" / "model.json").write_text(record)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "precision": "fp32",
        "onnx_opset": OPSET,
        "scale_factor": snapshot.scale_factor,
        "parity": {model: result.record() for model, result in parity.items()},
        "training": {"config": asdict(snapshot.config), "history": snapshot.history},
        "sha256": {str(path.relative_to(folder)): sha256(path) for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _write_network(graph: Graph, snapshot: Snapshot, folder: Path, report: Callable[[str], None]) -> Parity:
    report(f"{graph.name}: exporting")
    path = folder / graph.name / "1" / "model.onnx"
    module = graph.build(snapshot)
    export_onnx(graph, module, path)
    parity = compare(graph, module, path)
    megabytes = path.stat().st_size / 1e6
    report(f"{graph.name}: {megabytes:.1f} MB, differs from PyTorch by {parity.relative_l2:.1e} (relative L2)")
    return parity


def _model_record(snapshot: Snapshot, folder: Path, name: str) -> dict[str, Any]:
    """What the sampling loop must know: model.json."""
    digests = "".join(f"{graph.name} {sha256(folder / graph.name / '1' / 'model.onnx')}\n" for graph in GRAPHS)
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "digest": "sha256:" + hashlib.sha256(digests.encode()).hexdigest(),
        "prediction_type": "epsilon",
        "noise_schedule": asdict(snapshot.config.noise_schedule),
        "decoded_size": VAE_DECODER.output.shape[-1],
        "image_size": snapshot.config.data.size,
        "max_batch_size": {graph.name: graph.max_batch_size for graph in GRAPHS},
    }


def _move(staging: Path, into: Path, in_place: bool) -> None:
    if in_place:
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            os.replace(path, into / path.relative_to(staging))
        return
    shutil.rmtree(into, ignore_errors=True)
    os.replace(staging, into)
