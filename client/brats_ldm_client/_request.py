"""Arguments → a checked request. No network calls.

The server is the authority on ranges and names. Here only what the types need is checked, and what no answer could
explain: not-a-number, no rows, arguments that contradict each other.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest
from ._presets import DECODER, GRID, GUIDANCE, PRESETS, Sampling
from ._types import F32, I64
from .labels.maps import U8
from .labels.source import Labels, Rows

MAX_ROWS = 64  # the models' max_batch_size
INT64 = np.iinfo(np.int64)
INT32 = np.iinfo(np.int32)
ONE_STEP = Sampling("ddim", 1)
"""For requests whose answers are no images that anybody wants: a probe, start noise, the queue."""
# Random base seeds stay far from the edge of int64, and below 2**53 so that any JSON reader keeps them exact.
_RANDOM_SEEDS = 2**48
_SAMPLING = [field.name for field in fields(Sampling)]


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
    timestep_grid: str = GRID
    decoder: str = DECODER
    labels: U8 | None = None
    """[n, 240, 240]: the label maps."""
    guidance: float = GUIDANCE

    def sampling(self) -> dict[str, Any]:
        """How the images are made, as keyword arguments of a client's methods."""
        return {name: getattr(self, name) for name in _SAMPLING}

    def split(self, rows: int) -> Iterator[Request]:
        """Requests of at most so many rows."""
        for start in range(0, len(self.seeds), rows):
            part = slice(start, start + rows)
            latents = None if self.latents is None else self.latents[part]
            labels = None if self.labels is None else self.labels[part]
            yield replace(self, seeds=self.seeds[part], latents=latents, labels=labels)


@dataclass(frozen=True)
class Previews:
    """What a stream should show on the way: after every so many steps (0: nothing), decoded by what."""

    every: int = 1
    decoder: str = "latent"


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
    how: Sampling = PRESETS["standard"],
    *,
    seeds: Sequence[int] | npt.NDArray[Any] | None = None,
    seed: int | None = None,
    latents: npt.NDArray[Any] | None = None,
    return_latents: bool = False,
    labels: Labels | None = None,
    guidance: float = GUIDANCE,
) -> Request:
    """The arguments of `generate` and `stream` as a checked request; `how` is what `resolve` returns."""
    start, maps = None if latents is None else _latents(latents), None if labels is None else Rows(labels)
    given = len(start) if start is not None else None if maps is None else maps.count
    rows = _seeds(n_or_seeds, seeds, seed, given)
    if start is not None and len(start) != len(rows):
        raise InvalidRequest(f"{len(start)} latents do not fit {len(rows)} seeds: pass one latent a seed")
    if maps is not None and maps.exact and maps.count not in (1, len(rows)):
        raise InvalidRequest(
            f"{maps.count} label maps do not fit {len(rows)} seeds: pass one map a seed, one for all, or the path of "
            "maps, which are used in turn"
        )
    return Request(
        rows,
        _int32("steps", how.steps),
        how.sampler,
        _finite("eta", how.eta),
        start,
        bool(return_latents),
        how.timestep_grid,
        how.decoder,
        None if maps is None else maps.of(rows),
        _guidance(guidance, maps),
    )


def requests_for(
    seeds: Iterable[int], rows: int, how: Request, labels: Labels | None = None, guidance: float = GUIDANCE
) -> Iterator[Request]:
    """Requests of at most `rows` rows that are made as `how`. Seeds are taken when a request needs them."""
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
        raise InvalidRequest(f"seeds must be integers in any iterable, such as range(1000), not {seeds!r}")
    source, maps = iter(seeds), None if labels is None else Rows(labels)
    how = replace(how, guidance=_guidance(guidance, maps))
    parts = zip(count(0, rows), iter(lambda: list(islice(source, rows)), []), strict=False)
    return (_part(how, _explicit_seeds(some), maps, first) for first, some in parts)


def _part(how: Request, seeds: I64, maps: Rows | None, first: int) -> Request:
    return replace(how, seeds=seeds, labels=None if maps is None else maps.of(seeds, first))


def _guidance(guidance: Any, labels: Rows | None) -> float:
    """As the server records it, which gets a float32."""
    number = round(_finite("guidance", guidance), 5)
    if labels is None and number != GUIDANCE:
        raise InvalidRequest(f"guidance is {number:g} without labels: pass labels too, or leave it out")
    return number


def _seeds(n_or_seeds: Any, seeds: Any, seed: int | None, rows: int | None) -> I64:
    """rows: how many images the other arguments are for, where neither n nor seeds say it."""
    given, n = seeds, n_or_seeds
    if n_or_seeds is not None and not _is_integer(n_or_seeds):
        if seeds is not None:
            raise InvalidRequest("seeds are given twice: as the first argument and as seeds=")
        given, n = n_or_seeds, None
    if given is None:
        n = rows if n is None else n
        if n is None:
            raise InvalidRequest("say how many images: generate(8), or which: generate([1, 5, 9])")
        return seeds_for(n, seed)
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
