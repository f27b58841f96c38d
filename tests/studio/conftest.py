"""Fixtures: a server whose speed a test decides, the studio that asks it, and the page in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import tritonclient.grpc as triton
from playwright.sync_api import Page

from brats_ldm_client import Client
from server.process import TritonServer
from support.browser import Visitor
from support.faulty_networks import NETWORKS, order, write_faulty
from support.studio import open_page, studio

LIMITS = {"max_rows_in_flight": 8, "max_rows_waiting": 8}  # few, so that a test can fill them


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real server on toy networks, as fast as its tests order. Its tiny decoder makes brighter images."""
    repository = write_faulty(tmp_path_factory.mktemp("toy") / "repository", tiny=True, **LIMITS)
    order(repository, "vae_decoder_tiny", offset=0.25)
    with TritonServer(repository) as server:
        server.probe()
        yield server


@pytest.fixture(autouse=True)
def usual_speed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the networks are fast again."""
    yield
    if "toy" in request.fixturenames:
        for network in NETWORKS:
            order(request.getfixturevalue("toy").repository, network)


@pytest.fixture(scope="module")
def address(toy: TritonServer) -> Iterator[str]:
    with studio("--url", toy.grpc_url) as address:
        yield address


@pytest.fixture
def page(visitor: Visitor, address: str) -> Page:
    """The studio's page, once it says that the server is ready."""
    return open_page(visitor, address)


@pytest.fixture
def plain(toy: TritonServer) -> Iterator[Client]:
    """What a script has: the oracle for every image of the page."""
    with Client(toy.grpc_url) as client:
        yield client


@pytest.fixture
def slow(toy: TritonServer) -> Callable[[float], None]:
    """Makes every step take these seconds longer."""
    return lambda seconds: order(toy.repository, "unet", seconds=seconds)


@pytest.fixture
def raw_toy(toy: TritonServer) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client."""
    with triton.InferenceServerClient(toy.grpc_url) as raw:
        yield raw
