"""What people type into the page, as arguments of the client. Knows no Gradio and asks no server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .._errors import InvalidRequest
from .._presets import DECODER, GRID, PRESETS, Sampling
from .._request import MAX_ROWS

SAMPLERS = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM-Solver++",
    "dpmpp_3m": "DPM-Solver++ 3M",
    "unipc": "UniPC",
    "ddpm": "DDPM",
}
GRIDS = {GRID: "Leading", "log_snr": "Log SNR", "karras": "Karras", "aligned": "Aligned"}
DECODERS = {DECODER: "Full decoder", "tiny": "Tiny decoder"}
CUSTOM = "custom"
MAX_STEPS = 1000
_BETWEEN = re.compile(r"(?<=\d)\s*(?:-|\u2013|to\b)\s*(?=-?\d)")
_RANGE = re.compile(r"(-?\d+)-(-?\d+)")
_NUMBER = re.compile(r"-?\d{1,40}")  # more than fit, so that these are refused as too large


@dataclass(frozen=True)
class How(Sampling):
    """A way to make images, with its name for people."""

    @property
    def words(self) -> str:
        """Such as "DDIM, 50 steps" or "UniPC, 8 steps, Karras grid, tiny decoder"."""
        parts = [SAMPLERS[self.sampler], f"{self.steps} step{'s' * (self.steps != 1)}"]
        parts += [f"eta {self.eta:g}"] if self.eta else []
        parts += [f"{GRIDS[self.timestep_grid]} grid"] if self.timestep_grid != GRID else []
        parts += [DECODERS[self.decoder].lower()] if self.decoder != DECODER else []
        return ", ".join(parts)


def seeds_from(text: str) -> tuple[int, ...]:
    """`0-7`, `1, 5, 9`, `42`, or several of these with commas: at most 64 seeds, in that order.

    Raises:
        InvalidRequest: it is none of these, or names too many.
    """
    seeds: list[int] = []
    for part in filter(None, re.split(r"[,;\s]+", _BETWEEN.sub("-", text))):
        seeds.extend(_some_seeds(part, MAX_ROWS - len(seeds)))
    if not seeds:
        raise InvalidRequest(
            "No seed is given. Type a number such as 42, a range such as 0-7, or a list such as 1, 5, 9."
        )
    return tuple(seeds)


def _some_seeds(part: str, room: int) -> Sequence[int]:
    if between := _RANGE.fullmatch(part):
        first, last = (one_seed(end, "Seed") for end in between.groups())
        if last < first:
            raise InvalidRequest(f"The range {part} ends before it begins. Type {last}-{first}.")
        found: Sequence[int] = range(first, last + 1)
    else:
        found = [one_seed(part, "A seed")]
    if len(found) > room:
        raise InvalidRequest(f"These are more than {MAX_ROWS} seeds. The page makes at most {MAX_ROWS} images at once.")
    return found


def whole_number(text: object, name: str) -> int:
    """A number that somebody typed; `name` begins the sentence of the error."""
    digits = str("" if text is None else text).strip().removesuffix(".0")
    if not _NUMBER.fullmatch(digits):
        raise InvalidRequest(f"{name} must be a whole number such as 42, not “{digits or 'nothing'}”.")
    return int(digits)


def one_seed(text: object, name: str) -> int:
    seed = whole_number(text, name)
    if not -(2**63) <= seed < 2**63:
        raise InvalidRequest(f"The seed {seed} is too large: seeds have at most 64 bits.")
    return seed


def steps_of(text: object) -> int:
    steps = whole_number(text, "The number of steps")
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"The number of steps must be from 1 to {MAX_STEPS}, not {steps}.")
    return steps


def steps_from(text: str) -> tuple[int, ...]:
    """Several numbers of steps with commas, without repetition.

    Raises:
        InvalidRequest: one is no number of steps, or there is none.
    """
    parts = [part for part in re.split(r"[,;\s]+", text.strip()) if part]
    if not parts:
        raise InvalidRequest("No number of steps is given. Type one or several, such as 10, 20, 50.")
    return tuple(dict.fromkeys(steps_of(part) for part in parts))


def interval_of(number: object) -> int:
    every = whole_number(number, "The number of steps between previews")
    if not 1 <= every <= MAX_STEPS:
        raise InvalidRequest(f"Previews can come every 1 to {MAX_STEPS} steps, not every {every}.")
    return every


def of_preset(name: str) -> How:
    return How(**asdict(PRESETS[name]))


def how(preset: str, sampler: str, steps: object, eta: object, grid: str, decoder: str) -> How:
    """A preset, or what was chosen with `custom`.

    Raises:
        InvalidRequest: a value is out of its range.
    """
    if preset in PRESETS:
        return of_preset(preset)
    for name, value, known in (
        ("sampler", sampler, SAMPLERS),
        ("timestep grid", grid, GRIDS),
        ("decoder", decoder, DECODERS),
    ):
        if value not in known:
            raise InvalidRequest(f"Choose a {name}: {', '.join(known.values())}.")
    return How(sampler, steps_of(steps), eta_of(eta) if sampler == "ddim" else 0.0, grid, decoder)


def eta_of(number: object) -> float:
    try:
        eta = float(str(number))
    except ValueError:
        eta = -1.0
    if not 0.0 <= eta <= 1.0:  # false for NaN, too
        raise InvalidRequest(f"Eta must be a number from 0 to 1, not “{'nothing' if number is None else number}”.")
    return eta
