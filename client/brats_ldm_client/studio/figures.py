"""Pictures as HTML: figures whose PNG carries the mark and its record, progress bars, sentences. Knows no Gradio."""

from __future__ import annotations

import base64
from collections.abc import Callable, Hashable, Mapping, Sequence
from html import escape
from typing import Any

from .._types import Generation
from ..pictures import Pixels, latent_picture, marked, png, to_display
from ..viewer import viewer_page
from .runs import State
from .words import detail, sentence


def figure(pixels: Pixels, caption: str, alt: str, data: Mapping[str, object], record: Mapping[str, Any]) -> str:
    """One picture with the mark below it, as an inline PNG, so that a copy of it says what it is.

    data: attributes data-… of the figure. record: for the text chunks of the PNG.
    """
    inline = base64.b64encode(png(marked(pixels), record)).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{inline}" draggable="false">'
    return f"<figure {_attributes(data)}>{image}<figcaption>{caption}</figcaption></figure>"


def empty(caption: str, data: Mapping[str, object]) -> str:
    """The place of a picture that is not there yet."""
    blank = '<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">'
    return f'<figure class="empty" {_attributes(data)}>{blank}<figcaption>{caption}</figcaption></figure>'


def _attributes(data: Mapping[str, object]) -> str:
    share = f' style="--share: {data["share"]}"' if "share" in data else ""
    return " ".join(f'data-{name}="{escape(str(value))}"' for name, value in data.items()) + share


class Album:
    """Figures of one run. A picture is made once, however often it is shown."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[Hashable, str]] = {}

    def get(self, place: Hashable, version: Hashable, make: Callable[[], str]) -> str:
        """The figure at `place`, made again if its version is another than before."""
        if place not in self._made or self._made[place][0] != version:
            self._made[place] = version, make()
        return self._made[place][1]

    def row(self, place: Hashable, state: State, row: int, *, name: str = "") -> str:
        """The newest picture of a row of a request. name: begins its caption; "seed 42" by default."""
        seed, steps = state.asked.seeds[row], state.asked.how.steps
        name = name or f"seed {seed}"
        # Not the name: it would be the same for as long as the picture is.
        version = state.phase in ("stopped", "failed"), state.step(row), state.generation is None
        return self.get(place, version, lambda: _row_figure(state, row, name, seed, steps))


def _row_figure(state: State, row: int, name: str, seed: int, steps: int) -> str:
    if state.generation is not None:
        made = state.generation[row]
        data = {"seed": seed, "step": steps, "kind": "image", "source": "decoder"}
        return figure(to_display(made.image), escape(name), f"Synthetic slice, {name}", data, made.record)
    step = state.step(row)
    ended = " · stopped" if state.phase == "stopped" else ""
    caption = f"{escape(name)} <span>· step {step} of {steps}{ended}</span>"
    data = {"seed": seed, "step": step, "kind": "preview", "share": f"{step / steps:.3f}"}
    pixels, source = preview(state, row)
    if pixels is None:
        return empty(caption, {**data, "source": "none"})
    record = {"seed": seed, "preview": f"step {step} of {steps}", "preview_source": source}
    return figure(pixels, caption, f"Preview, {name}", {**data, "source": source}, record)


def preview(state: State, row: int) -> tuple[Pixels | None, str]:
    """The newest preview of a row, and whether it comes from the tiny decoder or is the latent itself."""
    progress = state.progress
    if progress is None or not state.step(row):
        return None, ""
    if progress.images is not None:
        return to_display(progress.images[row]), progress.source
    if progress.previews is None:
        return None, ""
    return latent_picture(progress.previews[row]), "latent"


def grid(figures: Sequence[str], kind: str = "grid") -> str:
    """Figures side by side. The number of them decides how large they are."""
    size = "one" if len(figures) == 1 else "few" if len(figures) <= 4 else "some" if len(figures) <= 16 else "many"
    return f'<div class="pictures {kind} {size}">{"".join(figures)}</div>'


def progress_bar(share: float, text: str) -> str:
    percent = round(100 * share)
    bar = f'<div class="bar"><div style="width: {percent}%"></div></div>'
    role = f'role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}"'
    return f'<div class="progress" {role}>{bar}<span>{escape(text)}</span></div>'


def say(text: str, tone: str = "plain", more: str = "") -> str:
    """A sentence; tone: plain, good, wait or bad. more: what stands small below it."""
    if not text:
        return ""
    small = f"<small>{escape(more)}</small>" if more else ""
    return f'<p class="words {tone}" role="status">{escape(text)}{small}</p>'


def say_error(error: BaseException) -> str:
    return say(sentence(error), "bad", detail(error))


def nothing_yet(bold: str, more: str) -> str:
    """What stands where pictures will be."""
    return f'<div class="nothing"><b>{escape(bold)}</b><span>{escape(more)}</span></div>'


def viewer_frame(generation: Generation) -> str:
    """The images in the viewer of `brats_ldm_client.viewer`, in a frame of its own that can reach nothing else."""
    page = viewer_page([(f"seed {made.seed}", made.image) for made in generation], "Synthetic slices")
    return f'<iframe class="viewer" title="Viewer" sandbox="allow-scripts" srcdoc="{escape(page)}"></iframe>'
