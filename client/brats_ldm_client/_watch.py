"""A run whose images are seen while they are made: a few at a time by streams, with previews on a screen.

What is slow, a terminal or drawing, does not hold up the run: only the newest previews are drawn, in a thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import numpy as np
from PIL import Image

from ._errors import InvalidRequest
from ._presets import GUIDANCE
from ._request import Previews, Request, requests_for
from ._schedule import Weights
from ._types import F32, Generation, Progress, Slice
from .pictures import GAP, MARK, Pixels, latent_picture, to_display

if TYPE_CHECKING:
    from ._client import Client
    from .labels.source import Labels
    from .terminal import Screen

_SIDE = 240  # pixels of a picture
_LEAST_COLUMNS = 20  # characters for a picture
_BAR = 79  # characters
_PREVIEWS = 25  # at most, of an image: each costs the server time, with a decoder for them
_PAUSE = 0.2  # seconds from one drawing to the next

_SOURCES = {"latent": "latents", "tiny": "tiny decoder"}
Frame = tuple[Pixels, Sequence[str]]


@dataclass(frozen=True)
class Meter:
    """How far a run of `total` images is."""

    total: int
    began: float
    done: int = 0
    made: int = 0
    """Those of `done` that were not there before; they alone say something about the time left."""

    def line(self, doing: str, partly: float, columns: int) -> str:
        """A progress bar of so many characters.

        Args:
            doing: Stands beside the bar.
            partly: What is done of the images in progress, as a number of images: 2 for four that are half done.
        """
        from tqdm import tqdm

        style = f"{{percentage:3.0f}}%|{{bar}}| {doing}{self.done} of {self.total} images, {{remaining}} left"
        seconds = time.monotonic() - self.began
        kept = self.done - self.made
        return str(
            tqdm.format_meter(
                self.done + partly, self.total, seconds, ncols=columns, initial=kept, bar_format=style, ascii=False
            )
        )


class Watch:
    """Makes images and shows them. It is also the progress bar of the run, as far as that needs one.

    how: all seeds of the run, and how images are made.
    at_once: images in one request; fewer where not so many fit side by side.
    """

    def __init__(self, client: Client, how: Request, screen: Screen, at_once: int) -> None:
        self._client, self._how, self._screen = client, how, screen
        most = max(1, min(at_once, (screen.columns + 1) // _LEAST_COLUMNS))
        self._at_once = math.ceil(len(how.seeds) / math.ceil(len(how.seeds) / most))  # 6 as 3 and 3, not as 4 and 2
        self._previews = Previews(max(1, math.ceil(how.steps / _PREVIEWS)), "tiny")
        self._meter = Meter(len(how.seeds), time.monotonic())
        self._last: Callable[[Meter], Frame] | None = None
        self._painter = _Painter(screen)

    def slices(
        self, seeds: Iterable[int], labels: Labels | None = None, guidance: float = GUIDANCE
    ) -> Generator[Slice, None, None]:
        """The images of the seeds in their order, with the pixels of `Client.iter_images` and its errors."""
        weights = Weights()
        for request in requests_for(seeds, self._at_once, self._how, labels, guidance):
            with closing(self._stream(request)) as events:
                for event in events:
                    self._show(partial(self._frame, request, event))
                    if isinstance(event, Generation):
                        weights.check(event.provenance)
                        yield from self._counted(event)

    def _stream(self, request: Request) -> Generator[Progress | Generation, None, None]:
        try:
            yield from self._client._stream(request, self._previews, again=True)
        except InvalidRequest:
            if self._previews.decoder == "latent":
                raise
            self._previews = replace(self._previews, decoder="latent")  # all that an older server knows
            yield from self._client._stream(request, self._previews, again=True)

    def _counted(self, images: Generation) -> Generator[Slice, None, None]:
        for made in images:
            yield made
            self._meter = replace(self._meter, made=self._meter.made + 1)

    def _show(self, frame: Callable[[Meter], Frame]) -> None:
        self._last = frame
        self._painter.show(partial(frame, self._meter))

    def _frame(self, request: Request, event: Progress | Generation, meter: Meter) -> Frame:
        seeds = ", ".join(map(str, request.seeds.tolist()))
        if isinstance(event, Generation):
            pictures, source, doing, partly = [to_display(image) for image in event.images], "", "", 0.0
        else:
            pictures, source = _previews(event), f"previews: {_SOURCES[event.source]}; "
            doing = f"step {event.step.mean():.0f} of {event.total}, "  # images that wait are at 0 for long
            partly = float(event.step.sum() / event.total)
        bar = meter.line(doing, partly, min(_BAR, self._screen.columns))
        return _row(pictures, self._at_once), [f"{MARK}; {source}seeds {seeds}", bar]

    def update(self) -> None:
        """Another image of the run is in the folder."""
        self._meter = replace(self._meter, done=self._meter.done + 1)

    def write(self, text: str, file: TextIO) -> None:
        """Print a line. The pictures so far stay above it."""
        self._painter.say(text, file)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        drawing = kind is None or issubclass(kind, Exception)  # not after Ctrl-C, in a terminal that is slow
        if drawing and self._last is not None:
            self._painter.show(partial(self._last, self._meter))  # with the number of all images
        self._painter.stop(drawing)


class _Painter:
    """Draws the newest frame, and drops those before it that are not drawn yet."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._drawing = screen, threading.Lock()
        self._newest: Callable[[], Frame] | None = None
        self._changed, self._stopped = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    def show(self, frame: Callable[[], Frame]) -> None:
        with self._changed:
            self._newest = frame
            self._changed.notify()

    def _run(self) -> None:
        while (frame := self._next()) is not None:
            with self._drawing:
                self._screen.show(*frame())
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, _PAUSE)

    def _next(self) -> Callable[[], Frame] | None:
        """The newest frame, when there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._stopped)
            newest, self._newest = self._newest, None
            return newest

    def say(self, text: str, file: TextIO) -> None:
        with self._drawing:
            self._screen.leave()
            print(text, file=file)

    def stop(self, drawing: bool) -> None:
        """drawing: the newest frame, if it is not there yet."""
        with self._changed:
            self._stopped = True
            if not drawing:
                self._newest = None
            self._changed.notify()
        self._thread.join()
        self._screen.close()


def _previews(event: Progress) -> list[Pixels]:
    if event.images is not None:
        return [to_display(image) for image in event.images]
    if event.previews is None:
        return []
    return [latent_picture(latent, _size(latent)) for latent in event.previews]


def _size(latent: F32) -> tuple[int, int]:
    width, height = latent.shape
    return min(_SIDE, 4 * width), min(_SIDE, 4 * height)


def _row(pictures: Sequence[Pixels], places: int) -> Pixels:
    """The pictures side by side. Places without one are at the end."""
    row = np.zeros((_SIDE, places * (_SIDE + GAP) - GAP), np.uint8)
    for i, picture in enumerate(pictures):
        whole = Image.fromarray(picture).resize((_SIDE, _SIDE))
        row[:, i * (_SIDE + GAP) : i * (_SIDE + GAP) + _SIDE] = np.asarray(whole)
    return row
