"""The wire format as pure functions: request → tensors, and result → arrays. No network calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import ProtocolError
from ._presets import DEFAULTS, GUIDANCE
from ._request import Previews, Request
from ._types import F32, Progress, QueueInfo
from .labels.maps import U8, digest

UNARY, STREAM = "mri_ldm", "mri_ldm_stream"


@dataclass(frozen=True, eq=False)
class Rows:
    """The answer to a request, row by row."""

    images: F32
    """[n, 240, 240]"""
    provenance: list[dict[str, Any]]
    """How each image was made; `model_digest` in it names the weights."""
    latents: F32 | None
    """[n, 64, 64]: the final latents, if the request asks for them."""


def infer_inputs(request: Request, previews: Previews | None = None) -> list[Any]:
    """tritonclient's input tensors for the rows of `request`."""
    n = len(request.seeds)
    tensors: dict[str, npt.NDArray[Any]] = {
        "seed": request.seeds[:, None],
        "steps": np.full((n, 1), request.steps, np.int32),
        "sampler": np.full((n, 1), request.sampler.encode(), np.object_),
    }
    if request.sampler == "ddim" or request.eta != 0:  # only DDIM has an eta; the server refuses the contradiction
        tensors["eta"] = np.full((n, 1), request.eta, np.float32)
    for name, default in DEFAULTS.items():  # an older server does not know the tensors
        if (value := getattr(request, name)) != default:
            tensors[name] = np.full((n, 1), value.encode(), np.object_)
    if request.latents is not None:
        tensors["latent"] = request.latents[:, None]
    if request.labels is not None:
        tensors["labels"] = np.ascontiguousarray(request.labels[:, None])
    if request.guidance != GUIDANCE:
        tensors["guidance"] = np.full((n, 1), request.guidance, np.float32)
    if previews is not None:
        tensors["preview_every"] = np.full((n, 1), previews.every, np.int32)
        if previews.decoder != "latent":  # an older server does not know the tensor
            tensors["preview_decoder"] = np.full((n, 1), previews.decoder.encode(), np.object_)
    return [_input(name, tensor) for name, tensor in tensors.items()]


_DATATYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "uint8": "UINT8", "object": "BYTES"}


def _input(name: str, tensor: npt.NDArray[Any]) -> Any:
    from tritonclient.grpc import InferInput

    described = InferInput(name, list(tensor.shape), _DATATYPES[tensor.dtype.name])
    described.set_data_from_numpy(tensor)
    return described


def requested(names: Sequence[str]) -> list[Any]:
    from tritonclient.grpc import InferRequestedOutput

    return [InferRequestedOutput(name) for name in names]


def outputs_of(request: Request) -> list[str]:
    return ["image", "provenance", *(["final_latent"] if request.return_latents else [])]


def progress_outputs(previews: Previews) -> list[str]:
    """The outputs of a stream beside those of the images."""
    decoded = ["preview_image", "preview_source"] if previews.decoder != "latent" else []
    return ["step", *(["preview", *decoded] if previews.every else [])]


def parse_rows(result: Any, request: Request) -> Rows:
    """The images, latents and records of an answer, in the order of the request's rows."""
    n = len(request.seeds)
    images = _planes(result, "image", n)
    latents = _planes(result, "final_latent", n) if request.return_latents else None
    records = parse_provenance(result, n)
    for seed, record in zip(request.seeds.tolist(), records, strict=True):
        if record.get("seed", seed) != seed:
            raise ProtocolError(f"the answer for seed {seed} is that of seed {record['seed']}")
    if request.labels is not None:
        _check_labels(request.labels, records)
    return Rows(images, records, latents)


def _check_labels(labels: U8, records: Sequence[Mapping[str, Any]]) -> None:
    for each, record in zip(labels, records, strict=True):
        if record.get("labels_sha256") != digest(each):
            raise ProtocolError(
                f"the image of seed {record.get('seed')} was made with the labels {record.get('labels_sha256')}, and "
                f"{digest(each)} were sent: is the server of this client's version?"
            )


def parse_provenance(result: Any, n: int) -> list[dict[str, Any]]:
    cells = _tensor(result, "provenance", (n, 1), np.object_)[:, 0]
    try:
        records = [json.loads(cell) for cell in cells]
    except ValueError as error:
        raise ProtocolError(f"provenance is not JSON: {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise ProtocolError("provenance is not a JSON object a row")
    return records


def parse_progress(result: Any, request: Request) -> Progress:
    """The step of each row and, where the answer has them, its previews."""
    n = len(request.seeds)
    step = _tensor(result, "step", (n, 1), np.int32)[:, 0]
    previews, images = (
        _planes(result, name, n) if has_output(result, name) else None for name in ("preview", "preview_image")
    )
    return Progress(step, request.steps, previews, images, "latent" if images is None else "tiny")


def parse_start_latents(result: Any, n: int) -> F32:
    """The start noise [n, 64, 64] of an answer."""
    return _planes(result, "start_latent", n)


def parse_queue(result: Any, model: str) -> QueueInfo:
    """The queue in an answer for one row."""
    cell = _tensor(result, "queue", (1, 1), np.object_)[0, 0]
    names = [field.name for field in fields(QueueInfo) if field.name != "model"]
    try:
        told = json.loads(cell)
        return QueueInfo(model, **{name: told[name] for name in names})
    except (ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"output queue of {model} is not the JSON object expected: {error!r}") from error


def _planes(result: Any, name: str, n: int) -> F32:
    """An output of one plane a row, [n, 1, y, x], as [n, y, x]."""
    planes: F32 = _tensor(result, name, (n, 1, None, None), np.float32)[:, 0]
    return planes


def has_output(result: Any, name: str) -> bool:
    return result.get_output(name) is not None


def _tensor(result: Any, name: str, shape: tuple[int | None, ...], dtype: Any) -> npt.NDArray[Any]:
    try:
        array = result.as_numpy(name)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"output {name} cannot be read: {error}") from error
    if array is None:
        raise ProtocolError(f"the answer has no output {name}: is the server of this client's version?")
    fits = len(array.shape) == len(shape) and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        raise ProtocolError(f"output {name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    return np.asarray(array)
