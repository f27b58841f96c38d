"""Answers of a stream go out in order, and a client that does not read holds up nobody."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mri_ldm.outbox import LONGEST_QUEUE, Outbox, Outboxes


class Client:
    """What a blocking sender sees: `send` waits until the client reads."""

    def __init__(self) -> None:
        self.asked, self.reads = threading.Event(), threading.Event()
        self.got: list[object] = []

    def send(self, answer: object) -> Callable[[], None]:
        def waits_and_sends() -> None:
            self.asked.set()
            assert self.reads.wait(10)
            self.got.append(answer)

        return waits_and_sends


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.reads.set()


def test_what_is_put_in_comes_out_in_order(client: Client) -> None:
    client.reads.set()
    outboxes = Outboxes()
    outbox = Outbox(outboxes)
    for step in range(LONGEST_QUEUE):
        outbox.preview(client.send(step))
    outbox.last(client.send("image"))
    assert outboxes.flush(5)
    assert client.got == [*range(LONGEST_QUEUE), "image"]


def test_a_client_that_does_not_read_costs_the_loop_no_time_and_bounded_memory(client: Client) -> None:
    """As Triton's own sender behaves with --grpc-max-response-pool-size, from 25.03 on."""
    outboxes = Outboxes()
    stalled, other = Outbox(outboxes), Outbox(outboxes)
    began = time.monotonic()
    for step in range(1000):
        stalled.preview(client.send(step))
    stalled.last(client.send("image"))
    answered = threading.Event()
    other.last(answered.set)
    assert time.monotonic() - began < 5, "it would wait for ten"
    assert answered.wait(5), "others are answered meanwhile"
    assert not outboxes.flush(0.1), "nobody waits for it longer than told"
    client.reads.set()
    assert outboxes.flush(5)
    assert client.got[-1] == "image", "the last answer is never skipped"
    assert client.got[-1 - LONGEST_QUEUE : -1] == list(range(1000 - LONGEST_QUEUE, 1000)), (
        "the newest previews are kept"
    )
    assert len(client.got) <= LONGEST_QUEUE + 2


def test_what_waits_is_dropped_when_the_request_was_cancelled(client: Client) -> None:
    outboxes = Outboxes()
    outbox = Outbox(outboxes)
    for step in range(5):
        outbox.preview(client.send(step))
    assert client.asked.wait(5), "the first is on its way"
    outbox.last(client.send("cancelled"), instead=True, pause=0.05)
    client.reads.set()
    assert outboxes.flush(5)
    assert client.got == [0, "cancelled"]


def test_no_thread_is_left(client: Client) -> None:
    client.reads.set()
    before = threading.active_count()
    outboxes = Outboxes()
    for _ in range(50):
        outbox = Outbox(outboxes)
        outbox.preview(client.send("preview"))
        outbox.last(client.send("image"))
    assert outboxes.flush(5)
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
