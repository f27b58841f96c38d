"""The state behind `generate`, without a clock or a network."""

import numpy as np
import pytest

from brats_ldm_client import InvalidRequest, ProtocolError, ServerUnavailable
from brats_ldm_client._protocol import Rows, make_request
from brats_ldm_client._schedule import Chunk, Schedule, backoff


def schedule(n: int, retry_seconds: float = 10.0) -> Schedule:
    request = make_request(n, seed=0)
    return Schedule(request, rows_per_request=4, concurrency=2, retry_seconds=retry_seconds, now=100.0)


def rows(chunk: Chunk, size: int = 3) -> Rows:
    seeds = np.arange(chunk.start, chunk.stop)
    images = np.broadcast_to(seeds[:, None, None], (len(seeds), size, size)).astype(np.float32)
    return Rows(images, [{"seed": int(seed)} for seed in seeds], None)


def test_splits_keeps_to_the_concurrency_and_reassembles_in_order() -> None:
    plan = schedule(10)
    first, second = plan.due(100.0)
    assert (first, second) == (Chunk(0, 4), Chunk(4, 8))
    assert plan.due(100.0) == []
    plan.succeeded(second, rows(second))
    (third,) = plan.due(101.0)
    assert third == Chunk(8, 10)
    plan.succeeded(third, rows(third))
    assert not plan.finished
    plan.succeeded(first, rows(first))
    assert plan.finished
    generation = plan.generation(103.0)
    assert generation.images[:, 0, 0].tolist() == list(range(10))
    assert [record["seed"] for record in generation.provenance] == list(range(10))
    assert generation.seconds == 3.0


def test_a_failed_chunk_waits_before_its_next_try() -> None:
    plan = schedule(4)
    (chunk,) = plan.due(100.0)
    plan.failed(chunk, ServerUnavailable("full"), 100.0)
    assert plan.due(100.0) == []
    wait = plan.wait(100.0)
    assert 0.05 <= wait <= 0.1
    assert plan.due(100.0 + wait) == [Chunk(0, 4, attempt=1)]


def test_the_budget_counts_from_the_first_refusal_since_a_success() -> None:
    """From the last success it would be spent already when one request takes longer than the budget."""
    plan = schedule(8)
    first, second = plan.due(100.0)
    plan.failed(first, ServerUnavailable("full"), 109.0)
    plan.succeeded(second, rows(second))
    (again,) = plan.due(110.0)
    plan.failed(again, ServerUnavailable("full"), 150.0)
    (again,) = plan.due(151.0)
    plan.failed(again, ServerUnavailable("full"), 159.0)
    (again,) = plan.due(159.9)
    with pytest.raises(ServerUnavailable):
        plan.failed(again, ServerUnavailable("full"), 160.1)


def test_other_errors_end_the_run_at_once() -> None:
    plan = schedule(4)
    (chunk,) = plan.due(100.0)
    with pytest.raises(InvalidRequest):
        plan.failed(chunk, InvalidRequest("no"), 100.0)


def test_images_of_two_sizes_are_refused() -> None:
    plan = schedule(8)
    first, second = plan.due(100.0)
    plan.succeeded(first, rows(first))
    with pytest.raises(ProtocolError, match="in one run"):
        plan.succeeded(second, rows(second, size=5))


def test_pauses_grow_with_jitter_up_to_a_bound() -> None:
    assert backoff(0, 0.0) == pytest.approx(0.05)
    assert backoff(0, 1.0) == pytest.approx(0.1)
    assert backoff(3, 1.0) == pytest.approx(0.8)
    assert backoff(10**6, 1.0) == 5.0
    assert backoff(0, 1.0, retry_after=3.0) == 3.0
    assert backoff(0, 1.0, retry_after=1000.0) == 5.0
