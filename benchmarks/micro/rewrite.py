"""What the operations that export writes for a CPU are worth, one kind at a time, beside MONAI's layers.

    python -m benchmarks.micro.rewrite --weights bundle --out benchmarks/rewrite-bundle.json

One row, in turns, by ONNX Runtime and by OpenVINO in float32 and, where the CPU has it, bf16. Also counted: the
operations of a row, and how many a second this machine does in one large convolution, which no network can exceed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.command import parser, write_record
from benchmarks.harness.machine import has_bf16
from benchmarks.tables.micro import operations
from training.cli import run_command

if TYPE_CHECKING:
    from export.graphs import Graph

BASELINE = "MONAI's layers"
CALLS = {"unet": 8, "vae_decoder": 2}
"""In a round; the quickest counts."""


def _variants() -> dict[str, tuple[Any, ...]]:
    from export.rewrite import REWRITTEN

    names = ("transposed convolution", "one projection", "normalisation by channel")
    return {BASELINE: (), **{name: (layer,) for name, layer in zip(names, REWRITTEN, strict=True)}, "all": REWRITTEN}


def _runtimes() -> dict[str, Callable[[Path, dict[str, Any]], Callable[[], Any]]]:
    """Those of this machine; bf16 where it need not be emulated."""
    precisions = {"OpenVINO": "fp32", **({"OpenVINO, bf16": "bf16"} if has_bf16() else {})}
    return {
        "ONNX Runtime": _in_onnxruntime,
        **{name: partial(_in_openvino, precision) for name, precision in precisions.items()},
    }


def _in_onnxruntime(path: Path, feeds: dict[str, Any]) -> Callable[[], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def _in_openvino(precision: str, path: Path, feeds: dict[str, Any]) -> Callable[[], Any]:
    from export.executed import compile_for_openvino

    shapes = {name: list(array.shape) for name, array in feeds.items()}
    request = compile_for_openvino(path, shapes, precision).create_infer_request()
    return lambda: request.infer(feeds)


def peaks(rounds: int, channels: int = 256, side: int = 64) -> dict[str, float]:
    """The most GFLOP a second of a large 3x3 convolution in PyTorch (oneDNN), by type; matrix products have less.

    bf16 only where the CPU has it: elsewhere it would be the speed of something else.
    """
    import torch

    from benchmarks.harness.timing import in_turns

    speeds = {}
    for name, dtype in {"float32": torch.float32, **({"bf16": torch.bfloat16} if has_bf16() else {})}.items():
        convolution = torch.nn.Conv2d(channels, channels, 3, padding=1).to(dtype)
        x = torch.randn(1, channels, side, side, dtype=dtype)
        with torch.no_grad():
            times = in_turns({name: partial(convolution, x)}, 2 * rounds)[name]
        speeds[name] = 2 * 9 * channels**2 * side**2 / min(times) / 1e9
    return speeds


def measure(graph: Graph, files: dict[str, Path], rounds: int) -> dict[str, Any]:
    """By runtime and variant: seconds of a call, and how many times faster than MONAI's layers."""
    from benchmarks.harness.timing import compare, woken
    from export.graphs import random_inputs
    from export.onnx.run import feeds_of

    feeds = feeds_of(graph, random_inputs(graph, rows=1, seed=0))
    result = {}
    for runtime, load in _runtimes().items():
        times = woken({name: load(path, feeds) for name, path in files.items()}, rounds, CALLS[graph.name])
        result[runtime] = compare({name: list(map(min, seconds)) for name, seconds in times.items()}, BASELINE)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    command = parser("benchmarks.micro.rewrite", __doc__, "rounds", "out", rounds=15)
    command.add_argument(
        "--weights", choices=("bundle", "demo", "small"), default="bundle", help="networks to measure (default: bundle)"
    )
    options = command.parse_args(argv)

    from benchmarks.harness.machine import describe
    from benchmarks.harness.operations import gflop
    from benchmarks.harness.weights import load_weights
    from export.graphs import GRAPHS
    from export.onnx.write import export_onnx
    from export.rewrite import rewritten

    machine, snapshot = describe(), load_weights(options.weights)
    networks: dict[str, Any] = {}
    counts: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in GRAPHS:
            original, counts[graph.name] = graph.build(snapshot), {}
            files: dict[str, Path] = {}
            for name, layers in _variants().items():
                module, files[name] = rewritten(original, layers), Path(folder, f"{graph.name}-{len(files)}.onnx")
                counts[graph.name][name] = gflop(graph, module)
                export_onnx(graph, module, files[name])
            networks[graph.name] = measure(graph, files, options.rounds)
            print("\n".join(operations({graph.name: networks[graph.name]})))
    figures = {"gflop": counts, "gflop_a_second": peaks(options.rounds)}
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        write_record(options.out, {"machine": machine, **figures, "networks": networks})
    return 0


if __name__ == "__main__":
    run_command(main)
