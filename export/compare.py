"""How far an exported network is from the original: measures, and a tolerance for each precision.

Runs where there is no ONNX, but for what runs ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.graphs import Decoder, Denoiser, Graph, random_inputs
from export.precision import Precision

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[np.float32]
# Largest |difference| / |reference| of one call.
TOLERANCES: dict[Precision, float] = {
    "fp32": 5e-5,  # only the order of sums differs. Seen: up to 1e-5 (attention over 4096 tokens)
    "tf32": 5e-3,  # factors of 11 bits, as in fp16, sums in fp32
    "fp16": 5e-3,  # 11 bits: 5e-4 a rounding, and some forty layers in a row. Seen: 1e-3
    "bf16": 4e-2,  # 8 bits: eight times as coarse as fp16. Seen: 1e-2
}


class ParityError(ValueError):
    """An exported network that does not compute what the original computes."""


@dataclass(frozen=True)
class Parity:
    """max_abs: largest difference; relative_l2: |difference| / |reference|, both over all rows."""

    rows: int
    max_abs: float
    relative_l2: float
    tolerance_relative_l2: float

    @property
    def passed(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.relative_l2 <= self.tolerance_relative_l2

    def record(self) -> dict[str, Any]:
        """As written to the manifest."""
        return asdict(self)


def measure(reference: Array, answer: Array, precision: Precision) -> Parity:
    """Compare two outputs [rows, ...].

    Raises:
        ParityError: the reference is all zero, which proves nothing (MONAI starts the UNet's last convolution at zero:
            train it, or use `randomize_zero_tensors`).
    """
    if not reference.any():
        raise ParityError("the output is all zero, so there is nothing to compare; are these weights trained?")
    difference = np.abs(answer - reference)
    relative = float(np.linalg.norm(difference) / np.linalg.norm(reference))
    return Parity(len(reference), float(difference.max()), relative, TOLERANCES[precision])


def hold(what: str, reference: Array, answer: Array, precision: Precision) -> Parity:
    """`measure`, and insist; `what` opens the message.

    Raises:
        ParityError: as in `measure`, or they differ by more than `precision` may.
    """
    parity = measure(reference, answer, precision)
    if not parity.passed:
        raise ParityError(
            f"{what} differs from float32 by {parity.relative_l2:.2e} (relative L2), "
            f"allowed for {precision} are {parity.tolerance_relative_l2:.0e}"
        )
    return parity


def hold_all(
    what: str, graph: Graph, references: Sequence[Array], answers: Sequence[Array], precision: Precision
) -> Parity:
    """`hold` for each output of the record, and the worst of them.

    Raises:
        ParityError: as in `hold`.
    """
    results = []
    for spec, reference, answer in zip(graph.outputs, references, answers, strict=True):
        which = f"{what} {spec.name}" if len(graph.outputs) > 1 else what
        results.append(hold(which, reference, answer, precision))
    return max(results, key=lambda parity: parity.relative_l2)


def cpu_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU; threads 0 = one per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> dict[str, NDArray[Any]]:
    """Tensors in the order of the record, by name."""
    return {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}


def run_onnx(graph: Graph, session: onnxruntime.InferenceSession, inputs: tuple[torch.Tensor, ...]) -> Array:
    """The first output for `inputs`, which are in the order of the record."""
    return run_all(graph, session, inputs)[0]


def run_all(graph: Graph, session: onnxruntime.InferenceSession, inputs: tuple[torch.Tensor, ...]) -> list[Array]:
    """The outputs in the order of the record, as the inputs are."""
    outputs: list[Array] = session.run([spec.name for spec in graph.outputs], feeds_of(graph, inputs))
    return outputs


@torch.no_grad()
def compare(
    graph: Graph, module: Denoiser | Decoder, path: Path, rows: int = 3, precision: Precision = "fp32"
) -> Parity:
    """Run `module`, which is float32, and the ONNX file at `path` on `rows` random rows in one call.

    Raises:
        ParityError: as in `hold`.
    """
    inputs = random_inputs(graph, rows, seed=1)
    answer = run_onnx(graph, cpu_session(path), inputs)
    return hold(f"{graph.name}: ONNX", module.eval()(*inputs).numpy(), answer, precision)


@torch.no_grad()
def compare_modules(
    graph: Graph, module: Denoiser | Decoder, reduced: Denoiser | Decoder, precision: Precision, rows: int = 3
) -> Parity:
    """The same for a reduced copy, in PyTorch: for bf16, which ONNX Runtime's kernels for CPUs refuse.

    Raises:
        ParityError: as in `hold`.
    """
    inputs = random_inputs(graph, rows, seed=1)
    return hold(f"{graph.name}: PyTorch", module.eval()(*inputs).numpy(), reduced(*inputs).numpy(), precision)
