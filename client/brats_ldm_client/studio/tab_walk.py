"""The tab Walk as Gradio lays it out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from .._errors import BratsLDMError
from . import form
from .parts import SILENT, plain_html, preset_choices, refusal, show_parts, shown_views
from .sessions import Studio
from .walking import KIND, LEAST, MOST, PRESET_NAMES, stations, walk

_NOTHING = "Press Walk", "From the brain of one seed to that of another, picture by picture."
_BIG = """
<div class="walk"><div id="walk-big"></div>
<input id="walk-slider" type="range" min="0" max="0" step="1" aria-label="Which picture of the walk" disabled></div>"""
_ABOUT = """<p class="legend">The start noise turns from that of one seed to that of the other, on an arc. The ends are
the images of the two seeds: all samplers here work without fresh noise.</p>"""


def lay_out(studio: Studio) -> None:
    with gr.Tab("Walk", id=KIND), gr.Row(elem_classes="desk"):
        with gr.Column(scale=0, min_width=330, elem_classes="controls"):
            with gr.Row():
                first = gr.Textbox("1", label="From seed", elem_id="walk-a", min_width=100)
                last = gr.Textbox("2", label="To seed", elem_id="walk-b", min_width=100)
            run = gr.Button("Walk", variant="primary", elem_id="walk-run", size="lg")
            stop = gr.Button("Stop", variant="stop", elem_id="walk-stop", size="lg", visible=False)
            with gr.Column(elem_classes="settings"):
                count = gr.Number(9, label="Pictures", info=f"{LEAST} to {MOST}", precision=0, elem_id="walk-count")
                choices = [(words, name) for words, name in preset_choices() if name in PRESET_NAMES]
                preset = gr.Radio(choices, value="fast", label="Quality", elem_id="walk-preset", elem_classes="stacked")
                plain_html(_ABOUT)
        with gr.Column(scale=1, elem_classes="results"):
            shown = show_parts(studio, KIND, run, stop, _NOTHING, grid="walk-strip", above=_BIG)

    async def start(
        one: str, other: str, number: Any, chosen: str, request: gr.Request
    ) -> AsyncGenerator[dict[Any, Any], None]:
        session = studio.session(request.session_hash)
        try:
            ends = form.one_seed(one, "The first seed"), form.one_seed(other, "The second seed")
            where = stations(form.whole_number(number, "The number of pictures"))
        except BratsLDMError as error:
            yield refusal(shown, error)
            return
        async for update in shown_views(shown, walk(studio, session, *ends, where, form.of_preset(chosen))):
            yield update

    def halt(request: gr.Request) -> None:
        studio.session(request.session_hash).stop(KIND)

    inputs = [first, last, count, preset]
    gr.on([run.click, last.submit], start, inputs, shown.outputs, trigger_mode="once", **SILENT)
    stop.click(halt, None, None, **SILENT)
