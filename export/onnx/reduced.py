"""Networks in fp16 or bf16 as ONNX files: written, compared with float32, and recorded for the manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.compare import Parity, compare_modules
from export.executed import in_onnxruntime
from export.graphs import Graph, Network, random_inputs
from export.onnx.run import compare_onnx, feeds_of
from export.onnx.write import export_onnx, onnx_file
from export.precision import DTYPES, Precision, reduced_precision

NOT_THE_FILE = "PyTorch, not the file"
"""How bf16 is checked: ONNX Runtime has no bf16 kernels for CPUs."""


def write_reduced(
    graph: Graph, module: Network, folder: Path, precision: Precision, report: Callable[[str], None]
) -> dict[str, Any]:
    """Write `module`, which is float32, in `precision` to its place below `folder`; returns its manifest entry.

    Raises:
        ParityError: the file differs from float32 by more than `precision` allows.
    """
    report(f"{graph.name}: exporting {precision}")
    path = folder / graph.name / "1" / onnx_file(precision)
    reduced = reduced_precision(module, DTYPES[precision])
    export_onnx(graph, reduced, path)
    if precision == "bf16":
        checked, parity = NOT_THE_FILE, compare_modules(graph, module, reduced, precision)
    else:
        checked, parity = by_onnxruntime(graph, path), compare_onnx(graph, module, path, precision=precision)
    return reduced_record(graph, precision, checked, parity, report)


def by_onnxruntime(graph: Graph, path: Path) -> str:
    """How a file is checked that ONNX Runtime can run."""
    executed = in_onnxruntime(path, feeds_of(graph, random_inputs(graph, rows=1, seed=0)))
    return f"ONNX Runtime, which computes the file in {' and '.join(sorted(executed))} here"


def reduced_record(
    graph: Graph, precision: Precision, checked: str, parity: Parity, report: Callable[[str], None]
) -> dict[str, Any]:
    """The manifest entry of a file; `report` gets a line with its parity."""
    report(f"{graph.name}: {precision} differs by {parity.relative_l2:.1e} (relative L2; {checked})")
    return {
        "model": graph.name,
        "file": f"{graph.name}/1/{onnx_file(precision)}",
        "precision": precision,
        "checked": checked,
        "parity": parity.record(),
    }
