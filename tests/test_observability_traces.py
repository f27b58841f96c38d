"""Traces of a real tritonserver in mode `opentelemetry`: the calls of the networks hang below the request."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from brats_ldm_client import Client
from faulty_networks import order, write_faulty
from otlp import Collector, Span
from server.process import TritonServer
from serving import scrape, start, tensors, wait_for_rows, wait_until_idle

HOLD_SECONDS = 2
TRACEPARENT = "00-{trace}-{span}-01"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return write_faulty(tmp_path_factory.mktemp("traces"), trace_hold=HOLD_SECONDS)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(repository, collector) -> Iterator[TritonServer]:
    """Traces no request but those that carry the header `traceparent` of a caller who traces."""
    with TritonServer(repository, extra_args=collector.flags(rate=1_000_000)) as server:
        server.probe()
        yield server


@pytest.fixture
def raw(server, repository) -> Iterator[triton.InferenceServerClient]:
    order(repository, "unet")
    with triton.InferenceServerClient(server.grpc_url) as raw:
        yield raw


def traced(raw, request_id: str, number: int = 1, model: str = "mri_ldm", **values) -> triton.InferResult:
    """A request of a caller whose trace has that number."""
    headers = {"traceparent": TRACEPARENT.format(trace=f"{number:032x}", span=f"{number:016x}")}
    return raw.infer(model, tensors(**values), request_id=request_id, headers=headers, client_timeout=30)


def calls(spans: list[Span]) -> Counter[str]:
    return Counter(span.name for span in spans[1:])


def test_one_image_shows_its_fifty_steps_and_its_decoding_in_the_callers_trace(raw, collector) -> None:
    traced(raw, "one image", number=0xABC, seed=[1], steps=[50])
    front, *children = spans = collector.of_request("one image")
    assert front.name == "mri_ldm"
    assert calls(spans) == {"unet": 50, "vae_decoder": 1}
    assert {span.trace for span in spans} == {f"{0xABC:032x}"}
    # The request lasts as long as its calls: a trace that Triton has ended before would be shorter.
    assert front.nanoseconds >= sum(span.nanoseconds for span in children)


def test_a_stream_is_traced_too(server, collector) -> None:
    headers = {"traceparent": TRACEPARENT.format(trace=f"{7:032x}", span=f"{7:016x}")}
    with Client(server.grpc_url, headers=headers) as client:
        assert len(list(client.stream([5], steps=6))) > 0
    spans = collector.wait_for(lambda spans: any(span.name == "mri_ldm_stream" for span in spans))
    assert Counter(span.name for span in spans if span.trace == f"{7:032x}")["unet"] == 6


def test_calls_of_others_are_not_in_the_trace(raw, server, repository, collector) -> None:
    """The traced request shares its calls with one that takes more steps, and with none of its own is one traced."""
    wait_until_idle(server)
    order(repository, "unet", seconds=0.01)
    _, done, outcome = start(raw, seed=[1, 2], steps=[60, 60])
    wait_for_rows(server, 2)
    before = scrape(server)["mri_ldm_steps_total"]
    traced(raw, "in company", seed=[3], steps=[10])
    assert done.wait(20)
    assert outcome[0].as_numpy("final_latent") is not None
    wait_until_idle(server)
    assert scrape(server)["mri_ldm_steps_total"] - before > 10
    assert calls(collector.of_request("in company")) == {"unet": 10, "vae_decoder": 1}


def test_a_traced_request_holds_others_back_for_a_bounded_time(raw, server, repository, collector) -> None:
    """Its own steps go on; those after the limit are without spans."""
    order(repository, "unet", seconds=0.1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(traced, raw, "too long", seed=[1], steps=[40])
        wait_for_rows(server, 1)
        began = time.monotonic()
        raw.infer("mri_ldm", tensors(seed=[2], steps=[1]), client_timeout=30)
        assert 1 < time.monotonic() - began < HOLD_SECONDS + 1
        order(repository, "unet")
        slow.result()
    assert 5 < calls(collector.of_request("too long"))["unet"] < 30


def test_a_storm_of_traced_requests_leaves_the_server_whole(raw, server, collector) -> None:
    """A call that is handed the trace of a request that has ended crashes tritonserver 2.51.

    That server overlooks a `traceparent` now and then when many requests meet; what it traces is whole.
    """

    def one(number: int) -> str:
        name = f"storm {number}"
        steps = 3 + number % 5
        if number % 4 == 0:  # leaves in the middle
            with pytest.raises(triton.InferenceServerException, match="cancelled or its deadline"):
                raw.infer(
                    "mri_ldm",
                    tensors(seed=[number], steps=[1000]),
                    request_id=name,
                    timeout=30_000,
                    headers={"traceparent": TRACEPARENT.format(trace=f"{number + 1000:032x}", span=f"{1:016x}")},
                )
            return ""
        traced(raw, name, number=number + 1000, seed=[number], steps=[steps])
        return name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(one, range(80)))
    wait_until_idle(server)
    spans = collector.wait_for(lambda spans: sum(span.name == "InferRequest" for span in spans) > 40)
    seen = {span.attributes.get("triton.request_id") for span in spans}
    for number, name in enumerate(names):
        if name in seen:
            assert calls(collector.of_request(name)) == {"unet": 3 + number % 5, "vae_decoder": 1}, name


def test_in_mode_triton_the_request_alone_is_traced(repository, tmp_path) -> None:
    flags = ["--trace-config=rate=1", "--trace-config=level=TIMESTAMPS"]
    file = tmp_path / "trace.json"
    with TritonServer(repository, extra_args=[*flags, f"--trace-config=triton,file={file}"]) as server:
        server.probe()
        with triton.InferenceServerClient(server.grpc_url) as raw:
            raw.infer("mri_ldm", tensors(seed=[1], steps=[20]))
    models = [each["model_name"] for each in json.loads(file.read_text()) if "model_name" in each]
    assert models == ["mri_ldm", "mri_ldm"]
