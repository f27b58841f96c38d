"""The tab Compare as Gradio lays it out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from .._errors import BratsLDMError
from .._presets import DECODER, GRID
from . import form
from .comparing import KIND, compare, ways
from .figures import nothing_yet
from .parts import SILENT, Shown, named_choices, plain_html, preset_choices, refusal, shown_views
from .sessions import Studio

_NOTHING = "Press Compare", "One seed, made in several ways: what changes, and how much."


def lay_out(studio: Studio) -> None:
    with gr.Tab("Compare", id=KIND), gr.Row(elem_classes="desk"):
        with gr.Column(scale=0, min_width=330, elem_classes="controls"):
            seed = gr.Textbox("42", label="Seed", elem_id="compare-seed")
            run = gr.Button("Compare", variant="primary", elem_id="compare-run", size="lg")
            stop = gr.Button("Stop", variant="stop", elem_id="compare-stop", size="lg", visible=False)
            with gr.Column(elem_classes="settings"):
                samplers = gr.CheckboxGroup(
                    named_choices(form.SAMPLERS),
                    value=["ddim", "dpmpp_2m"],
                    label="Samplers",
                    elem_id="compare-samplers",
                    elem_classes="stacked",
                )
                steps = gr.Textbox("10, 20", label="Steps", info="one or several, with commas", elem_id="compare-steps")
                grid = gr.CheckboxGroup(
                    named_choices(form.GRIDS), value=[GRID], label="Timesteps", elem_id="compare-timesteps"
                )
                decoder = gr.CheckboxGroup(
                    named_choices(form.DECODERS), value=[DECODER], label="Image by", elem_id="compare-decoder"
                )
                reference = gr.Radio(
                    preset_choices(),
                    value="standard",
                    label="Reference",
                    elem_id="compare-reference",
                    elem_classes="stacked",
                )
        with gr.Column(scale=1, elem_classes="results"):
            words, progress = plain_html("", "compare-words"), plain_html("", "compare-progress")
            pictures = plain_html(nothing_yet(*_NOTHING), "compare-grid")
    shown = Shown(run, stop, words, progress, pictures, None, None, None)

    async def start(
        text: str,
        chosen: list[str],
        counts: str,
        grids: list[str],
        decoders: list[str],
        against: str,
        request: gr.Request,
    ) -> AsyncGenerator[dict[Any, Any], None]:
        session = studio.session(request.session_hash)
        try:
            every = ways(chosen, form.steps_from(counts), form.of_preset(against), grids, decoders)
            views = compare(studio, session, form.one_seed(text, "The seed"), every)
        except BratsLDMError as error:
            yield refusal(shown, error)
            return
        async for update in shown_views(shown, views):
            yield update

    def halt(request: gr.Request) -> None:
        studio.session(request.session_hash).stop(KIND)

    inputs = [seed, samplers, steps, grid, decoder, reference]
    gr.on([run.click, seed.submit, steps.submit], start, inputs, shown.outputs, trigger_mode="once", **SILENT)
    stop.click(halt, None, None, **SILENT)
