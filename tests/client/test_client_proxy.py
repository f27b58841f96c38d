"""Proxies: which connections take one, and what is said when it fails. Loopback never does."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.harness.wire import ask_http, image_feeds
from benchmarks.serving.analyzer.fetch import environment
from brats_ldm_client import BratsLDMError, Client, ServerUnavailable
from brats_ldm_client._cli import main
from brats_ldm_client._proxy import proxy_to
from server.channel import connect
from server.health import ready_name
from support.common import ROOT, tracked
from support.fake_triton import Caller, Served

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


class Proxy:
    """Takes CONNECT requests: lets the first `pause` seconds pass, then answers `reply`, and leads to `target`."""

    def __init__(self) -> None:
        self.reply, self.pause, self.target = b"HTTP/1.1 403 Forbidden\r\n\r\n", 0.0, ""
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        request = caller.recv(4096).decode().split()
        if not request:  # the caller has gone again
            return
        self.seen.append(request[1])
        time.sleep(self.pause)
        caller.sendall(self.reply)
        if not self.target:
            caller.close()
            return
        host, port = self.target.split(":")
        there = socket.create_connection((host, int(port)))
        threading.Thread(target=_pump, args=(caller, there), daemon=True).start()
        _pump(there, caller)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        sink.close()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy(no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that refuses, in the environment as `http_proxy` with a password."""
    proxy = Proxy()
    monkeypatch.setenv("http_proxy", f"http://me:hidden@{proxy.address}")
    yield proxy
    proxy.close()


def test_loopback_goes_through_no_proxy(caller: Caller, served: Served, proxy: Proxy) -> None:
    caller("generate", 1)
    for spelling in ("127.0.0.2", "LocalHost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "ipv4:127.0.0.1"):
        with Client(served.url.replace("127.0.0.1", spelling), retry_seconds=0, connect_timeout=1) as client:
            client.is_ready()
    with connect(served.url) as raw:  # as the launcher does
        assert raw.get_server_metadata().name == "triton"
    assert proxy.seen == []
    assert proxy_to("192.0.2.1:8001")


def test_a_server_behind_a_slow_proxy(caller: Caller, served: Served, proxy: Proxy) -> None:
    """A connection that took more than 0.2 s, gRPC's patience as it was set, was none."""
    proxy.reply, proxy.pause, proxy.target = b"HTTP/1.1 200 OK\r\n\r\n", 0.4, served.url
    caller.url = "gpu-box.invalid:8001"
    assert caller("generate", [7], client={"retry_seconds": 0}).seeds.tolist() == [7]
    assert proxy.seen == ["gpu-box.invalid:8001"]


@pytest.mark.parametrize("command", [("generate",), ("info",), ("ready", "--timeout", "0.3")])
def test_the_error_names_the_proxy_without_its_password(
    command: tuple[str, ...], proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--url", "192.0.2.1:8001"]) == 1
    said = capsys.readouterr().err
    assert f"http_proxy=http://***@{proxy.address}; check it, or name the host in no_proxy" in said
    assert "hidden" not in said
    assert len(said.splitlines()) == 1


def test_a_proxy_that_says_nothing(caller: Caller, proxy: Proxy) -> None:
    proxy.pause, caller.url = 10.0, "192.0.2.1:8001"
    with pytest.raises(ServerUnavailable, match=re.escape(f"***@{proxy.address}")):
        caller("generate", 1, client={"connect_timeout": 0.3, "retry_seconds": 0})


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({"https_proxy": "http://b", "http_proxy": "http://c"}, "host:1", "https_proxy=http://b"),
        ({"grpc_proxy": "http://a", "https_proxy": "http://b"}, "host:1", "grpc_proxy=http://a"),
        ({"grpc_proxy": "", "http_proxy": "http://c"}, "host:1", None),
        ({"http_proxy": "http://token@c:1"}, "host:1", "http_proxy=http://***@c:1"),
        ({"http_proxy": "me:p@ss/word@c:1"}, "host:1", "http_proxy=***@c:1"),
        ({"http_proxy": "http://c", "no_proxy": "x, Example.org"}, "box.example.org:1", None),
        ({"http_proxy": "http://c", "no_proxy": ".example.org"}, "box.example.org", None),
        ({"http_proxy": "http://c", "no_proxy": "example.org"}, "an-example.org:1", "http_proxy=http://c"),
        ({"http_proxy": "http://c", "no_proxy": "192.0.2.0/24"}, "192.0.2.9:1", None),
        ({"http_proxy": "http://c", "no_proxy": "2001:db8::/32"}, "[2001:db8::1]:1", None),
        ({"http_proxy": "http://c", "no_proxy": "host", "no_grpc_proxy": ""}, "host:1", "http_proxy=http://c"),
        ({"http_proxy": "http://c"}, "unix:/run/triton", None),
        ({"http_proxy": "http://c"}, "unix-box:1", "http_proxy=http://c"),
    ],
)
def test_the_rules_are_those_of_grpc(
    no_proxy: None, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, expected: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_to(url) == expected


def test_grpc_follows_the_same_rules(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules above, on the wire: where they see a proxy, gRPC goes to it."""
    for exceptions in ("", "192.0.2.0/25", "example.org"):
        monkeypatch.setenv("no_proxy", exceptions)
        for url in ("192.0.2.1:8001", "192.0.2.200:8001"):
            if proxy_to(url):
                proxy.seen.clear()
                with Client(url, retry_seconds=0, connect_timeout=1) as client, pytest.raises(BratsLDMError):
                    client.info()
                assert url in proxy.seen


@pytest.mark.slow
def test_the_launcher_asks_past_a_proxy(small_server, proxy: Proxy) -> None:
    """Its probes went to the proxy: "not ready" beside a healthy server."""
    small_server.probe()
    assert ready_name("127.0.0.1", small_server.grpc_port) == small_server.server_id
    health = [sys.executable, "deploy/container.py", "health", "--url", f"http://{small_server.http_url}"]
    assert subprocess.run(health, cwd=ROOT, timeout=60, check=False).returncode == 0
    assert proxy.seen == []


@pytest.mark.slow
def test_http_of_the_benchmarks_goes_past_a_proxy(small_server, proxy: Proxy) -> None:
    image = ask_http(small_server.http_url, "mri_ldm", "image", image_feeds([0], steps=1), (240, 240))
    assert image.any()
    assert proxy.seen == []


def test_one_place_makes_channels(proxy: Proxy) -> None:
    """Triton's and gRPC's own makers, and urllib's opener, take a proxy: only these files may call them."""
    makers = re.compile(r"InferenceServerClient\(|(in)?secure_channel\(|urlopen\(")
    allowed = {"server/channel.py", "client/brats_ldm_client/_connection.py"}
    allowed.add("client/brats_ldm_client/_aio_connection.py")
    places = [path.relative_to(ROOT).as_posix() for path in tracked(".py") if makers.search(path.read_text())]
    # The tests of pytest are told by conftest.py to go past proxies; what else runs in tests/ is not.
    others = {place for place in places if not place.startswith("tests/") or place.startswith("tests/reliability/")}
    # The HTTP client of the benchmarks knows no proxies: the test above this one.
    assert others - allowed == {"tests/reliability/bad_wire.py", "benchmarks/harness/wire.py"}
    assert "tritonclient.http as triton" in (ROOT / "benchmarks" / "harness" / "wire.py").read_text()
    assert "options=DIRECT" in (ROOT / "tests" / "reliability" / "bad_wire.py").read_text()
    assert not [name for name in environment(ROOT) if name.endswith("_proxy")], "perf_analyzer is gRPC, too"
