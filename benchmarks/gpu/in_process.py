"""Figures without a server: the bundle's own loop in PyTorch, and the programs that the torch profile serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.setup import Setup
from benchmarks.weights import networks
from export.graphs import GRAPHS, UNET, Graph, random_inputs
from server.backends.torch_export.torch_program import Program
from training.sample import sample_latents

if TYPE_CHECKING:
    from training.checkpoint import Snapshot


@contextmanager
def arithmetic(mode: str) -> Iterator[AbstractContextManager[Any]]:
    """fp32, tf32, or amp (fp16 by autocast over tf32): yields the context in which the networks run."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = mode != "fp32"
    try:
        yield torch.autocast("cuda", dtype=torch.float16) if mode == "amp" else nullcontext()
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@torch.no_grad()
def bundle_loop(setup: Setup, snapshot: Snapshot) -> dict[str, Any]:
    """The bundle's inference with MONAI's networks and scheduler, eager, by arithmetic.

    unet_ms: a call by batch; autoencoder_ms: its forward on one 240x240 slice; image_ms: the steps and the decoding of
    one image, from noise on the CPU to the picture there, without loading, PNG or the start of Python.
    """
    unet, autoencoder = networks(snapshot, setup.device)
    modes = ("tf32", "amp", "fp32") if setup.device.type == "cuda" else ("fp32",)
    return {mode: _bundle_loop_in(mode, setup, snapshot, unet, autoencoder) for mode in modes}


def _bundle_loop_in(mode: str, setup: Setup, snapshot: Snapshot, unet: Any, autoencoder: Any) -> dict[str, Any]:
    device = setup.device
    picture = torch.rand(1, 1, 240, 240, device=device)

    def unet_call(batch: int) -> float:
        latent, timesteps = (tensor.to(device) for tensor in random_inputs(UNET, batch, seed=0))
        return setup.median_ms(lambda: unet(latent, timesteps[:, 0]))

    def image() -> torch.Tensor:
        noise = torch.randn(1, 1, 64, 64).to(device)
        latents = sample_latents(unet, snapshot.config.noise_schedule, noise, setup.steps)
        with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):  # as the bundle does
            return autoencoder.decode(latents / snapshot.scale_factor).cpu()

    with arithmetic(mode) as running, running:
        times = {
            "unet_ms": {batch: unet_call(batch) for batch in setup.batches},
            "autoencoder_ms": setup.median_ms(lambda: autoencoder(picture)),
            "image_ms": setup.median_ms(image),
        }
    print(f"  eager {mode}: {_brief(times)}", flush=True)
    return times


def programs(setup: Setup, repository: Path) -> dict[str, Any]:
    """Milliseconds of a call by batch, NumPy arrays in and out, of the files in `repository`.

    Once with channels_last and once without; load_s is the time until all graphs are captured.
    """
    result: dict[str, Any] = {}
    for layout, channels_last in (("channels_last", True), ("contiguous", False)):
        result[layout] = {graph.name: _program(setup, graph, repository, channels_last) for graph in GRAPHS}
        print(f"  {layout}: {_brief(result[layout])}", flush=True)
    return result


def _program(setup: Setup, graph: Graph, repository: Path, channels_last: bool) -> dict[str, Any]:
    # A decoder of 64 rows takes tens of gigabytes on a CPU.
    batches = [batch for batch in setup.batches if setup.device.type == "cuda" or batch <= graph.max_batch_size]
    path = repository / graph.name / "1" / "model.pt2"
    started = time.perf_counter()
    program = Program(path, setup.device, batches, channels_last=channels_last)
    load_s, times = time.perf_counter() - started, {}
    for batch in batches:
        feeds = {
            spec.name: tensor.numpy()
            for spec, tensor in zip(graph.inputs, random_inputs(graph, batch, seed=0), strict=True)
        }
        times[batch] = setup.median_ms(lambda feeds=feeds: program(feeds))
    return {"call_ms": times, "load_s": load_s}


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _brief(each) for key, each in value.items()}
    return round(value, 2)
