"""unet_steps into a repository: its files, each held to the network of one step; and which networks a repository has.

The reference is the repository's own unet/1/model.onnx by ONNX Runtime on the CPU, which export has held to PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from export.compare import Array, Parity, cpu_session, hold_all, run_all, run_onnx
from export.graphs import GRAPHS, UNET, Graph, random_inputs, unet_steps
from export.precision import DTYPES, Precision, reduced_precision
from export.reduced import NOT_THE_FILE, by_onnxruntime, reduced_record
from export.to_onnx import onnx_file
from export.unroll import unroll
from training.checkpoint import Snapshot

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(latent [B, 1, 64, 64], timesteps int32 [B, 1]) -> predicted noise [B, 1, 64, 64]."""


def served_graphs(repository: Path) -> tuple[Graph, ...]:
    """The networks of an exported repository, from its model.json."""
    record = json.loads((repository / "mri_ldm" / "1" / "model.json").read_text())
    return with_steps(record.get("steps_per_call", 1))


def with_steps(steps: int) -> tuple[Graph, ...]:
    """The networks of a repository with `steps` steps in a call; of one step, that is `unet` itself."""
    return (*GRAPHS, unet_steps(steps)) if steps > 1 else GRAPHS


def stepped(network: Network, inputs: tuple[torch.Tensor, ...]) -> list[Array]:
    """The outputs of unet_steps for `inputs`, in the order of the record, by a call of `network` for each step."""
    x, h, timesteps, coefficients = inputs
    estimates = []
    for k in range(timesteps.shape[1]):
        eps = network(x, timesteps[:, k : k + 1])
        a, b, c, _, e, f, g = coefficients[:, k, :, None, None, None].unbind(1)  # [B, 1, 1, 1] each
        x, h = a * x + b * eps + c * h, e * x + f * eps + g * h
        estimates.append(h)
    return [x.numpy(), h.numpy(), torch.stack(estimates, dim=1).numpy()]


@torch.no_grad()
def add_steps(
    snapshot: Snapshot, folder: Path, steps: int, reduced: Sequence[Precision], report: Callable[[str], None] = print
) -> tuple[Parity, list[dict[str, Any]]]:
    """Write unet_steps/1/model.onnx, and a file for each of `reduced`, from those of unet below `folder`.

    Returns how far the float32 file is from single steps, and what the manifest says of the others.

    Raises:
        ParityError: a file is further off than its precision may be in one call of `unet`. Seen for 5 steps: twice as
            far as that call.
        onnx.checker.ValidationError: a graph is invalid.
    """
    graph = unet_steps(steps)
    report(f"{graph.name}: unrolling {steps} steps")
    inputs = random_inputs(graph, rows=2, seed=1)
    reference = stepped(onnx_network(folder / UNET.name / "1" / "model.onnx"), inputs)

    def unrolled(precision: Precision) -> Path:
        path = folder / graph.name / "1" / onnx_file(precision)
        unroll(folder / UNET.name / "1" / path.name, steps, path)
        return path

    def held(precision: Precision, answer: Sequence[Array]) -> Parity:
        return hold_all(f"{graph.name}: {precision}", graph, reference, answer, precision)

    parity = held("fp32", run_all(graph, cpu_session(unrolled("fp32")), inputs))
    report(f"{graph.name}: differs from single steps by {parity.relative_l2:.1e} (relative L2)")
    records = []
    for precision in reduced:
        path = unrolled(precision)
        if precision == "bf16":
            network = reduced_precision(UNET.build(snapshot), DTYPES[precision])
            checked, answer = NOT_THE_FILE, stepped(network, inputs)
        else:
            checked, answer = by_onnxruntime(graph, path), run_all(graph, cpu_session(path), inputs)
        records.append(reduced_record(graph, precision, checked, held(precision, answer), report))
    return parity, records


def onnx_network(path: Path) -> Network:
    """An ONNX file of `unet`, by ONNX Runtime on the CPU."""
    session = cpu_session(path)
    return lambda *inputs: torch.from_numpy(run_onnx(UNET, session, inputs))
