"""Fixtures: the fake server of `fake_triton`, a caller for each of the two clients, and terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.fake_triton import Caller, Served
from support.terminals import Terminal


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, served: Served) -> Caller:
    return Caller(request.param, served.url)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Makes terminals, and closes them."""
    opened: list[Terminal] = []

    def make(kind: str, **size: int) -> Terminal:
        opened.append(Terminal(kind, **size))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
