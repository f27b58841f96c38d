"""What the studio says and shows, as HTML, and what it gives to download. No page and no server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from html import unescape

import numpy as np
import pytest
from PIL import Image

from brats_ldm_client import (
    AccessDenied,
    AsyncClient,
    BratsLDMError,
    Cancelled,
    Client,
    DeadlineExceeded,
    Generation,
    InvalidRequest,
    MissingPackage,
    ProtocolError,
    QueueInfo,
    ServerError,
    ServerUnavailable,
)
from brats_ldm_client._error_map import map_error
from brats_ldm_client._extras import import_module
from brats_ldm_client.pictures import NOTICE, marked, to_display
from brats_ldm_client.studio import words
from brats_ldm_client.studio.downloads import Downloads, pack
from brats_ldm_client.studio.figures import figure, say_error
from brats_ldm_client.studio.form import How
from brats_ldm_client.studio.generating import generate
from brats_ldm_client.studio.runs import Asked, State
from brats_ldm_client.studio.server import ServerState
from brats_ldm_client.studio.server_line import server_line
from brats_ldm_client.studio.sessions import Session, Studio
from brats_ldm_client.studio.views import View
from brats_ldm_client.testing import FakeTransport

KINDS = (AccessDenied, Cancelled, DeadlineExceeded, ProtocolError, ServerError, ServerUnavailable)


@pytest.fixture
def studio() -> Studio:
    return Studio({"transport": FakeTransport()})


@pytest.fixture
def two() -> Generation:
    with Client(transport=FakeTransport()) as client:
        return client.generate([4, 9], steps=3)


def text(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", html))


def test_each_kind_of_error_has_its_sentence() -> None:
    sentences = {words.sentence(kind("url: technical words")) for kind in KINDS}
    assert len(sentences) == len(KINDS)
    for sentence in sentences:
        assert sentence.endswith(".")
        assert "technical" not in sentence
    assert words.sentence(MissingPackage("pydicom is not installed: do it")) == "pydicom is not installed: do it."


def test_a_wrong_value_is_said_as_the_server_says_it() -> None:
    error = InvalidRequest("mri_ldm_stream at 127.0.0.1:8001 refused the request: steps is 0; 1 to 1000")
    assert words.sentence(error) == "steps is 0; 1 to 1000"
    assert words.detail(error) == ""


@pytest.mark.parametrize(("token", "says"), [("BUSY", "no room"), ("DRAINING", "stopping"), ("NETWORK_GONE", "failed")])
def test_why_the_page_asks_again(token: str, says: str) -> None:
    cause = RuntimeError(f"[{token} retry_after=5] technical words: try again in about 5 s")
    error = map_error(cause, url="127.0.0.1:8001", model="mri_ldm_stream", timeout=60.0)
    state = State(Asked((1,), How("ddim", 4)), "busy", error=error, again_at=105.0)
    assert re.fullmatch(rf".*{says}.*\. The page asks again in 5 s; Stop ends that\.", words.busy([state], now=100.0))


def test_details_are_escaped() -> None:
    said = say_error(ServerError("<script>alert(1)</script>"))
    assert "<script>" not in said
    assert "alert(1)" in text(said)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "less than a second"), (3.6, "about 4 s"), (89, "about 89 s"), (120, "about 2 min"), (7200, "about 2.0 h")],
)
def test_lengths_of_time(seconds: float, said: str) -> None:
    assert words.about(seconds) == said


def test_time_left_is_measured_from_the_first_steps() -> None:
    pace = words.Pace()
    assert pace.left(0, 100, now=50.0) is None
    assert pace.left(10, 100, now=60.0) is None
    assert pace.left(30, 100, now=64.0) == pytest.approx(14.0)  # 5 steps a second, 70 to go


def test_a_figure_carries_mark_and_record(two: Generation) -> None:
    html = figure(to_display(two.images[0]), "a &amp; b", 'an "alt"', {"seed": 4}, two[0].record)
    source = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source[1]))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), marked(to_display(two.images[0])))
        assert picture.info["Description"] == NOTICE
        assert picture.info["seed"] == "4"
    assert 'alt="an &quot;alt&quot;"' in html


def test_tiny_previews_are_said_to_be_such(studio: Studio) -> None:
    async def views() -> list[View]:
        return [view async for view in generate(studio, Session(), (1, 2), How("ddim", 4), 1, "tiny")]

    last = asyncio.run(views())[-1]
    assert str(last.pictures).count('data-kind="image"') == 2


def state(**changes: object) -> ServerState:
    async def info() -> object:
        async with AsyncClient(transport=FakeTransport()) as client:
            return await client.info()

    return ServerState(**{"seen": True, "info": asyncio.run(info()), **changes})  # type: ignore[arg-type]


def queue(**changes: object) -> QueueInfo:
    usual = {"rows_in_flight": 1, "rows_waiting": 6, "row_steps_left": 300, "max_rows_in_flight": 8}
    more = {"max_rows_waiting": 8, "draining": False, "seconds_left": 20.4}
    return QueueInfo("mri_ldm", **{**usual, **more, **changes})  # type: ignore[arg-type]


def test_the_server_line() -> None:
    said = text(server_line(state(queue=(queue(), queue(seconds_left=None, rows_in_flight=2)))))
    for part in ("Ready", "Triton 0", "sha256:00000000…", "queue: 3 in progress, 12 waiting, about 20 s"):
        assert part in said
    assert "0" * 64 in server_line(state()), "the whole digest is there to copy"
    assert "Looking for" in server_line(ServerState())
    assert "stopping" in server_line(state(queue=(queue(draining=True),)))
    gone = ServerUnavailable("no Triton server answers at <host>: start one")
    assert "cannot be reached" in server_line(state(error=gone))
    assert "<host>" not in server_line(state(error=gone))
    assert "box:8001" in text(server_line(state(error=gone, address="box:8001"))), "which of them is to be checked"


@pytest.mark.parametrize(("format", "ending"), [("png", ".png"), ("nifti", ".nii.gz"), ("dicom", ".dcm")])
def test_one_image_is_one_file(format: str, ending: str) -> None:
    with Client(transport=FakeTransport()) as client:
        file = pack(client.generate([4], steps=3), format)
    assert file.name == f"slice_seed000000004{ending}"
    assert file.media_type


def test_several_images_are_an_archive_with_their_records(two: Generation) -> None:
    file = pack(two, "png16")
    with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
        assert archive.testzip() is None
        records = json.loads(archive.read("provenance.json"))["images"]
        assert [record["seed"] for record in records] == [4, 9]
        assert {record["file"] for record in records} <= set(archive.namelist())
    assert pack(two, "png16") == file, "the same images, the same bytes"


def test_a_format_whose_package_is_missing(two: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        if name == "pydicom":
            raise ModuleNotFoundError("No module named 'pydicom'", name="pydicom")
        return import_module(name)

    monkeypatch.setattr("brats_ldm_client._extras.import_module", missing)
    with pytest.raises(BratsLDMError, match="pip install pydicom"):
        pack(two, "dicom")


def test_downloads_are_gone_with_their_tab(studio: Studio, two: Generation) -> None:
    session = studio.session("a")
    first = studio.offer(session, "generate", pack(two, "png"))
    second = studio.offer(session, "generate", pack(two, "nifti"))
    other = studio.offer(studio.session("b"), "generate", pack(two, "png"))
    assert studio.downloads.get(first) is None, "a tab has one file of each kind"
    assert studio.downloads.get(second) is not None
    studio.leave("a")
    assert studio.downloads.get(second) is None
    assert studio.downloads.get(other) is not None


def test_tokens_are_no_paths(two: Generation) -> None:
    downloads = Downloads()
    token = downloads.add(pack(two, "png"))
    assert re.fullmatch(r"[\w-]{32}", token)
    assert downloads.get("../" + token) is None


def test_a_new_run_of_a_tab_ends_the_one_before(studio: Studio) -> None:
    session = studio.session("a")
    first, other = session.begin("generate"), session.begin("walk")
    session.begin("generate")
    assert (first.is_set(), other.is_set()) == (True, False)
    studio.stop()
    assert other.is_set()
