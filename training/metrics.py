"""Similarity of a reconstruction and its image: MONAI's metrics, one value per row. Knows no networks and no files."""

from monai.metrics import MultiScaleSSIMMetric, PSNRMetric, SSIMMetric
from torch import Tensor

PSNR_LIMIT = 100.0


def reconstruction_metrics(reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
    """PSNR in dB and SSIM (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5) for a data range of 1.

    reconstruction, images: float32 [B, 1, H, W], H and W at least 11. Returns `psnr` and `ssim`, float32 [B] each.
    PSNR is limited to 100 dB, an error of 1e-5. Identical images would have infinity, which allows no mean. NaN stays.
    """
    psnr = PSNRMetric(max_val=1.0)(reconstruction, images)
    ssim = SSIMMetric(spatial_dims=2, data_range=1.0)(reconstruction, images)
    return {"psnr": psnr[:, 0].clamp(max=PSNR_LIMIT), "ssim": ssim[:, 0]}


def ms_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Multi-scale SSIM over five scales (Wang et al. 2003) for a data range of 1, float32 [B].

    reconstruction, images: float32 [B, 1, H, W].

    Raises:
        ValueError: H or W is below 176 pixels, too few for five scales.
    """
    return MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0)(reconstruction, images)[:, 0]
