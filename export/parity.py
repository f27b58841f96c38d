"""How far images drift in each precision and runtime: float32 in PyTorch against what a repository holds.

    python -m export.parity RUN/snapshot build/model_repository --out parity.json

For each file of the repository that runs here: both networks on random inputs, and whole images of many seeds by the
reference loop (training.sample), compared with PyTorch's of the same seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from export.graphs import Decoder, Denoiser, Graph
    from export.precision import Precision
    from training.checkpoint import Snapshot

# The least PSNR of an image, in dB for a data range of 1: 50 steps feed each error into the next, so it depends on the
# weights more than on the runtime. 45 dB is a root mean square error of 0.6 % of the range, 35 dB one of 1.8 %.
LEAST_PSNR: dict[str, float] = {
    "fp32": 70.0,  # seen: 100 and more
    "tf32": 45.0,
    "fp16": 45.0,  # seen: 75
    "bf16": 35.0,  # seen: 52
}


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


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.parity",
        description="Compare a repository's networks and images with PyTorch in float32. The exit status is 1 where "
        "something drifts further than its precision may.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder; export.from_monai makes one of MONAI's weights")
    parser.add_argument("repository", type=Path, help="what export made of them: every ONNX file and plan is measured")
    parser.add_argument("--seeds", type=int, default=16, help="images of the seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of an image (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images made at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    if min(arguments.seeds, arguments.steps, arguments.batch) < 1 or arguments.steps > 1000:
        parser.error("--seeds and --batch must be 1 or more, --steps 1 to 1000")
    return arguments


def in_torch(denoiser: Denoiser, decoder: Decoder, precision: Precision) -> Candidate:
    """The networks themselves, or reduced copies of them."""
    from export.precision import DTYPES, reduced_precision

    unet, vae = (reduced_precision(module, DTYPES[precision]).eval() for module in (denoiser, decoder))
    return Candidate("PyTorch", precision, unet, vae)


def in_onnxruntime(repository: Path, precision: Precision) -> Candidate:
    """The ONNX files, on the CPU."""
    import onnxruntime
    import torch

    from export.compare import cpu_session, run_onnx
    from export.graphs import UNET, VAE_DECODER
    from export.to_onnx import onnx_file

    def network(graph: Graph) -> Callable[..., Tensor]:
        session = cpu_session(repository / graph.name / "1" / onnx_file(precision))
        return lambda *inputs: torch.from_numpy(run_onnx(graph, session, inputs))

    name = f"ONNX Runtime {onnxruntime.__version__}"
    return Candidate(name, precision, network(UNET), network(VAE_DECODER))


def in_tensorrt(repository: Path, stamps: Sequence[dict[str, Any]]) -> Candidate:
    """The plans, one of each network.

    Raises:
        PlanError: one is missing, or they do not run here.
    """
    import torch

    from export.graphs import UNET, VAE_DECODER
    from export.plans import Engine
    from export.to_tensorrt import PlanError

    by_model = {stamp["model"]: stamp for stamp in stamps}

    def network(graph: Graph) -> Callable[..., Tensor]:
        if graph.name not in by_model:
            raise PlanError(f"{graph.name} has none")
        stamp = by_model[graph.name]
        content = (repository / stamp["file"]).read_bytes()
        engine = Engine(graph, stamp["runtime"], content, bool(stamp["options"].get("version_compatible")))
        return lambda *inputs: torch.from_numpy(engine(inputs))

    stamp = stamps[0]
    return Candidate(f"{stamp['runtime']} {stamp['version']}", stamp["precision"], network(UNET), network(VAE_DECODER))


def candidates(
    repository: Path, denoiser: Denoiser, decoder: Decoder, report: Callable[[str], None] = print
) -> Iterator[Candidate]:
    """What the repository holds and this machine runs; the rest is reported.

    bf16 is measured in PyTorch: ONNX Runtime's kernels for CPUs refuse it.
    """
    from export.to_onnx import onnx_file
    from export.to_tensorrt import PlanError

    unet = repository / "unet" / "1"
    yield in_onnxruntime(repository, "fp32")
    if (unet / onnx_file("fp16")).is_file():
        yield in_onnxruntime(repository, "fp16")
    if (unet / onnx_file("bf16")).is_file():
        yield in_torch(denoiser, decoder, "bf16")
    if stamps := json.loads((repository / "manifest.json").read_text()).get("plans", []):
        try:
            yield in_tensorrt(repository, stamps)
        except PlanError as error:
            report(f"the plans are not measured: {error}")


def generate(
    candidate: Candidate, snapshot: Snapshot, seeds: Sequence[int], steps: int, batch: int, bar: tqdm
) -> Tensor:
    """Images float32 [n, 1, size, size] of `seeds`, clipped by nothing, by the reference loop."""
    import numpy as np
    import torch

    from training.sample import ddim_trajectory, decode, start_noise

    def unet(latents: Tensor, timesteps: Tensor) -> Tensor:
        return candidate.denoise(latents, timesteps[:, None].int())

    images = []
    for first in range(0, len(seeds), batch):
        noise = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
        for latents, _ in ddim_trajectory(unet, snapshot.config.noise_schedule, noise, steps):
            bar.update(len(latents))
        decoder = SimpleNamespace(decode=candidate.decode)
        images.append(decode(decoder, latents, scale_factor=1.0, size=snapshot.config.data.size))
    return torch.cat(images)


def compare_images(images: Tensor, reference: Tensor) -> dict[str, float]:
    """The worst and the mean over images [n, 1, H, W] of PSNR (dB) and SSIM for a data range of 1; and differences."""
    from training.metrics import reconstruction_metrics

    measured = reconstruction_metrics(images, reference)
    difference = images - reference
    return {
        "max_abs": float(difference.abs().max()),
        "relative_l2": float(difference.norm() / reference.norm()),
        **{
            f"{name}_{kind}": float(getattr(values, kind)())
            for name, values in measured.items()
            for kind in ("min", "mean")
        },
    }


def measure(snapshot: Snapshot, repository: Path, seeds: Sequence[int], steps: int, batch: int) -> list[dict[str, Any]]:
    """A record for each candidate, with `problems`: what is further off than its precision may be."""
    import torch
    from tqdm import tqdm

    from export.graphs import UNET, VAE_DECODER

    denoiser, decoder = (graph.build(snapshot).eval() for graph in (UNET, VAE_DECODER))
    reference = in_torch(denoiser, decoder, "fp32")
    found = list(candidates(repository, denoiser, decoder))
    records = []
    with torch.no_grad(), tqdm(total=(1 + len(found)) * len(seeds) * steps, unit="step", disable=None) as bar:
        bar.set_description("float32")
        expected = generate(reference, snapshot, seeds, steps, batch, bar)
        for candidate in found:
            bar.set_description(f"{candidate.runtime} {candidate.precision}")
            images = compare_images(generate(candidate, snapshot, seeds, steps, batch, bar), expected)
            records.append(_record(candidate, reference, images))
    return records


def _record(candidate: Candidate, reference: Candidate, images: dict[str, float]) -> dict[str, Any]:
    from export.compare import measure as measure_network
    from export.graphs import GRAPHS, random_inputs

    record: dict[str, Any] = {"runtime": candidate.runtime, "precision": candidate.precision}
    problems = []
    for graph in GRAPHS:
        inputs = random_inputs(graph, graph.opt_batch_size, seed=1)
        expected, answer = (side.network(graph)(*inputs).numpy() for side in (reference, candidate))
        parity = measure_network(expected, answer, candidate.precision)
        record[graph.name] = parity.record()
        if not parity.passed:
            problems.append(
                f"{graph.name}: relative L2 {parity.relative_l2:.1e}, not {parity.tolerance_relative_l2:.0e}"
            )
    least = LEAST_PSNR[candidate.precision]
    if not images["psnr_min"] >= least:
        problems.append(f"an image has a PSNR of {images['psnr_min']:.1f} dB, not {least:.0f} dB or more")
    return record | {"images": images | {"tolerance_psnr": least}, "problems": problems}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    columns = (
        *("runtime", "precision", "UNet, relative L2", "decoder, relative L2"),
        *("image PSNR, worst (mean)", "SSIM, worst (mean)", "largest error of a pixel"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for record in records:
        images = record["images"]
        lines.append(
            f"| {record['runtime']} | {record['precision']} | {record['unet']['relative_l2']:.1e} "
            f"| {record['vae_decoder']['relative_l2']:.1e} | {images['psnr_min']:.1f} ({images['psnr_mean']:.1f}) dB "
            f"| {images['ssim_min']:.4f} ({images['ssim_mean']:.4f}) | {images['max_abs']:.1e} |"
        )
    return "\n".join(lines)


def _run(arguments: argparse.Namespace) -> list[str]:
    import torch

    from export.repository import RepositoryError
    from training.checkpoint import load_snapshot
    from training.files import write_text

    if not (arguments.repository / "manifest.json").is_file():
        raise RepositoryError(f"{arguments.repository} is no exported repository: python -m export writes one")
    snapshot = load_snapshot(arguments.snapshot)
    records = measure(snapshot, arguments.repository, range(arguments.seeds), arguments.steps, arguments.batch)
    print(table(records))
    if arguments.out is not None:
        name = json.loads((arguments.repository / "manifest.json").read_text())["name"]
        report = {"weights": name, "seeds": arguments.seeds, "steps": arguments.steps, "torch": torch.__version__}
        write_text(arguments.out, json.dumps(report | {"results": records}, indent=2) + "\n")
    return [f"{record['runtime']} {record['precision']}: {text}" for record in records for text in record["problems"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)
    try:
        problems = _run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
