"""The tab Walk, without its layout: images between those of two seeds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import numpy as np

from .._errors import InvalidRequest
from .._presets import PRESETS
from ..interpolation import slerp
from .figures import Album, grid
from .form import How
from .runs import Asked, State
from .sessions import Session, Studio
from .views import View, run_views

KIND = "walk"
LEAST, MOST = 3, 32
PRESET_NAMES = tuple(name for name, preset in PRESETS.items() if preset.sampler != "ddpm")
"""Samplers without fresh noise: only with these are the ends the images of the seeds."""


def stations(count: int) -> list[float]:
    """Where on the way the images are: from 0 to 1.

    Raises:
        InvalidRequest: too few or too many.
    """
    if not LEAST <= count <= MOST:
        raise InvalidRequest(f"A walk has {LEAST} to {MOST} images, not {count}.")
    return [float(fraction) for fraction in np.linspace(0.0, 1.0, count)]


async def walk(
    studio: Studio, session: Session, first: int, last: int, fractions: Sequence[float], how: How
) -> AsyncGenerator[View, None]:
    """The views of a run from the image of one seed to that of another.

    Raises:
        BratsLDMError: the server did not give the start noise.
    """
    yield View(running=True)
    async with studio.client() as client:
        noise = await client.start_noise([first, last])
    latents = slerp(noise[0], noise[1], fractions)
    # Without fresh noise the seed of a row changes nothing: it says only which end is the nearer one.
    seeds = tuple(first if fraction < 0.5 else last for fraction in fractions)
    notes = [{"walk": {"from_seed": first, "to_seed": last, "fraction": fraction}} for fraction in fractions]

    def draw(album: Album, states: Sequence[State]) -> str:
        rows = [(place, row) for place, state in enumerate(states) for row in range(len(state.asked.seeds))]
        named = zip(rows, _names(first, last, fractions), strict=True)
        return grid([album.row(where, states[where[0]], where[1], name=name) for where, name in named], "strip")

    requests = Asked(seeds, how, latents=latents).split()
    async for view in run_views(studio, session, KIND, requests, draw, notes):
        yield view


def _names(first: int, last: int, fractions: Sequence[float]) -> list[str]:
    between = [f"{fraction:.0%}" for fraction in fractions[1:-1]]
    return [f"seed {first}", *between, f"seed {last}"]
