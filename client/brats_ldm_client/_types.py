"""What the client hands back: plain frozen dataclasses. No network code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._presets import DECODER, GRID, GUIDANCE, named
from .labels.maps import U8, digest

F32: TypeAlias = npt.NDArray[np.float32]
I64: TypeAlias = npt.NDArray[np.int64]
I32: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Slice:
    """One synthetic slice and how it was made."""

    image: F32 = field(repr=False)
    """[240, 240]: axis 0 points to the patient's right, axis 1 to anterior; 1 mm pixels, not clipped."""
    seed: int
    record: Mapping[str, Any] = field(repr=False)
    """How it was made: seed, sampler, steps, eta, timestep_grid, decoder, model_digest, versions, synthetic (true)."""
    latent: F32 | None = field(default=None, repr=False)
    """[64, 64], with `return_latents=True`."""
    labels: U8 | None = field(default=None, repr=False)
    """[240, 240]: the label map that the image was made with."""


@dataclass(frozen=True, eq=False)
class Generation:
    """Synthetic slices and how they were made. Row i of each array belongs to image i."""

    images: F32
    """[n, 240, 240]: axis 0 points to the patient's right, axis 1 to anterior; 1 mm pixels, not clipped."""
    seeds: I64
    """[n]"""
    steps: int
    sampler: str
    eta: float
    provenance: tuple[Mapping[str, Any], ...]
    """The server's record of each image."""
    seconds: float
    """Wall-clock time of the whole call."""
    latents: F32 | None = field(default=None, repr=False)
    """[n, 64, 64], with `return_latents=True`."""
    timestep_grid: str = GRID
    decoder: str = DECODER
    labels: U8 | None = field(default=None, repr=False)
    """[n, 240, 240]: the label maps that the images were made with."""
    guidance: float = GUIDANCE

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Slice:
        """One of the images, with its own record."""
        seed = int(self.seeds[index])
        asked = {"synthetic": True, "seed": seed, "sampler": self.sampler, "steps": self.steps, "eta": self.eta}
        asked |= {"timestep_grid": self.timestep_grid, "decoder": self.decoder}
        latent, labels = (None if each is None else each[index] for each in (self.latents, self.labels))
        if labels is not None:
            asked |= {"labels_sha256": digest(labels), "guidance": self.guidance}
        record = {**asked, **self.provenance[index], "synthetic": True}
        return Slice(self.images[index], seed, record, latent, labels)

    def __iter__(self) -> Iterator[Slice]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape))
        seeds = [str(seed) for seed in self.seeds[:4].tolist()] + ["..."] * (len(self) > 4)
        others = named({"timestep_grid": self.timestep_grid, "decoder": self.decoder})
        others |= {} if self.labels is None else {"guidance": self.guidance}
        more = "".join(f", {name}={value!r}" for name, value in others.items())
        return (
            f"Generation({shape} float32, seeds=[{', '.join(seeds)}], "
            f"steps={self.steps}, sampler={self.sampler!r}, eta={self.eta:g}{more}, seconds={self.seconds:.2f})"
        )

    def save(
        self, folder: str | Path, format: str | Sequence[str] = "png", *, contact_sheet: bool = True
    ) -> list[Path]:
        """Write the images and `provenance.json` into a folder. Files of the same seeds are replaced.

        Args:
            folder: The folder; made if it does not exist.
            format: "png", "png16", "nifti", "dicom", "npz" or "task01", or several of them. DICOM needs the extra
                "dicom", and task01 images with labels.
            contact_sheet: Also write all images into one picture, `contact_sheet.png`.

        Returns:
            The paths of the files.
        """
        from ._writers import FolderWriter

        writer = FolderWriter(folder, format, contact_sheet=contact_sheet)
        for made in self:
            writer.add(made)
        return writer.close()


@dataclass(frozen=True, eq=False)
class Progress:
    """One event of a stream: the progress of each image, and a preview of it."""

    step: I32
    """[n]: steps done, of `total`."""
    total: int
    """Steps of each image."""
    previews: F32 | None = field(repr=False)
    """[n, 64, 64]: estimates of the final latents, which look like small images."""
    images: F32 | None = field(default=None, repr=False)
    """[n, 240, 240]: the same estimates as images, where the server decoded them: with `preview_decoder="tiny"`."""
    source: str = "latent"
    """"tiny" if there are `images`, made by the server's small decoder; otherwise "latent"."""


@dataclass(frozen=True)
class QueueInfo:
    """What one model of the server has to do now, as `Client.queue` returns it. A row is an image in progress."""

    model: str
    rows_in_flight: int
    """Rows that took the last step or are decoded."""
    rows_waiting: int
    """All other rows."""
    row_steps_left: int
    """Steps still to do, summed over all rows."""
    max_rows_in_flight: int
    max_rows_waiting: int
    draining: bool
    """The server is stopping, and takes no new requests."""
    seconds_left: float | None
    """Estimate for the steps that are left, without decoding; None before the server has measured a step."""

    def __str__(self) -> str:
        seconds = "" if self.seconds_left is None else f", about {self.seconds_left:.1f} s"
        return (
            f"{self.model}: {self.rows_in_flight} rows in flight and {self.rows_waiting} waiting, "
            f"at most {self.max_rows_in_flight + self.max_rows_waiting}; {self.row_steps_left} steps left{seconds}"
            + ("; stopping" if self.draining else "")
        )


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model, per row."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """One model of the server. If it is not ready, the other fields are empty."""

    name: str
    ready: bool
    max_batch_size: int = 0
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerInfo:
    """The server at an address, as `Client.info` returns it."""

    url: str
    name: str
    version: str
    models: tuple[ModelInfo, ...]
    model_digest: str | None
    """Identifies the weights; None if `mri_ldm` is not ready."""
    provenance: Mapping[str, Any]
    """The record of an image of one step: versions and defaults."""

    def __str__(self) -> str:
        lines = [f"server   {self.name} {self.version} at {self.url}", f"digest   {self.model_digest or 'unknown'}"]
        lines += [f"{key:8} {value}" for key, value in sorted(dict(self.provenance.get("versions") or {}).items())]
        for model in self.models:
            state = f"ready, at most {model.max_batch_size} images a request" if model.ready else "NOT READY"
            lines.append(f"\nmodel {model.name}: {state}")
            for kind, tensors in (("in", model.inputs), ("out", model.outputs)):
                for tensor in tensors:
                    optional = "  optional" if tensor.optional else ""
                    lines.append(f"  {kind:4}{tensor.name:15} {tensor.datatype:6} {list(tensor.dims)}{optional}")
        return "\n".join(lines)
