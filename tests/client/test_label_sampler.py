"""What the sampler of label maps promises: one map a seed, inside the brain, as varied as it says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brats_ldm_client import InvalidRequest
from brats_ldm_client.labels import LabelLibrary, LabelSampler, LabelSource
from brats_ldm_client.labels.maps import digest
from brats_ldm_client.labels.sampler import Move, moved
from support.label_maps import disc, lesion, library

LIBRARY = library()
DRAWS = 200


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    sampler = LabelSampler(LIBRARY)
    return np.stack([sampler.draw(seed) for seed in range(DRAWS)])


def test_a_map_depends_on_its_seed_alone(drawn: np.ndarray) -> None:
    other = LabelSampler(LIBRARY)
    for seed in (150, 3, 0, 3):
        assert (other.draw(seed) == drawn[seed]).all()
    assert len({digest(each) for each in drawn}) == DRAWS
    assert len({digest(other.draw(seed)) for seed in (-1, -(2**63), 2**63 - 1, 2**53)}) == 4


def test_the_map_of_a_seed_stays_the_same() -> None:
    """A folder of a run in bulk is finished by later releases: this changes only together with the format of a plan."""
    assert (
        digest(LabelSampler(library()).draw(42)) == "296941fd59fefd475b0e33d7c201c8bf157144b32a52a5e0b44624b9905d2c66"
    )


def test_maps_are_maps(drawn: np.ndarray) -> None:
    assert (drawn.dtype, drawn.shape) == (np.uint8, (DRAWS, 240, 240))
    assert set(np.unique(drawn)) == {0, 1, 2, 3}
    assert drawn.any(axis=(1, 2)).all(), "each shows a lesion"


def test_lesions_stay_inside_a_brain(drawn: np.ndarray) -> None:
    """And two pixels from its edge, but for a map that is taken as it is because no move fitted."""
    inner = [ndimage.binary_erosion(brain, iterations=2) for brain in (disc(120, 120, 90), disc(121, 120, 90))]
    assert not drawn[:, ~(inner[0] | inner[1])].any()


def test_nothing_is_taken_as_it_is(drawn: np.ndarray) -> None:
    assert not {digest(each) for each in drawn} & {digest(each) for each in LIBRARY.labels}


def test_about_half_of_the_lesions_are_mirrored(drawn: np.ndarray) -> None:
    """All lesions of the library are on the right, far from the middle; 0.25 of the maps have two of them."""
    right = np.array([np.nonzero(each)[0].mean() > 120 for each in drawn])
    assert 0.4 < right.mean() < 0.6  # of 200: 2.8 standard deviations


def test_areas_are_about_those_of_the_library(drawn: np.ndarray) -> None:
    """Scaling leaves the mean as it is within 2 %, and a second lesion adds to one in four."""
    areas, known = ((maps > 0).sum(axis=(1, 2)) for maps in (drawn, LIBRARY.labels))
    assert 0.85 < np.median(areas) / np.median(known) < 1.35
    assert areas.max() < 2 * 1.3**2 * known.max()
    assert areas.min() > known.min() / 1.3**2 * 0.9


def test_labels_keep_their_shares(drawn: np.ndarray) -> None:
    shares = [np.bincount(maps[maps > 0], minlength=4)[1:] / np.count_nonzero(maps) for maps in (drawn, LIBRARY.labels)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.03)


def test_some_maps_have_a_second_lesion(drawn: np.ndarray) -> None:
    """Lesions of the library are whole; where two are far from each other, the map has two parts."""
    assert 0.05 < np.mean([parts(each) > 1 for each in drawn]) < 0.3


def parts(labels: np.ndarray) -> int:
    return int(ndimage.label(labels, np.ones((3, 3)))[1])


def test_a_second_lesion_is_of_a_slice_with_a_like_brain() -> None:
    one, two = lesion(150, 120, 10), lesion(150, 100, 10)
    brains = np.stack([disc(120, 120, 90), disc(120, 120, 60)])
    sampler = LabelSampler(LabelLibrary(np.stack([one, two]), brains))
    assert max(parts(sampler.draw(seed)) for seed in range(60)) == 1


def test_where_no_move_fits_the_map_is_taken_as_it_is() -> None:
    """The brain is no larger than the lesion, so every move is cut."""
    whole = np.where(disc(120, 120, 3), 1, 0).astype(np.uint8)
    sampler = LabelSampler(LabelLibrary(whole[None], disc(120, 120, 3)[None]))
    assert (sampler.draw(0) == whole).all()


def test_a_library_with_a_map_without_a_lesion_is_refused() -> None:
    made = library(3)
    made.labels[1] = 0
    with pytest.raises(InvalidRequest, match="map 1 of the library has no lesion"):
        LabelSampler(made)


@pytest.mark.parametrize(
    "move",
    [
        Move(),
        Move(shift=(5, -7)),
        Move(mirror=True),
        Move(angle=math.pi / 6),
        Move(scale=1.3),
        Move(True, -0.4, 0.8, (3.3, -2.6)),
    ],
)
def test_a_move_is_that_of_scipy(move: Move) -> None:
    """The way back as a matrix; the few pixels that lie between two may differ by rounding."""
    labels, middle = lesion(150.0, 90.0, 20.0), 118.5
    centre = np.array([places.mean() for places in np.nonzero(labels)])
    side = np.diag([-1.0 if move.mirror else 1.0, 1.0])
    cos, sin = math.cos(move.angle), math.sin(move.angle)
    forth = move.scale * np.array([[cos, -sin], [sin, cos]]) @ side
    target = np.where([move.mirror, False], 2 * middle - centre, centre) + move.shift
    back = np.linalg.inv(forth)
    expected = ndimage.affine_transform(labels, back, centre - back @ target, order=0)
    made = moved(labels, move, middle)
    assert np.count_nonzero(made != expected) <= 0.01 * np.count_nonzero(labels)
    if move == Move():
        assert (made == labels).all()


def test_a_lesion_that_leaves_the_slice_is_cut() -> None:
    assert not moved(lesion(150, 90, 10), Move(shift=(500, 0)), 120).any()
    assert (
        0
        < np.count_nonzero(moved(lesion(150, 90, 10), Move(shift=(90, 0)), 120))
        < np.count_nonzero(lesion(150, 90, 10))
    )


def test_a_source_is_its_path_and_mode(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "library.npz"
    np.savez_compressed(path, labels=LIBRARY.labels, brain=LIBRARY.brain)
    turns, draws = LabelSource(path), LabelSource(path, drawn=True)
    assert turns.identity == f"in turn sha256:{digest(LIBRARY.labels)}"
    assert draws.identity == f"drawn sha256:{LIBRARY.sha256}"
    assert (turns.map(13, 99) == LIBRARY.labels[1]).all()
    assert (draws.map(13, 99) == LabelSampler(LIBRARY).draw(99)).all()
    assert len(pickle.dumps(draws)) < 1000, "an engine sends it with each shard"
    assert (pickle.loads(pickle.dumps(draws)).map(0, 99) == draws.map(1, 99)).all()
