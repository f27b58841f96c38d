"""Pages in a real Chromium without a screen: what a page says, what it asks of the network, how it looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response, sync_playwright

CHROMIUM = Path(sys.executable).parent / "chromium-headless-shell"  # put there by fetch_debian.sh
HERE = {"127.0.0.1", "localhost", "::1", None}  # hosts that a page may ask; files and data have none
OPTIONS = [
    "--no-sandbox",  # which root cannot have; the tests look at pages of this project only
    "--disable-dev-shm-usage",  # servers of other tests need that memory
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
ABORTED = "net::ERR_ABORTED"  # by the page itself, which has what it wanted, or made a download of it
SIZE = (1280, 900)
PATIENCE_MS = 60_000
"""Milliseconds that a page may take for what a test waits for: generous, since machines are busy."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running Chromium. While it runs no other event loop may run in this thread, as `asyncio.run` makes one."""
    assert CHROMIUM.exists(), f"no {CHROMIUM}: `make .venv/.tools` brings it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """Somebody with a browser of their own: cookies, cache, tabs. Notes what goes wrong in every tab.

    faults: errors on the console, uncaught exceptions, requests that failed or were refused. outside: requests to other
    machines, none of which arrives.
    """

    def __init__(self, browser: Browser, *, colours: str = "light", size: tuple[int, int] = SIZE) -> None:
        viewport = {"width": size[0], "height": size[1]}
        dark = "dark" if colours == "dark" else "light"
        self.context: BrowserContext = browser.new_context(viewport=viewport, color_scheme=dark, accept_downloads=True)
        self.context.set_default_timeout(PATIENCE_MS)
        self.faults: list[str] = []
        self.outside: list[str] = []
        self._leaving = False
        self.context.on("console", self._said)
        self.context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))
        self.context.on("request", self._asked)
        self.context.on("requestfailed", self._failed)
        self.context.on("response", self._answered)

    def open(self, url: str) -> Page:
        """A new tab with the page at `url`, loaded."""
        page = self.context.new_page()
        page.on("websocket", lambda socket: self._note(socket.url))
        page.goto(url)
        return page

    @contextmanager
    def looking_at(self, url: str) -> Iterator[Page]:
        """The same, and the tab is closed at the end: before what it shows goes away."""
        page = self.open(url)
        try:
            yield page
        finally:
            page.close()

    def leave(self) -> None:
        """Close all tabs. Raises AssertionError for what went wrong in them."""
        self._leaving = True
        self.context.close()
        assert self.outside == [], self.outside
        assert self.faults == [], self.faults

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        self._note(request.url)

    def _note(self, url: str) -> None:
        if urlsplit(url).hostname not in HERE:
            self.outside.append(url)

    def _failed(self, request: Request) -> None:
        if request.failure != ABORTED and not self._leaving:
            self.faults.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"refused: {response.request.method} {response.url}: {response.status}")


def screenshot(page: Page, path: Path) -> Path:
    """What the window shows, as PNG, with animations at their end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, animations="disabled", caret="hide")
    return path
