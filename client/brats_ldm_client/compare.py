"""How much two images of one seed differ. `pictures.difference_picture` shows where. Needs scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest
from ._extras import need

_WINDOW = 11  # pixels: 3.5 standard deviations to each side


def ssim(image: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """Structural similarity of two images [x, y] in the window [0, 1]; 1 for equal images.

    Wang et al., *Image Quality Assessment*, 2004: Gaussian window with a standard deviation of 1.5 pixels, mean over
    the image. Most of a slice is background, where all slices are alike: compare values with one another only.

    Raises:
        InvalidRequest: the images differ in size, are smaller than the window, or are no images.
        MissingPackage: scikit-image is not installed.
    """
    if image.ndim != 2 or image.shape != other.shape:
        raise InvalidRequest(f"ssim compares two images of one size, not {image.shape} and {other.shape}")
    if min(image.shape) < _WINDOW:
        raise InvalidRequest(f"ssim needs images of {_WINDOW} pixels or more in width and height, not {image.shape}")
    similarity = need("skimage.metrics", "scikit-image").structural_similarity
    one, two = (np.clip(each, 0.0, 1.0) for each in (image, other))
    return float(similarity(one, two, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))
