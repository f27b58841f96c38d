"""What a run in bulk makes, and `manifest.json`, which says so in its folder. No network, no images.

Shard i is a function of the plan and i, so any number of processes can make the shards of one plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path
from typing import Any

from .._errors import InvalidRequest
from .._formats import PAIRED, known_formats
from .._presets import DECODER, DEFAULTS, GRID, GUIDANCE, named, resolve
from ..labels import LabelSource
from ..pictures import NOTICE, SOURCE_TYPE
from .workplace import put_file

FORMATS = ("webdataset", "hdf5", "zarr", "png", "png16", "nifti", "dicom")
MANIFEST = "manifest.json"
_KIND, _VERSION = "brats-ldm bulk", 1
_INT64 = 2**63
_LABELS = ("labels", "guidance")


@dataclass(frozen=True)
class Plan:
    """Which images a folder holds, and how they are made. The same plan gives the same bytes.

    Raises:
        InvalidRequest: no images, seeds beyond int64, an unknown format, or one that needs labels.
        TypeError: a number that is not whole.
    """

    seed_base: int
    """The first seed. Image n has the seed `seed_base + n`."""
    count: int
    """How many images."""
    shard_size: int
    """Images in a shard; the last one may have fewer."""
    sampler: str
    steps: int
    eta: float
    formats: tuple[str, ...]
    model_name: str
    model_digest: str
    """Identifies the weights."""
    timestep_grid: str = GRID
    decoder: str = DECODER
    labels: str = ""
    """Where the label maps come from, as `LabelSource.identity` says it; empty without labels."""
    guidance: float = GUIDANCE

    def __post_init__(self) -> None:
        for name in ("seed_base", "count", "shard_size", "steps"):  # JSON has no NumPy integers
            object.__setattr__(self, name, index(getattr(self, name)))
        object.__setattr__(self, "formats", formats_of(self.formats))
        for name in ("count", "shard_size"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}: it must be at least 1")
        formats_of(self.formats)  # refuses those that it does not know
        if not self.labels and ({*PAIRED} & {*self.formats} or self.guidance != GUIDANCE):
            what = f"guidance {self.guidance:g}" if self.guidance != GUIDANCE else f"format {PAIRED[0]}"
            raise InvalidRequest(f"{what} is for images with labels: give labels too, or leave it out")
        last = self.seed_base + self.count - 1
        if not -_INT64 <= self.seed_base <= last < _INT64:
            raise InvalidRequest(f"seeds {self.seed_base} to {last} do not fit in int64: lower the first seed")

    @property
    def shards(self) -> int:
        """How many shards."""
        return -(-self.count // self.shard_size)

    def shard(self, index: int) -> range:
        """The seeds of shard `index`, which counts from 0.

        Raises:
            InvalidRequest: there is no such shard.
        """
        if not 0 <= index < self.shards:
            raise InvalidRequest(f"there is no shard {index}: choose 0 to {self.shards - 1}")
        first = index * self.shard_size
        return range(self.seed_base + first, self.seed_base + min(first + self.shard_size, self.count))

    def sampling(self) -> dict[str, Any]:
        """How to ask a client for these images, but for labels and guidance. The server takes an eta for ddim only."""
        eta = self.eta if self.sampler == "ddim" else 0.0
        others = {"timestep_grid": self.timestep_grid, "decoder": self.decoder}
        return {"sampler": self.sampler, "steps": self.steps, "eta": eta, **others}

    def origin(self) -> dict[str, Any]:
        """How all images of the plan were made; without grid and decoder if they are the default."""
        names = ("sampler", "steps", "eta", *DEFAULTS, *(_LABELS if self.labels else ()), "model_name", "model_digest")
        return named({"synthetic": True, **{name: getattr(self, name) for name in names}})

    def record(self, seed: int, labels_sha256: str | None = None) -> dict[str, Any]:
        """How the image of a seed was made. Nothing in it varies between servers of the same weights.

        labels_sha256: of its label map; the plan knows only where all maps come from.
        """
        record = {"synthetic": True, "seed": seed, **self.origin()}
        record.pop("labels", None)
        return record if labels_sha256 is None else {**record, "labels_sha256": labels_sha256}


def plan_for(
    model: Mapping[str, Any],
    count: int,
    formats: str | Sequence[str],
    *,
    seed_base: int = 0,
    shard_size: int = 1000,
    preset: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float = 0.0,
    timestep_grid: str | None = None,
    decoder: str | None = None,
    labels: LabelSource | None = None,
    guidance: float = GUIDANCE,
) -> Plan:
    """The plan for a server's model.

    Args:
        model: what `model_of(client)` returns, which names the model and its weights.
        count: How many images.
        formats: Of `FORMATS`, or with labels "task01"; a string may hold several, with commas.
        seed_base: The first seed.
        shard_size: Images in a shard.
        preset: As for `Client.generate`, as are the five that follow it.
        labels: Where the label maps come from; those who make the images get it too.
        guidance: As for `Client.generate`.

    Raises:
        InvalidRequest: a `Plan` cannot be like that, or the server does not name its weights.
    """
    if not model.get("model_digest"):
        raise InvalidRequest("the server does not say which weights it has: see `brats-ldm info`")
    how = resolve(preset, steps, sampler, eta, timestep_grid, decoder)
    if eta and how.sampler != "ddim":
        raise InvalidRequest(f"eta is {eta:g} with sampler {how.sampler}: only ddim takes an eta, so leave it out")
    # As the server rounds it and says it in its records: no -0.0, and ddpm is ddim with an eta of 1.
    eta = 1.0 if how.sampler == "ddpm" else round(float(eta), 7) + 0.0
    return Plan(
        seed_base,
        count,
        shard_size,
        how.sampler,
        how.steps,
        eta,
        formats_of(formats),
        str(model.get("model_name", "")),
        str(model["model_digest"]),
        how.timestep_grid,
        how.decoder,
        "" if labels is None else labels.identity,
        round(float(guidance), 5),
    )


def check_labels(plan: Plan, labels: LabelSource | None) -> None:
    """Raises InvalidRequest unless the label maps are those of the plan."""
    identity = "" if labels is None else labels.identity
    if identity != plan.labels:
        raise InvalidRequest(
            f"the labels are {identity or 'not given'}, and those of the plan {plan.labels or 'are none'}: "
            "give the same labels to both"
        )


def formats_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The formats, in a fixed order and without repetition."""
    known = (*FORMATS, *PAIRED)
    asked = known_formats(names, known)
    return tuple(name for name in known if name in asked)


def notice() -> dict[str, Any]:
    """What every file that can hold it says of its content."""
    return {"synthetic": True, "notice": NOTICE, "digital_source_type": SOURCE_TYPE}


def write_manifest(folder: Path, plan: Plan, hashes: Mapping[str, Any] | None = None) -> None:
    """Write manifest.json. `hashes` is for a finished run: those of the files beside it."""
    head = {"format": _KIND, "format_version": _VERSION, **notice()}
    asked = named(asdict(plan))
    if not plan.labels:  # so that a plan without has the bytes it had before there were labels
        asked = {name: value for name, value in asked.items() if name not in _LABELS}
    document = {**head, "plan": asked, **(hashes or {})}
    put_file(folder / MANIFEST, as_json(document))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of manifest.json, with a `Plan` in the place of "plan".

    Raises:
        InvalidRequest: it is not of a run in bulk, or of a later version of this program.
        FileNotFoundError: there is none.
    """
    path = folder / MANIFEST
    try:
        document = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no {path}: name a folder of `brats-ldm bulk`") from None
    if document.get("format") != _KIND:
        raise InvalidRequest(f"{path} is not of a run in bulk: choose another folder")
    version = document.get("format_version")
    if version != _VERSION:
        raise InvalidRequest(f"{path} has the format version {version}, not {_VERSION}: update the client")
    if not all(isinstance(document.get(key, {}), dict) for key in ("summary", "shards")):
        raise InvalidRequest(f"{path} is damaged (its hashes are no object): restore it, or choose another folder")
    try:
        return {**document, "plan": Plan(**document["plan"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"{path} has no whole plan ({error}): restore it, or choose another folder") from error


def check_same(there: Plan, asked: Plan, folder: Path) -> None:
    """Raises InvalidRequest, with what differs, unless both plans are the same."""
    was, now = asdict(there), asdict(asked)
    differences = [f"{name} {_shown(was[name])}, not {_shown(now[name])}" for name in was if was[name] != now[name]]
    if differences:
        others = was["model_digest"] != now["model_digest"]
        hint = "ask a server with those weights" if others else "give the same options"
        raise InvalidRequest(f"{folder} holds a run with {'; '.join(differences)}: {hint}, or choose another folder")


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def as_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file.

    Raises:
        InvalidRequest: the file holds none.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidRequest(f"{path} is damaged ({error}): restore it, or choose another folder") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} is damaged (it holds no object): restore it, or choose another folder")
    return document
