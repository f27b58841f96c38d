"""What the page says: errors and states as sentences, times and numbers. Knows no Gradio."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .._errors import (
    AccessDenied,
    BratsLDMError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MissingPackage,
    ProtocolError,
    ServerUnavailable,
)
from .._types import Generation
from .runs import State

_NO_ANSWER = "no Triton server answers"
_FOR_NOW = {
    "BUSY": "The server has no room now.",
    "DRAINING": "The server is stopping, perhaps to start again.",
    "NETWORK_GONE": "A part of the server has failed; it may be starting again.",
}


def sentence(error: BaseException) -> str:
    """What has gone wrong, and what to do about it. `detail` has the client's own words."""
    if isinstance(error, InvalidRequest):
        return str(error).partition(" refused the request: ")[2] or str(error)
    if isinstance(error, MissingPackage):
        return f"{error}."
    if isinstance(error, AccessDenied):
        return "The server wants a secret, or another one. Set BRATS_LDM_SECRET and start the studio again."
    if isinstance(error, DeadlineExceeded):
        return "The server did not answer in time. Ask for fewer images or steps, or start the studio with --timeout."
    if isinstance(error, Cancelled):
        return "The server has ended the request, as it does when it stops. Try again when it is ready."
    if isinstance(error, ProtocolError):
        return "The server answers in a way that this page does not know. Both should be of one version."
    if isinstance(error, ServerUnavailable):
        return _unavailable(error)
    return "The server could not do it. Its log says why."


def _unavailable(error: ServerUnavailable) -> str:
    if error.not_loaded:
        return "The server runs, but the model is not loaded: it is starting, or its log says why."
    if error.token in _FOR_NOW:
        return _FOR_NOW[error.token]
    if str(error).startswith(_NO_ANSWER):
        return "The server cannot be reached. Start it, or check the address; the page sees when it is there."
    return "The server takes no requests now; it may be starting or stopping. Try again when it is ready."


def detail(error: BaseException) -> str:
    """The client's own words where `sentence` says it shorter; else nothing."""
    words = str(error)
    return "" if isinstance(error, (InvalidRequest, MissingPackage)) else words


def about(seconds: float) -> str:
    """A length of time as people say it: "about 4 s", "about 3 min"."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"


def images(count: int) -> str:
    return f"{count} synthetic slice{'s' * (count != 1)}"


class Pace:
    """How long steps take, measured from the first of them, and so how long the rest will take."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left(self, done: int, asked: int, now: float) -> float | None:
        """Seconds for the steps that are left, or None before two measurements."""
        if self._first is None:
            if done:
                self._first = now, done
            return None
        began, before = self._first
        return (now - began) / (done - before) * (asked - done) if done > before else None


def progress_words(states: Sequence[State], left: float | None) -> str:
    """Such as "step 23 of 50 · about 4 s left"."""
    done, asked = sum(state.steps_done for state in states), sum(state.steps_asked for state in states)
    if done == 0:
        return "waiting for the first steps"
    if done == asked:
        return "all steps are done; the images are being decoded"
    time_left = "" if left is None else f" · {about(left)} left"
    return f"step {step_of(states)}{time_left}"


def step_of(states: Sequence[State]) -> str:
    """Such as "23 of 50": the mean over all rows, if these are at different steps."""
    done, asked = sum(state.steps_done for state in states), sum(state.steps_asked for state in states)
    total = max(state.asked.how.steps for state in states)
    return f"{round(total * done / asked)} of {total}"


def stopped(states: Sequence[State]) -> str:
    if all(state.generation for state in states):
        return "All images were finished before the stop."
    if not any(state.steps_done for state in states):
        return "Stopped before the first preview; the server has dropped the request."
    return f"Stopped at step {step_of(states)}; the server has dropped the rest."


def busy(states: Sequence[State], now: float | None = None) -> str:
    """When requests that found no room are sent again; "" if none waits."""
    waiting = [(state.again_at, state.error) for state in states if state.again_at is not None and state.error]
    if not waiting:
        return ""
    at, error = min(waiting, key=lambda pair: pair[0])
    seconds = max(0.0, at - (time.monotonic() if now is None else now))
    return f"{sentence(error)} The page asks again in {seconds:.0f} s; Stop ends that."


def finished(generation: Generation) -> str:
    warnings = {str(record["warning"]) for record in generation.provenance if record.get("warning")}
    return ". ".join([f"{images(len(generation))} in {generation.seconds:.1f} s", *sorted(warnings)]) + "."


def problem(states: Sequence[State]) -> BratsLDMError | None:
    """Why a request has failed, if one has."""
    return next((state.error for state in states if state.phase == "failed"), None)


OTHER_WEIGHTS = "The server has other weights than in the run before: the same seed now gives another image."
