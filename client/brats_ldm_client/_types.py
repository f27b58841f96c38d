"""What the client hands back: plain frozen dataclasses. No network code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]
I64: TypeAlias = npt.NDArray[np.int64]
I32: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Generation:
    """Synthetic slices and how they were made; row i of each field belongs to image i."""

    images: F32  # [n, 240, 240], axis 0 = patient x towards Right, axis 1 = y towards Anterior, 1 mm, not clipped
    seeds: I64  # [n]
    steps: int
    sampler: str
    eta: float
    provenance: tuple[Mapping[str, Any], ...]  # the server's record of each image
    seconds: float  # wall-clock time of the whole call
    latents: F32 | None = field(default=None, repr=False)  # [n, 64, 64], with return_latents=True

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape))
        seeds = [str(seed) for seed in self.seeds[:4].tolist()] + ["..."] * (len(self) > 4)
        return (
            f"Generation({shape} float32, seeds=[{', '.join(seeds)}], "
            f"steps={self.steps}, sampler={self.sampler!r}, eta={self.eta:g}, seconds={self.seconds:.2f})"
        )

    def save(
        self, folder: str | Path, format: str | Sequence[str] = "png", *, contact_sheet: bool = True
    ) -> list[Path]:
        """Write the images as "png", "nifti" or "npz" (or several) and `provenance.json`; returns the paths.

        Files of the same seed from an earlier call are replaced.
        """
        from ._writers import FolderWriter

        writer = FolderWriter(folder, format, contact_sheet=contact_sheet)
        writer.add(self)
        return writer.close()


@dataclass(frozen=True, eq=False)
class Progress:
    """One event of a stream: how far each image is, and what it looks like so far."""

    step: I32  # [n], of `total`
    total: int
    previews: F32 | None = field(repr=False)  # [n, 64, 64], the estimate of the final latent: a viewable thumbnail


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model, per row."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """One model of the server; the rest is empty when it is not ready."""

    name: str
    ready: bool
    max_batch_size: int = 0
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerInfo:
    """What answers at the address."""

    url: str
    name: str
    version: str
    models: tuple[ModelInfo, ...]
    model_digest: str | None  # None when the unary model is not ready
    provenance: Mapping[str, Any]  # the record of a one-step probe: versions and defaults

    def __str__(self) -> str:
        lines = [f"server   {self.name} {self.version} at {self.url}", f"digest   {self.model_digest or 'unknown'}"]
        lines += [f"{key:8} {value}" for key, value in sorted(dict(self.provenance.get("versions") or {}).items())]
        for model in self.models:
            state = f"ready, at most {model.max_batch_size} images a request" if model.ready else "NOT READY"
            lines.append(f"\nmodel {model.name}: {state}")
            for kind, tensors in (("in", model.inputs), ("out", model.outputs)):
                for tensor in tensors:
                    optional = "  optional" if tensor.optional else ""
                    lines.append(f"  {kind:4}{tensor.name:14}{tensor.datatype:7}{list(tensor.dims)}{optional}")
        return "\n".join(lines)
