"""Fixtures: the fake server of `fake_triton`, and a caller for each of the two clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.fake_triton import Caller, Served


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, served: Served) -> Caller:
    return Caller(request.param, served.url)
