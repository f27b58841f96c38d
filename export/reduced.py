"""Networks in fp16 or bf16 as ONNX files: written, held to float32, and what the manifest says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.compare import Parity, compare, compare_modules, feeds_of
from export.executed import in_onnxruntime
from export.graphs import Decoder, Denoiser, Graph, random_inputs
from export.precision import DTYPES, Precision, reduced_precision
from export.to_onnx import export_onnx, onnx_file

NOT_THE_FILE = "PyTorch, not the file"
"""How bf16 is held: ONNX Runtime has no kernels of it for CPUs."""


def write_reduced(
    graph: Graph, module: Denoiser | Decoder, folder: Path, precision: Precision, report: Callable[[str], None]
) -> dict[str, Any]:
    """Write a network, `module` in float32, to its place below `folder`; its record for the manifest.

    Raises:
        ParityError: it is further off than `precision` may be.
    """
    report(f"{graph.name}: exporting {precision}")
    path = folder / graph.name / "1" / onnx_file(precision)
    reduced = reduced_precision(module, DTYPES[precision])
    export_onnx(graph, reduced, path)
    if precision == "bf16":
        checked, parity = NOT_THE_FILE, compare_modules(graph, module, reduced, precision)
    else:
        checked, parity = by_onnxruntime(graph, path), compare(graph, module, path, precision=precision)
    return reduced_record(graph, precision, checked, parity, report)


def by_onnxruntime(graph: Graph, path: Path) -> str:
    """How a file is held that ONNX Runtime runs."""
    found = in_onnxruntime(path, feeds_of(graph, random_inputs(graph, rows=1, seed=0)))
    return f"ONNX Runtime, which computes the file in {' and '.join(sorted(found))} here"


def reduced_record(
    graph: Graph, precision: Precision, checked: str, parity: Parity, report: Callable[[str], None]
) -> dict[str, Any]:
    """The manifest's entry for a file; `report` gets a line with its parity."""
    report(f"{graph.name}: {precision} differs by {parity.relative_l2:.1e} (relative L2; {checked})")
    return {
        "model": graph.name,
        "file": f"{graph.name}/1/{onnx_file(precision)}",
        "precision": precision,
        "checked": checked,
        "parity": parity.record(),
    }
