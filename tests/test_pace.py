"""How many rows go together, on devices that take base + row * n seconds for a call."""

import pytest
from mri_ldm.pace import RECHECK_CALLS, TRIES, Pace


def settle(pace: Pace, base: float, row: float, calls: int = 7 * TRIES, ready: int = 64) -> int:
    """Make calls, and return how many rows the next has."""
    for _ in range(calls):
        rows = pace.rows(ready)
        pace.measured(rows, base + row * rows)
    return pace.rows(ready)


@pytest.mark.parametrize(
    ("base", "row", "rows"),
    [
        (1.0, 0.0, 64),  # rows are free
        (4.0, 0.3, 64),  # 7 % of a call of 64 are fixed cost still
        (0.0, 1.0, 1),  # rows cost the same alone
        (0.1, 1.0, 2),  # alone 10 % more than in large calls, in pairs 5 %, less what large calls cost too
    ],
)
def test_no_more_rows_than_pay(base: float, row: float, rows: int) -> None:
    assert settle(Pace(64), base, row) == rows


def test_all_sizes_are_tried_and_the_first_call_of_one_may_be_slow() -> None:
    pace, tried = Pace(64), []
    for call in range(7 * TRIES):
        tried.append(pace.rows(64))
        pace.measured(tried[-1], 10.0 if call % TRIES == 0 else 1.0)
    assert tried == sorted([1, 2, 4, 8, 16, 32, 64] * TRIES)
    assert pace.rows(64) == 64


def test_where_fewer_rows_are_there_all_go() -> None:
    pace = Pace(64)
    settle(pace, 1.0, 0.0)
    assert [pace.rows(ready) for ready in (0, 1, 5, 63, 64)] == [0, 1, 5, 63, 64]
    assert Pace(1).rows(1) == 1


def test_what_was_right_once_is_looked_at_again() -> None:
    """A machine where rows were free, until something else began to run on it."""
    pace = Pace(64)
    assert settle(pace, 1.0, 0.0) == 64
    assert settle(pace, 0.0, 1.0, calls=RECHECK_CALLS * 7 * TRIES) == 1
