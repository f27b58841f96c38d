"""Metrics and log lines of a real tritonserver: they count what happened and name the request."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from server.process import TritonServer
from support.faulty_networks import order, write_faulty
from support.serving import (
    PATIENCE,
    metrics_text,
    scrape,
    start,
    tensors,
    wait_for_rows,
    wait_until_idle,
    wait_until_refused,
    wait_until_well,
)

pytestmark = pytest.mark.slow

SLOW = 0.05
LIMITS = {"max_rows_in_flight": 4, "max_rows_waiting": 4, "network_timeout": 2}
OUR_LINE = re.compile(r'[EWI]\d{4} \S+ \d+ (?:reply|model|metrics|networks|batcher)\.py:\d+\] "(.*)"$')
# Triton's threads now and then print a line before the newline of another's.
RUN_TOGETHER = re.compile(r'(?<=")(?=[EWI]\d{4} \d\d:\d\d:)')


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return write_faulty(tmp_path_factory.mktemp("observed"), **LIMITS)


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with TritonServer(repository, log_path=log, extra_args=["--log-verbose=1"]) as server:
        server.probe()
        yield server


@pytest.fixture
def raw(server, repository) -> Iterator[triton.InferenceServerClient]:
    """Idle, with networks as quick as they can be."""
    for network in ("unet", "vae_decoder"):
        order(repository, network)
    with triton.InferenceServerClient(server.grpc_url) as raw:
        wait_until_idle(server)
        yield raw


def ask(raw, request_id: str = "", timeout: int | None = None, **values) -> None:
    values = {"seed": [1], "steps": [2], **values}
    raw.infer("mri_ldm", tensors(**values), request_id=request_id, timeout=timeout, client_timeout=20)


def labelled(server, metric: str) -> dict[str, float]:
    """Values of one metric by its label beside `model`, summed over models."""
    values: dict[str, float] = {}
    for label, value in re.findall(rf'^{metric}{{model="\w+",\w+="([^"]*)"}} (\S+)$', metrics_text(server), re.M):
        values[label] = values.get(label, 0) + float(value)
    return values


def changes(server, metric: str, what: Callable[[], object]) -> dict[str, float]:
    """How much `what` adds to each value of the label."""
    before = labelled(server, metric)
    what()
    wait_until_idle(server)
    return {label: n - before[label] for label, n in labelled(server, metric).items() if n != before[label]}


# --- errors and departures


def refused(raw, **values) -> Callable[[], None]:
    def act() -> None:
        with pytest.raises(triton.InferenceServerException):
            ask(raw, **values)

    return act


def test_errors_are_counted_by_reason(raw, server, repository) -> None:
    errors = "mri_ldm_errors_total"
    assert set(labelled(server, errors)) == {"invalid", "overloaded", "stopping", "network", "internal", "unsent"}
    assert changes(server, errors, lambda: ask(raw)) == {}
    assert changes(server, errors, refused(raw, steps=[0])) == {"invalid": 1}
    assert changes(server, errors, refused(raw, seed=list(range(9)), steps=[1] * 9)) == {"overloaded": 1}
    order(repository, "vae_decoder", error="the decoder is ill")
    assert changes(server, errors, refused(raw)) == {"network": 1}
    order(repository, "vae_decoder")
    order(repository, "unet", seconds=LIMITS["network_timeout"] + 0.3)
    assert changes(server, errors, refused(raw)) == {"network": 1}
    order(repository, "unet")
    wait_until_well(raw)


def test_departures_are_counted_by_reason(raw, server, repository) -> None:
    order(repository, "unet", seconds=0.01)

    def leave() -> None:
        call, done, _ = start(raw, seed=[1, 2, 3], steps=[1000] * 3)
        wait_for_rows(server, 3)
        call.cancel()
        assert done.wait(PATIENCE)

    late = refused(raw, seed=[1, 2], steps=[1000, 1000], timeout=100_000)
    assert changes(server, "mri_ldm_cancelled_rows_total", leave) == {"cancelled": 3}
    assert changes(server, "mri_ldm_cancelled_requests_total", leave) == {"cancelled": 1}
    assert changes(server, "mri_ldm_cancelled_rows_total", late) == {"deadline": 2}
    assert changes(server, "mri_ldm_cancelled_requests_total", late) == {"deadline": 1}


# --- work


def test_seconds_and_batches_are_those_of_the_work(raw, server, repository) -> None:
    """Eight rows of three steps on four places: at least six calls of at most four rows, and half of the rows wait.

    They are one request: of two, the second could come late, and wait for less.
    """
    for network in ("unet", "vae_decoder"):
        order(repository, network, seconds=SLOW)
    before, sizes = scrape(server), labelled(server, "mri_ldm_unet_calls_total")
    began = time.monotonic()
    ask(raw, seed=list(range(8)), steps=[3] * 8)
    took = time.monotonic() - began
    wait_until_idle(server)
    now = scrape(server)
    grown = {name.removeprefix("mri_ldm_"): now[name] - before[name] for name in now}
    calls = {size: n - sizes[size] for size, n in labelled(server, "mri_ldm_unet_calls_total").items()}
    assert grown["requests_total"] == grown["finished_requests_total"] == 1
    assert grown["images_total"] == grown["started_rows_total"] == 8
    assert grown["steps_total"] == 24
    assert sum(calls.values()) == grown["unet_calls_total"] == grown["call_steps_total"]
    assert sum(int(size.split("-")[0]) * n for size, n in calls.items() if n) <= 24
    assert sum(int(size.split("-")[-1]) * n for size, n in calls.items() if n) >= 24
    assert grown["unet_calls_total"] >= 6
    assert grown["decoder_calls_total"] >= 4
    assert grown["step_seconds_total"] >= SLOW * grown["unet_calls_total"]
    assert grown["decode_seconds_total"] >= SLOW * grown["decoder_calls_total"]
    assert grown["step_seconds_total"] + grown["decode_seconds_total"] <= took
    # Half of the rows wait until the others are done.
    assert 4 * 3 * SLOW <= grown["queue_seconds_total"] < 8 * took
    # Its end is taken after the answer has gone, which may be here by then.
    assert 2 * 3 * SLOW < grown["request_seconds_total"] < 2 * took


def test_metrics_are_true_while_a_network_hangs(raw, server, repository) -> None:
    """If the loop published the metrics itself, they would show no rows for as long as a call lasts."""
    order(repository, "unet", seconds=0.95 * LIMITS["network_timeout"])
    before = scrape(server)["mri_ldm_requests_total"]
    calls = [start(raw, seed=[1] * 4, steps=[1] * 4) for _ in range(2)]
    deadline = time.monotonic() + 0.9 * LIMITS["network_timeout"]
    # The one of these that is published last: a scrape may come in between.
    while (now := scrape(server))["mri_ldm_row_steps_left"] < 8:
        assert time.monotonic() < deadline
    assert 1 <= now["mri_ldm_rows_in_flight"] <= 4  # as many as the batcher finds quickest
    assert now["mri_ldm_rows_in_flight"] + now["mri_ldm_rows_waiting"] == 8
    assert now["mri_ldm_row_steps_left"] == 8
    assert now["mri_ldm_requests_total"] - before == 2
    order(repository, "unet")
    assert all(done.wait(10) for _, done, _ in calls)


def test_whoever_sees_a_request_ended_sees_its_work(raw, server) -> None:
    """Metrics are published one by one, and a scrape may come in between. Each request has one row of two steps."""
    before = scrape(server)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [ask(raw) for _ in range(200)])
        while not asking.done():
            now = scrape(server)
            grown = {name.removeprefix("mri_ldm_"): now[name] - before[name] for name in now}
            ended = grown["finished_requests_total"]
            assert ended <= grown["images_total"]
            assert ended <= grown["steps_total"] / 2
            assert ended <= grown["requests_total"]
    asking.result()


def test_limits_and_the_sign_of_life_are_there_from_the_start(server) -> None:
    now = scrape(server)
    assert now["mri_ldm_rows_in_flight_limit"] == 2 * LIMITS["max_rows_in_flight"]  # two models
    assert now["mri_ldm_rows_waiting_limit"] == 2 * LIMITS["max_rows_waiting"]
    assert now["mri_ldm_row_steps_limit"] == 2 * 100_000
    assert abs(now["mri_ldm_alive_timestamp_seconds"] / 2 - time.time()) < 12


# --- log lines


def lines_about(server, act: Callable[[], object], requests: int = 1) -> list[str]:
    """What the sampling models log while `act` makes so many requests: a line each, in any order.

    A line comes after the answer, from the thread that gave it: the next request's may be first.
    """
    before = server.log_path.stat().st_size
    act()
    deadline = time.monotonic() + 10
    while len(_our_lines(server, before)) < requests and time.monotonic() < deadline:
        time.sleep(0.02)
    wait_until_idle(server)
    return _our_lines(server, before)


def _our_lines(server, before: int) -> list[str]:
    logged = server.log_path.read_bytes()[before:].decode(errors="replace")
    lines = [part for line in logged.splitlines() for part in RUN_TOGETHER.split(line)]
    return [match[1] for line in lines if (match := OUR_LINE.match(line))]


def test_each_line_names_the_request(raw, server, repository) -> None:
    order(repository, "unet", seconds=0.01)

    def act() -> None:
        ask(raw, "well")
        refused(raw, request_id="nonsense", steps=[0])()
        refused(raw, request_id="late", steps=[1000], timeout=100_000)()
        order(repository, "unet", error="the network is ill")
        refused(raw, request_id="unlucky")()

    expected = [
        "'late': deadline with 1 of 1 rows unfinished",
        "'nonsense': invalid: row 0: steps is 0;",
        "'unlucky': network: model 'unet' has failed: the network is ill",
        "'well': 1 rows finished in",
    ]
    lines = sorted(lines_about(server, act, requests=len(expected)))
    assert len(lines) == len(expected), lines
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith(f"mri_ldm, request {text}"), lines


@pytest.mark.parametrize(
    "request_id",
    [
        "a\nE1123 00:00:00.000000 1 reply.py:1] \"mri_ldm, request 'b': forged\"",
        "a\r\x1b[2J\x1b[31mred\x7f\x08",
        "a\u202eright to left\u2028next line\u0085next",
        "x" * 5000,
    ],
    ids=["line", "terminal", "unicode", "long"],
)
def test_an_id_cannot_forge_a_line(raw, server, request_id: str) -> None:
    lines = lines_about(server, lambda: ask(raw, request_id))
    assert len(lines) == 1, lines
    assert re.fullmatch(r"mri_ldm, request .{3,800}: 1 rows finished in \S+ s", lines[0])
    assert lines[0].isascii()
    assert lines[0].isprintable()
    assert "forged" not in lines[0] or "\\\\nE1123" in lines[0]


def test_an_id_that_is_no_text_is_answered(server) -> None:
    """HTTP passes any bytes on."""
    body = b'{"id": "\xff\xfe", "inputs": [{"name": "seed", "shape": [1, 1], "datatype": "INT64", "data": [1]}]}'
    request = urllib.request.Request(f"http://{server.http_url}/v2/models/mri_ldm/infer", body)

    (line,) = lines_about(server, lambda: urllib.request.urlopen(request, timeout=10).read())
    assert line.startswith("mri_ldm, request with an id that is not UTF-8: 1 rows finished")


# --- the end: the server takes nothing more after it


def test_requests_to_a_stopping_server_are_counted_as_such(raw, server, repository) -> None:
    order(repository, "unet", seconds=0.02)
    _, done, outcome = start(raw, seed=[1], steps=[100])
    wait_for_rows(server, 1)
    drain = threading.Thread(target=server.drain, args=(PATIENCE,))
    drain.start()

    def act() -> None:
        refusal, _ = wait_until_refused(lambda: ask(raw), triton.InferenceServerException)
        assert "the server is stopping" in str(refusal)

    assert changes(server, "mri_ldm_errors_total", act) == {"stopping": 1}
    drain.join()
    assert done.wait(PATIENCE)
    assert outcome[0].as_numpy("final_latent") is not None
