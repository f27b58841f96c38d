"""A network to a torch.export program with a dynamic batch, for machines with PyTorch and a GPU but no TensorRT.

The file carries a record of what is in it. It holds no pickle: torch.export.load would run whatever one says, and the
server refuses files with any (server/backends/torch_export). Knows nothing of ONNX, so it runs where torch alone is.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from export.compare import Parity, hold
from export.compiled import add_compiled
from export.fewer_kernels import with_fewer_kernels
from export.graphs import GRAPHS, TIMESTEPS, Decoder, Denoiser, Graph, TensorSpec, random_inputs
from export.precision import DTYPES, Precision, reduced_precision
from training.checkpoint import Snapshot
from training.files import duplicate, whole_file

RECORD = "record.json"


def export_torch(
    graph: Graph,
    module: Denoiser | Decoder,
    path: Path,
    precision: Precision,
    *,
    float32_norms: bool | None = None,
    timesteps: int = TIMESTEPS,
) -> None:
    """Write `module` in `precision` and fewer operations to `path`; tensors named as in the record, float32 in and out.

    `float32_norms` as in `reduced_precision`; None is for bf16 alone. PyTorch sums a normalisation in float32 all the
    same, but keeps means and deviations in the precision of the rest. 11 bits of them cost an image little (1.3e-3 off
    in place of 1.0e-3, with the demo weights), and save two casts each; 8 bits would leave single pixels off by 0.1.
    `timesteps`: rows of the table, at least those of the training.

    An older torch than the one that wrote a file is not promised to load it: the record says which one it was.
    """
    if float32_norms is None:
        float32_norms = precision == "bf16"
    network = reduced_precision(
        with_fewer_kernels(module.eval(), timesteps), DTYPES[precision], float32_norms=float32_norms
    )
    batch = torch.export.Dim("batch", min=1)
    inputs = random_inputs(graph, rows=2, seed=0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern the exporter's own insides
        program = torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    # The example inputs are the only part that torch.export.save would pickle.
    program._example_inputs = None
    record = {
        "torch": torch.__version__,
        "precision": precision,
        "inputs": [_described(spec) for spec in graph.inputs],
        "output": _described(graph.output),
    }
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine, and half of the program's text
    # torch.export.save warns of a path that does not end in .pt2, and takes any open file.
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={RECORD: json.dumps(record)})


def _described(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}


@torch.no_grad()
def compare_torch(graph: Graph, module: Denoiser | Decoder, path: Path, precision: Precision, rows: int = 2) -> Parity:
    """Run `module`, which is float32, on the CPU, and the program at `path` on random rows, on a GPU if there is one.

    Raises:
        ParityError: they differ by more than `precision` may, or the output is all zero.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # on by default in convolutions, with errors of 1e-3
    program = move_to_device_pass(torch.export.load(path), str(device)).module()
    inputs = random_inputs(graph, rows, seed=1)
    answer = program(*(tensor.to(device) for tensor in inputs)).cpu().numpy()
    return hold(f"{graph.name}: {path.name}", module.eval()(*inputs).numpy(), answer, precision)


def add_programs(
    snapshot: Snapshot,
    folder: Path,
    precision: Precision,
    report: Callable[[str], None] = print,
    *,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Write 1/model.pt2 of each network below `folder`, each held to its tolerance; what the manifest says of them.

    `compiled`: and 1/model.compiled.pt2, for the device that is here.

    Raises:
        CheckpointError: a snapshot of stage 1.
        CompileError: nothing can be compiled here.
        ParityError: a program does not compute what the snapshot does.
    """
    # A shorter training leaves the rest of the table to what it is compared by.
    records, timesteps = [], max(snapshot.config.noise_schedule.num_train_timesteps, TIMESTEPS)
    for graph in GRAPHS:
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
    """Give another model below `folder` the programs of `unet`: the backend takes the steps. Raises NotWritten."""
    for program in (folder / "unet" / "1").glob("*.pt2"):
        duplicate(program, folder / model / "1" / program.name)
