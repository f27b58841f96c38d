"""Similarity and difference of two images, and the way between two noises, against other people's code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_ldm_client import InvalidRequest
from brats_ldm_client.compare import ssim
from brats_ldm_client.interpolation import slerp
from brats_ldm_client.pictures import (
    LINE,
    difference_picture,
    latent_picture,
    latent_scale,
    marked,
    to_display,
)  # fmt: skip


def image(seed: int) -> np.ndarray:
    """Smooth blobs, about in the window [0, 1], with some values outside."""
    noise = np.random.default_rng(seed).standard_normal((30, 30))
    return (0.5 + 0.3 * noise).repeat(8, axis=0).repeat(8, axis=1).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_ssim_is_that_of_torchmetrics(noise: float) -> None:
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    one = image(0)
    two = one + noise * np.random.default_rng(1).standard_normal(one.shape).astype(np.float32)
    tensors = [torch.from_numpy(each.clip(0, 1))[None, None].double() for each in (one, two)]
    _, oracle = structural_similarity_index_measure(*tensors, data_range=1.0, return_full_image=True)
    inside = float(oracle[..., 5:-5, 5:-5].mean())  # where the window fits; torchmetrics also counts the border
    assert ssim(one, two) == pytest.approx(inside, abs=1e-5)
    assert ssim(two, one) == pytest.approx(ssim(one, two), abs=1e-12)


def test_an_image_is_wholly_similar_to_itself() -> None:
    assert ssim(image(3), image(3)) == 1.0
    assert ssim(image(3), image(4)) < 0.5


def test_ssim_refuses_images_of_two_sizes() -> None:
    with pytest.raises(InvalidRequest, match=r"\(240, 240\) and \(2, 240, 240\)"):
        ssim(image(0), np.zeros((2, 240, 240), np.float32))


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    assert ssim(np.ones((11, 20), np.float32), np.ones((11, 20), np.float32)) == 1.0
    with pytest.raises(InvalidRequest, match=r"needs images of 11 pixels or more .* not \(10, 20\)"):
        ssim(np.ones((10, 20), np.float32), np.ones((10, 20), np.float32))


def test_a_difference_is_grey_where_images_agree_and_light_where_the_first_is_brighter() -> None:
    one = np.full((240, 240), 0.5, np.float32)
    two = one.copy()
    two[:120] = 0.4
    two[120:, :10] = 5.0  # outside the window both images are shown alike only if both are
    shown = difference_picture(one, two)
    expected = to_display(np.where(one - two.clip(0, 1) > 0, 0.9, np.where(two > 1, 0.0, 0.5)))
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1


def test_slerp_keeps_the_angle_and_the_norm() -> None:
    rng = np.random.default_rng(0)
    noises = rng.standard_normal((2, 64, 64))
    start, end = (noises * (64 / np.linalg.norm(noises, axis=(1, 2), keepdims=True))).astype(np.float32)
    way = slerp(start, end, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert way.dtype == np.float32
    assert way.shape == (5, 64, 64)
    assert np.array_equal(way[0], start)
    assert np.array_equal(way[-1], end)

    def angle(one: np.ndarray, two: np.ndarray) -> float:
        return float(np.arccos((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)))

    whole = angle(start.astype(float), end.astype(float))
    for point, share in zip(way[1:-1].astype(float), (0.25, 0.5, 0.75), strict=True):
        assert angle(start, point) == pytest.approx(share * whole, rel=1e-5)
        assert point.std() == pytest.approx(1.0, rel=1e-3)


@given(st.floats(0, 1))
def test_slerp_of_a_noise_and_itself_is_that_noise(fraction: float) -> None:
    noise = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    np.testing.assert_allclose(slerp(noise, noise, [fraction])[0], noise, rtol=1e-6)


def test_slerp_from_zeros_goes_straight() -> None:
    noise = np.ones((4, 4), np.float32)
    np.testing.assert_array_equal(slerp(0 * noise, noise, [0.25])[0], 0.25 * noise)


@pytest.mark.parametrize("fractions", [[-0.1], [1.1], [float("nan")], 0.5, []])
def test_slerp_refuses_what_is_not_between(fractions: object) -> None:
    noise = np.ones((4, 4), np.float32)
    with pytest.raises(InvalidRequest, match="from 0 to 1"):
        slerp(noise, noise, fractions)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="one shape"):
        slerp(noise, noise[0], [0.5])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_latent_is_light_where_the_image_is_light(sign: float) -> None:
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:64, :64] - 31.5
    disc = ((x - 6) ** 2 + y**2 < 300).astype(np.float32)
    latent = sign * (disc * 3 - 7) + 0.1 * rng.standard_normal((64, 64)).astype(np.float32)
    shown = latent_picture(latent)
    assert shown.shape == (240, 240)
    expected = to_display(disc[2:62, 2:62].repeat(4, axis=0).repeat(4, axis=1))
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.95
    black, white = latent_scale(latent)
    assert (white - black) * sign > 0


def test_a_latent_of_one_value_is_black() -> None:
    assert not latent_picture(np.zeros((64, 64), np.float32)).any()


def test_the_mark_stands_below_the_pixels() -> None:
    shown = to_display(image(0))
    with_mark = marked(shown)
    assert with_mark.shape == (240 + LINE, 240)
    assert np.array_equal(with_mark[:240], shown)
    assert (with_mark[240:] > 200).sum() > 100  # the letters
    assert (with_mark[240:, [0, -1]] == 24).all()  # none is cut off
