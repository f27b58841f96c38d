"""ONNX files run by ONNX Runtime on the CPU, and compared with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from export.compare import Array, Parity, require_parity
from export.graphs import Graph, Network, random_inputs
from export.precision import Precision

if TYPE_CHECKING:
    import onnxruntime


def cpu_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """The file, loaded; threads 0 = one per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> dict[str, NDArray[Any]]:
    """`inputs`, which are in the order of the graph's record, by name."""
    return {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}


def run_onnx(graph: Graph, session: onnxruntime.InferenceSession, inputs: tuple[torch.Tensor, ...]) -> Array:
    """The first output."""
    return run_all(graph, session, inputs)[0]


def run_all(graph: Graph, session: onnxruntime.InferenceSession, inputs: tuple[torch.Tensor, ...]) -> list[Array]:
    """All outputs. Inputs and outputs are in the order of the graph's record."""
    outputs: list[Array] = session.run([spec.name for spec in graph.outputs], feeds_of(graph, inputs))
    return outputs


@torch.no_grad()
def compare_onnx(graph: Graph, module: Network, path: Path, rows: int = 3, precision: Precision = "fp32") -> Parity:
    """Run `module`, which is float32, and the ONNX file at `path` on `rows` random rows in one call.

    Raises:
        ParityError: they differ by more than `precision` allows, or the output is all zero.
    """
    inputs = random_inputs(graph, rows, seed=1)
    answer = run_onnx(graph, cpu_session(path), inputs)
    return require_parity(f"{graph.name}: ONNX", module.eval()(*inputs).numpy(), answer, precision)
