"""Previews as images: in batches, and with a pause after each failure, so that nobody waits long for them."""

from __future__ import annotations

import numpy as np
import pytest

from mri_ldm.batcher import Batcher
from mri_ldm.preview_decoder import LONGEST_SECONDS, REST_SHARE, SHORTEST_REST_SECONDS, PreviewDecoder
from mri_ldm.stepping import SingleSteps
from support.batching import Recorder, drain, fake_decode, make_job, taking


class Decoder:
    """Doubles latents; takes `seconds` by its clock, and raises `error`."""

    def __init__(self) -> None:
        self.now, self.seconds, self.calls = 0.0, 0.0, []
        self.error: Exception | None = None

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        self.calls.append(len(latents))
        self.now += self.seconds
        if self.error:
            raise self.error
        return 2 * latents


@pytest.fixture
def network() -> Decoder:
    return Decoder()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def decoder(network: Decoder, warnings: list[str]) -> PreviewDecoder:
    return PreviewDecoder(network, image_size=64, batch=2, warn=warnings.append, clock=lambda: network.now)


LATENTS = np.random.default_rng(0).standard_normal((5, 1, 64, 64)).astype(np.float32)


def test_rows_are_decoded_in_batches(decoder: PreviewDecoder, network: Decoder) -> None:
    images = decoder.images(LATENTS)
    assert images is not None
    np.testing.assert_array_equal(images, 2 * LATENTS)
    assert images.nbytes == decoder.size(5)
    assert network.calls == [2, 2, 1]


def test_after_a_failure_it_rests_and_says_why_once(
    decoder: PreviewDecoder, network: Decoder, warnings: list[str]
) -> None:
    network.error = ValueError("not there")
    for _ in range(3):
        assert decoder.ready()
        assert decoder.images(LATENTS) is None
        assert not decoder.ready()
        network.now += SHORTEST_REST_SECONDS
    assert network.calls == [2] * 3
    assert warnings == ["previews are latents for now: not there"]
    network.error = None
    assert decoder.images(LATENTS) is not None
    network.error = ValueError("gone")
    assert decoder.images(LATENTS) is None
    assert warnings[1:] == ["previews are latents for now: gone"]


def test_a_failure_that_takes_long_costs_a_small_share_of_the_time(decoder: PreviewDecoder, network: Decoder) -> None:
    network.error, network.seconds = ValueError("late"), LONGEST_SECONDS
    for _ in range(10):
        while not decoder.ready():
            network.now += 0.1
        assert decoder.images(LATENTS) is None
    assert 10 * LONGEST_SECONDS / network.now <= 1.2 / REST_SHARE


def test_a_preview_that_takes_too_long_is_given_up_between_batches(decoder: PreviewDecoder, network: Decoder) -> None:
    network.seconds = 0.6 * LONGEST_SECONDS
    assert decoder.images(LATENTS) is None
    assert network.calls == [2, 2]


def test_images_of_another_size_are_none(network: Decoder, warnings: list[str]) -> None:
    decoder = PreviewDecoder(network, image_size=240, batch=2, warn=warnings.append)
    assert decoder.images(LATENTS) is None
    (warning,) = warnings
    assert warning.startswith("previews are latents for now: ")
    assert all(shape in warning for shape in ("1,64,64", "1,240,240"))


def test_the_time_for_previews_is_no_time_of_steps() -> None:
    """By a clock of its own: a step takes 1 s, and the listener 7 s to make a preview."""
    now, clock = [0.0], [0]

    class Slow(Recorder):
        def preview(self, steps: np.ndarray, estimates: np.ndarray) -> None:
            now[0] += 7

    batcher = Batcher([SingleSteps(taking(1.0, now))], fake_decode, clock=lambda: now[0])
    batcher.submit(make_job(Slow(clock), [(1, "ddim", 6, 0.0)], preview_every=[2]))
    drain(batcher, clock)
    assert batcher.counters.step_seconds == 6
    assert batcher.counters.preview_seconds == 3 * 7
    assert batcher.state()["seconds_left"] == 0


def test_the_state_tells_what_there_is_to_do() -> None:
    now, clock = [0.0], [0]
    batcher = Batcher(
        [SingleSteps(taking(0.5, now))], fake_decode, max_rows_in_flight=1, max_rows_waiting=2, clock=lambda: now[0]
    )
    limits = {"max_rows_in_flight": 1, "max_rows_waiting": 2}
    nothing = {"rows_in_flight": 0, "rows_waiting": 0, "row_steps_left": 0, **limits, "draining": False}
    assert batcher.state() == {**nothing, "seconds_left": None}
    batcher.submit(make_job(Recorder(clock), [(1, "ddim", 6, 0.0), (2, "ddim", 4, 0.0)]))
    assert batcher.state() == {**nothing, "rows_waiting": 2, "row_steps_left": 10, "seconds_left": None}
    batcher.tick()
    busy = {"rows_in_flight": 1, "rows_waiting": 1, "row_steps_left": 9, "seconds_left": 4.5}
    assert batcher.state() == {**nothing, **busy}
    batcher.close("stopping")
    assert batcher.state()["draining"] is True
    drain(batcher, clock)
    assert batcher.state() == {**nothing, "draining": True, "seconds_left": 0.0}
