"""How many rows go together, on devices that take base + row * n seconds for a call."""

import pytest
from mri_ldm.pace import FOLLOWERS, RECHECK_CALLS, TRIES, Pace


def settle(pace: Pace, base: float, row: float, calls: int = 7 * TRIES, there: int = 64) -> int:
    """Make calls, and return how many of 64 rows the next has."""
    for _ in range(calls):
        rows = pace.rows(64, there)
        pace.measured(rows, 1, base + row * rows)
    return pace.rows(64, there)


@pytest.mark.parametrize(
    ("base", "row", "there", "rows"),
    [
        (1.0, 0.0, 64, 64),  # rows are free
        (1.0, 0.3, 64, 32),  # nearly so: two calls, half of the rows are done early
        (1.0, 0.3, 500, 64),  # many wait: throughput counts
        (0.0, 1.0, 500, 1),  # rows cost the same alone
        (0.2, 1.0, 64, 8),  # a little less together
    ],
)
def test_the_rows_that_are_there_are_done_soonest(base: float, row: float, there: int, rows: int) -> None:
    assert settle(Pace(64), base, row, there=there) == rows


def test_the_choice_is_the_best_of_a_simulated_queue() -> None:
    """Without followers: mean time at which equal rows of one step are done, counted call by call."""
    for base, row in ((4.0, 0.3), (0.2, 1.0), (0.03, 0.01)):
        mean = {}
        for size in (1, 2, 4, 8, 16, 32, 64):
            ends = [(base + row * size) * (i // size + 1) for i in range(64)]
            mean[size] = sum(ends) / 64
        pace = Pace(64)
        settle(pace, base, row)
        assert pace.rows(64, 64 // FOLLOWERS) == min(mean, key=lambda size: mean[size])


def test_all_sizes_are_tried_and_the_first_call_of_one_may_be_slow() -> None:
    pace, tried = Pace(64), []
    for call in range(7 * TRIES):
        tried.append(pace.rows(64, 64))
        pace.measured(tried[-1], 1, 10.0 if call % TRIES == 0 else 1.0)
    assert tried == sorted([1, 2, 4, 8, 16, 32, 64] * TRIES)
    assert pace.rows(64, 64) == 64


def test_where_fewer_rows_are_there_all_go() -> None:
    pace = Pace(64)
    settle(pace, 1.0, 0.0)
    assert [pace.rows(ready, ready) for ready in (0, 1, 5, 63, 64)] == [0, 1, 5, 63, 64]
    assert Pace(1).rows(1, 1) == 1


def test_what_was_right_once_is_looked_at_again() -> None:
    """A machine where rows were free, until something else began to run on it."""
    pace = Pace(64)
    assert settle(pace, 1.0, 0.0) == 64
    assert settle(pace, 0.0, 1.0, calls=RECHECK_CALLS * 7 * TRIES) == 1
