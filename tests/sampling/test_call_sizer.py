"""How many rows go together, on devices that take base + row * n seconds for a call."""

import pytest

from mri_ldm.call_sizer import FOLLOWERS, RECHECK_CALLS, TRIES, CallSizer


def settle(sizer: CallSizer, base: float, row: float, calls: int = 7 * TRIES, there: int = 64) -> int:
    """Make calls, and return how many of 64 rows the next has."""
    for _ in range(calls):
        rows = sizer.rows(64, there)
        sizer.measured(rows, 1, base + row * rows)
    return sizer.rows(64, there)


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
    assert settle(CallSizer(64), base, row, there=there) == rows


def test_the_choice_is_the_best_of_a_simulated_queue() -> None:
    """Without followers: mean time at which equal rows of one step are done, counted call by call."""
    for base, row in ((4.0, 0.3), (0.2, 1.0), (0.03, 0.01)):
        mean = {}
        for size in (1, 2, 4, 8, 16, 32, 64):
            ends = [(base + row * size) * (i // size + 1) for i in range(64)]
            mean[size] = sum(ends) / 64
        sizer = CallSizer(64)
        settle(sizer, base, row)
        assert sizer.rows(64, 64 // FOLLOWERS) == min(mean, key=lambda size: mean[size])


def test_all_sizes_are_tried_and_the_first_call_of_one_may_be_slow() -> None:
    sizer, tried = CallSizer(64), []
    for call in range(7 * TRIES):
        tried.append(sizer.rows(64, 64))
        sizer.measured(tried[-1], 1, 10.0 if call % TRIES == 0 else 1.0)
    assert tried == sorted([1, 2, 4, 8, 16, 32, 64] * TRIES)
    assert sizer.rows(64, 64) == 64


def test_where_fewer_rows_are_there_all_go() -> None:
    sizer = CallSizer(64)
    settle(sizer, 1.0, 0.0)
    assert [sizer.rows(ready, ready) for ready in (0, 1, 5, 63, 64)] == [0, 1, 5, 63, 64]
    assert CallSizer(1).rows(1, 1) == 1


def test_what_was_right_once_is_looked_at_again() -> None:
    """A machine where rows were free, until something else began to run on it."""
    sizer = CallSizer(64)
    assert settle(sizer, 1.0, 0.0) == 64
    assert settle(sizer, 0.0, 1.0, calls=RECHECK_CALLS * 7 * TRIES) == 1


def settle_steps(
    sizer: CallSizer, call: float, step: float, left: list[int], arriving: float = 0.0, most: int = 25
) -> int:
    """Make calls on a device that takes `call + step * steps` seconds, and return the steps of the next."""
    for _ in range(4 * TRIES):
        steps = sizer.steps(left, most, arriving)
        sizer.measured(len(left), steps, call + step * steps)
    return sizer.steps(left, most, arriving)


def test_calls_have_many_steps_where_nobody_comes_or_ends() -> None:
    assert settle_steps(CallSizer(64), 0.7, 1.1, [50] * 8) == 25
    assert settle_steps(CallSizer(64), 0.7, 1.1, [50] * 8, most=10) == 10


def test_the_more_come_the_fewer_steps_a_call_has() -> None:
    chosen = [settle_steps(CallSizer(64), 0.7, 1.1, [50] * 8, arriving) for arriving in (0.0, 0.02, 0.2, 2.0)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] == 25 > chosen[2] > chosen[3] >= 1


def test_a_row_that_ends_is_padded_only_where_that_is_cheaper_than_a_call_of_its_own() -> None:
    """One row with two steps left among seven with many, in calls that cost little or much beside their steps."""
    left = [2, *[50] * 7]
    assert settle_steps(CallSizer(64), 0.01, 1.1, left) == 2
    assert settle_steps(CallSizer(64), 10.0, 1.1, left) == 25
    assert settle_steps(CallSizer(64), 0.7, 1.1, [2] * 8) == 2, "never more steps than any row has left"


def test_making_a_call_is_told_from_its_steps() -> None:
    """On a device where a call is free, its steps are no reason for fewer calls."""
    assert settle_steps(CallSizer(64), 0.0, 1.1, [50] * 8, arriving=0.01) == 1
    assert settle_steps(CallSizer(64), 5.0, 1.1, [50] * 8, arriving=0.01) > 10


def test_a_device_that_has_become_slower_to_call_is_noticed() -> None:
    sizer = CallSizer(64)
    assert settle_steps(sizer, 0.0, 1.0, [50] * 8, arriving=0.01) == 1
    for _ in range(RECHECK_CALLS * TRIES):
        steps = sizer.steps([50] * 8, 25, 0.01)
        sizer.measured(8, steps, 9.0 + steps)
    assert sizer.steps([50] * 8, 25, 0.01) > 5


def settle_both(sizer: CallSizer, calls: int, slow: float = 1.0) -> list[tuple[int, int]]:
    """Rows and steps of calls on a device where rows are free and a call costs less than a step."""
    made = []
    for _ in range(calls):
        rows = sizer.rows(64, 64)
        made.append((rows, sizer.steps([50] * rows, 25, 0.0)))
        sizer.measured(*made[-1], slow * (0.7 + 1.1 * made[-1][1]))
    return made


def test_one_slow_call_changes_nothing() -> None:
    """Nobody would look again for hundreds of calls."""
    sizer = CallSizer(64)
    assert settle_both(sizer, 140)[-1] == (64, 25)
    settle_both(sizer, 1, slow=5.0)
    assert set(settle_both(sizer, 100)) == {(64, 25)}


@pytest.mark.parametrize("slow", range(4 * TRIES))
def test_one_slow_call_of_the_first_does_not_make_all_calls_short(slow: int) -> None:
    sizer = CallSizer(64)
    for call in range(4 * TRIES):
        steps = sizer.steps([50] * 8, 25, 0.0)
        sizer.measured(8, steps, (0.7 + 1.1 * steps) * (5.0 if call == slow else 1.0))
    assert sizer.steps([50] * 8, 25, 0.0) == 25


def test_no_call_of_several_steps_is_much_longer_than_the_longest() -> None:
    """Where a row of a step takes 0.3 s, also in the first calls of many rows, but for the very first."""
    sizer, seconds = CallSizer(64, longest=2.0), []
    for _ in range(10 * TRIES):
        rows = sizer.rows(64, 64)
        steps = sizer.steps([50] * rows, 25, 0.0)
        seconds.append((steps, 0.3 * rows * steps))
        sizer.measured(rows, *seconds[-1])
    assert max(took for steps, took in seconds if steps > 1) <= 2.0
    assert max(steps for steps, _ in seconds) > 1
