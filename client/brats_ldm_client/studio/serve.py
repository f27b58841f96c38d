"""Runs the page: a socket, the Gradio page inside a small web application, signals, and the end of all runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from types import FrameType

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from .guard import Guard
from .layout import CSS, JS, TITLE, page, theme
from .sessions import Studio

USER = "studio"
_TABS = 64  # runs at once, over all tabs
_GRACE = 3  # seconds for runs to be cancelled on the server when the studio ends


def application(studio: Studio, hosts: frozenset[str] | None, password: str | None) -> FastAPI:
    """The page at /, and its downloads.

    hosts: the names by which a browser may ask for it; None: any. password: of the user `studio`; None: no login.
    """

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(studio.server.run())
        try:
            yield
        finally:
            studio.stop()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    app = FastAPI(lifespan=living, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts)

    @app.get("/download/{token}")
    def download(token: str) -> Response:
        file = studio.downloads.get(token)
        if file is None:
            return PlainTextResponse("This download is gone: make the images again.", 404)
        headers = {"Content-Disposition": f'attachment; filename="{file.name}"', "Cache-Control": "no-store"}
        return Response(file.content, media_type=file.media_type, headers=headers)

    blocks = page(studio)
    blocks.queue(default_concurrency_limit=_TABS, api_open=False)
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        auth=None if password is None else (USER, password),
        auth_message=f"{TITLE}: the user is {USER}",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size="1kb",  # nothing is uploaded
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=CSS.read_text(),
        head=f"<script>{JS.read_text()}</script>",
    )
    return app


class Server(uvicorn.Server):
    """uvicorn's, which says when it answers, and stops the runs of the page first when it has to end."""

    def __init__(self, config: uvicorn.Config, answers: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._answers, self._ending = answers, ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._answers()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ending()
        super().handle_exit(sig, frame)


def serve(
    studio: Studio,
    listening: socket.socket,
    hosts: frozenset[str] | None,
    password: str | None,
    answers: Callable[[], None],
) -> None:
    """Serve the page until a signal ends it. answers: called once it can be opened.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all has ended.
    """
    app = application(studio, hosts, password)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=_GRACE)
    Server(config, answers, studio.stop).run(sockets=[listening])
