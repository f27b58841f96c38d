"""Two servers, and a balancer in front of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from brats_ldm_client import Client
from server.process import TritonServer
from support.balancer import COUNT, LIMITS, STEPS, Balancer, Images
from support.faulty_networks import order, write_faulty


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The server that outlives all tests."""
    with TritonServer(write_faulty(tmp_path_factory.mktemp("lasting"), **LIMITS)) as server:
        server.probe()
        yield server


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[TritonServer]:
    with TritonServer(write_faulty(tmp_path / "mortal", **LIMITS)) as server:
        server.probe()
        yield server


@pytest.fixture
def balancer(lasting: TritonServer, mortal: TritonServer, tmp_path: Path) -> Iterator[Balancer]:
    """In front of both, whose networks are quick again afterwards."""
    with Balancer({"a": lasting.grpc_url, "b": mortal.grpc_url}, tmp_path / "balancer") as balancer:
        yield balancer
    order(lasting.repository, "unet")


@pytest.fixture(scope="module")
def expected(lasting: TritonServer) -> Images:
    """The images of one server alone."""
    with Client(lasting.grpc_url, rows_per_request=4, concurrency=1) as client:
        return client.generate(COUNT, seed=0, steps=STEPS).images
