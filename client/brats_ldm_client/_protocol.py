"""The wire format as pure functions: arguments → request → tensors, and result → arrays. No network calls.

The server is the authority on ranges. Here only what the types need is checked, and what no answer could
explain: not-a-number, no rows, arguments that contradict each other.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest, ProtocolError
from ._presets import resolve
from ._types import F32, I64, Progress, QueueInfo

UNARY, STREAM = "mri_ldm", "mri_ldm_stream"
MAX_ROWS = 64  # the models' max_batch_size
INT64 = np.iinfo(np.int64)
INT32 = np.iinfo(np.int32)
# Random base seeds stay far from the edge of int64, and below 2**53 so that any JSON reader keeps them exact.
_RANDOM_SEEDS = 2**48


@dataclass(frozen=True, eq=False)
class Request:
    """A checked request of n rows; one row = one image = one seed."""

    seeds: I64
    """[n]"""
    steps: int
    sampler: str
    eta: float
    latents: F32 | None
    """[n, 64, 64]: the start noise, used instead of the noise of the seeds."""
    return_latents: bool

    def split(self, rows: int) -> Iterator[Request]:
        """Requests of at most so many rows."""
        for start in range(0, len(self.seeds), rows):
            part = slice(start, start + rows)
            latents = None if self.latents is None else self.latents[part]
            yield replace(self, seeds=self.seeds[part], latents=latents)


@dataclass(frozen=True)
class Previews:
    """What a stream should show on the way: after every so many steps (0: nothing), decoded by what."""

    every: int = 1
    decoder: str = "latent"


@dataclass(frozen=True, eq=False)
class Rows:
    """The answer to a request, row by row."""

    images: F32
    """[n, 240, 240]"""
    provenance: list[dict[str, Any]]
    """How each image was made; `model_digest` in it names the weights."""
    latents: F32 | None
    """[n, 64, 64]: the final latents, if the request asks for them."""


def seeds_for(n: int, seed: int | None) -> I64:
    """n consecutive seeds from `seed`; without one from a random base, chosen here so that a retry is the same."""
    n = _integer("n", n)
    if n < 1:
        raise InvalidRequest(f"n must be at least 1, not {n}")
    base = secrets.randbelow(_RANDOM_SEEDS) if seed is None else _integer("seed", seed)
    if not INT64.min <= base <= INT64.max - (n - 1):
        raise InvalidRequest(f"seeds {base} to {base + n - 1} do not fit in int64: lower the seed")
    # Through Python ints: the sum base + arange(n) would wrap silently at the edge.
    return np.arange(n, dtype=np.int64) + np.int64(base)


def make_request(
    n_or_seeds: int | Sequence[int] | npt.NDArray[Any] | None,
    *,
    seeds: Sequence[int] | npt.NDArray[Any] | None = None,
    seed: int | None = None,
    preset: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float = 0.0,
    latents: npt.NDArray[Any] | None = None,
    return_latents: bool = False,
) -> Request:
    """The arguments of `generate` and `stream` as a checked request."""
    how = resolve(preset, steps, sampler, eta)
    start = None if latents is None else _latents(latents)
    rows = _seeds(n_or_seeds, seeds, seed, start)
    if start is not None and len(start) != len(rows):
        raise InvalidRequest(f"{len(start)} latents do not fit {len(rows)} seeds: pass one latent a seed")
    if not isinstance(how.sampler, str) or not how.sampler:
        raise InvalidRequest(f"sampler must be a name such as 'ddim', not {how.sampler!r}")
    return Request(
        rows, _int32("steps", how.steps), how.sampler, _finite("eta", eta), start, return_latents=bool(return_latents)
    )


def requests_for(seeds: Iterable[int], rows: int, how: Request) -> Iterator[Request]:
    """Requests of at most `rows` rows that are made as `how`. Seeds are taken when a request needs them."""
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
        raise InvalidRequest(f"seeds must be integers in any iterable, such as range(1000), not {seeds!r}")
    source = iter(seeds)
    return (replace(how, seeds=_explicit_seeds(some)) for some in iter(lambda: list(islice(source, rows)), []))


def _seeds(n_or_seeds: Any, seeds: Any, seed: int | None, latents: F32 | None) -> I64:
    given, n = seeds, n_or_seeds
    if n_or_seeds is not None and not _is_integer(n_or_seeds):
        if seeds is not None:
            raise InvalidRequest("seeds are given twice: as the first argument and as seeds=")
        given, n = n_or_seeds, None
    if given is None:
        if n is None and latents is None:
            raise InvalidRequest("say how many images: generate(8), or which: generate([1, 5, 9])")
        return seeds_for(len(latents) if n is None and latents is not None else n, seed)
    if seed is not None:
        raise InvalidRequest("pass seed= (the first of n consecutive seeds) or seeds, not both")
    row_seeds = _explicit_seeds(given)
    if n is not None and n != len(row_seeds):
        raise InvalidRequest(f"n={n} contradicts the {len(row_seeds)} seeds: leave n out")
    return row_seeds


def _explicit_seeds(seeds: Any) -> I64:
    if isinstance(seeds, (str, bytes)) or np.ndim(seeds) != 1:
        raise InvalidRequest(f"seeds must be a flat sequence of integers, not {seeds!r}")
    values = [_integer("seed", value) for value in seeds]
    if not values:
        raise InvalidRequest("seeds is empty: pass at least one")
    for value in values:
        if not INT64.min <= value <= INT64.max:
            raise InvalidRequest(f"seed {value} does not fit in int64")
    return np.array(values, dtype=np.int64)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _integer(name: str, value: Any) -> int:
    if not _is_integer(value):
        raise InvalidRequest(f"{name} must be an integer, not {value!r}")
    return int(value)


def _int32(name: str, value: Any) -> int:
    number = _integer(name, value)
    if not INT32.min <= number <= INT32.max:
        raise InvalidRequest(f"{name}={number} does not fit in int32")
    return number


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(number):
        raise InvalidRequest(f"{name} must be finite, not {number}")
    return number


def _latents(latents: Any) -> F32:
    array = np.asarray(latents)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3 or len(array) == 0 or array.dtype.kind != "f":
        raise InvalidRequest(f"latents must be floats of shape (n, 64, 64), not {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidRequest("latents hold a value that is not finite")
    return np.ascontiguousarray(array, dtype=np.float32)


def previews_of(preview_every: Any, preview_decoder: Any) -> Previews:
    """The arguments of `stream` that concern previews, checked."""
    if not isinstance(preview_decoder, str) or not preview_decoder:
        raise InvalidRequest(f"preview_decoder must be 'latent' or 'tiny', not {preview_decoder!r}")
    return Previews(_int32("preview_every", preview_every), preview_decoder)


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
    if request.latents is not None:
        tensors["latent"] = request.latents[:, None]
    if previews is not None:
        tensors["preview_every"] = np.full((n, 1), previews.every, np.int32)
        if previews.decoder != "latent":  # an older server does not know the tensor
            tensors["preview_decoder"] = np.full((n, 1), previews.decoder.encode(), np.object_)
    return [_input(name, tensor) for name, tensor in tensors.items()]


_DATATYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "object": "BYTES"}


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
    return Rows(images, records, latents)


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
