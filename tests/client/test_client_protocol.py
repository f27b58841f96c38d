from dataclasses import replace

import numpy as np
import pytest

from brats_ldm_client import PRESETS, Client, InvalidRequest, ProtocolError, Sampling
from brats_ldm_client._endpoints import endpoint
from brats_ldm_client._options import Options
from brats_ldm_client._presets import resolve
from brats_ldm_client._protocol import infer_inputs, parse_rows
from brats_ldm_client._request import Previews, make_request, seeds_for
from brats_ldm_client.testing import FakeTransport

LARGEST = 2**63 - 1


def test_seeds_are_consecutive() -> None:
    assert seeds_for(3, 5).tolist() == [5, 6, 7]
    assert seeds_for(2, -(2**63)).tolist() == [-(2**63), -(2**63) + 1]
    assert seeds_for(2, LARGEST - 1).tolist() == [LARGEST - 1, LARGEST]


@pytest.mark.parametrize(("n", "seed"), [(2, LARGEST), (1, LARGEST + 1), (1, -(2**63) - 1), (10**6, LARGEST - 5)])
def test_seeds_do_not_wrap_at_the_edge_of_int64(n: int, seed: int) -> None:
    with pytest.raises(InvalidRequest, match="int64"):
        seeds_for(n, seed)


def test_random_seeds_differ_and_survive_json_readers() -> None:
    bases = {int(seeds_for(2, None)[0]) for _ in range(50)}
    assert len(bases) == 50
    assert all(0 <= base < 2**53 for base in bases)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "how many"),
        ({"n": 0}, "at least 1"),
        ({"n": -3}, "at least 1"),
        ({"n": 2.0}, "seeds must be"),
        ({"n": True}, "seeds must be"),
        ({"n": "8"}, "seeds must be"),
        ({"n": []}, "empty"),
        ({"n": [[1, 2]]}, "flat"),
        ({"n": [1, 2.5]}, "integer"),
        ({"n": [2**63]}, "int64"),
        ({"n": [1], "seeds": [1]}, "twice"),
        ({"n": 3, "seeds": [1, 2]}, "contradicts"),
        ({"n": [1, 2], "seed": 1}, "not both"),
        ({"seeds": [1], "seed": 1}, "not both"),
        ({"n": 1, "seed": 1.5}, "integer"),
        ({"n": 1, "steps": 2.5}, "integer"),
        ({"n": 1, "steps": 2**31}, "int32"),
        ({"n": 1, "eta": float("nan")}, "finite"),
        ({"n": 1, "eta": float("inf")}, "finite"),
        ({"n": 1, "eta": "x"}, "number"),
        ({"n": 1, "sampler": ""}, "sampler"),
        ({"n": 1, "sampler": 3}, "sampler"),
        ({"n": 1, "timestep_grid": 3}, "timestep_grid must be a name such as 'leading', not 3"),
        ({"n": 1, "decoder": ""}, "decoder must be a name such as 'full', not ''"),
        ({"n": 1, "preset": "fast", "decoder": b"tiny"}, "decoder"),
        ({"n": 1, "preset": "quick"}, "'quick' is unknown: choose draft, fast, standard, reference, or"),
        ({"n": 1, "preset": ["fast"]}, "unknown"),
        ({"n": 1, "preset": "fast", "steps": 20}, "leave out steps=20, or the preset"),
        ({"n": 1, "preset": "fast", "timestep_grid": "karras"}, "leave out timestep_grid='karras', or the preset"),
        ({"n": 1, "preset": "fast", "sampler": "ddim", "eta": 0.5}, "leave out sampler='ddim' and eta=0.5, or"),
        ({"n": 3, "latents": np.zeros((2, 64, 64))}, "2 latents"),
        ({"n": 1, "latents": np.full((1, 64, 64), np.nan)}, "finite"),
        ({"n": 1, "latents": np.zeros((64, 64))}, "shape"),
        ({"n": 1, "latents": np.zeros((1, 64, 64), int)}, "floats"),
    ],
)
def test_bad_arguments(arguments: dict, word: str) -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client, pytest.raises(InvalidRequest, match=word):
        client.generate(arguments.pop("n", None), **arguments)
    assert not transport.requests


def test_ranges_are_left_to_the_server() -> None:
    asked = {"steps": 0, "eta": 7.0, "sampler": "of tomorrow", "timestep_grid": "square", "decoder": "huge"}
    assert make_request(1, resolve(**asked)).sampling() == asked


def test_ways_to_name_sampler_and_steps() -> None:
    assert resolve() == resolve("standard") == Sampling("ddim", 50, 0.0, "leading", "full")
    assert resolve(steps=7) == Sampling("ddim", 7)
    assert resolve(sampler="ddpm", timestep_grid="karras") == Sampling("ddpm", 50, timestep_grid="karras")
    assert resolve("reference", eta=0.0) == Sampling("ddim", 1000)
    for name, preset in PRESETS.items():
        assert resolve(name) == preset
        assert preset.eta == 0


def test_a_decoder_takes_the_place_of_a_presets() -> None:
    draft = PRESETS["draft"]
    assert draft.decoder == "tiny"
    assert resolve("draft", decoder="full") == replace(draft, decoder="full")
    assert resolve("standard", decoder="tiny") == Sampling("ddim", 50, decoder="tiny")


def test_ways_to_name_rows() -> None:
    assert make_request(2, seed=7).seeds.tolist() == [7, 8]
    assert make_request([3, 1]).seeds.tolist() == [3, 1]
    assert make_request(np.array([3, 1])).seeds.tolist() == [3, 1]
    assert make_request(np.int32(2), seed=np.int64(4)).seeds.tolist() == [4, 5]
    assert make_request(2, seeds=(3, 1)).seeds.tolist() == [3, 1]
    assert len(make_request(None, latents=np.zeros((5, 1, 64, 64))).seeds) == 5


def test_tensors_on_the_wire() -> None:
    latents = np.arange(2 * 64 * 64, dtype=np.float64).reshape(2, 64, 64)
    request = make_request(2, resolve(steps=20), seed=1, latents=latents)
    inputs = {tensor.name(): tensor for tensor in infer_inputs(request, Previews(5))}
    described = {name: (tensor.datatype(), list(tensor.shape())) for name, tensor in inputs.items()}
    assert described == {
        "seed": ("INT64", [2, 1]),
        "steps": ("INT32", [2, 1]),
        "sampler": ("BYTES", [2, 1]),
        "eta": ("FP32", [2, 1]),
        "latent": ("FP32", [2, 1, 64, 64]),
        "preview_every": ("INT32", [2, 1]),
    }
    names = {tensor.name() for tensor in infer_inputs(make_request(1, resolve(sampler="ddpm")))}
    assert names == {"seed", "steps", "sampler"}


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"timestep_grid": "leading", "decoder": "full"}, {}),
        ({"timestep_grid": "karras"}, {"timestep_grid": b"karras"}),
        ({"decoder": "tiny"}, {"decoder": b"tiny"}),
        (
            {"timestep_grid": "aligned", "decoder": "tiny", "sampler": "unipc"},
            {"timestep_grid": b"aligned", "decoder": b"tiny"},
        ),
    ],
)
def test_a_grid_or_decoder_is_sent_only_where_an_older_server_would_make_another_image(asked: dict, more: dict) -> None:
    inputs = infer_inputs(make_request(3, resolve(**asked)))
    sent = {tensor.name(): tensor for tensor in inputs if tensor.name() not in ("seed", "steps", "sampler", "eta")}
    assert set(sent) == set(more)
    for name, tensor in sent.items():
        assert (tensor.datatype(), list(tensor.shape())) == ("BYTES", [3, 1])
        assert tensor._get_content() == (len(more[name]).to_bytes(4, "little") + more[name]) * 3


class Answer:
    def __init__(self, **tensors: np.ndarray) -> None:
        self.tensors = tensors

    def as_numpy(self, name: str) -> np.ndarray | None:
        return self.tensors.get(name)


def provenance(*records: bytes) -> np.ndarray:
    return np.array(records, object)[:, None]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Answer(), "no output image"),
        (Answer(image=np.zeros((2, 1, 4, 4), np.float32)), "float32"),
        (Answer(image=np.zeros((1, 1, 4, 4))), "float64"),
        (Answer(image=np.zeros((1, 1, 4, 4), np.float32)), "no output provenance"),
        (Answer(image=np.zeros((1, 1, 4, 4), np.float32), provenance=provenance(b"{")), "JSON"),
        (Answer(image=np.zeros((1, 1, 4, 4), np.float32), provenance=provenance(b"3")), "JSON object"),
        (Answer(image=np.zeros((1, 1, 4, 4), np.float32), provenance=provenance(b'{"seed": 9}')), "seed 9"),
    ],
)
def test_unexpected_answers(answer: Answer, word: str) -> None:
    with pytest.raises(ProtocolError, match=word):
        parse_rows(answer, make_request([5]))


def test_urls() -> None:
    assert endpoint("grpc://host:8001/") == endpoint("host:8001") == "host:8001"
    for url in ("http://host:8000", "", "grpc://"):
        with pytest.raises(InvalidRequest, match="host:port"):
            endpoint(url)


@pytest.mark.parametrize(
    "change",
    [
        {"rows_per_request": 65},
        {"rows_per_request": 0},
        {"timeout": float("inf")},
        {"timeout": None},
        {"concurrency": 0},
    ],
)
def test_options_are_checked(change: dict) -> None:
    good = {
        "url": "host:1",
        "timeout": 1.0,
        "connect_timeout": 1.0,
        "rows_per_request": 8,
        "concurrency": 4,
        "retry_seconds": 0.0,
        "headers": {},
    }
    Options(**good)
    with pytest.raises(InvalidRequest, match=next(iter(change))):
        Options(**{**good, **change})
