"""The tab Generate, without its layout: several seeds in one way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from .figures import Album, grid
from .form import How
from .runs import Asked, State
from .sessions import Session, Studio
from .views import View, run_views

KIND = "generate"


def generate(
    studio: Studio, session: Session, seeds: tuple[int, ...], how: How, preview_every: int, preview_decoder: str
) -> AsyncGenerator[View, None]:
    """The views of a run that makes one image of each seed."""
    requests = Asked(seeds, how, preview_every, preview_decoder).split()
    return run_views(studio, session, KIND, requests, draw)


def draw(album: Album, states: Sequence[State]) -> str:
    rows = ((place, row) for place, state in enumerate(states) for row in range(len(state.asked.seeds)))
    return grid([album.row((place, row), states[place], row) for place, row in rows])
