"""Figures without a server: the bundle's own loop in PyTorch, and the programs that the profile torch serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.harness.weights import networks
from benchmarks.serving.gpu.setup import Setup, random_feeds
from export.compare import measure
from export.graphs import GRAPHS, UNET, Graph, random_inputs
from export.torch.program import export_torch
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


def bundle_loop(setup: Setup, snapshot: Snapshot) -> Iterator[tuple[str, Any]]:
    """The bundle's inference with MONAI's networks and scheduler, eager, by arithmetic.

    relative_l2: of a UNet call against fp32, which shows that the arithmetic is another. unet_ms: a call by batch;
    autoencoder_ms: its forward on one 240x240 slice. image_ms: the steps and the decoding of one image, from noise on
    the CPU to the picture there, without loading, PNG or the start of Python.

    Raises:
        RuntimeError: a mode computes what fp32 does, bit for bit.
    """
    unet, autoencoder = networks(snapshot, setup.device)
    modes = ("tf32", "amp", "fp32") if setup.device.type == "cuda" else ("fp32",)
    latent, timesteps = (tensor.to(setup.device) for tensor in random_inputs(UNET, 1, seed=0))
    with torch.no_grad(), arithmetic("fp32"):
        reference = unet(latent, timesteps[:, 0])
    for mode in modes:
        with torch.no_grad(), arithmetic(mode) as running, running:
            answer = unet(latent, timesteps[:, 0]).float()
        error = measure(reference.cpu().numpy(), answer.cpu().numpy(), setup.precision).relative_l2
        if mode != "fp32" and error == 0:
            raise RuntimeError(f"not a bit differs from fp32, so {mode} was not computed here")
        yield mode, {"relative_l2": error, **_bundle_loop_in(mode, setup, snapshot, unet, autoencoder)}


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

    with torch.no_grad(), arithmetic(mode) as running, running:
        return {
            "unet_ms": {batch: unet_call(batch) for batch in setup.batches},
            "autoencoder_ms": setup.median_ms(lambda: autoencoder(picture)),
            "image_ms": float(np.median(setup.times_ms(image, min(3, setup.repeats)))),  # a second and more each
        }


def programs(setup: Setup, snapshot: Snapshot, export: Callable[[], Path]) -> Iterator[tuple[str, Any]]:
    """Programs of the repository that `export` makes, by the layout of their convolutions.

    call_ms: a call by batch, NumPy arrays in and out; load_s: until all graphs are captured; graphs: batches that have
    a CUDA graph; relative_l2: against the network in float32. `float32_norms`: the UNet with its normalisations in
    float32, between casts.
    """
    setup.check_time()
    served = {graph: export() / graph.name / "1" / "model.pt2" for graph in GRAPHS}
    float32_norms = setup.work / "float32_norms.pt2"
    for suffix, paths in {"": served, "-float32_norms": {UNET: float32_norms}}.items():
        if suffix:
            export_torch(UNET, UNET.build(snapshot), float32_norms, setup.precision, float32_norms=True)
        for layout in ("channels_last", "contiguous"):
            calls = {graph.name: _program(setup, graph, snapshot, path, layout) for graph, path in paths.items()}
            yield layout + suffix, calls


def _program(setup: Setup, graph: Graph, snapshot: Snapshot, path: Path, layout: str) -> dict[str, Any]:
    started = time.perf_counter()
    program = Program(path, setup.device, setup.rows(graph), channels_last=layout == "channels_last")
    load_s, few = time.perf_counter() - started, random_feeds(graph, 1)
    with torch.no_grad():
        reference = graph.build(snapshot).eval()(*map(torch.from_numpy, few.values())).numpy()
    return {
        "call_ms": {rows: setup.median_ms(partial(program, random_feeds(graph, rows))) for rows in setup.rows(graph)},
        "load_s": load_s,
        "graphs": program.buckets,
        "relative_l2": measure(reference, program(few), setup.precision).relative_l2,
    }
