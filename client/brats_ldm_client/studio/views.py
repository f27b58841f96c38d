"""A run as the page shows it, moment by moment: sentences, progress and pictures as HTML. Knows no Gradio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._errors import BratsLDMError
from .._types import Generation
from . import words
from .figures import Album, progress_bar, say, say_error
from .runs import Asked, State, watch
from .sessions import Session, Studio

_SECONDS_PER_PICTURE = 0.02  # to make, send and draw one: many at once are shown less often


@dataclass(frozen=True)
class View:
    """What the page shows."""

    words: str = ""
    progress: str = ""
    pictures: str | None = None
    """None: those before stay."""
    running: bool = False
    finished: bool = False
    """All images are there, to be downloaded."""


Draw = Callable[[Album, Sequence[State]], str]
"""Makes the pictures of the states of a run."""


async def run_views(
    studio: Studio,
    session: Session,
    kind: str,
    requests: Sequence[Asked],
    draw: Draw,
    notes: Sequence[Mapping[str, Any]] = (),
) -> AsyncGenerator[View, None]:
    """The views of requests that run together, until they have ended or the tab stops them.

    kind: "generate", "compare" or "walk": a tab has one run of each. notes: for the records, one an image.
    """
    stop, album, pace, began = session.begin(kind), Album(), words.Pace(), time.monotonic()
    interval = max(0.25, _SECONDS_PER_PICTURE * sum(len(asked.seeds) for asked in requests))
    pictures, states = "", tuple[State, ...]()
    async with studio.client() as client, aclosing(watch(client, requests, stop, interval)) as moments:
        async for states in moments:
            pictures = await asyncio.to_thread(draw, album, states)
            yield replace(_running(states, pace), pictures=pictures)
    made = joined(states, time.monotonic() - began, notes)
    ended = _unfinished(states) if made is None else _finished(made, other_weights=session.keep(kind, made))
    yield replace(ended, pictures=pictures)


def _running(states: Sequence[State], pace: words.Pace) -> View:
    done, asked = sum(state.steps_done for state in states), sum(state.steps_asked for state in states)
    waits, left = words.busy(states), pace.left(done, asked, time.monotonic())
    text = words.progress_words(states, None if waits else left)
    return View(say(waits, "wait"), progress_bar(done / asked, text + _source(states)), running=True)


def _source(states: Sequence[State]) -> str:
    """Which previews are shown, in words; "" before the first."""
    shown = {state.progress.source for state in states if state.progress is not None}
    asked = {state.asked.preview_decoder for state in states}
    if "tiny" in shown:
        return " · previews by the tiny decoder"
    if shown and "tiny" in asked:
        return " · previews are latents: the server has no tiny decoder"
    return " · previews are latents" if shown else ""


def _unfinished(states: Sequence[State]) -> View:
    error = words.problem(states)
    return View(say(words.stopped(states)) if error is None else say_error(error))


def _finished(made: Generation, other_weights: bool) -> View:
    more = words.OTHER_WEIGHTS if other_weights else ""
    return View(say(words.finished(made), "good", more), finished=True)


def joined(states: Sequence[State], seconds: float, notes: Sequence[Mapping[str, Any]] = ()) -> Generation | None:
    """The images of all requests as one generation; None if one is missing.

    notes: for the records, one an image.
    """
    parts = [state.generation for state in states if state.generation is not None]
    if len(parts) < len(states):
        return None
    records = [record for part in parts for record in part.provenance]
    noted = [{**record, **note} for record, note in zip(records, notes or [{}] * len(records), strict=True)]
    images, seeds = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "seeds"))
    return replace(parts[0], images=images, seeds=seeds, provenance=tuple(noted), seconds=seconds)


def refused(error: BratsLDMError) -> View:
    """The only view of a run that was never sent."""
    return View(say_error(error))


def failed() -> View:
    """The last view of a run in which the page itself had a fault."""
    return View(say("The page itself has failed. The terminal where it runs says why.", "bad"))
