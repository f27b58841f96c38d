"""Pieces of the page that several tabs have."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .._errors import BratsLDMError
from .._presets import DECODER, GRID, PRESETS
from .downloads import FORMATS, pack
from .figures import nothing_yet, say, say_error, viewer_frame
from .form import CUSTOM, DECODERS, GRIDS, SAMPLERS, of_preset
from .sessions import Studio
from .views import View, failed, refused

SILENT: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 64, "api_visibility": "private"}
"""For events: no overlay of Gradio's over the pictures, many tabs at once, no API."""


def plain_html(value: str, elem_id: str | None = None) -> gr.HTML:
    """HTML in the page's own style, not in that of Gradio's prose."""
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False, js_on_load=None)


@dataclass(frozen=True)
class Shown:
    """The components that show a run."""

    run: gr.Button
    stop: gr.Button
    words: gr.HTML
    progress: gr.HTML
    pictures: gr.HTML
    keep: gr.Row | None
    """What can be done with finished images: `keep_row`."""
    look: gr.Accordion | None
    """The folded part with `viewer`."""
    viewer: gr.HTML | None

    @property
    def outputs(self) -> list[Any]:
        parts = [self.run, self.stop, self.words, self.progress, self.pictures, self.keep, self.look, self.viewer]
        return [part for part in parts if part is not None]


def show_parts(
    studio: Studio, kind: str, run: gr.Button, stop: gr.Button, nothing: tuple[str, str], *, grid: str, above: str = ""
) -> Shown:
    """The column that shows a run whose images can be kept.

    nothing: two sentences in place of the pictures before there are some. above: HTML over the pictures.
    """
    words, progress = plain_html("", f"{kind}-words"), plain_html("", f"{kind}-progress")
    keep = keep_row(studio, kind)
    if above:
        plain_html(above)
    pictures = plain_html(nothing_yet(*nothing), grid)
    return Shown(run, stop, words, progress, pictures, keep, *close_look(studio, kind))


async def shown_views(shown: Shown, views: AsyncIterator[View]) -> AsyncGenerator[dict[Any, Any], None]:
    """The views of a run as Gradio's updates. What ends a run early is said where the run is shown."""
    try:
        async for view in views:
            yield _updates(shown, view)
    except BratsLDMError as error:
        yield _updates(shown, refused(error))
    except Exception:
        traceback.print_exc()
        yield _updates(shown, failed())


def refusal(shown: Shown, error: BratsLDMError) -> dict[Any, Any]:
    """The updates for a run that was never sent: the pictures of the run before stay."""
    view = refused(error)
    return {shown.run: gr.update(), shown.words: view.words, shown.progress: view.progress}


def _updates(shown: Shown, view: View) -> dict[Any, Any]:
    changed: dict[Any, Any] = {
        shown.run: gr.update(visible=not view.running),
        shown.stop: gr.update(visible=view.running),
        shown.words: view.words,
        shown.progress: view.progress,
    }
    if view.pictures is not None:
        changed[shown.pictures] = view.pictures
    if shown.keep is not None and shown.look is not None:
        changed[shown.keep] = gr.update(visible=view.finished)
        changed[shown.look] = gr.update(visible=view.finished, open=False)
        changed[shown.viewer] = ""
    return changed


def preset_choices() -> list[tuple[str, str]]:
    return [(f"{name.capitalize()} · {of_preset(name).words}", name) for name in PRESETS]


def named_choices(names: Mapping[str, str]) -> list[tuple[str, str | int | float]]:
    """For Gradio: words, then what stands for them."""
    return [(words, name) for name, words in names.items()]


def how_inputs(kind: str) -> tuple[gr.Radio, gr.Radio, gr.Number, gr.Number, gr.Radio, gr.Radio]:
    """Preset, and what belongs to the choice "Custom": sampler, steps, eta, grid, decoder."""
    choices = [*preset_choices(), ("Custom", CUSTOM)]
    preset = gr.Radio(choices, value="standard", label="Quality", elem_id=f"{kind}-preset", elem_classes="stacked")
    with gr.Group(visible=False) as own:
        sampler = gr.Radio(named_choices(SAMPLERS), value="ddim", label="Sampler", elem_id=f"{kind}-sampler")
        with gr.Row():
            steps = gr.Number(50, label="Steps", precision=0, elem_id=f"{kind}-steps", min_width=100)
            eta = gr.Number(0.0, label="Eta (DDIM only)", step=0.1, elem_id=f"{kind}-eta", min_width=100)
        grid = gr.Radio(named_choices(GRIDS), value=GRID, label="Timesteps", elem_id=f"{kind}-timesteps")
        decoder = gr.Radio(named_choices(DECODERS), value=DECODER, label="Image by", elem_id=f"{kind}-decoder")
    preset.change(lambda name: gr.update(visible=name == CUSTOM), preset, own, **SILENT)
    return preset, sampler, steps, eta, grid, decoder


def keep_row(studio: Studio, kind: str) -> gr.Row:
    """A format and a button to download finished images. The file is made on a click, and has an address of its own."""
    row = gr.Row(visible=False, elem_classes="download")
    with row:
        choices = [(words, name) for name, words in FORMATS.items()]
        format = gr.Radio(choices, value="png", show_label=False, container=False, elem_id=f"{kind}-format", scale=1)
        button = gr.Button("Download", elem_id=f"{kind}-download", scale=0, min_width=130)
        words = plain_html("", f"{kind}-download-words")
        address = gr.Textbox(visible=False)

    async def prepare(name: str, request: gr.Request) -> AsyncGenerator[tuple[str, str], None]:
        session = studio.session(request.session_hash)
        if kind not in session.results:
            yield say("The page no longer has these images. Make them again.", "bad"), ""
            return
        yield say("Writing the files …", "wait"), ""
        try:
            file = await asyncio.to_thread(pack, session.results[kind], name)
        except BratsLDMError as error:
            yield say_error(error), ""
        else:
            yield "", f"download/{studio.offer(session, kind, file)}"

    done = button.click(prepare, format, [words, address], **SILENT)
    done.then(None, address, None, js="(address) => { studioDownload(address); return []; }", **SILENT)
    return row


def close_look(studio: Studio, kind: str) -> tuple[gr.Accordion, gr.HTML]:
    """A folded part for finished images, and the viewer in it, which is made when it is unfolded."""
    label = "Look closely: window and level, zoom, values"
    part = gr.Accordion(label, open=False, visible=False, elem_id=f"{kind}-look")
    with part:
        viewer = plain_html("", f"{kind}-viewer")

    async def show(request: gr.Request) -> AsyncGenerator[str, None]:
        generation = studio.session(request.session_hash).results.get(kind)
        if generation is None:
            yield say("There are no finished images yet.")
            return
        yield say("Opening the viewer …", "wait")
        yield await asyncio.to_thread(viewer_frame, generation)

    part.expand(show, None, viewer, **SILENT)
    return part, viewer
