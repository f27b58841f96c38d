"""Several servers in one client: what a url may be, who gets work, and what is said when nobody answers.

`tests/server/test_several_servers.py` does it with real servers, of which one is killed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from brats_ldm_client import TLS, Client, InvalidRequest, ServerUnavailable
from brats_ldm_client._endpoints import endpoints
from support.fake_triton import Caller, Served
from support.serving import wait_until

NOBODY = "127.0.0.1:1"


@pytest.fixture
def other() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


def refuse(words: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Any:
    """The behaviour of a server that answers, and does no work."""
    return lambda seeds, context: context.abort(code, words)


def test_one_string_or_several() -> None:
    for url in ("a:1, b:2", ["a:1", "b:2"], ("grpc://a:1/", "b:2"), ["a:1,b:2"], "ipv4:a:1,b:2"):
        assert str(endpoints(url)).replace("ipv4:", "") == "a:1, b:2"
    assert not endpoints("a:1,grpc://b:2").encrypted
    assert endpoints("grpcs://a:1,b:2").encrypted
    assert repr(Client("127.0.0.1:1,localhost:2")) == "Client('127.0.0.1:1, localhost:2')"
    assert str(endpoints("dns:///box:8001/")) == "dns:///box:8001"


@pytest.mark.parametrize(
    "url", [[], "a:1,", ["a:1", ""], "a,b:1", "a:1,b:70000", "a:1,http://b:1", "a:1,::1:2", [1, 2]]
)
def test_what_is_no_list_of_servers(url: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^url.* host:port"):
        Client(url)


def test_names_become_addresses_of_one_kind() -> None:
    assert endpoints("localhost:7,127.0.0.2:8").target() == "ipv4:127.0.0.1:7,127.0.0.2:8"
    assert endpoints("localhost:7,127.0.0.1:7").target() == "ipv4:127.0.0.1:7"
    assert endpoints("[::1]:7,[::2]:8").target() == "ipv6:[::1]:7,[::2]:8"
    assert endpoints("box.invalid:7").target() == "box.invalid:7"  # gRPC's own affair
    with pytest.raises(InvalidRequest, match=r"some of 127\.0\.0\.1:7, \[::1\]:8 have only IPv4"):
        Client("127.0.0.1:7,[::1]:8")
    with pytest.raises(ServerUnavailable, match=r"answers at box\.invalid:7: box\.invalid has no address"):
        Client("127.0.0.1:7,box.invalid:7")


def test_certificates_of_several_servers_have_one_name() -> None:
    """gRPC checks one name for a channel, and without help it would be the whole list."""

    def arguments(url: str, **tls: Any) -> dict[str, Any]:
        return dict(Client(url, tls=TLS(**tls))._channel["channel_args"])

    assert arguments("127.0.0.1:7,127.0.0.1:8")["grpc.default_authority"] == "127.0.0.1"
    named = arguments("127.0.0.1:7,127.0.0.2:7", server_name="slices.test")
    assert named["grpc.ssl_target_name_override"] == "slices.test"
    assert "grpc.default_authority" not in named
    with pytest.raises(InvalidRequest, match=r"tls: 127.0.0.1:7, 127.0.0.2:7 have different hosts.*server_name"):
        Client("grpcs://127.0.0.1:7,127.0.0.2:7")


def test_requests_go_round(caller: Caller, served: Served, other: Served) -> None:
    caller.url = f"{served.url},{other.url}"

    def both_have_work() -> bool:  # perhaps not at first: a server gets work once it is connected
        made = caller("generate", 16, seed=0, client={"rows_per_request": 1})
        assert made.images[:, 0, 0].tolist() == list(range(16))
        return bool(served.triton.received and other.triton.received)

    wait_until(both_have_work, "a server got no work")
    assert caller("info").url == f"{served.url}, {other.url}"


def test_a_name_that_dns_knows(served: Served, caller: Caller) -> None:
    caller.url = f"dns:///localhost:{served.url.rpartition(':')[2]}"
    assert len(caller("generate", 3)) == 3


def test_servers_that_are_away(caller: Caller, served: Served) -> None:
    caller.url = f"{NOBODY},{served.url}"
    assert len(caller("generate", 8, client={"retry_seconds": 0, "rows_per_request": 1})) == 8
    assert len(caller.stream(2, steps=3, client={"retry_seconds": 0})[-1]) == 2
    served.stop()
    with pytest.raises(ServerUnavailable, match=f"no Triton server answers at {NOBODY}, {served.url} "):
        caller("generate", 1, client={"retry_seconds": 0})


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("[DRAINING retry_after=5] the server is stopping", grpc.StatusCode.UNAVAILABLE),
        ("[NETWORK_GONE model=unet retry_after=5] unet hangs", grpc.StatusCode.UNAVAILABLE),
        ("Request for unknown model: 'mri_ldm' is not found", grpc.StatusCode.NOT_FOUND),
    ],
)
def test_a_server_that_answers_but_cannot_work(
    caller: Caller, served: Served, other: Served, words: str, code: grpc.StatusCode
) -> None:
    """The other does it, and at once: its room is not what the first one speaks of."""
    served.triton.behave = refuse(words, code)
    caller.url = f"{served.url},{other.url}"
    assert caller("generate", 8, seed=0, client={"rows_per_request": 1}).seeds.tolist() == list(range(8))
    assert len(caller.stream(2, steps=3)[-1]) == 2


class Far:
    """The way to a server that takes a moment to connect, as from another continent."""

    def __init__(self, url: str) -> None:
        self._target = url.rsplit(":", 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._lead, args=(self._listener.accept()[0],), daemon=True).start()

    def _lead(self, caller: socket.socket) -> None:
        time.sleep(0.1)
        target = (self._target[0], int(self._target[1]))
        with contextlib.suppress(OSError), caller, socket.create_connection(target) as there:  # or it has gone again
            threading.Thread(target=_pump, args=(caller, there), daemon=True).start()
            _pump(there, caller)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


def test_streams_reach_a_far_server_while_a_near_one_drains(
    served: Served, other: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The synchronous client opens a channel for each stream, which knew the near server alone at first."""

    def refuse_as_triton_does(requests: Any, context: Any) -> Iterator[Any]:
        for _ in requests:
            yield service_pb2.ModelStreamInferResponse(error_message="[DRAINING retry_after=5] the server is stopping")

    served.stop()
    monkeypatch.setattr(served.triton, "ModelStreamInfer", refuse_as_triton_does)
    served.start()
    far = Far(other.url)
    with contextlib.closing(far), Client([served.url, far.url]) as client:

        def far_is_connected() -> bool:
            client.generate(4)
            return bool(other.triton.received)

        wait_until(far_is_connected, "the far server got no work")
        for seed in range(8):
            *_, made = client.stream(1, seed=seed, steps=2)
            assert made.seeds == [seed]


def test_several_servers_are_reached_past_a_proxy(
    caller: Caller, served: Served, other: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://{NOBODY}")
    caller.url = f"{served.url},{other.url}"
    assert len(caller("generate", 2, client={"retry_seconds": 0})) == 2
    with Client("192.0.2.1:8001,192.0.2.2:8001") as client:
        assert ("grpc.enable_http_proxy", 0) in client._channel["channel_args"]
