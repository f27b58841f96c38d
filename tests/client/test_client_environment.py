"""Settings in environment variables: the same for `from_env` and for the command, whose options win."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from brats_ldm_client import AsyncClient, Client, InvalidRequest
from brats_ldm_client._cli import main
from brats_ldm_client._environment import NAMES, variable
from support.common import ROOT
from support.fake_triton import Served


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(variable(name), raising=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    (tmp_path / "headers").write_text("x-token: abc\n")
    return tmp_path


def test_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(variable(name), "")
    client, plain = Client.from_env(), Client()
    assert (client._options, client._channel) == (plain._options, plain._channel)
    assert Client.from_env(timeout=5.0)._options.timeout == 5.0


def test_everything_is_set(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    values = {
        "url": "127.0.0.1:7,127.0.0.2:7",
        "timeout": "12.5",
        "secret": "hidden",
        "tls_ca": str(files / "ca"),
        "tls_cert": str(files / "cert"),
        "tls_key": str(files / "key"),
        "tls_server_name": "slices.test",
        "header_file": str(files / "headers"),
    }
    for name, value in values.items():
        monkeypatch.setenv(variable(name), value)
    client = Client.from_env()
    assert (client._options.url, client._options.timeout) == ("127.0.0.1:7, 127.0.0.2:7", 12.5)
    assert client._options.headers == {"x-token": "abc", "triton-grpc-protocol-inference-key": "hidden"}
    files_of = ("root_certificates", "certificate_chain", "private_key")
    assert [client._channel[name] for name in files_of] == [values[name] for name in ("tls_ca", "tls_cert", "tls_key")]
    assert dict(client._channel["channel_args"])["grpc.ssl_target_name_override"] == "slices.test"
    assert Client.from_env(url="[::1]:9")._options.url == "[::1]:9"


@pytest.mark.parametrize(("text", "encrypted"), [("1", True), ("TRUE", True), ("", False), ("0", False)])
def test_tls_is_a_switch(monkeypatch: pytest.MonkeyPatch, text: str, encrypted: bool) -> None:
    monkeypatch.setenv("BRATS_LDM_TLS", text)
    assert Client.from_env()._channel["ssl"] is encrypted


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("BRATS_LDM_URL", "http://box:8000", "must be host:port"),
        ("BRATS_LDM_URL", "a:1,b", "each of several servers must be host:port"),
        ("BRATS_LDM_TIMEOUT", "soon", "must be seconds from 0.001 to 1e+06, not 'soon'"),
        ("BRATS_LDM_TIMEOUT", "nan", "must be seconds"),
        ("BRATS_LDM_TLS", "ca.crt", "must be 1 or 0, not 'ca.crt': for a file, set BRATS_LDM_TLS_CA"),
        ("BRATS_LDM_TLS_CA", "absent.pem", "there is no file absent.pem"),
        ("BRATS_LDM_HEADER_FILE", "absent", "there is no file absent"),
        ("BRATS_LDM_SECRET", "hidden\n", "must be one line of printable ASCII"),
    ],
)
def test_a_bad_value_is_one_line_with_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str, words: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(InvalidRequest) as error:
        Client.from_env()
    assert str(error.value).startswith(name)
    assert words in str(error.value)
    assert "hidden" not in str(error.value)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == f"brats-ldm: {error.value}\n"


def test_the_command_reads_them_and_its_options_win(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served, files: Path
) -> None:
    monkeypatch.setenv("BRATS_LDM_URL", served.url)
    monkeypatch.setenv("BRATS_LDM_HEADER_FILE", str(files / "headers"))
    monkeypatch.setenv("BRATS_LDM_SECRET", "abc")
    monkeypatch.setenv("BRATS_LDM_TIMEOUT", "0.4")
    assert main(["ready", "--deep"]) == 0
    assert capsys.readouterr().out.startswith(f"ready: {served.url}, image ")
    assert served.triton.metadata[-1]["x-token"] == served.triton.metadata[-1]["triton-grpc-protocol-inference-key"]
    assert main(["ready", "--url", "127.0.0.1:1"]) == 1
    assert "not ready after 0.4 s: no Triton server answers at 127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.setenv("BRATS_LDM_URL", "http://bad")
    assert main(["ready", "--url", served.url, "--timeout", "9"]) == 0


def test_the_asynchronous_client_has_it_too(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setenv("BRATS_LDM_URL", served.url)

    async def generate() -> list[int]:
        async with AsyncClient.from_env(rows_per_request=1) as client:
            return (await client.generate(3, seed=4)).seeds.tolist()

    assert asyncio.run(generate()) == [4, 5, 6]


def test_the_page_lists_them_all() -> None:
    page = (ROOT / "docs" / "generate.md").read_text()
    rows = re.findall(r"^\| `(BRATS_LDM_\w+)` \| (?:`(--[\w-]+)`|none) \|", page, re.MULTILINE)
    options = {name: "" if name == "secret" else f"--{name.replace('_', '-')}" for name in NAMES}
    assert dict(rows) == {variable(name): option for name, option in options.items()}
