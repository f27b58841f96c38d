"""A client that opens a stream and does not read: others go on, memory is bounded, deadlines and stops are kept."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from brats_ldm_client import Client, Generation, Progress
from reliability.memory import anonymous_bytes
from server.proc import children
from server.process import TritonServer
from support.faulty_networks import order, write_faulty
from support.serving import infer, scrape, tensors, wait_until_idle

pytestmark = pytest.mark.slow

ROWS, STEPS, EVERY = 16, 400, 1
BUDGET_MB = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = write_faulty(tmp_path_factory.mktemp("slow_reader") / "repository", max_preview_mb=BUDGET_MB)
    with TritonServer(repository) as server:
        server.probe()
        yield server


@pytest.fixture(autouse=True)
def quick(server: TritonServer) -> None:
    """The network works as usual, whatever an earlier test has ordered."""
    order(server.repository, "unet")


def message(timeout_s: float | None = None, **values: Any) -> Any:
    """A request of `mri_ldm_stream` as gRPC sends it."""
    request = service_pb2.ModelInferRequest(model_name="mri_ldm_stream", id="slow")
    for tensor in tensors(**values):
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    for name in ("image", "step", "preview"):
        request.outputs.add(name=name)
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = round(timeout_s * 1e6)
    return request


@contextmanager
def stalled(server: TritonServer, **request: Any) -> Iterator[Any]:
    """A stream that is asked for much and not read; its responses, to be read later."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc_url, options) as channel:
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(message(**request))
        responses = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests.get, None))
        yield responses
        requests.put(None)
        responses.cancel()


def all_memory(server: TritonServer) -> int:
    return sum(anonymous_bytes(process) for process in (server.pid, *children(server.pid)))


def wait_for_steps(server: TritonServer, count: float) -> None:
    deadline = time.monotonic() + 60
    while scrape(server)["mri_ldm_steps_total"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def much(rows: int = ROWS) -> dict[str, Any]:
    return {"seed": list(range(rows)), "steps": [STEPS] * rows, "preview_every": [EVERY] * rows}


def test_others_go_on_while_one_client_does_not_read(server: TritonServer) -> None:
    """A hundred MB of previews are asked for and more; gRPC takes in far less of them without a reader."""
    before, deadline = scrape(server)["mri_ldm_steps_total"], time.monotonic() + 30
    with Client(server.grpc_url) as client, stalled(server, **much()):
        known = client.generate([5], steps=10).images
        while scrape(server)["mri_ldm_steps_total"] < before + ROWS * STEPS:
            assert np.array_equal(client.generate([5], steps=10).images, known)
            *events, last = client.stream([5], steps=10, preview_every=5)
            assert len(events) == 2
            assert isinstance(last, Generation)
            assert np.array_equal(last.images, known)
            assert time.monotonic() < deadline, "the rows of the client that does not read must go on too"
    wait_until_idle(server)


def test_what_is_kept_for_it_is_bounded(server: TritonServer) -> None:
    order(server.repository, "unet", seconds=0.005)  # so that a busy machine has time to send what a step gives
    with stalled(server, **much(4)) as responses:  # memory pools and the allocators have their size then
        received(responses)
    wait_until_idle(server)
    before, steps_before = all_memory(server), scrape(server)["mri_ldm_steps_total"]
    with stalled(server, **much()) as responses:
        wait_for_steps(server, steps_before + ROWS * STEPS)
        growth = (all_memory(server) - before) / 1e6
        answers = received(responses)
    previews = [r for r in answers if "preview" in r and "image" not in r]
    sent = sum(len(r["preview"]) for r in previews) / 2**20
    assert 0.8 * BUDGET_MB <= sent <= BUDGET_MB, "as much as is allowed"
    images = 2 * ROWS * 240 * 240 * 4 / 1e6
    assert growth < 3 * BUDGET_MB + images + 10, "the previews as tensors, as messages, and what gRPC takes in"
    steps = [int(np.frombuffer(r["step"], np.int32).sum()) for r in answers if "step" in r]
    assert steps == sorted(steps)
    assert steps[-1] == ROWS * STEPS, "each step has a response"
    late = [int(np.frombuffer(r["step"], np.int32).sum()) for r in previews]
    assert late[-1] > 0.9 * ROWS * STEPS, "spread over the steps: the last are not missed"
    assert "image" in answers[-1]


def received(responses: Any) -> list[dict[str, bytes]]:
    """Each response up to the one with the images, as its tensors' bytes by name."""
    answers: list[dict[str, bytes]] = []
    while not answers or "image" not in answers[-1]:
        response = next(responses)
        assert not response.error_message, response.error_message
        contents = zip(response.infer_response.outputs, response.infer_response.raw_output_contents, strict=True)
        answers.append({output.name: content for output, content in contents})
    return answers


def test_its_deadline_is_kept(server: TritonServer) -> None:
    before = scrape(server)["mri_ldm_cancelled_rows_total"]
    with stalled(server, timeout_s=0.3, **much()):
        time.sleep(0.5)
        wait_until_idle(server)
    assert scrape(server)["mri_ldm_cancelled_rows_total"] - before == ROWS


def test_a_reader_that_reads_gets_every_preview(server: TritonServer) -> None:
    """Within the limit: 8 MB are 128 previews of 4 rows."""
    order(server.repository, "unet", seconds=0.05)  # 16 wait to be sent at most: that takes a stall of 0.8 s
    with Client(server.grpc_url) as client:
        *events, _ = client.stream([1, 2, 3, 4], steps=20, preview_every=1)
    assert all(isinstance(event, Progress) and event.previews is not None for event in events)
    for row in range(4):
        assert sorted({int(event.step[row]) for event in events} - {0}) == list(range(1, 21))


def test_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    with TritonServer(write_faulty(tmp_path / "repository")) as server:
        server.probe()
        with stalled(server, **much()), triton.InferenceServerClient(server.grpc_url) as raw:
            assert infer(raw, seed=[1], steps=[2]).as_numpy("image") is not None
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            stopping.join(8)  # to its end: the `with` block stops the server once more
            assert not stopping.is_alive()
