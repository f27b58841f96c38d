"""unet_steps into a repository: its ONNX files, each compared with calls of the one-step network.

The reference is the repository's own unet/1/model.onnx, run by ONNX Runtime on the CPU. Export has compared that file
with PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from export.compare import Array, Parity, require_parity_of_outputs
from export.graphs import Graph, random_inputs, unet, unet_steps
from export.onnx.reduced import NOT_THE_FILE, by_onnxruntime, reduced_record
from export.onnx.run import cpu_session, run_all, run_onnx
from export.onnx.unroll import unroll
from export.onnx.write import onnx_file
from export.precision import DTYPES, Precision, reduced_precision
from training.checkpoint import Snapshot, takes_labels

PredictNoise = Callable[..., torch.Tensor]
"""(latent [B, 1, 64, 64], the condition if it takes one, timesteps int32 [B, 1]) -> predicted noise [B, 1, 64, 64]."""


def stepped(network: PredictNoise, inputs: tuple[torch.Tensor, ...]) -> list[Array]:
    """The outputs of unet_steps, in the order of its record, made by one call of `network` per step."""
    x, *condition, h, g, timesteps, coefficients = inputs
    estimates = []
    for k in range(timesteps.shape[1]):
        eps = network(x, *condition, timesteps[:, k : k + 1])
        a, b, c, _, e, p, q, r = coefficients[:, k, :, None, None, None].unbind(1)  # [B, 1, 1, 1]
        x, h, g = a * x + b * eps + c * h + e * g, p * x + q * eps + r * h, (1 - r) * h + r * g
        estimates.append(h)
    return [x.numpy(), h.numpy(), g.numpy(), torch.stack(estimates, dim=1).numpy()]


@torch.no_grad()
def add_steps(
    snapshot: Snapshot, folder: Path, steps: int, reduced: Sequence[Precision], report: Callable[[str], None] = print
) -> tuple[Parity, list[dict[str, Any]]]:
    """Write unet_steps/1/model.onnx, and a file for each of `reduced`, from the files of unet below `folder`.

    Returns the parity of the float32 file with single steps, and the manifest entries of the other files.

    Raises:
        ParityError: a file differs by more than its precision allows in one call of `unet`. Seen for 5 steps: twice
            the difference of one call.
        GraphError: a graph is invalid.
    """
    single, graph = unet(takes_labels(snapshot)), unet_steps(steps, takes_labels(snapshot))
    report(f"{graph.name}: unrolling {steps} steps")
    inputs = random_inputs(graph, rows=2, seed=1)
    reference = stepped(onnx_network(single, folder / single.name / "1" / "model.onnx"), inputs)

    def unrolled(precision: Precision) -> Path:
        path = folder / graph.name / "1" / onnx_file(precision)
        unroll(folder / single.name / "1" / path.name, graph, path)
        return path

    def compared(precision: Precision, answer: Sequence[Array]) -> Parity:
        return require_parity_of_outputs(f"{graph.name}: {precision}", graph, reference, answer, precision)

    parity = compared("fp32", run_all(graph, cpu_session(unrolled("fp32")), inputs))
    report(f"{graph.name}: differs from single steps by {parity.relative_l2:.1e} (relative L2)")
    records = []
    for precision in reduced:
        path = unrolled(precision)
        if precision == "bf16":
            network = reduced_precision(single.build(snapshot), DTYPES[precision])
            checked, answer = NOT_THE_FILE, stepped(network, inputs)
        else:
            checked, answer = by_onnxruntime(graph, path), run_all(graph, cpu_session(path), inputs)
        records.append(reduced_record(graph, precision, checked, compared(precision, answer), report))
    return parity, records


def onnx_network(graph: Graph, path: Path) -> PredictNoise:
    """An ONNX file of the denoiser `graph`, run by ONNX Runtime on the CPU."""
    session = cpu_session(path)
    return lambda *inputs: torch.from_numpy(run_onnx(graph, session, inputs))
