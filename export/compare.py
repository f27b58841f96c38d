"""How far an exported network is from the original: measures, and a tolerance for each precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.graphs import Graph, Network, random_inputs
from export.precision import Precision

Array = NDArray[np.float32]
# Largest |difference| / |reference| of one call.
TOLERANCES: dict[Precision, float] = {
    "fp32": 5e-5,  # only the order of sums differs. Seen: up to 1e-5 (attention over 4096 tokens)
    "tf32": 5e-3,  # factors of 11 bits, as in fp16, sums in fp32
    "fp16": 5e-3,  # 11 bits: 5e-4 a rounding, and some forty layers in a row. Seen: 1e-3
    "bf16": 4e-2,  # 8 bits: eight times as coarse as fp16. Seen: 1e-2
}


class ParityError(ValueError):
    """An exported network does not compute what the original computes."""


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
        ParityError: the reference is all zero, which proves nothing. (MONAI starts the UNet's last convolution at zero:
            train it, or use `randomize_zero_tensors`.)
    """
    if not reference.any():
        raise ParityError("the output is all zero, so there is nothing to compare; are these weights trained?")
    difference = np.abs(answer - reference)
    relative = float(np.linalg.norm(difference) / np.linalg.norm(reference))
    return Parity(len(reference), float(difference.max()), relative, TOLERANCES[precision])


def require_parity(what: str, reference: Array, answer: Array, precision: Precision) -> Parity:
    """Compare two outputs and raise if they differ too much; `what` starts the message.

    Raises:
        ParityError: as in `measure`, or they differ by more than `precision` allows.
    """
    parity = measure(reference, answer, precision)
    if not parity.passed:
        raise ParityError(
            f"{what} differs from float32 by {parity.relative_l2:.2e} (relative L2), "
            f"allowed for {precision}: {parity.tolerance_relative_l2:.0e}"
        )
    return parity


def require_parity_of_outputs(
    what: str, graph: Graph, references: Sequence[Array], answers: Sequence[Array], precision: Precision
) -> Parity:
    """`require_parity` for each output of the graph; returns the worst result.

    Raises:
        ParityError: as in `require_parity`.
    """
    results = []
    for spec, reference, answer in zip(graph.outputs, references, answers, strict=True):
        output = f"{what} {spec.name}" if len(graph.outputs) > 1 else what
        results.append(require_parity(output, reference, answer, precision))
    return max(results, key=lambda parity: parity.relative_l2)


@torch.no_grad()
def compare_modules(graph: Graph, module: Network, reduced: Network, precision: Precision, rows: int = 3) -> Parity:
    """Run `module`, which is float32, and a reduced copy of it in PyTorch on random rows.

    For bf16, which ONNX Runtime cannot run on CPUs.

    Raises:
        ParityError: as in `require_parity`.
    """
    inputs = random_inputs(graph, rows, seed=1)
    return require_parity(f"{graph.name}: PyTorch", module.eval()(*inputs).numpy(), reduced(*inputs).numpy(), precision)
