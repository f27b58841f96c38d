"""The command `brats-ldm studio`, and the web application around its page: who may ask what. No browser."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brats_ldm_client._cli import main
from brats_ldm_client.studio.downloads import Download
from brats_ldm_client.studio.guard import LOOPBACK_NAMES
from brats_ldm_client.studio.sessions import Studio
from brats_ldm_client.testing import FakeTransport


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["studio", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, "--port", str(port))
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said


def test_a_host_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--host nowhere.invalid" in refused(capsys, "--host", "nowhere.invalid")


def test_a_port_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["studio", "--port", "70000"])
    assert "--port is 70000" in capsys.readouterr().err


def test_others_need_a_password(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRATS_LDM_STUDIO_PASSWORD", raising=False)
    assert "set $BRATS_LDM_STUDIO_PASSWORD" in refused(capsys, "--host", "0.0.0.0", "--port", "0")


def test_without_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gradio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without("gradio"), *sys.meta_path])
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the command silences gradio there
    said = refused(capsys, "--port", "0")
    assert said == "brats-ldm: gradio is not installed: install it with pip install gradio\n"


class _Without:
    """An import system without a package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from brats_ldm_client._cli import main\n"
        "try: main(['studio', '--help'])\n"
        "except SystemExit: print(sorted({'gradio', 'numpy', 'tritonclient', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("[]\n")
    assert "--open" in done.stdout


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio({"transport": FakeTransport()})


@pytest.fixture(scope="module")
def asked(studio: Studio) -> Iterator[object]:
    """A client of the application, as a browser on this machine would be."""
    from starlette.testclient import TestClient

    from brats_ldm_client.studio.serve import application

    with TestClient(application(studio, LOOPBACK_NAMES, None), base_url="http://127.0.0.1:7860") as client:
        yield client


@pytest.mark.slow
def test_the_page_is_whole_and_asks_nobody_else(asked) -> None:
    answer = asked.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", answer.text)
    assert [address for address in loaded if "//" in address and "127.0.0.1" not in address] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example:7860"}],
)
def test_pages_of_others_are_refused(asked, headers: dict[str, str]) -> None:
    for path in ("/", "/gradio_api/info", "/download/abc"):
        assert asked.get(path, headers=headers).status_code == 421


@pytest.mark.slow
def test_the_page_by_its_names(asked) -> None:
    for name in ("localhost:8899", "127.0.0.1", "[::1]:7860", "LOCALHOST"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert asked.get("/", headers=headers).status_code == 200


@pytest.mark.slow
def test_files_of_this_machine_are_not_served(asked, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for path in (tmp_path / "secret.txt", "/etc/hostname", Path(__file__)):
        assert asked.get(f"/gradio_api/file={path}").status_code in (403, 404)
    assert asked.get("/download/..%2F..%2Fetc%2Fhostname").status_code == 404


@pytest.mark.slow
def test_a_download(asked, studio: Studio) -> None:
    token = studio.offer(studio.session("tab"), "generate", Download("slice.png", b"png"))
    answer = asked.get(f"/download/{token}")
    assert (answer.content, answer.headers["content-type"]) == (b"png", "image/png")
    assert answer.headers["content-disposition"] == 'attachment; filename="slice.png"'
    studio.leave("tab")
    assert asked.get(f"/download/{token}").status_code == 404


@pytest.mark.slow
def test_a_page_for_others_asks_for_the_password(studio: Studio) -> None:
    from starlette.testclient import TestClient

    from brats_ldm_client.studio.serve import application

    with TestClient(application(Studio({"transport": FakeTransport()}), None, "correct horse")) as client:
        assert client.get("/gradio_api/info").status_code == 401
        wrong = client.post("/login", data={"username": "studio", "password": "wrong"})
        assert wrong.status_code == 400
        right = client.post("/login", data={"username": "studio", "password": "correct horse"})
        assert right.status_code == 200
