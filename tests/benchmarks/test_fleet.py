"""The simulated fleet against what is known without it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.scale.fleet import FINDING, SHARING, Finding, Fleet, Sharing, simulate

CALM = Fleet(servers=5, workers=5, images=2000, shard_size=40, image_s=0.5)


@pytest.mark.parametrize("sharing", SHARING)
def test_equal_servers_without_failures_take_the_ideal_time(sharing: Sharing) -> None:
    outcome = simulate(replace(CALM, sharing=sharing))
    assert outcome.makespan_s == pytest.approx(2000 * 0.5 / 5)
    assert outcome.figures() == pytest.approx(dict.fromkeys(outcome.figures(), 0.0) | {"stretch": 1.0}, abs=1e-9)
    assert {attempt.made for attempt in outcome.attempts} == {40}


def test_the_pause_between_shards_is_added_where_a_server_waits_for_its_worker() -> None:
    assert simulate(replace(CALM, shard_s=3.0)).makespan_s == pytest.approx(200 + 10 * 3.0)


def test_a_slow_server_holds_up_the_whole_run_where_shards_are_shared_out_before() -> None:
    slow = replace(CALM, slow_share=0.2, slow_speed=0.25)
    outcome = simulate(replace(slow, sharing="static"))
    assert outcome.makespan_s == pytest.approx(400 * 0.5 / 0.25)
    assert outcome.ideal_s == pytest.approx(2000 * 0.5 / 4.25)
    assert outcome.tail_s == pytest.approx(400 * 0.5 / 0.25 - 400 * 0.5)
    # Graham's bound: nobody is idle before the last shard is begun.
    shard_s = 40 * 0.5 / 0.25
    assert slow.ideal_s < simulate(slow).makespan_s <= slow.ideal_s + shard_s


def test_requests_in_turn_make_the_fleet_as_slow_as_its_slowest_server() -> None:
    """Each server gets as many, so a long run takes the slow one's time. A balancer that counts requests does not."""
    slow = replace(CALM, images=8000, slow_share=0.2, slow_speed=0.25)
    in_turn, least_busy = (simulate(replace(slow, finding=finding)) for finding in ("in turn", "least busy"))
    assert in_turn.makespan_s == pytest.approx(8000 / 5 * 0.5 / 0.25, rel=0.1)
    assert least_busy.makespan_s < 1.1 * slow.ideal_s


def test_deaths_cost_what_the_formula_says() -> None:
    """A job of T seconds that begins anew after each death: (e^(T / M) - 1) · (M + restart) on average."""
    fleet = Fleet(
        servers=1, workers=1, images=40_000, shard_size=40, image_s=0.5, rows=1, worker_mtbf_s=30.0,
        worker_restart_s=7.0,
    )  # fmt: skip
    expected = 1000 * (math.exp(20 / 30) - 1) * (30 + 7)
    outcomes = [simulate(fleet, seed) for seed in range(3)]
    assert sum(outcome.makespan_s for outcome in outcomes) / 3 == pytest.approx(expected, rel=0.06)
    for outcome in outcomes:
        assert outcome.deaths == sum(not attempt.whole for attempt in outcome.attempts)
        lost = sum(attempt.made for attempt in outcome.attempts if not attempt.whole)
        assert lost <= outcome.computed - outcome.images <= lost + outcome.deaths * fleet.concurrency


def test_crashes_cost_what_the_formula_says() -> None:
    """As deaths, with a request in the place of the shard. The client notices within 5 s that the server is back."""
    fleet = Fleet(
        servers=1, workers=1, images=16_000, shard_size=16_000, image_s=0.5, rows=8, server_mtbf_s=60.0,
        server_repair_s=20.0, retry_s=math.inf,
    )  # fmt: skip
    requests, least, most = 2000, 20.0, 20.0 + 5.0
    times = [simulate(fleet, seed).makespan_s / (requests * (math.exp(4 / 60) - 1)) for seed in range(3)]
    assert 60 + least < sum(times) / 3 < 1.05 * (60 + most)


def test_a_frozen_server_does_its_work_later() -> None:
    one = Fleet(servers=1, workers=1, images=400, shard_size=40, image_s=0.5)
    outcome = simulate(replace(one, stall_s=50.0))
    assert outcome.makespan_s == pytest.approx(200 + 50)
    assert outcome.busy_s == pytest.approx(200)


@pytest.mark.parametrize("finding", FINDING)
@pytest.mark.parametrize("sharing", SHARING)
def test_every_shard_is_made_whatever_happens(sharing: Sharing, finding: Finding) -> None:
    fleet = Fleet(
        servers=20, workers=20, images=8000, shard_size=37, image_s=0.5, shard_s=1.0, slow_share=0.1, slow_speed=0.3,
        server_mtbf_s=300.0, server_repair_s=30.0, worker_mtbf_s=200.0, worker_restart_s=10.0, stall_s=40.0,
        sharing=sharing, finding=finding,
    )  # fmt: skip
    outcome = simulate(fleet, seed=3)
    whole = [attempt for attempt in outcome.attempts if attempt.whole]
    assert sorted(attempt.shard for attempt in whole) == [*range(fleet.shards)]
    assert sum(attempt.made for attempt in whole) == 8000
    assert outcome.crashes > 5
    assert outcome.deaths > 5
    assert simulate(fleet, seed=3) == outcome
    assert simulate(fleet, seed=4).makespan_s != outcome.makespan_s


def test_a_server_of_its_own_for_each_worker_needs_enough_of_them() -> None:
    with pytest.raises(ValueError, match="6 workers with a server each need as many servers, not 5"):
        simulate(replace(CALM, workers=6))
