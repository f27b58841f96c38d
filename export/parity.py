"""PyTorch against ONNX Runtime on the same weights and inputs."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from export.graphs import Graph, random_inputs

# fp32 on both sides; what differs is the order of sums. Seen: up to 1e-5 relative (attention over 4096 tokens).
RELATIVE_TOLERANCE = 5e-5


class ParityError(ValueError):
    """An exported network that does not compute what the original computes."""


@dataclass(frozen=True)
class Parity:
    """max_abs: largest difference; relative_l2: |difference| / |reference|, both over all rows."""

    rows: int
    max_abs: float
    relative_l2: float

    def record(self) -> dict[str, float]:
        """As written to the manifest."""
        return {**asdict(self), "tolerance_relative_l2": RELATIVE_TOLERANCE}


def cpu_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU; threads 0 = one per core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def compare(graph: Graph, module: nn.Module, path: Path, rows: int = 3) -> Parity:
    """Run `module` and the ONNX file at `path` on `rows` random rows in one call.

    Raises:
        ParityError: they differ by more than RELATIVE_TOLERANCE, or the reference is all zero, which proves nothing
            (MONAI starts the UNet's last convolution at zero: train it, or use `randomize_zero_tensors`).
    """
    inputs = random_inputs(graph, rows, seed=1)
    reference = module.eval()(*inputs).numpy()
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}
    answer = cpu_session(path).run([graph.output.name], feeds)[0]
    if not reference.any():
        raise ParityError(
            f"{graph.name}: the output is all zero, so there is nothing to compare; are these weights trained?"
        )
    difference = np.abs(answer - reference)
    parity = Parity(rows, float(difference.max()), float(np.linalg.norm(difference) / np.linalg.norm(reference)))
    if not parity.relative_l2 <= RELATIVE_TOLERANCE:
        raise ParityError(
            f"{graph.name}: ONNX differs from PyTorch by {parity.relative_l2:.2e} (relative L2), "
            f"allowed are {RELATIVE_TOLERANCE:.0e}"
        )
    return parity
