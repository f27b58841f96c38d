"""Requests of the two front models as plain data, good ones and ones with something wrong, and what each must get.

What is right is written down here once more, from the documented protocol and not from request.py.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mri_ldm.request import RowParameters

UNARY, STREAM = "mri_ldm", "mri_ldm_stream"
OUTPUTS = ("image", "final_latent", "provenance", "png")
NUMPY = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
INT64, INT32 = np.iinfo(np.int64), np.iinfo(np.int32)
SEEDS = (0, 1, -1, 7, 2**31, -(2**31) - 1, 2**53 + 1, INT64.max, INT64.max - 1, INT64.min, INT64.min + 1)
STEPS = (1, 2, 3, 5, 8)
BAD_STEPS = (0, -1, INT32.min, INT32.max, 1001, -50)
ETAS = (0.0, 0.6, 1.0, -0.0, 1e-45)
BAD_ETAS = (-0.1, -1e-9, 1.0000001192092896, 2.0, math.nan, math.inf, -math.inf, 3e38)
SAMPLERS = (b"ddim", b"ddpm", b"dpmpp_2m", b"dpmpp_3m", b"unipc")
GRIDS = (b"leading", b"log_snr", b"karras", b"aligned")
BAD_GRIDS = (b"", b"even", b"Karras", b"log_snr ", b"karras\0", b"\xff\xfe", b"x" * 10_000)
DECODERS = (b"full", b"tiny")
BAD_DECODERS = (b"", b"small", b"Tiny", b"full ", b"tiny\0", b"\xff\xfe", b"x" * 10_000)
BAD_SAMPLERS = (b"", b"euler", b"DDIM", b"ddim ", b"ddim\0", b"\xff\xfe", b"\xd0\x94", b"x" * 10_000, b"eval(1)")
BAD_LATENTS = (math.nan, math.inf, -math.inf, 1e38, -1001.0)
GUIDANCE = (1.0, 1.5, 3.0, 10.0)
BAD_GUIDANCE = (0.0, 0.9999, -1.0, 10.001, math.nan, math.inf, -math.inf)
SIDE = 240  # pixels of an image, and of its labels
BAD_LABELS = (4, 5, 128, 255)
INTERVALS = (0, 1, 3, INT32.max)
BAD_INTERVALS = (-1, INT32.min)


@dataclass(frozen=True)
class Tensor:
    """An input as it is declared, with its values flat.

    damage: what is done to its bytes on the wire; label: the data type that is declared, None = that of the values.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    values: Sequence[Any]
    damage: Callable[[bytes], bytes] | None = None
    label: str | None = None

    def raw(self) -> bytes:
        if self.datatype == "BYTES":
            content = b"".join(struct.pack("<I", len(value)) + value for value in self.values)
        else:
            content = np.array(self.values, NUMPY[self.datatype]).tobytes()
        return self.damage(content) if self.damage else content


@dataclass(frozen=True)
class Ask:
    """A request. `what`: what is wrong with it; `verdict`: what it must get.

    "values" = what its values deserve; "refusal" = a refusal; "either" = a refusal, or the images of its values.
    """

    model: str
    tensors: tuple[Tensor, ...]
    outputs: tuple[str, ...] = OUTPUTS
    version: str = ""
    parameters: dict[str, int | str | bool] = field(default_factory=dict)
    verdict: str = "values"
    what: str = "nothing"


def rows_of(ask: Ask) -> list[RowParameters] | None:
    """The rows that the values ask for; None where one of them is outside what the protocol allows."""
    given = {tensor.name: tensor for tensor in ask.tensors}
    count = len(given["seed"].values)

    def column(name: str, default: Any) -> Sequence[Any]:
        return given[name].values if name in given else [default] * count

    rows = []
    latents = np.array(column("latent", [0.0] * 4096), np.float32).reshape(count, 1, 64, 64)
    labels = np.array(given["labels"].values, np.uint8).reshape(count, 1, SIDE, SIDE) if "labels" in given else None
    for i in range(count):
        guidance = float(np.float32(column("guidance", 1.0)[i]))
        if not 1 <= guidance <= 10 or (labels is None and guidance != 1):
            return None
        if labels is not None and labels[i].max() > 3:
            return None
        eta, sampler = float(np.float32(column("eta", 0.0)[i])), column("sampler", b"ddim")[i]
        steps, every = column("steps", 50)[i], column("preview_every", 0)[i]
        grid, decoder = column("timestep_grid", b"leading")[i], column("decoder", b"full")[i]
        fits = sampler in SAMPLERS and grid in GRIDS and decoder in DECODERS
        fits = fits and 1 <= steps <= 1000 and 0 <= eta <= 1 and every >= 0
        eta = abs(round(eta, 7)) if fits else eta
        if not fits or (eta and sampler != b"ddim") or not (np.abs(latents[i]) <= 1000).all():
            return None
        start = latents[i] if "latent" in given else None
        seed = column("seed", 0)[i]
        words: dict[str, Any] = {"timestep_grid": grid.decode(), "decoder": decoder.decode()}
        if labels is not None:
            words |= {"labels": labels[i], "guidance": guidance}
        rows.append(RowParameters(seed, steps, sampler.decode(), eta, start, **words))
    return rows


def good(rng: random.Random) -> Ask:
    """A request for one to three rows with all that may vary."""
    rows = rng.choice((1, 1, 2, 3))
    tensors = [Tensor("seed", "INT64", [rows, 1], rng.choices(SEEDS, k=rows))]
    samplers = rng.choices(SAMPLERS, k=rows)
    if rng.random() < 0.97:  # else 50
        tensors.append(Tensor("steps", "INT32", [rows, 1], rng.choices(STEPS, k=rows)))
    if rng.random() < 0.6:
        tensors.append(Tensor("sampler", "BYTES", [rows, 1], samplers))
    if rng.random() < 0.3:
        tensors.append(Tensor("timestep_grid", "BYTES", [rows, 1], rng.choices(GRIDS, k=rows)))
    if rng.random() < 0.3:
        tensors.append(Tensor("decoder", "BYTES", [rows, 1], rng.choices(DECODERS, k=rows)))
    if rng.random() < 0.4:
        tensors.append(Tensor("eta", "FP32", [rows, 1], rng.choices(ETAS, k=rows)))
    if rng.random() < 0.2:
        tensors.append(_latent(rows, rng.randrange(4)))
    if rng.random() < 0.2:
        tensors.append(_labels(rows, rng.randrange(4)))
        if rng.random() < 0.5:
            tensors.append(Tensor("guidance", "FP32", [rows, 1], rng.choices(GUIDANCE, k=rows)))
    model = rng.choice((UNARY, STREAM))
    if model == STREAM and rng.random() < 0.5:
        tensors.append(Tensor("preview_every", "INT32", [rows, 1], rng.choices(INTERVALS, k=rows)))
    rng.shuffle(tensors)
    outputs = tuple(rng.sample(OUTPUTS, rng.randint(1, len(OUTPUTS))))
    return Ask(model, tuple(tensors), outputs)


def _latent(rows: int, seed: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(rows * 4096).astype(np.float32)
    return Tensor("latent", "FP32", [rows, 1, 64, 64], values.tolist())


def _labels(rows: int, seed: int) -> Tensor:
    values = np.random.default_rng(seed).integers(0, 4, rows * SIDE * SIDE)
    return Tensor("labels", "UINT8", [rows, 1, SIDE, SIDE], values.tolist())


def bad(rng: random.Random, protocol: str) -> Ask:
    """A good request with one thing done to it that `protocol` can carry."""
    if rng.random() < 0.4:
        return _with_bad_value(rng, good(rng))
    changes = CHANGES + (BYTE_CHANGES if protocol in ("raw", "binary") else ())
    # HTTP takes a number of rows literally, and with data in JSON makes room for all of them.
    change = rng.choice(changes + ((wrapped_rows, no_rows_of_2_to_the_32) if protocol in ("raw", "typed") else ()))
    verdict = {wrapped_rows: "either"}.get(change, "refusal")
    return replace(change(rng, good(rng)), verdict=verdict, what=change.__name__)


def _with_bad_value(rng: random.Random, ask: Ask) -> Ask:
    names = ("steps", "eta", "sampler", "timestep_grid", "decoder", "latent", "labels", "guidance", "preview_every")
    name = rng.choice(names)
    rows = len(_find(ask, "seed").values)
    if name == "labels":
        numbers: Any = list(_labels(rows, 0).values)
        numbers[rng.randrange(len(numbers))] = rng.choice(BAD_LABELS)
        bad = replace(_labels(rows, 0), values=numbers)
    elif name == "latent":
        values: Any = list(_latent(rows, 0).values)
        values[rng.randrange(len(values))] = rng.choice(BAD_LATENTS)
        bad = Tensor(name, "FP32", [rows, 1, 64, 64], values)
    else:
        kind, worst = {
            "steps": ("INT32", BAD_STEPS), "eta": ("FP32", BAD_ETAS), "sampler": ("BYTES", BAD_SAMPLERS),
            "preview_every": ("INT32", BAD_INTERVALS), "timestep_grid": ("BYTES", BAD_GRIDS),
            "decoder": ("BYTES", BAD_DECODERS), "guidance": ("FP32", BAD_GUIDANCE),
        }[name]  # fmt: skip
        # Beside it may stand values that are right: one bad row is enough.
        fine: Sequence[Any] = {
            "steps": STEPS, "eta": ETAS, "sampler": SAMPLERS, "preview_every": INTERVALS, "timestep_grid": GRIDS,
            "decoder": DECODERS, "guidance": GUIDANCE,
        }[name]  # fmt: skip
        values = rng.choices(fine, k=rows)
        values[rng.randrange(rows)] = rng.choice(worst)
        bad = Tensor(name, kind, [rows, 1], values)
    others = tuple(tensor for tensor in ask.tensors if tensor.name != name)
    model = STREAM if name == "preview_every" else ask.model
    if model != ask.model:
        others = tuple(tensor for tensor in others if tensor.name != "preview_every")
    return replace(ask, model=model, tensors=(*others, bad), what=f"bad {name}")


def _find(ask: Ask, name: str) -> Tensor:
    return next(tensor for tensor in ask.tensors if tensor.name == name)


def _swap(ask: Ask, old: Tensor, new: Tensor) -> Ask:
    return replace(ask, tensors=tuple(new if tensor is old else tensor for tensor in ask.tensors))


Change = Callable[[random.Random, Ask], Ask]


def wrong_type(rng: random.Random, ask: Ask) -> Ask:
    tensor = rng.choice(ask.tensors)
    kind = rng.choice([kind for kind in (*NUMPY, "BYTES") if kind != tensor.datatype])
    values = [b"1" if kind == "BYTES" else 0] * len(tensor.values)
    return _swap(ask, tensor, replace(tensor, datatype=kind, values=values))


def wrong_label(rng: random.Random, ask: Ask) -> Ask:
    """The data has the right type, but its declaration is wrong."""
    tensor = rng.choice(ask.tensors)
    labels = ("", "INT65", "STRING", "int64", "BF16", *NUMPY, "BYTES")
    return _swap(ask, tensor, replace(tensor, label=rng.choice([kind for kind in labels if kind != tensor.datatype])))


def wrong_rank(rng: random.Random, ask: Ask) -> Ask:
    tensor = rng.choice(ask.tensors)
    shape = rng.choice(([], list(tensor.shape[:-1]), [*tensor.shape, 1], [1] * 40))
    return _swap(ask, tensor, replace(tensor, shape=shape))


def wrong_dims(rng: random.Random, ask: Ask) -> Ask:
    tensor = rng.choice(ask.tensors)
    last = rng.choice([size for size in (-1, -(2**31), 0, 2, 63, 65, 1000) if size != tensor.shape[-1]])
    return _swap(ask, tensor, replace(tensor, shape=[*tensor.shape[:-1], last]))


def wrong_count(rng: random.Random, ask: Ask) -> Ask:
    """More or fewer values than the shape says."""
    tensor = rng.choice(ask.tensors)
    values = rng.choice(([], tensor.values[:-1], [*tensor.values, tensor.values[0]]))
    return _swap(ask, tensor, replace(tensor, values=values))


def wrong_rows(rng: random.Random, ask: Ask) -> Ask:
    """One tensor has another number of rows than the others, or all have none or too many."""
    rows = len(_find(ask, "seed").values)
    count = rng.choice((0, 65, 100, rows + 1))
    if count == rows + 1:
        ask = replace(ask, tensors=(*(t for t in ask.tensors if t.name != "steps"), _ones("steps", "INT32", rows)))
        chosen = [rng.choice(ask.tensors)]
    else:
        chosen = list(ask.tensors)
    for tensor in chosen:
        size = len(tensor.values) // rows
        values = (list(tensor.values) * count)[: count * size]
        ask = _swap(ask, tensor, replace(tensor, shape=[count, *tensor.shape[1:]], values=values))
    return ask


def missing_seed(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, tensors=tuple(tensor for tensor in ask.tensors if tensor.name != "seed"))


def doubled_tensor(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, tensors=(*ask.tensors, rng.choice(ask.tensors)))


def unknown_tensor(rng: random.Random, ask: Ask) -> Ask:
    name = rng.choice(("", "Seed", "seed ", "prompt", "image", "x" * 1000))
    return replace(ask, tensors=(*ask.tensors, _ones(name, "INT32", len(_find(ask, "seed").values))))


def preview_of_unary(rng: random.Random, ask: Ask) -> Ask:
    others = tuple(tensor for tensor in ask.tensors if tensor.name != "preview_every")
    added = (_ones("preview_every", "INT32", len(_find(ask, "seed").values)),) if rng.random() < 0.5 else ()
    return replace(ask, model=UNARY, tensors=others + added, outputs=OUTPUTS if added else ("image", "preview"))


def eta_without_ddim(rng: random.Random, ask: Ask) -> Ask:
    rows = len(_find(ask, "seed").values)
    others = [tensor for tensor in ask.tensors if tensor.name not in ("sampler", "eta")]
    sampler = Tensor("sampler", "BYTES", [rows, 1], [rng.choice(SAMPLERS[1:])] * rows)
    return replace(ask, tensors=(*others, sampler, Tensor("eta", "FP32", [rows, 1], [0.5] * rows)))


def guidance_without_labels(rng: random.Random, ask: Ask) -> Ask:
    rows = len(_find(ask, "seed").values)
    others = [tensor for tensor in ask.tensors if tensor.name not in ("labels", "guidance")]
    return replace(ask, tensors=(*others, Tensor("guidance", "FP32", [rows, 1], [2.0] * rows)))


def wrong_outputs(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, outputs=(*ask.outputs, rng.choice(("", "Image", "seed", "x" * 1000))))


def wrong_version(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, version=rng.choice(("7", "x", "99999999999999999999")))


def wrong_parameters(rng: random.Random, ask: Ask) -> Ask:
    bad: dict[str, int | str | bool] = rng.choice(({"triton_x": 1}, {"priority": -5}, {"timeout": "x"}))
    return replace(ask, parameters=bad)


def wrapped_rows(rng: random.Random, ask: Ask) -> Ask:
    """Triton takes the number of rows modulo 2^32."""
    more = rng.choice((1, -1, 2**10, -(2**30))) * 2**32
    tensors = tuple(replace(tensor, shape=[tensor.shape[0] + more, *tensor.shape[1:]]) for tensor in ask.tensors)
    return replace(ask, tensors=tensors)


def no_rows_of_2_to_the_32(rng: random.Random, ask: Ask) -> Ask:
    return replace(ask, tensors=(Tensor("seed", "INT64", [rng.choice((2**32, -(2**63), 2**62)), 1], [1]),))


def wrong_size(rng: random.Random, ask: Ask) -> Ask:
    tensor = rng.choice(ask.tensors)
    cut, more = rng.randint(1, len(tensor.raw())), rng.randbytes(rng.randint(1, 9))
    damage = rng.choice((lambda content: content[:-cut], lambda content: content + more))
    return _swap(ask, tensor, replace(tensor, damage=damage))


def wrong_prefix(rng: random.Random, ask: Ask) -> Ask:
    """The length before a string is wrong."""
    rows = len(_find(ask, "seed").values)
    others = tuple(tensor for tensor in ask.tensors if tensor.name != "sampler")
    length = rng.choice((0, 1, 3, 5, 8, 255, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1))
    damage = rng.choice((lambda content: struct.pack("<I", length) + content[4:], lambda content: content[4:]))
    return replace(ask, tensors=(*others, Tensor("sampler", "BYTES", [rows, 1], [b"ddim"] * rows, damage=damage)))


def _ones(name: str, datatype: str, rows: int) -> Tensor:
    return Tensor(name, datatype, [rows, 1], [1] * rows)


CHANGES: tuple[Change, ...] = (
    wrong_type, wrong_label, wrong_rank, wrong_dims, wrong_count, wrong_rows, missing_seed, doubled_tensor,
    unknown_tensor, preview_of_unary, eta_without_ddim, guidance_without_labels, wrong_outputs, wrong_version,
    wrong_parameters,
)  # fmt: skip
BYTE_CHANGES: tuple[Change, ...] = (wrong_size, wrong_prefix)
