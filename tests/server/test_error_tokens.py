"""The token of each error, on a real server whose sentences have been replaced: programs must go by the token alone."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton

from brats_ldm_client import (
    BratsLDMError,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ServerError,
    ServerUnavailable,
)
from brats_ldm_client._error_map import BY_TOKEN, map_error
from mri_ldm import errors
from mri_ldm.errors import RequestError, as_request_error
from server import health
from server.errors import ServerError as LauncherError
from server.process import TritonServer
from support.common import ROOT
from support.container_machine import import_container
from support.faulty_networks import order, write_faulty
from support.serving import start, wait_for_rows, wait_until, wait_until_idle

SENTENCE = "other words"
GRPC_CODES = {"INVALID_ARG": "INVALID_ARGUMENT"}
"""Codes that gRPC names differently from Triton."""


def kinds() -> dict[str, type[RequestError]]:
    """Every token, and an error that has it."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)]
    return {kind.token: kind for kind in classes}


def page_rows() -> dict[str, list[str]]:
    """The table of docs/errors.md: token to its other cells."""
    text = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", text, re.MULTILINE)
    return {token: [cell.strip("` ") for cell in cells.split("|")] for token, cells in rows}


def test_the_page_and_the_client_know_every_token() -> None:
    assert page_rows().keys() == BY_TOKEN.keys() == kinds().keys()
    for token, (code, _, _, client_error) in page_rows().items():
        assert GRPC_CODES.get(kinds()[token].code, kinds()[token].code) == code
        assert BY_TOKEN[token].__name__ == client_error


def test_programs_of_other_folders_use_the_same_tokens() -> None:
    container = import_container()
    assert f"[{errors.Busy.token}" == health.BUSY == f"[{container.BUSY}"
    assert errors.DeadlinePassed.token == container.DEADLINE
    assert container.TOLERANCE == health.TOLERANCE
    assert container.IMAGE.size == 4 * health.SHAPE[2] * health.SHAPE[3]


def test_an_error_of_no_kind_is_internal() -> None:
    assert as_request_error(KeyError("x")).message == "[INTERNAL] 'x'"
    assert errors.InvalidRequest("seed is missing").message == "[INVALID] seed is missing"
    assert errors.InvalidRequest("eta is 7", 2).message == "[INVALID row=2] row 2: eta is 7"
    assert errors.Busy("full", 3).message == "[BUSY retry_after=3] full: try again in about 3 s"


def test_a_sentence_tells_the_client_nothing() -> None:
    """Neither the kind nor the pause, and not on a stream, where there is no code."""
    for token, kind in BY_TOKEN.items():
        for sentence in (SENTENCE, "cancelled: invalid deadline, try again in about 7 s", "model is not ready"):
            error = map_error(Exception(f"[{token}] {sentence}"), url="host:8001", model="mri_ldm", timeout=7)
            assert type(error) is kind
            if isinstance(error, ServerUnavailable):
                assert (error.retryable, error.retry_after) == (True, 0)


# --- on a real server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes one row at a time and lets none wait; its sentences are replaced."""
    folder = tmp_path_factory.mktemp("tokens") / "repository"
    repository = write_faulty(folder, max_rows_in_flight=1, max_rows_waiting=0, network_timeout=1)
    for model in ("mri_ldm", "mri_ldm_stream"):
        code = repository / model / "1" / "mri_ldm" / "errors.py"
        text = code.read_text().replace("] {self}", f"] {SENTENCE}")
        assert SENTENCE in text
        code.write_text(text)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        server.probe()
        yield server


@pytest.fixture(autouse=True)
def networks_work_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test, the networks work again."""
    yield
    if "server" in request.fixturenames:
        order(request.getfixturevalue("repository"), "unet")
        wait_until_idle(request.getfixturevalue("server"))


Answer = tuple[str, type[BratsLDMError] | None, str]
"""The code or HTTP status, the error that the client raised (None over HTTP), and the message."""


def failures(server: TritonServer, steps: int = 1, timeout: float = 60.0) -> list[Answer]:
    """The answers to a request that fails: by gRPC, on a stream and over HTTP."""
    answers: list[Answer] = []
    with Client(server.grpc_url, retry_seconds=0) as client:
        for ask in (client.generate, lambda *args, **kwargs: list(client.stream(*args, **kwargs))):
            with pytest.raises(BratsLDMError) as refused:
                ask([1], steps=steps)
            cause: Any = refused.value.__cause__
            answers.append((str(cause.status()).removeprefix("StatusCode."), type(refused.value), cause.message()))
    answers.append(over_http(server, steps, timeout))
    return answers


def over_http(server: TritonServer, steps: int, timeout: float = 60.0) -> Answer:
    tensors = {"seed": ("INT64", 1), "steps": ("INT32", steps)}
    inputs = [{"name": name, "datatype": kind, "shape": [1, 1], "data": [n]} for name, (kind, n) in tensors.items()]
    body = json.dumps({"inputs": inputs, "parameters": {"timeout": round(timeout * 1e6)}}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{server.http_url}/v2/models/mri_ldm/infer", body, timeout=60)
    return str(refused.value.code), None, json.load(refused.value)["error"]


def check(answers: list[Answer], token: str, fields: str = "") -> None:
    """Token and fields in all of them; codes, statuses and errors as the page says."""
    code, status, _, client_error = page_rows()[token]
    pattern = rf"\[{token}{fields}\] {SENTENCE}"
    assert all(re.fullmatch(pattern, message) for *_, message in answers), answers
    codes = [code_or_status for code_or_status, *_ in answers]
    assert codes == [code, "None", status][-len(codes) :], answers
    assert {kind.__name__ for _, kind, _ in answers if kind} <= {client_error}, answers


@pytest.mark.slow
def test_invalid(server: TritonServer) -> None:
    check(failures(server, steps=0), "INVALID", " row=0")
    with Client(server.grpc_url) as client, pytest.raises(InvalidRequest) as refused:
        client.generate([1], steps=0)
    assert refused.value.row == 0


@pytest.mark.slow
def test_busy_and_the_checks_of_health(
    server: TritonServer, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    container = import_container()
    monkeypatch.setattr(container, "DRAIN", tmp_path)
    order(repository, "unet", seconds=0.05)
    with triton.InferenceServerClient(server.grpc_url) as raw, Client(server.grpc_url, retry_seconds=0) as client:
        call, done, _ = start(raw, seed=[1], steps=[1000])
        with closing(client.stream([1], steps=1000)) as stream:
            next(stream)
            wait_for_rows(server, 2)
            check(failures(server), "BUSY", r" retry_after=\d+")
            with pytest.raises(health.Busy):
                health.probe(server.grpc_url)
            container.health(f"http://{server.http_url}")
            with pytest.raises(ServerUnavailable) as refused:
                client.generate([1], steps=1)
            assert refused.value.retry_after >= 1
        call.cancel()
        assert done.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("orders", "token", "fields", "kind"),
    [
        ({"error": "out of memory"}, "NETWORK_FAILED", " model=unet", ServerError),
        (
            {"error": "Failed for execute the inference request. Model 'unet' is not ready."},
            "NETWORK_GONE",
            " model=unet retry_after=5",
            ServerUnavailable,
        ),
        ({"seconds": 3}, "NETWORK_GONE", " model=unet retry_after=5", ServerUnavailable),
    ],
)
def test_networks_that_fail(
    server: TritonServer, repository: Path, orders: dict[str, Any], token: str, fields: str, kind: type[BratsLDMError]
) -> None:
    wait_until(lambda: _works(server), "the network has not come back")
    order(repository, "unet", **orders)
    answers = failures(server)
    check(answers, token, fields)
    assert answers[0][1] is kind


def _works(server: TritonServer) -> bool:
    try:
        server.probe(5)
    except LauncherError:
        return False
    return True


@pytest.mark.slow
def test_a_deadline(server: TritonServer, repository: Path) -> None:
    wait_until(lambda: _works(server), "the network has not come back")
    order(repository, "unet", seconds=0.05)
    check([over_http(server, 1000, timeout=0.2)], "DEADLINE")
    error = map_error(Exception(f"[DEADLINE] {SENTENCE}"), url="", model="", timeout=1)
    assert isinstance(error, DeadlineExceeded)


@pytest.mark.slow
def test_the_three_checks_of_health_are_one(
    server: TritonServer, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The launcher, the container and the client ask for the same image, and all of them notice another one."""
    container = import_container()
    monkeypatch.setattr(container, "DRAIN", tmp_path)
    wait_until(lambda: _works(server), "the network has not come back")
    first, ask_container = server.probe(), lambda: container.health(f"http://{server.http_url}")
    ask_container()
    assert (tmp_path / container.FIRST_IMAGE).read_bytes() == first.image.astype("<f4").tobytes()
    ask_container()
    with Client(server.grpc_url) as client:
        assert client.wait_until_ready(deep=True) == first.checksum
        order(repository, "vae_decoder", offset=0.5)
        with pytest.raises(ServerUnavailable, match="checksum"):
            client.wait_until_ready(1, checksum=first.checksum)
    with pytest.raises(Exception, match="one-step generation differs"):
        server.probe().check_same(first, bitwise=False)
    with pytest.raises(container.Refusal, match=r"differs by .* of its norm from that of the first check"):
        ask_container()
    order(repository, "vae_decoder", offset=float("nan"))
    with pytest.raises(container.Refusal, match="not finite"):
        ask_container()
    with pytest.raises(Exception, match="no finite image"):
        server.probe()
    order(repository, "vae_decoder")
    ask_container()


@pytest.mark.slow
def test_draining(server: TritonServer) -> None:
    """The last test: a server that has drained serves no more."""
    assert server.drain(5)
    check(failures(server), "DRAINING", " retry_after=5")
