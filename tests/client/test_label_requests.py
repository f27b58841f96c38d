"""Labels on their way: which map each image of a request gets, on the wire, in retries and in the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brats_ldm_client import Client, Generation, InvalidRequest, ProtocolError, ServerUnavailable
from brats_ldm_client.labels import LabelSampler
from brats_ldm_client.labels.maps import digest
from brats_ldm_client.testing import FakeTransport
from support.fake_triton import Caller, Served
from support.label_maps import lesion, library, save

MAPS = np.stack([lesion(140 + 3 * i, 100, 8 + i) for i in range(5)])
DIGESTS = [digest(each) for each in MAPS]


def client(**more: Any) -> tuple[Client, FakeTransport]:
    transport = FakeTransport(**more)
    return Client(transport=transport, rows_per_request=2), transport


def digests(made: Generation) -> list[str]:
    return [one.record["labels_sha256"] for one in made]


def test_a_map_for_each_seed_on_the_wire(caller: Caller, served: Served) -> None:
    made = caller("generate", 5, seed=0, labels=MAPS, guidance=3.1, client={"rows_per_request": 2})
    assert sorted(len(tensors["labels"]) for tensors in served.triton.received) == [1, 2, 2]
    for tensors in served.triton.received:
        assert (tensors["labels"].dtype, tensors["labels"].shape[1:]) == (np.uint8, (1, 240, 240))
        assert (tensors["labels"][:, 0] == MAPS[tensors["seed"][:, 0]]).all()
        assert (tensors["guidance"] == np.float32(3.1)).all()
    assert (made.labels == MAPS).all()
    assert made.guidance == 3.1
    assert [(one.record["labels_sha256"], one.record["guidance"]) for one in made] == [(each, 3.1) for each in DIGESTS]
    assert (made[3].labels == MAPS[3]).all()
    assert "guidance=3.1" in repr(made)


def test_without_labels_there_is_no_such_tensor(caller: Caller, served: Served) -> None:
    """A server of before there were labels does not know it."""
    made = caller("generate", 2, seed=0)
    assert not {"labels", "guidance"} & {*served.triton.received[0]}
    assert made.labels is None
    assert not {"labels_sha256", "guidance"} & {*made[0].record}
    caller("generate", 2, seed=0, labels=MAPS[0])
    assert "guidance" not in served.triton.received[-1], "1 is what the server takes"


def test_streams_and_iterators(caller: Caller, served: Served) -> None:
    *_, made = caller.stream([7, 8], steps=2, labels=MAPS[:2], guidance=2)
    assert digests(made) == DIGESTS[:2]
    assert (served.triton.received[-1]["labels"][:, 0] == MAPS[:2]).all()
    images = caller.iter_images(range(12), labels=MAPS, guidance=2, client={"rows_per_request": 5})
    assert [one.record["labels_sha256"] for one in images] == [DIGESTS[i % 5] for i in range(12)], "in turn"
    assert {one.record["guidance"] for one in images} == {2.0}
    assert all((one.labels == MAPS[i % 5]).all() for i, one in enumerate(images))


def test_one_map_for_all() -> None:
    sync, transport = client()
    for labels in (MAPS[1], MAPS[1][None]):
        made = sync.generate([4, 9, 2], labels=labels)
        assert digests(made) == [DIGESTS[1]] * 3
    assert all((request.labels == MAPS[1]).all() for request in transport.requests)


def test_as_many_images_as_maps() -> None:
    assert [one.seed for one in client()[0].generate(labels=MAPS, seed=3)] == [3, 4, 5, 6, 7]


def test_maps_of_a_file_are_used_in_turn(tmp_path: Path) -> None:
    for i, each in enumerate(MAPS[:3]):
        save(tmp_path / f"{i}.nii.gz", each)
    sync, _ = client()
    assert digests(sync.generate(7, seed=0, labels=tmp_path)) == [DIGESTS[i % 3] for i in range(7)]
    assert digests(sync.generate(2, seed=0, labels=str(tmp_path))) == DIGESTS[:2]
    assert digests(sync.generate(labels=tmp_path / "2.nii.gz")) == [DIGESTS[2]]


def test_a_function_gives_the_map_of_a_seed() -> None:
    draw = LabelSampler(library()).draw
    sync, _ = client()
    made = sync.generate([5, -3, 5], labels=draw)
    assert (made.labels == np.stack([draw(5), draw(-3), draw(5)])).all()
    images = [*sync.iter_images([9, 5], labels=draw)]
    assert (images[1].labels == draw(5)).all()


def test_a_retry_sends_the_same_labels() -> None:
    sync, transport = client(errors=[ServerUnavailable("busy")])
    assert digests(sync.generate(3, seed=0, labels=MAPS[:3])) == DIGESTS[:3]
    assert sorted(request.seeds.tolist() for request in transport.requests) == [[0, 1], [0, 1], [2]]
    assert all((request.labels == MAPS[request.seeds]).all() for request in transport.requests)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 4, "labels": MAPS}, "5 label maps do not fit 4 seeds: pass one map a seed, one for all, or the path"),
        (
            {"n": 2, "labels": MAPS[:, :100]},
            r"labels must be integers of shape \(240, 240\) or \(n, 240, 240\), not uint8",
        ),
        ({"n": 1, "labels": MAPS[0] / 2}, "not float64"),
        ({"n": 1, "labels": MAPS[0] + np.uint8(2)}, r"labels\[\d+, \d+\] is [45], which is no label: use 0 background"),
        ({"n": 1, "labels": lambda seed: MAPS}, "must return one map, of shape"),
        ({"n": 1, "labels": lambda seed: MAPS[0] * 4}, r"the labels of seed \d+\[\d+, \d+\] is \d+, which is no label"),
        ({"n": 1, "guidance": 3}, "guidance is 3 without labels: pass labels too, or leave it out"),
        ({"n": 1, "labels": MAPS[0], "guidance": float("nan")}, "guidance must be finite"),
        ({"n": 1, "labels": MAPS[0], "guidance": "much"}, "guidance must be a number"),
        ({"labels": lambda seed: MAPS[0]}, "say how many images"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], words: str) -> None:
    sync, transport = client()
    with pytest.raises(InvalidRequest, match=words):
        sync.generate(**arguments)
    assert not transport.requests


def test_labels_of_an_iterator_are_checked_at_once() -> None:
    sync, _ = client()
    for wrong in ({"labels": MAPS * 4}, {"guidance": 2.0}):
        with pytest.raises(InvalidRequest):
            sync.iter_images([1], **wrong)


def test_an_answer_with_other_labels_is_refused(served: Served, caller: Caller) -> None:
    served.triton.more = {"labels_sha256": DIGESTS[0]}
    assert digests(caller("generate", 1, labels=MAPS[0])) == DIGESTS[:1]
    with pytest.raises(ProtocolError, match=f"with the labels {DIGESTS[0]}, and {DIGESTS[1]} were sent"):
        caller("generate", 1, labels=MAPS[1])
