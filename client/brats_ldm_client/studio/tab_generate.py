"""The tab Generate as Gradio lays it out."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from .._errors import BratsLDMError
from . import form
from .generating import KIND, generate
from .parts import SILENT, how_inputs, refusal, show_parts, shown_views
from .sessions import Studio

_NOTHING = "Press Generate", "Each picture begins as noise. Watch a brain come out of it."


def lay_out(studio: Studio) -> None:
    with gr.Tab("Generate", id=KIND), gr.Row(elem_classes="desk"):
        with gr.Column(scale=0, min_width=330, elem_classes="controls"):
            with gr.Row(elem_classes="seeds"):
                seeds = gr.Textbox("0-3", label="Seeds", info="42, 0-7 or 1, 5, 9", elem_id="generate-seeds", scale=1)
                dice = gr.Button("⚄", elem_id="generate-dice", elem_classes="dice", scale=0, min_width=44)
            run = gr.Button("Generate", variant="primary", elem_id="generate-run", size="lg")
            stop = gr.Button("Stop", variant="stop", elem_id="generate-stop", size="lg", visible=False)
            with gr.Column(elem_classes="settings"):
                inputs = how_inputs(KIND)
                with gr.Accordion("Previews", open=False):
                    every = gr.Number(5, label="Show one every … steps", precision=0, elem_id="generate-previews")
                    kinds = [("Latent", "latent"), ("Tiny decoder", "tiny")]
                    decoder = gr.Radio(kinds, value="latent", label="Made from", elem_id="generate-preview-kind")
        with gr.Column(scale=1, elem_classes="results"):
            shown = show_parts(studio, KIND, run, stop, _NOTHING, grid="generate-grid")

    async def start(
        text: str,
        preset: str,
        sampler: str,
        steps: Any,
        eta: Any,
        grid: str,
        made_by: str,
        interval: Any,
        kind: str,
        request: gr.Request,
    ) -> AsyncGenerator[dict[Any, Any], None]:
        session = studio.session(request.session_hash)
        try:
            how = form.how(preset, sampler, steps, eta, grid, made_by)
            asked = form.seeds_from(text), how, form.interval_of(interval)
        except BratsLDMError as error:
            yield refusal(shown, error)
            return
        async for update in shown_views(shown, generate(studio, session, *asked, kind)):
            yield update

    def halt(request: gr.Request) -> None:
        studio.session(request.session_hash).stop(KIND)

    gr.on(
        [run.click, seeds.submit],
        start,
        [seeds, *inputs, every, decoder],
        shown.outputs,
        trigger_mode="once",
        **SILENT,
    )
    stop.click(halt, None, None, **SILENT)
    dice.click(lambda: str(secrets.randbelow(1_000_000)), None, seeds, **SILENT)
