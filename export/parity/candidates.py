"""Both networks of a repository in each runtime and precision that runs here, behind one pair of functions."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from export import executed
from export.configs import takes_condition
from export.executed import NotRunHere, compile_for_openvino
from export.graphs import CONDITION, UNET, UNET_LABELS, VAE_DECODER, Decoder, Denoiser, Graph, random_inputs
from export.onnx.run import cpu_session, feeds_of, run_onnx
from export.onnx.write import onnx_file
from export.precision import DTYPES, Precision, reduced_precision
from export.tensorrt.build import PlanError
from export.tensorrt.plans import Engine


@dataclass(frozen=True)
class Candidate:
    """Both networks in one runtime, on tensors of the CPU."""

    runtime: str
    precision: Precision
    denoise: Callable[..., Tensor]
    """(latent [B, 1, 64, 64], timesteps int32 [B, 1]) -> predicted noise."""
    decode: Callable[..., Tensor]
    """Scaled latent [B, 1, 64, 64] -> image [B, 1, 256, 256]."""

    def network(self, graph: Graph) -> Callable[..., Tensor]:
        """The one that `graph` describes."""
        return {"unet": self.denoise, "vae_decoder": self.decode}[graph.name]


def without_labels(repository: Path, network: Callable[[Graph], Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The denoiser of a repository, which `network` loads, as a function of latent and timesteps: no map is given."""
    if not takes_condition(repository / UNET.name):
        return network(UNET)
    denoise = network(UNET_LABELS)
    return lambda latent, timesteps: denoise(latent, torch.zeros(len(latent), *CONDITION.shape), timesteps)


def in_torch(denoiser: Denoiser, decoder: Decoder, precision: Precision) -> Candidate:
    """The networks themselves, or reduced copies of them."""
    unet, vae = (reduced_precision(module, DTYPES[precision]).eval() for module in (denoiser, decoder))
    return Candidate("PyTorch", precision, unet, vae)


def in_onnxruntime(repository: Path, precision: Precision) -> Candidate:
    """The ONNX files, on the CPU.

    Raises:
        NotRunHere: ONNX Runtime's kernels for this CPU compute them in another precision.
    """

    def network(graph: Graph) -> Callable[..., Tensor]:
        path = repository / graph.name / "1" / onnx_file(precision)
        # Reduced files keep some layers in float32, so other precisions may be there too.
        precisions = executed.in_onnxruntime(path, feeds_of(graph, random_inputs(graph, rows=1, seed=0)))
        if precision not in precisions:
            raise NotRunHere(f"ONNX Runtime computes {path.name} in {' and '.join(sorted(precisions))} on this CPU")
        session = cpu_session(path)
        return lambda *inputs: torch.from_numpy(run_onnx(graph, session, inputs))

    name = f"ONNX Runtime {onnxruntime.__version__}"
    return Candidate(name, precision, without_labels(repository, network), network(VAE_DECODER))


def in_openvino(repository: Path, precision: Precision, decoder: Precision | None = None) -> Candidate:
    """The ONNX files in OpenVINO on the CPU, in fp32 or bf16, compiled for one row as the profile openvino serves them.

    `decoder` is the precision of the decoder, if it differs from the UNet's. A CPU with AVX-512 and without bf16
    emulates bf16: the rounding is the same, and the time is ten times that of fp32.

    Raises:
        NotRunHere: this CPU has neither bf16 nor AVX-512.
    """
    import openvino

    def network(graph: Graph, precision: Precision) -> Callable[..., Tensor]:
        shapes = {spec.name: [1, *spec.shape] for spec in graph.inputs}
        compiled = compile_for_openvino(repository / graph.name / "1" / onnx_file("fp32"), shapes, precision)
        names = [spec.name for spec in graph.inputs]

        def run(*inputs: Tensor) -> Tensor:
            rows = zip(*(tensor.numpy()[:, None] for tensor in inputs), strict=True)
            return torch.from_numpy(np.concatenate([compiled(dict(zip(names, row, strict=True)))[0] for row in rows]))

        return run

    version = openvino.__version__.partition("-")[0]
    unet = without_labels(repository, lambda graph: network(graph, precision))
    return Candidate(f"OpenVINO {version}", precision, unet, network(VAE_DECODER, decoder or precision))


def in_tensorrt(repository: Path, stamps: Sequence[dict[str, Any]]) -> Candidate:
    """The plans, one of each network.

    Raises:
        PlanError: one is missing, or they do not run here.
    """
    by_model = {stamp["model"]: stamp for stamp in stamps}

    def network(graph: Graph) -> Callable[..., Tensor]:
        if graph.name not in by_model:
            raise PlanError(f"{graph.name} has none")
        stamp = by_model[graph.name]
        content = (repository / stamp["file"]).read_bytes()
        engine = Engine(graph, stamp["runtime"], content, bool(stamp["options"].get("version_compatible")))
        return lambda *inputs: torch.from_numpy(engine(inputs)[0])

    stamp = stamps[0]
    unet = without_labels(repository, network)
    return Candidate(f"{stamp['runtime']} {stamp['version']}", stamp["precision"], unet, network(VAE_DECODER))


def candidates(
    repository: Path, denoiser: Denoiser, decoder: Decoder, report: Callable[[str], None] = print
) -> Iterator[Candidate]:
    """What the repository holds and this machine runs; `report` gets a line about the rest.

    fp16 and bf16 are measured in PyTorch where ONNX Runtime computes in another precision, as on most CPUs. The gate
    (export.parity.gate) measures OpenVINO in bf16.
    """
    unet = repository / "unet" / "1"
    yield in_onnxruntime(repository, "fp32")
    if importlib.util.find_spec("openvino"):
        yield in_openvino(repository, "fp32")
    reduced: tuple[Precision, ...] = ("fp16", "bf16")
    for precision in reduced:
        if (unet / onnx_file(precision)).is_file():
            try:
                yield in_onnxruntime(repository, precision)
            except NotRunHere as error:
                report(f"{precision} in ONNX Runtime: not run here: {error}; measured in PyTorch instead")
                yield in_torch(denoiser, decoder, precision)
    if stamps := json.loads((repository / "manifest.json").read_text()).get("plans", []):
        try:
            yield in_tensorrt(repository, stamps)
        except PlanError as error:
            report(f"the plans are not measured: {error}")
