"""Labels through the client to a real server and back: images bit for bit, bulk, and weights that know no labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brats_ldm_client import Client, InvalidRequest
from brats_ldm_client._cli import main
from brats_ldm_client.labels import LabelSampler
from brats_ldm_client.labels.maps import digest
from mri_ldm.request import RowParameters
from server.process import TritonServer
from support.bulk import tree
from support.fake_triton import Caller
from support.label_maps import library
from support.toy_pipeline import Reference, write_pipeline

pytestmark = pytest.mark.slow
SEEDS = [3, 9, -4]
DRAW = LabelSampler(library()).draw
MAPS = np.stack([DRAW(seed) for seed in SEEDS])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder := tmp_path_factory.mktemp("toy") / "model_repository").mkdir()
    return write_pipeline(folder)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        server.probe()
        yield server


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("guidance", [1.0, 2.3])
def test_images_are_those_of_their_labels(server: TritonServer, repository: Path, kind: str, guidance: float) -> None:
    """Of the engine in this process, from generate in parts, a stream and an iterator."""
    rows = [
        RowParameters(seed, 4, "ddim", 0.0, labels=labels[None], guidance=guidance)
        for seed, labels in zip(SEEDS, MAPS, strict=True)
    ]
    expected = Reference(repository).rows(rows)[1][:, 0]
    caller, how = Caller(kind, server.grpc_url), {"steps": 4, "guidance": guidance}
    made = caller("generate", SEEDS, labels=MAPS, client={"rows_per_request": 2}, **how)
    np.testing.assert_array_equal(made.images, expected)
    for one, labels in zip(made, MAPS, strict=True):
        assert (one.record["labels_sha256"], one.record["guidance"]) == (digest(labels), guidance)
    *_, streamed = caller.stream(SEEDS, labels=MAPS, **how)
    np.testing.assert_array_equal(streamed.images, expected)
    images = caller.iter_images(iter(SEEDS), labels=DRAW, **how)
    np.testing.assert_array_equal(np.stack([one.image for one in images]), expected)


def test_no_labels_and_an_empty_map_are_two_things(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        none = client.generate(1, seed=3, steps=4)
        empty = client.generate(1, seed=3, steps=4, labels=np.zeros((240, 240), np.uint8))
    assert "labels_sha256" not in none[0].record
    assert (none.images != empty.images).any()


@pytest.mark.parametrize("guidance", [0.5, 11, -3])
def test_the_server_says_how_much_guidance_there_can_be(server: TritonServer, guidance: float) -> None:
    with Client(server.grpc_url) as client, pytest.raises(InvalidRequest, match=r"guidance is .*1 \(off\) to 10"):
        client.generate(1, labels=MAPS[0], steps=1, guidance=guidance)


def test_pairs_in_bulk_are_made_again_bit_for_bit(server: TritonServer, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "library.npz", labels=library().labels, brain=library().brain)
    labelled = ["--draw-labels", tmp_path / "library.npz", "--guidance", 1.7, "--format", "hdf5,task01"]
    words = ["bulk", "--count", 5, "--shard-size", 2, "--steps", 3, "--url", server.grpc_url, *labelled]
    assert main([str(word) for word in (*words, "--out", tmp_path / "one")]) == 0
    for shards in ("2..2", "0..1"):
        assert main([str(word) for word in (*words, "--out", tmp_path / "two", "--shards", shards)]) == 0
    assert main([str(word) for word in (*words, "--out", tmp_path / "two")]) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert main(["verify", str(tmp_path / "one"), "--url", server.grpc_url, "--sample", "5"]) == 0


def test_a_run_goes_on(server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the server's record says of labels and guidance is what the client looks for."""
    np.savez_compressed(tmp_path / "library.npz", labels=library().labels, brain=library().brain)
    words = ["generate", "-n", 3, "--seed", 5, "--steps", 2, "--url", server.grpc_url, "--out", tmp_path / "out"]
    words += ["--draw-labels", tmp_path / "library.npz", "--guidance", 7.12345, "--format", "task01,png"]
    assert main([str(word) for word in words]) == 0
    assert main([str(word) for word in words]) == 0
    assert "3 of them there before" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "provenance.json").read_text())["images"]
    assert {record["guidance"] for record in records} == {7.12345}


def test_weights_that_know_no_labels(
    small_server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(small_server.grpc_url) as client, pytest.raises(InvalidRequest, match="labels"):
        client.generate(1, labels=MAPS[0], steps=1)
    np.savez_compressed(tmp_path / "library.npz", labels=library().labels, brain=library().brain)
    words = ["bulk", "--count", 2, "--steps", 1, "--url", small_server.grpc_url, "--out", tmp_path / "out"]
    assert main([str(word) for word in (*words, "--draw-labels", tmp_path / "library.npz")]) == 1
    assert "labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
