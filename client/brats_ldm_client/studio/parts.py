"""Pieces of the page that several tabs have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from .._errors import BratsLDMError
from .._presets import PRESETS
from .downloads import FORMATS, pack
from .figures import nothing_yet, say_error
from .form import CUSTOM, SAMPLERS, How
from .sessions import Studio
from .views import View

SILENT: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 64, "api_visibility": "private"}
"""For events: no overlay of Gradio's over the pictures, many tabs at once, no API."""


def plain_html(value: str, elem_id: str | None = None) -> gr.HTML:
    """HTML in the page's own style, not in that of Gradio's prose."""
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False, js_on_load=None)


@dataclass
class Shown:
    """The components that show a run."""

    run: gr.Button
    stop: gr.Button
    words: gr.HTML
    progress: gr.HTML
    pictures: gr.HTML
    download: gr.Row | None = None

    @property
    def outputs(self) -> list[Any]:
        parts = [self.run, self.stop, self.words, self.progress, self.pictures]
        return [*parts, self.download] if self.download is not None else parts


def show_parts(kind: str, run: gr.Button, stop: gr.Button, grid_id: str, nothing: tuple[str, str]) -> Shown:
    """nothing: two sentences in place of the pictures, before there are some."""
    words = plain_html("", f"{kind}-words")
    progress = plain_html("", f"{kind}-progress")
    pictures = plain_html(nothing_yet(*nothing), grid_id)
    return Shown(run, stop, words, progress, pictures)


def updates(shown: Shown, view: View, pictures: bool = True) -> dict[Any, Any]:
    """A view as Gradio's updates. pictures: false to leave the pictures of the run before."""
    changed: dict[Any, Any] = {
        shown.run: gr.update(visible=not view.running),
        shown.stop: gr.update(visible=view.running),
        shown.words: view.words,
        shown.progress: view.progress,
    }
    if pictures:
        changed[shown.pictures] = view.pictures
        if shown.download is not None:
            changed[shown.download] = gr.update(visible=view.finished)
    return changed


def preset_choices() -> list[tuple[str, str]]:
    return [
        (f"{name.capitalize()} · {How(preset.sampler, preset.steps).words}", name) for name, preset in PRESETS.items()
    ]


def how_inputs(kind: str) -> tuple[gr.Radio, gr.Radio, gr.Number, gr.Number]:
    """Preset, and what belongs to the choice "Custom": sampler, steps, eta."""
    choices = [*preset_choices(), ("Custom", CUSTOM)]
    preset = gr.Radio(choices, value="standard", label="Quality", elem_id=f"{kind}-preset", elem_classes="stacked")
    with gr.Group(visible=False) as own:
        names = [(words, name) for name, words in SAMPLERS.items()]
        sampler = gr.Radio(names, value="ddim", label="Sampler", elem_id=f"{kind}-sampler")
        with gr.Row():
            steps = gr.Number(50, label="Steps", precision=0, elem_id=f"{kind}-steps", min_width=100)
            eta = gr.Number(0.0, label="Eta", info="DDIM only", step=0.1, elem_id=f"{kind}-eta", min_width=100)
    preset.change(lambda name: gr.update(visible=name == CUSTOM), preset, own, **SILENT)
    return preset, sampler, steps, eta


def download_row(studio: Studio, kind: str) -> gr.Row:
    """A format and a button. The file is made on a click, and the browser gets it from an address of its own."""
    row = gr.Row(visible=False, elem_classes="download")
    with row:
        choices = [(words, name) for name, words in FORMATS.items()]
        format = gr.Radio(choices, value="png", show_label=False, container=False, elem_id=f"{kind}-format", scale=1)
        button = gr.Button("Download", elem_id=f"{kind}-download", scale=0, min_width=140)
        words = plain_html("", f"{kind}-download-words")
        address = gr.Textbox(visible=False)

    def prepare(name: str, request: gr.Request) -> tuple[str, str]:
        session = studio.session(request.session_hash)
        if kind not in session.results:
            return "", ""
        try:
            token = studio.downloads.add(pack(session.results[kind], name))
        except BratsLDMError as error:
            return say_error(error), ""
        session.tokens.append(token)
        return "", f"download/{token}"

    done = button.click(prepare, format, [words, address], **SILENT)
    done.then(None, address, None, js="(address) => { studioDownload(address); return []; }", **SILENT)
    return row
