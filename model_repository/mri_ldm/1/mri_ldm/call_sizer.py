"""Chooses how many rows and how many steps a call of the UNet has. It learns from how long calls take."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

TRIES = 3
RECHECK_CALLS = 256
FOLLOWERS = 8
FEW_STEPS = 4
MOST_STEPS = 1000


class CallSizer:
    """Chooses the size of each call so that the present rows have their results soonest.

    Rows. If w equal rows are done in calls of n, their mean time grows with (time per row) * (w + n), so the n with the
    least of that is best. Rows that arrive later wait for all of these: until w rows are done at load r, w / (1 - r)
    have come. So w counts FOLLOWERS times, which is right at 7/8 of capacity, where the choice matters. At less load w
    is small, and any n will do. On a GPU more rows in a call cost almost nothing, so n is large, and larger the more
    rows wait. On a CPU a row costs about as much in a batch as alone. If all rows took turns there, all would be late;
    so a few go first, and the others wait.

    Learning. Numbers of rows are grouped by powers of two. Each group is tried TRIES times as soon as there are enough
    rows, because the first calls of a size are slow. Every RECHECK_CALLS calls one group is tried again, because a
    machine's speed changes. The quickest of the last TRIES counts: other work on the machine disturbs it least.

    Steps. The time of a call is a fixed part, the cost of the call, and an equal part for each of its steps. Both are
    learned from pairs of calls with about as many rows: one of several steps (FEW_STEPS at first), then one of a single
    step. Where steps are slow, as on a CPU, the cost of a call is small, and long calls would only delay others.
    """

    def __init__(self, most: int, longest: float = math.inf) -> None:
        """most: rows of the largest call. longest: seconds that a call of several steps may take, roughly."""
        self._longest = longest
        self._calls_of = [_Calls() for _ in range(most.bit_length())]
        self._calls = 0

    def rows(self, ready: int, there: int, least: int = 1) -> int:
        """How many of `ready` rows should take the next steps together; `there`: they and all that wait for a place.

        least: 2 where the first row takes two in a call.
        """
        sizes = [1 << power for power in range(least.bit_length() - 1, ready.bit_length())]
        for size in sizes:
            if self._calls_of[size.bit_length() - 1].count < TRIES:
                return size
        recheck, rest = divmod(self._calls, RECHECK_CALLS)
        if rest == 0 and sizes:
            return sizes[recheck % len(sizes)]
        if sizes:
            sizes[-1] = ready

        def cost(size: int) -> float:
            # Per row of the power of two below `size`, as it was measured.
            return self._calls_of[size.bit_length() - 1].seconds_per_row_step * (FOLLOWERS * there + size)

        return min(sizes, key=cost, default=0)

    def steps(self, left: Sequence[int], most: int, arriving: float) -> int:
        """How many steps the next call should have, for rows with `left` steps; `most` at most.

        What is lost in a call of k steps: all rows wait for the call to be made; a row with fewer steps left waits for
        the others; and new rows, `arriving` of them a second, wait on average for half of it. The k with
        the least loss for a step of a row is chosen: many steps if calls are expensive, few if rows come or end.
        """
        most = min(most, self._bearable(len(left)))
        calls = self._calls_of[len(left).bit_length() - 1]
        few, recheck = min(most, min(left), FEW_STEPS), self._calls % RECHECK_CALLS
        if len(calls.several) < TRIES or recheck == 0:
            return few
        if len(calls.costs) < TRIES or recheck == 1:
            return 1 if calls.pairs(len(left)) else few
        call, step, _ = calls.cost()
        ks = np.arange(min(most, max(left)), 0, -1)
        done = np.minimum.outer(ks, left).sum(axis=1)
        lost = call * len(left) + step * (ks * len(left) - done) + arriving * (call + step * ks) ** 2 / 2
        return int(ks[np.argmin(lost / done)])

    def _bearable(self, rows: int) -> int:
        """Steps of a call that takes about `longest` seconds; by calls of fewer rows if none had so many."""
        known = [calls for calls in self._calls_of[: rows.bit_length()] if calls.count]
        if not known or known[-1].seconds_per_row_step == 0:
            return MOST_STEPS
        return max(1, int(min(MOST_STEPS, self._longest / (known[-1].seconds_per_row_step * rows))))

    def measured(self, rows: int, steps: int, seconds: float) -> None:
        """A call that computed `steps` steps of `rows` rows took `seconds`."""
        self._calls += 1
        self._calls_of[rows.bit_length() - 1].add(rows, steps, seconds)


class _Calls:
    """The last calls with about as many rows."""

    def __init__(self) -> None:
        self.count = 0
        self.single = deque[float](maxlen=TRIES)
        """Seconds per row of calls of one step."""
        self.several = deque[tuple[int, int, float]](maxlen=TRIES)
        """Rows, steps and seconds of calls of more."""
        self.costs = deque[float](maxlen=TRIES)
        """What making a call took."""
        self._has_pair = True
        """The last call of several steps, or there is none yet."""

    def add(self, rows: int, steps: int, seconds: float) -> None:
        """A call has been made."""
        self.count += 1
        if steps > 1:
            self.several.append((rows, steps, seconds))
            self._has_pair = False
            return
        self.single.append(seconds / rows)
        if self.pairs(rows):
            _, several, longer = self.several[-1]
            self.costs.append(max(0.0, (seconds - longer / several) / (1 - 1 / several)))
            self._has_pair = True

    def pairs(self, rows: int) -> bool:
        """Whether a call of one step of `rows` rows is to be compared with the last of several: each only once."""
        return not self._has_pair and abs(self.several[-1][0] - rows) <= rows // 8

    def cost(self) -> tuple[float, float, int]:
        """Seconds that making a call takes and a step of the quickest of the last calls, and the rows of that one."""
        call = sorted(self.costs)[len(self.costs) // 2]
        steps = [(max(0.0, seconds - call) / steps, rows) for rows, steps, seconds in self.several]
        return call, *min(steps, key=lambda step: step[0] / step[1])

    @property
    def seconds_per_row_step(self) -> float:
        """Of the quickest of the last calls; of FEW_STEPS where that is known, so that sizes can be compared."""
        if not self.costs:
            several = [seconds / (rows * steps) for rows, steps, seconds in self.several]
            return min(several or self.single)
        call, step, rows = self.cost()
        return (step + call / FEW_STEPS) / rows
