"""What the operations that export writes for a CPU are worth, one kind at a time, beside MONAI's layers as they are.

    python -m benchmarks.rewrite --weights bundle --out benchmarks/rewrite-bundle.json

One row, in turns, by ONNX Runtime and by OpenVINO in float32 and, where the CPU has it, bf16. Beside it how many
operations a row takes, and how many a second this machine does in one large convolution: no network can do more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import DEMO_SNAPSHOT
from benchmarks.machine import has_bf16
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
    import onnxruntime

    from export.executed import compile_for_openvino

    def in_onnxruntime(path: Path, feeds: dict[str, Any]) -> Callable[[], Any]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)

    def in_openvino(precision: str) -> Callable[[Path, dict[str, Any]], Callable[[], Any]]:
        def compiled(path: Path, feeds: dict[str, Any]) -> Callable[[], Any]:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            request = compile_for_openvino(path, shapes, precision).create_infer_request()
            return lambda: request.infer(feeds)

        return compiled

    runtimes = {"ONNX Runtime": in_onnxruntime, "OpenVINO": in_openvino("fp32")}
    if has_bf16():
        runtimes["OpenVINO, bf16"] = in_openvino("bf16")
    return runtimes


def gflop(graph: Graph, module: Any) -> float:
    """Billions of multiplications and additions of one row: convolutions, matrix products, attention."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from export.graphs import random_inputs

    # The counter does not know the CPU's fused attention, so here it is two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*random_inputs(graph, rows=1, seed=0))
    return float(counter.get_total_flops() / 1e9)


def peaks(rounds: int, channels: int = 256, side: int = 64) -> dict[str, float]:
    """The most GFLOP a second of a large 3x3 convolution in PyTorch (oneDNN), by type; matrix products have less.

    bf16 only where the CPU has it: elsewhere it would be the speed of something else.
    """
    import torch

    from benchmarks.timing import in_turns

    found = {}
    for name, dtype in {"float32": torch.float32, **({"bf16": torch.bfloat16} if has_bf16() else {})}.items():
        convolution = torch.nn.Conv2d(channels, channels, 3, padding=1).to(dtype)
        x = torch.randn(1, channels, side, side, dtype=dtype)
        with torch.no_grad():
            times = in_turns({name: lambda run=convolution, x=x: run(x)}, 2 * rounds)[name]
        found[name] = 2 * 9 * channels**2 * side**2 / min(times) / 1e9
    return found


def measure(graph: Graph, files: dict[str, Path], rounds: int) -> dict[str, Any]:
    """By runtime and variant: seconds of a call, and how many times faster than MONAI's layers."""
    from benchmarks.timing import compare, woken
    from export.graphs import random_inputs
    from export.onnx.run import feeds_of

    feeds = feeds_of(graph, random_inputs(graph, rows=1, seed=0))
    result = {}
    for runtime, load in _runtimes().items():
        found = woken({name: load(path, feeds) for name, path in files.items()}, rounds, CALLS[graph.name])
        result[runtime] = compare({name: [min(each) for each in times] for name, times in found.items()}, BASELINE)
    return result


def table(networks: dict[str, Any]) -> str:
    """Markdown: milliseconds of a call, and how many times faster."""
    runtimes = list(next(iter(networks.values())))
    lines = [f"| network | operations | {' | '.join(runtimes)} |", "|---|---|" + "---|" * len(runtimes)]
    for network, found in networks.items():
        for name in found[runtimes[0]]:
            each = [found[runtime][name] for runtime in runtimes]
            cells = (f"{1e3 * own['median']:.1f} ms ({own['faster_than_baseline']['median']:.2f}x)" for own in each)
            lines.append(f"| {network} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=("bundle", "demo", "small"), default="bundle", help="default: %(default)s")
    parser.add_argument("--snapshot", type=Path, default=DEMO_SNAPSHOT, help="of demo")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)

    from benchmarks.machine import describe
    from benchmarks.weights import load_weights
    from export.graphs import GRAPHS
    from export.onnx.write import export_onnx
    from export.rewrite import rewritten
    from training.files import write_text

    machine, networks, operations = describe(), {}, {}
    if not has_bf16():
        print("bf16: not run here: this CPU has neither AVX512_BF16 nor AMX")
    snapshot = load_weights(arguments.weights, arguments.snapshot)
    with tempfile.TemporaryDirectory() as folder:
        for graph in GRAPHS:
            original, files, operations[graph.name] = graph.build(snapshot), {}, {}
            for name, layers in _variants().items():
                module, files[name] = rewritten(original, layers), Path(folder, f"{graph.name}-{len(files)}.onnx")
                operations[graph.name][name] = gflop(graph, module)
                export_onnx(graph, module, files[name])
            networks[graph.name] = measure(graph, files, arguments.rounds)
            print(table({graph.name: networks[graph.name]}))
    figures = {"gflop": operations, "gflop_a_second": peaks(arguments.rounds), "networks": networks}
    print(json.dumps({name: figures[name] for name in ("gflop", "gflop_a_second")}, indent=2))
    if arguments.out is not None:
        command = f"python -m benchmarks.rewrite --weights {arguments.weights} --rounds {arguments.rounds}"
        write_text(arguments.out, json.dumps({"machine": machine, "command": command} | figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
