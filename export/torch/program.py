"""A network to a torch.export program with a dynamic batch, for machines with PyTorch and a GPU but no TensorRT.

The file holds a record of its content. It holds no pickle: torch.export.load would run any code in one, and the
server refuses files that hold one (server/backends/torch_export). Knows nothing of ONNX, so it runs where only torch
is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from export.compare import Parity, require_parity
from export.graphs import TIMESTEPS, Graph, Network, TensorSpec, graphs_of, random_inputs
from export.precision import DTYPES, Precision, reduced_precision
from export.torch.compiled import add_compiled, device_here
from export.torch.fewer_kernels import with_fewer_kernels
from training.checkpoint import Snapshot
from training.files import duplicate, whole_file

RECORD = "record.json"


def export_torch(
    graph: Graph,
    module: Network,
    path: Path,
    precision: Precision,
    *,
    float32_norms: bool | None = None,
    timesteps: int = TIMESTEPS,
) -> None:
    """Write `module` in `precision` and fewer operations to `path`; tensors named as in the record, float32 in and out.

    `float32_norms` as in `reduced_precision`; None means: for bf16 only. PyTorch sums a normalisation in float32 in any
    case, but keeps means and deviations in the precision of the rest. Their 11 bits in fp16 cost an image little
    (1.3e-3 off instead of 1.0e-3, with the demo weights), and save two casts each; the 8 bits of bf16 would leave
    single pixels off by 0.1. `timesteps`: rows of the table, at least those of the training.

    A torch older than the one that wrote a file may not load it; the record names the version.
    """
    if float32_norms is None:
        float32_norms = precision == "bf16"
    network = reduced_precision(
        with_fewer_kernels(module.eval(), timesteps), DTYPES[precision], float32_norms=float32_norms
    )
    program = _program(network, random_inputs(graph, rows=2, seed=0))
    record = {
        "torch": torch.__version__,
        "precision": precision,
        "inputs": [_described(spec) for spec in graph.inputs],
        "output": _described(graph.output),
    }
    # torch.export.save warns of a path that does not end in .pt2, and takes any open file.
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={RECORD: json.dumps(record)})


def _program(network: Network, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Without example inputs and without names of source files."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about the exporter's internals
        program = torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    # The example inputs are the only part that torch.export.save would pickle.
    program._example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine, and half of the program's text
    return program


def _described(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}


@torch.no_grad()
def compare_torch(graph: Graph, module: Network, path: Path, precision: Precision, rows: int = 2) -> Parity:
    """Run `module`, which is float32, on the CPU, and the program at `path` on random rows, on a GPU if there is one.

    Raises:
        ParityError: they differ by more than `precision` allows, or the output is all zero.
    """
    device = device_here()
    torch.backends.cudnn.allow_tf32 = False  # on by default in convolutions, with errors of 1e-3
    program = move_to_device_pass(torch.export.load(path), str(device)).module()
    inputs = random_inputs(graph, rows, seed=1)
    answer = program(*(tensor.to(device) for tensor in inputs)).cpu().numpy()
    return require_parity(f"{graph.name}: {path.name}", module.eval()(*inputs).numpy(), answer, precision)


def add_programs(
    snapshot: Snapshot,
    folder: Path,
    precision: Precision,
    report: Callable[[str], None] = print,
    *,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Write 1/model.pt2 of each network below `folder` and compare it with PyTorch; returns the manifest entries.

    With `compiled`, also 1/model.compiled.pt2, for this machine's device.

    Raises:
        CheckpointError: the snapshot is one of stage 1.
        CompileError: nothing can be compiled here.
        ParityError: a program does not compute what the snapshot does.
    """
    # A training with fewer timesteps still gets the whole table: the random inputs of the comparison use all of it.
    records, timesteps = [], max(snapshot.config.noise_schedule.num_train_timesteps, TIMESTEPS)
    for graph in graphs_of(snapshot):
        report(f"{graph.name}: exporting for the profile torch, {precision}")
        module, path = graph.build(snapshot), folder / graph.name / "1" / "model.pt2"
        export_torch(graph, module, path, precision, timesteps=timesteps)
        parity = compare_torch(graph, module, path, precision)
        report(f"{graph.name}: model.pt2 differs from PyTorch in fp32 by {parity.relative_l2:.1e} (relative L2)")
        records.append(
            {
                "file": str(path.relative_to(folder)),
                "torch": torch.__version__,
                "precision": precision,
                "parity": parity.record(),
            }
        )
        if compiled:
            records.append(add_compiled(graph, module, folder, precision, report))
    return records


def share_programs(folder: Path, model: str) -> None:
    """Give another model below `folder` the programs of `unet`; the backend makes several steps of them.

    Raises:
        NotWritten: the disk is full, or the like.
    """
    for program in (folder / "unet" / "1").glob("*.pt2"):
        duplicate(program, folder / model / "1" / program.name)
