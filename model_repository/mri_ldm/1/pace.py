"""How many rows a call of the UNet should have, learned from how long its calls take on this machine."""

from collections import deque

TRIES = 3
RECHECK_CALLS = 256
FOLLOWERS = 8


class Pace:
    """The rows that are there, in calls of n rows: whatever n has their results soonest.

    On average over w rows, all alike, that is the n with the least (time per row) * (w + n). More rows are to come,
    which wait for all of these: until w rows are cleared at load r, w / (1 - r) have come. So w counts FOLLOWERS times,
    as at 7/8 of capacity, where it matters; at less, w is small and every n does. On a GPU rows in a call are nearly
    free, so n is large, the larger the more rows wait. On a CPU a row costs about as much in a batch as alone, so that
    rows taking turns would all be late: there, a few go first and the others wait.

    Numbers of rows are told apart by powers of two. Each is tried TRIES times when enough rows are there (the first
    calls of a size are slow), and one of them again every RECHECK_CALLS calls, since a machine's speed changes. What
    counts is the quickest of the last TRIES, which other work on the machine disturbs least.
    """

    def __init__(self, most: int) -> None:
        """most: rows of the largest call."""
        self._seconds_per_row = [deque[float](maxlen=TRIES) for _ in range(most.bit_length())]
        self._calls = 0

    def rows(self, ready: int, there: int) -> int:
        """How many of `ready` rows should take the next step together; `there`: they and all that wait for a place."""
        sizes = [1 << power for power in range(ready.bit_length())]
        for size, tries in zip(sizes, self._seconds_per_row, strict=False):
            if len(tries) < TRIES:
                return size
        recheck, rest = divmod(self._calls, RECHECK_CALLS)
        if rest == 0 and sizes:
            return sizes[recheck % len(sizes)]
        if sizes:
            sizes[-1] = ready

        def cost(size: int) -> float:
            return min(self._seconds_per_row[size.bit_length() - 1]) * (FOLLOWERS * there + size)

        return min(sizes, key=cost, default=0)

    def measured(self, rows: int, seconds: float) -> None:
        """A call with `rows` rows took `seconds`."""
        self._calls += 1
        self._seconds_per_row[rows.bit_length() - 1].append(seconds / rows)
