"""The tensors of a request, checked and turned into rows. Knows NumPy arrays, nothing of Triton."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conditioning import LABELS, condition_of
from .errors import InvalidRequest
from .noise import LATENT_SHAPE, standard_normal
from .samplers import SAMPLERS, SamplerTable, left_out, sampler_table
from .settings import TINY_DECODER, Settings
from .timestep_grids import ALIGNED, LEADING, TIMESTEP_GRIDS

DEFAULT_STEPS, DEFAULT_SAMPLER, DEFAULT_ETA = 50, "ddim", 0.0
DECODERS = ("full", "tiny")
DEFAULT_DECODER = "full"
PREVIEW_DECODERS = ("latent", "tiny")
DEFAULT_PREVIEW_DECODER = "latent"
LARGEST_LATENT = 1000.0
"""Noise is of order 1; from far larger numbers the networks make infinities."""
NO_GUIDANCE, MOST_GUIDANCE = 1.0, 10.0
SCALAR = (1,)
DIMS = {"seed": SCALAR, "steps": SCALAR, "sampler": SCALAR, "eta": SCALAR, "timestep_grid": SCALAR, "decoder": SCALAR,
        "latent": LATENT_SHAPE, "guidance": SCALAR, "preview_every": SCALAR, "preview_decoder": SCALAR}  # fmt: skip
"""Input tensors to their dimensions after the rows; `labels` have the size of the image."""


@dataclass(frozen=True)
class RowParameters:
    """The parameters of one image."""

    seed: int
    steps: int
    sampler: str
    eta: float
    latent: NDArray[np.float32] | None = None
    preview_every: int = 0
    preview_decoder: str = DEFAULT_PREVIEW_DECODER
    timestep_grid: str = LEADING
    decoder: str = DEFAULT_DECODER
    labels: NDArray[np.uint8] | None = None
    guidance: float = NO_GUIDANCE

    def table(self, settings: Settings) -> SamplerTable:
        """The coefficients of this row's trajectory."""
        aligned = settings.aligned_timesteps
        return sampler_table(settings.noise_schedule, self.sampler, self.steps, self.eta, self.timestep_grid, aligned)

    def start(self) -> NDArray[np.float32]:
        """The latent [1, 64, 64] that the trajectory starts from."""
        return standard_normal(self.seed, 0) if self.latent is None else self.latent

    def condition(self, settings: Settings) -> NDArray[np.float32] | None:
        """What the UNet sees of the labels, [4, 64, 64]; None without labels."""
        return None if self.labels is None else condition_of(self.labels, settings.crop)

    def provenance(self, settings: Settings) -> str:
        """`record` as JSON."""
        return json.dumps(self.record(settings))

    def record(self, settings: Settings) -> dict[str, Any]:
        """How the image was made."""
        record = {
            "synthetic": True,
            "notice": "Synthetic image, no patient. For research only, not for diagnosis.",
            "seed": self.seed,
            "sampler": self.sampler,
            "steps": self.steps,
            "eta": 1.0 if self.sampler == "ddpm" else self.eta,
            "timestep_grid": self.timestep_grid,
            "start_noise": "seed" if self.latent is None else "given",
            "decoder": self.decoder,
            "model_name": settings.model_name,
            "model_digest": settings.digest,
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
        }
        if self.labels is not None:
            record |= {"labels_sha256": hashlib.sha256(self.labels.tobytes()).hexdigest(), "guidance": self.guidance}
        if self.timestep_grid == LEADING and (warning := left_out(settings.noise_schedule, self.steps)):
            record["warning"] = warning
        return record


def parse_rows(tensors: Mapping[str, NDArray[Any]], settings: Settings) -> list[RowParameters]:
    """Rows from input tensors with a leading batch dimension; optional tensors may be missing.

    Raises:
        InvalidRequest: a value outside its range, naming the row, the value and the range.
    """
    if "seed" not in tensors:  # Triton lets a request pass that lacks a required tensor but has an optional one
        raise InvalidRequest("seed is missing; give one number a row")
    _check_shapes(tensors, settings)
    rows = len(tensors["seed"])
    if rows > settings.max_rows_per_request:
        raise InvalidRequest(
            f"the request has {rows} rows; this server takes up to {settings.max_rows_per_request} in one request"
        )
    for name, tensor in tensors.items():
        if len(tensor) != rows:
            raise InvalidRequest(f"{name} has {len(tensor)} rows and seed has {rows}; give each row all tensors")
    return [_row(tensors, index, settings) for index in range(rows)]


def conditions_of_request(rows: Sequence[RowParameters], settings: Settings) -> NDArray[np.float32] | None:
    """What the UNet sees of the labels of all rows, [B, 4, 64, 64]; None if the request has none."""
    conditions = [row.condition(settings) for row in rows]
    given = [condition for condition in conditions if condition is not None]
    return np.stack(given) if given else None


def _check_shapes(tensors: Mapping[str, NDArray[Any]], settings: Settings) -> None:
    # Triton takes the number of rows that a client declares modulo 2^32, so the shapes may not agree.
    known = DIMS | {"labels": (1, settings.image_size, settings.image_size)}
    for name, tensor in tensors.items():
        if tensor.ndim != 1 + len(known[name]) or tensor.shape[1:] != known[name] or not len(tensor):
            allowed = ", ".join(map(str, ["rows", *known[name]]))
            raise InvalidRequest(f"{name} has shape {list(tensor.shape)}; it must be [{allowed}], with 1 row or more")


def _row(tensors: Mapping[str, NDArray[Any]], index: int, settings: Settings) -> RowParameters:
    def value(name: str, default: Any) -> Any:
        return tensors[name][index].reshape(-1)[0] if name in tensors else default

    sampler = _choice("sampler", value("sampler", DEFAULT_SAMPLER), SAMPLERS, index)
    steps = int(value("steps", DEFAULT_STEPS))
    max_steps = min(settings.max_steps, settings.noise_schedule.num_train_timesteps)
    if not 1 <= steps <= max_steps:
        raise InvalidRequest(f"steps is {steps}; it must lie in 1..{max_steps}", index)
    eta = float(value("eta", DEFAULT_ETA))
    if not 0 <= eta <= 1:  # also true of NaN
        raise InvalidRequest(f"eta is {eta:g}; it must lie in 0..1", index)
    eta = abs(round(eta, 7))  # 0.6 again, not float32's 0.60000002; and no -0.0
    if eta != 0 and sampler != "ddim":
        raise InvalidRequest(f"eta is {eta:g} with sampler {sampler}; only ddim takes an eta", index)
    grid = _grid(value("timestep_grid", LEADING), settings, index)
    preview_every = int(value("preview_every", 0))
    if preview_every < 0:
        raise InvalidRequest(f"preview_every is {preview_every}; it must be 0 (none) or more", index)
    preview = _choice("preview_decoder", value("preview_decoder", DEFAULT_PREVIEW_DECODER), PREVIEW_DECODERS, index)
    decoder = _decoder(value("decoder", DEFAULT_DECODER), settings, index)
    latent = _latent(tensors["latent"][index], index) if "latent" in tensors else None
    labels = _labels(tensors["labels"][index], settings, index) if "labels" in tensors else None
    guidance = _guidance(float(value("guidance", NO_GUIDANCE)), labels is not None, index)
    seed = int(tensors["seed"][index, 0])
    return RowParameters(seed, steps, sampler, eta, latent, preview_every, preview, grid, decoder, labels, guidance)


def _labels(labels: NDArray[np.uint8], settings: Settings, index: int) -> NDArray[np.uint8]:
    if not settings.takes_labels:
        raise InvalidRequest(
            "labels are given, but the weights of this server take none: leave them out, or export weights that were "
            "trained with unet.conditioning = labels"
        )
    if (others := np.argwhere(labels[0] > max(LABELS))).size:
        x, y = others[0]
        allowed = ", ".join(f"{value} {name}" for value, name in LABELS.items())
        raise InvalidRequest(f"labels hold {labels[0, x, y]} at [{x}, {y}]; a label is one of {allowed}", index)
    return labels.copy()  # Triton reuses the buffer


def _guidance(guidance: float, labelled: bool, index: int) -> float:
    if not NO_GUIDANCE <= guidance <= MOST_GUIDANCE:  # also true of NaN
        raise InvalidRequest(
            f"guidance is {guidance:g}; it must lie in {NO_GUIDANCE:g} (off) to {MOST_GUIDANCE:g}", index
        )
    if guidance != NO_GUIDANCE and not labelled:
        raise InvalidRequest(f"guidance is {guidance:g}, but there are no labels to follow; give labels too", index)
    return round(guidance, 6)  # 1.2 again, not float32's 1.2000000477


def _decoder(value: str | bytes, settings: Settings, index: int) -> str:
    decoder = _choice("decoder", value, DECODERS, index)
    if decoder == "tiny" and not settings.tiny_decode_batch:
        raise InvalidRequest(
            f"decoder is 'tiny', but this server's model.json names no {TINY_DECODER}: give decoder full, or run "
            "training.distil_decoder on the snapshot and export it again",
            index,
        )
    return decoder


def _grid(value: str | bytes, settings: Settings, index: int) -> str:
    grid = _choice("timestep_grid", value, TIMESTEP_GRIDS, index)
    if grid == ALIGNED and not settings.aligned_timesteps:
        raise InvalidRequest(
            "timestep_grid is 'aligned', but these weights have no aligned timesteps: give leading, log_snr or karras, "
            "or run training.align_steps on their snapshot and export it again",
            index,
        )
    return grid


def _choice(name: str, value: str | bytes, allowed: Sequence[str], index: int) -> str:
    word = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    if word not in allowed:
        raise InvalidRequest(f"{name} is {word[:40]!r}; it must be one of {', '.join(allowed)}", index)
    return word


def _latent(latent: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    if not np.isfinite(latent).all():
        raise InvalidRequest("latent holds NaN or infinity; it must be finite", index)
    if (largest := float(np.abs(latent).max())) > LARGEST_LATENT:
        raise InvalidRequest(f"latent holds {largest:g}; it must lie within {LARGEST_LATENT:g} of 0", index)
    return latent.copy()  # Triton reuses the buffer
