"""How many rows a call of the UNet should have, learned from how long its calls take on this machine."""

from collections import deque

TRIES = 3
RECHECK_CALLS = 256
WORTH = 1.05


class Pace:
    """No more rows than pay: the fewest whose time per row is within WORTH of the best that any number of rows has.

    On a GPU rows in a call are nearly free up to some number. On a CPU a row costs about the same alone and in a batch,
    so that rows taking turns would all be late: there, few go first and the others wait.

    Numbers of rows are told apart by powers of two. Each is tried TRIES times when enough rows are there (the first
    calls of a size are slow), and one of them again every RECHECK_CALLS calls, since a machine's speed changes. What
    counts is the quickest of the last TRIES, which other work on the machine disturbs least.
    """

    def __init__(self, most: int) -> None:
        """most: rows of the largest call."""
        self._seconds_per_row = [deque[float](maxlen=TRIES) for _ in range(most.bit_length())]
        self._calls = 0

    def rows(self, ready: int) -> int:
        """How many of `ready` rows should take the next step together."""
        possible = self._seconds_per_row[: ready.bit_length()]
        for size, tries in enumerate(possible):
            if len(tries) < TRIES:
                return 1 << size
        recheck, rest = divmod(self._calls, RECHECK_CALLS)
        if rest == 0 and possible:
            return 1 << recheck % len(possible)
        best = min((min(tries) for tries in self._seconds_per_row if tries), default=0.0)
        for size, tries in enumerate(possible[:-1]):
            if min(tries) < WORTH * best:
                return 1 << size
        return ready

    def measured(self, rows: int, seconds: float) -> None:
        """A call with `rows` rows took `seconds`."""
        self._calls += 1
        self._seconds_per_row[rows.bit_length() - 1].append(seconds / rows)
