"""The studio as a person has it: the command that starts it, and what stands on the page in a browser."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Locator, Page

from brats_ldm_client.pictures import marked, to_display
from support.browser import Visitor
from support.common import ROOT, heeding_signals
from support.serving import wait_until

PATIENCE = 180.0
"""Seconds that the command and the page may take for anything: on a busy machine Gradio alone takes long to import."""
BEGIN = "The studio is at "
PNG = "data:image/png;base64,"
READ = """figures => figures.map(figure => ({
    data: {...figure.closest("article")?.dataset, ...figure.dataset},
    source: figure.querySelector("img").src,
    alt: figure.querySelector("img").alt,
    caption: figure.querySelector("figcaption").innerText,
}))"""


@contextmanager
def studio(*options: str, program: Sequence[str] = ("brats_ldm_client", "studio"), **environment: str) -> Iterator[str]:
    """`brats-ldm studio` with these options on a free port: its address. It must end as asked, with one line."""
    command = heeding_signals([sys.executable, "-m", *program, "--port", "0", *options])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipes) as process:
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        listener.start()
        impatience = threading.Timer(PATIENCE, process.kill)
        impatience.start()
        try:
            lines = iter(process.stdout or ())
            address = next((line.removeprefix(BEGIN) for line in lines if line.startswith(BEGIN)), "")
            impatience.cancel()
            assert address.startswith("http://127.0.0.1:"), said
            yield address.split()[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            impatience.cancel()
            process.kill()
            listener.join()
    assert said == ["brats-ldm: terminated\n"], "".join(said)


@dataclass(frozen=True)
class Figure:
    """A picture on the page: its data-* attributes with those of its cell, and the bytes that a copy of it has."""

    data: dict[str, str]
    caption: str
    alt: str
    png: bytes

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        with Image.open(io.BytesIO(self.png)) as picture:
            return np.asarray(picture.convert("L"))

    @property
    def bears_the_mark(self) -> bool:
        """Whether the line at its foot is that of all marked pictures."""
        blank = marked(np.zeros((240, 240), np.uint8))
        return np.array_equal(self.pixels[240:], blank[240:])

    @property
    def seed(self) -> int:
        return int(self.data["seed"])

    @property
    def step(self) -> int:
        return int(self.data["step"])

    @property
    def kind(self) -> str:
        return self.data["kind"]


def figures(page: Page, where: str, kind: str | None = None) -> list[Figure]:
    """The pictures in the element `where` (an id), perhaps of one kind ("preview", "image", "difference").

    Without the places of those that are still to come.
    """
    found = []
    for each in page.locator(f"#{where} figure").evaluate_all(READ):
        if each["source"].startswith(PNG):
            content = base64.b64decode(each["source"].removeprefix(PNG), validate=True)
            found.append(Figure(each["data"], each["caption"], each["alt"], content))
    return [figure for figure in found if kind in (None, figure.kind)]


def words(page: Page, where: str) -> str:
    """The text that one sees in the element `where`; empty where it is not there."""
    place = page.locator(f"#{where}")
    return place.inner_text().strip() if place.count() else ""


def fill(page: Page, where: str, value: object) -> None:
    """Type into the field `where`, as one does: what stood there is gone, and the page hears of it.

    Gradio has been seen to put the first value back while it still set up the page: then a person types again.
    """
    for _ in range(3):
        field(page, where).fill(str(value))
        field(page, where).press("Tab")
        page.wait_for_timeout(200)
        if field(page, where).input_value() == str(value):
            return


def field(page: Page, where: str) -> Locator:
    return page.locator(f"#{where}").locator("textarea, input").first


def choose(page: Page, where: str, label: str) -> None:
    """A radio button or a checkbox by its label."""
    page.locator(f"#{where}").get_by_label(label, exact=True).check()


def press(page: Page, where: str) -> None:
    """The button `where`: the element itself, or the one in it."""
    page.locator(f"button#{where}, #{where} button").first.click()


def download(page: Page, kind: str, format: str, folder: Path) -> Path:
    """The file that the browser gets for a format in the tab `kind`, in `folder`/`format`."""
    choose(page, f"{kind}-format", format)
    with page.expect_download() as waiting:
        press(page, f"{kind}-download")
    path = folder / format / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def unpacked(path: Path) -> Path:
    """The folder with what is in a zip file."""
    folder = path.with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def picture_of(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """What the page must show for an image that a plain client got."""
    return marked(to_display(image))


def open_page(visitor: Visitor, address: str) -> Page:
    """The studio's page, once it says that the server is ready."""
    page = visitor.open(address)
    wait_for_words(page, "server-line", "^Ready")
    return page


def ask(page: Page, seeds: str, *, steps: int | str = 4, sampler: str = "DDIM", every: int = 1) -> None:
    """Fill in the form of the tab Generate with parameters of one's own, and run."""
    fill(page, "generate-seeds", seeds)
    choose(page, "generate-preset", "Custom")
    choose(page, "generate-sampler", sampler)
    fill(page, "generate-steps", steps)
    if not field(page, "generate-previews").is_visible():
        page.get_by_role("button", name="Previews").click()
    fill(page, "generate-previews", every)
    press(page, "generate-run")


def made(page: Page, where: str, count: int) -> list[Figure]:
    """The finished images in `where`, once there are `count`."""
    return wait_for_figures(page, where, count, "image")


def wait_for_figures(page: Page, where: str, count: int, kind: str) -> list[Figure]:
    """The pictures of one kind in `where`, once there are `count`."""
    found: list[Figure] = []

    def look() -> bool:
        found[:] = figures(page, where, kind)
        return len(found) == count

    wait_until(look, f"there are no {count} pictures of the kind {kind}", PATIENCE)
    return found


def wait_for_words(page: Page, where: str, pattern: str) -> re.Match[str]:
    """Once the element says something that matches."""
    said = [""]

    def look() -> bool:
        said[0] = words(page, where)
        return re.search(pattern, said[0]) is not None

    try:
        wait_until(look, f"{where} does not say {pattern!r}", PATIENCE)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {said[0]!r}") from None
    found = re.search(pattern, said[0])
    assert found
    return found
