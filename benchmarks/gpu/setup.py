"""What the sections share: the machine, how much is measured, the weights, and how time is taken."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from export.precision import Precision
from training.checkpoint import Snapshot, load_snapshot
from training.config import load_config
from training.networks import build_autoencoder, build_unet, randomize_zero_tensors

if TYPE_CHECKING:
    from torch import nn

SMALL = Path(__file__).resolve().parents[2] / "tests" / "data" / "monai_small.toml"
WEIGHTS = ("demo", "bundle", "small")


class OutOfTime(Exception):
    """The time given is used up; what has been measured is written."""


@dataclass(frozen=True)
class Setup:
    """How much is measured, and on what.

    steps: denoising steps of an image; images: of the throughput; requests: of the latency of one image; repeats: of
    every other median; deadline: of time.monotonic(), after which nothing new is begun.
    """

    device: torch.device
    precision: Precision
    batches: tuple[int, ...]
    steps: int
    images: int
    requests: int
    repeats: int
    deadline: float
    work: Path
    demo_snapshot: Path

    def check_time(self) -> None:
        """Raises OutOfTime after the deadline."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time is used up: give more with --minutes")

    def median_ms(self, run: Callable[[], Any]) -> float:
        """Milliseconds of `run`, until the GPU has finished; three runs before are not counted."""
        return statistics.median(self.times_ms(run, self.repeats))

    def times_ms(self, run: Callable[[], Any], repeats: int) -> list[float]:
        """The same, each of them."""
        self.check_time()
        for _ in range(min(3, repeats)):
            run()
        times = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(1000 * (time.perf_counter() - started))
        return times

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def load_weights(name: str, demo_snapshot: Path) -> Snapshot:
    """demo: the trained small networks; bundle: the networks of brats.toml, small: tiny ones, both with random weights.

    No tensor is zero: MONAI starts the last convolution of each block there, and zeros are faster and prove nothing.
    """
    if name == "demo":
        return load_snapshot(demo_snapshot)
    config = load_config("brats" if name == "bundle" else str(SMALL))
    torch.manual_seed(0)
    autoencoder, unet = build_autoencoder(config.autoencoder), build_unet(config.unet)
    randomize_zero_tensors(autoencoder, seed=1)
    randomize_zero_tensors(unet, seed=2)
    return Snapshot(config, autoencoder.state_dict(), unet.state_dict(), scale_factor=1.0)


def networks(snapshot: Snapshot, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """UNet and autoencoder with their weights, as the bundle builds them: without fused attention."""
    unet, autoencoder = build_unet(snapshot.config.unet), build_autoencoder(snapshot.config.autoencoder)
    assert snapshot.unet is not None
    unet.load_state_dict(snapshot.unet)
    autoencoder.load_state_dict(snapshot.autoencoder)
    for module in [*unet.modules(), *autoencoder.modules()]:
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = False
    return unet.to(device).eval(), autoencoder.to(device).eval()


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    gpu: dict[str, Any] = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            driver = "unknown"
        gpu = {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": driver,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **gpu,
        "device": device.type,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
