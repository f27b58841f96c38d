"""The state behind `generate`, without a clock or a network."""

from itertools import count

import numpy as np
import pytest

from brats_ldm_client import InvalidRequest, ProtocolError, Rows, ServerUnavailable, WeightsChanged
from brats_ldm_client._request import make_request, requests_for
from brats_ldm_client._schedule import Assembly, Chunk, Schedule, backoff, generation_of


def schedule(n: int, retry_seconds: float = 10.0, concurrency: int = 2) -> Schedule:
    requests = make_request(n, seed=0).split(4)
    return Schedule(requests, concurrency=concurrency, retry_seconds=retry_seconds, now=100.0)


def rows(plan: Schedule, chunk: Chunk, digest: str = "sha256:1") -> Rows:
    seeds = plan.request(chunk).seeds
    images = np.broadcast_to(seeds[:, None, None], (len(seeds), 3, 3)).astype(np.float32)
    return Rows(images, [{"seed": int(seed), "model_digest": digest} for seed in seeds], None)


def given(plan: Schedule) -> list[list[int]]:
    return [part.seeds.tolist() for part in plan.in_order(100.0)]


def test_keeps_to_the_concurrency_and_gives_the_answers_in_order() -> None:
    plan = schedule(10)
    first, second = plan.due(100.0)
    assert (first, second) == (Chunk(0), Chunk(1))
    assert plan.due(100.0) == []
    plan.succeeded(second, rows(plan, second))
    assert given(plan) == []
    (third,) = plan.due(101.0)
    plan.succeeded(third, rows(plan, third))
    assert not plan.finished
    plan.succeeded(first, rows(plan, first))
    assert plan.due(102.0) == []
    (one, two, three) = plan.in_order(103.0)
    assert [part.seeds.tolist() for part in (one, two, three)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert one.images[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert [record["seed"] for record in three.provenance] == [8, 9]
    assert three.seconds == 3.0
    assert plan.finished
    assert plan.done == 10


def test_no_more_answers_wait_than_a_few_for_each_request_in_flight() -> None:
    """Seeds without an end, and the first request is never answered."""
    how = make_request(1, seed=0)
    plan = Schedule(requests_for(count(), 1, how), concurrency=2, retry_seconds=1.0, now=100.0)
    first, *others = plan.due(100.0)
    sent = 1
    while others:
        sent += len(others)
        for chunk in others:
            plan.succeeded(chunk, rows(plan, chunk))
        others = plan.due(100.0)
    assert sent == 8
    plan.succeeded(first, rows(plan, first))
    assert given(plan) == [[seed] for seed in range(8)]
    assert len(plan.due(100.0)) == 2


def test_seeds_are_taken_when_they_are_needed() -> None:
    taken: list[int] = []
    seeds = (taken.append(seed) or seed for seed in count())  # type: ignore[func-returns-value]
    plan = Schedule(requests_for(seeds, 4, make_request(1, seed=0)), concurrency=2, retry_seconds=1.0, now=100.0)
    assert taken == []
    plan.due(100.0)
    assert taken == list(range(8))


def test_fewer_requests_are_sent_while_the_server_is_busy() -> None:
    plan = schedule(400, concurrency=8)
    chunks = plan.due(100.0)
    assert len(chunks) == 8
    for chunk in chunks[:5]:
        plan.failed(chunk, ServerUnavailable("full"), 100.0)
    assert plan.due(109.0) == [], "the three that it took are still there"
    plan.succeeded(chunks[5], rows(plan, chunks[5]))
    (again,) = plan.due(109.0)
    assert again.attempt == 1, "what it refused comes first, and no more than it took before"


def test_nothing_is_sent_before_the_time_that_a_server_names_which_took_nothing() -> None:
    plan = schedule(400, concurrency=8)
    full = ServerUnavailable("full")
    full.retry_after = 3.0
    for chunk in plan.due(100.0):
        plan.failed(chunk, full, 100.0)
    assert plan.due(101.0) == []
    assert 0.5 <= plan.wait(101.0) <= 1.0
    assert len(plan.due(103.0)) == 1


def test_other_weights_in_the_middle_end_the_run() -> None:
    plan = schedule(8)
    first, second = plan.due(100.0)
    plan.succeeded(first, rows(plan, first))
    with pytest.raises(WeightsChanged, match="sha256:1 made the first images, and now sha256:2"):
        plan.succeeded(second, rows(plan, second, digest="sha256:2"))


def test_a_failed_chunk_waits_before_its_next_try() -> None:
    plan = schedule(4)
    (chunk,) = plan.due(100.0)
    plan.failed(chunk, ServerUnavailable("full"), 100.0)
    assert plan.due(100.0) == []
    wait = plan.wait(100.0)
    assert 0.05 <= wait <= 0.1
    assert plan.due(100.0 + wait) == [Chunk(0, attempt=1)]


def test_the_budget_counts_from_the_first_refusal_since_a_success() -> None:
    """From the last success it would be spent already when one request takes longer than the budget."""
    plan = schedule(8)
    first, second = plan.due(100.0)
    plan.failed(first, ServerUnavailable("full"), 109.0)
    plan.succeeded(second, rows(plan, second))
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
    request = make_request(2, seed=0)
    one, other = (
        generation_of(part, Rows(np.zeros((1, size, size), np.float32), [{}], None), 0.0)
        for part, size in zip(request.split(1), (3, 5), strict=True)
    )
    whole = Assembly(request)
    whole.add(one)
    with pytest.raises(ProtocolError, match="in one run"):
        whole.add(other)


def test_pauses_grow_with_jitter_up_to_a_bound() -> None:
    assert backoff(0, 0.0) == pytest.approx(0.05)
    assert backoff(0, 1.0) == pytest.approx(0.1)
    assert backoff(3, 1.0) == pytest.approx(0.8)
    assert backoff(10**6, 1.0) == 5.0
    assert backoff(0, 1.0, retry_after=3.0) == 3.0
    assert backoff(0, 1.0, retry_after=1000.0) == 5.0
