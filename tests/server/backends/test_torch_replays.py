"""The GPU's side of `unet_steps` on a stand-in for a GPU: replays, the count of steps, copies, noise from threads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.sampler_steps import (
    ALL,
    FINALS,
    SAMPLERS,
    assert_close,
    assert_same_bits,
    feeds_of,
    noise_alone,
    padded,
    resting,
    some_rows,
)
from support.torch_stand_in import TorchCuda

pytestmark = pytest.mark.slow

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def backend(torch_backend: SimpleNamespace) -> SimpleNamespace:
    return torch_backend


@pytest.fixture(scope="module")
def path(torch_repository: Path) -> Path:
    return torch_repository / "unet" / "1" / "model.pt2"


@pytest.fixture(scope="module")
def steps(backend, path) -> Any:
    """On the CPU."""
    return backend.torch_steps.Steps(path, CPU)


@pytest.fixture
def cuda(steps, monkeypatch) -> TorchCuda:
    return TorchCuda(monkeypatch)


@pytest.fixture
def replayed(backend, path, cuda, monkeypatch) -> Any:
    """On a GPU that is none, with graphs of 1, 2 and 4 rows and tables for 5 steps."""
    load = backend.torch_program.load_module
    monkeypatch.setattr(backend.torch_program, "load_module", lambda path, device: load(path, CPU))
    return backend.torch_steps.Steps(path, GPU, [4, 1, 2], room=5)


def test_replays_compute_what_the_loop_does(replayed, steps, cuda) -> None:
    """12 steps are cut at 5, and 6 rows at 4."""
    assert replayed.buckets == [1, 2, 4]
    for rows, graphs in ((1, [1]), (3, [4]), (6, [4, 2])):
        for count in (1, 4, 5, 12):
            feeds = feeds_of(*(SAMPLERS * 2)[:rows], count=min(count, 10))
            feeds = padded(feeds, count - min(count, 10))
            cuda.forget()
            answers = replayed.run(ALL, feeds)
            assert [(4, 2, 1)[number] for number in cuda.replays] == [size for size in graphs for _ in range(count)]
            assert cuda.waits == len(graphs) * -(-count // 5)
            assert_close(answers, steps.run(ALL, feeds))


def test_the_host_copies_inputs_once_and_what_is_asked_for(replayed, cuda) -> None:
    state, tables, latents = (3, 4, 1, 64, 64), [(3, 4, 1), (3, 14, 4, 1, 1, 1)], (4, 1, 64, 64)
    replayed.run(["next_latent"], feeds_of(*["ddim"] * 3, count=3))
    assert cuda.copies == [state, *tables, latents]
    cuda.forget()
    replayed.run(ALL, feeds_of("ddim", "ddpm", "ddim", count=3))
    noise = [(3, 1, 64, 64)] * 3
    assert cuda.copies == [state, *tables, *noise, (3, *latents), latents, latents, latents]
    cuda.forget()
    replayed.run([], feeds_of("ddim", "ddpm", "ddim", count=3, first=7))
    assert cuda.copies == [state, *tables, *noise[:2]]  # DDPM's last step has none


def test_only_what_is_asked_for_is_answered(replayed) -> None:
    feeds = feeds_of("ddim", count=2)
    everything = replayed.run(ALL, feeds)
    for asked in (["next_latent"], ["estimates"], ["next_estimate", "estimates"], []):
        assert_same_bits(replayed.run(asked, feeds), {name: everything[name] for name in asked})


def test_identity_keeps_latent_and_estimate_bitwise(replayed) -> None:
    feeds, still = resting()
    assert_same_bits(some_rows(replayed.run(ALL, feeds), slice(1, 2)), still)
    assert_same_bits(replayed.run(FINALS, padded(feeds, 4)), replayed.run(FINALS, feeds))


@pytest.mark.parametrize("threads", [1, 3])
def test_each_step_has_its_noise_and_none_of_calls_before(threads, replayed, steps) -> None:
    """Rows of 1, 2 and 4 share the memory: what a call of four has left there must not reach the next ones."""
    for replays in replayed._replays.values():
        replays._memory.workers = threads
    for samplers in (["ddpm"] * 4, ["ddim", "ddim"], ["ddim", "ddpm", "ddpm"], ["ddpm"], ["ddim"] * 4):
        for first in (3, 7):  # the tenth step of DDPM has no noise
            feeds = feeds_of(*samplers, count=3, first=first)
            assert_close(replayed.run(FINALS, feeds), steps.run(FINALS, feeds))
    feeds = noise_alone(rows=4, count=12)
    assert np.array_equal(replayed.run(FINALS, feeds)["next_latent"], steps.run(FINALS, feeds)["next_latent"])


def test_rows_of_one_graph_are_bitwise_whatever_is_beside_them(replayed) -> None:
    feeds = feeds_of("ddpm", "ddim", "dpmpp_2m", "ddpm", count=7)
    together = replayed.run(ALL, feeds)
    part = replayed.run(ALL, some_rows(feeds, slice(1, 4)))  # three rows in the graph of four
    assert_same_bits(part, some_rows(together, slice(1, 4)))


def test_an_answer_outlives_the_next_call(replayed) -> None:
    answers = replayed.run(ALL, feeds_of("ddim", "ddpm", count=3))
    kept = {name: array.copy() for name, array in answers.items()}
    replayed.run(ALL, feeds_of("ddpm", "dpmpp_2m", count=3))
    assert_same_bits(answers, kept)


def test_a_draw_that_fails_fails_its_call_alone(replayed, backend, cuda, monkeypatch) -> None:
    feeds = feeds_of("ddpm", "ddpm", count=5)
    expected = replayed.run(FINALS, feeds)

    def fail(into: Any, keys: Any, wanted: Any) -> None:
        if 3 in keys[:, 1]:
            raise MemoryError("no room for noise")
        backend.torch_recurrence.draw_rows(into, keys, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(backend.torch_replays, "draw_rows", fail)
        with pytest.raises(MemoryError, match="no room for noise"):
            replayed.run(FINALS, feeds)
    assert_same_bits(replayed.run(FINALS, feeds), expected)
