"""The page: head, server line and tabs, laid out with Gradio. What they do is in the other modules."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from . import tab_compare, tab_generate, tab_walk
from .parts import SILENT, plain_html
from .server_line import server_line
from .sessions import Studio

TITLE = "brats-ldm studio"
CSS, JS = (Path(__file__).with_name(name) for name in ("page.css", "page.js"))
_FONT, _MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # of the machine: none is fetched
_HEAD = """
<header class="studio-head"><h1>Synthetic brain MRI <span>studio</span></h1>
<p>FLAIR slices from a latent diffusion model. All pictures are synthetic: for research only, not for diagnosis.</p>
</header>"""


def theme() -> gr.themes.Base:
    """Calm greys and one colour."""
    base = gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", font=_FONT, font_mono=_MONO
    )
    return base.set(
        body_background_fill_dark="*neutral_950",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="*background_fill_secondary",
        checkbox_label_background_fill_hover_dark="*background_fill_secondary",
        checkbox_label_background_fill_selected="*background_fill_secondary",
        checkbox_label_background_fill_selected_dark="*background_fill_secondary",
        checkbox_label_border_color="*border_color_primary",
        checkbox_label_border_color_dark="*border_color_primary",
        checkbox_label_border_color_selected="*primary_500",
        checkbox_label_border_color_selected_dark="*primary_500",
        checkbox_label_border_width="1px",
        checkbox_label_border_width_dark="1px",
        input_background_fill="*background_fill_secondary",
        input_background_fill_dark="*neutral_900",
        block_background_fill_dark="*neutral_950",
    )


def page(studio: Studio) -> gr.Blocks:
    """The whole page for one studio."""
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with blocks:
        plain_html(_HEAD, "head")
        line = plain_html(server_line(studio.server.state()), "server-line")
        with gr.Tabs(elem_id="tabs"):
            tab_generate.lay_out(studio)
            tab_compare.lay_out(studio)
            tab_walk.lay_out(studio)

        def look() -> str:
            return server_line(studio.server.state())

        def leave(request: gr.Request) -> None:
            studio.leave(request.session_hash)

        blocks.load(look, None, line, **SILENT)
        gr.Timer(2.0).tick(look, None, line, **SILENT)
        blocks.unload(leave)
    return blocks
