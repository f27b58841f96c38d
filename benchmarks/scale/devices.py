"""Servers whose speed does not depend on the cores of this machine, or depends on one core each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.device import Device
from benchmarks.harness.toys import copy_front, copy_model
from benchmarks.micro.loop import MODELS
from export.configs import parse_config
from server.process import TritonServer
from training.files import write_text

CODE = Path(__file__).with_name("device_models") / "device.py"
FRONTS = ("mri_ldm", "mri_ldm_stream")
NETWORKS = ("unet", "vae_decoder")


def write_waiting(source: Path, folder: Path, device: Device) -> Path:
    """A repository with the front models of `source` and networks that wait as `device` would compute."""
    for front in FRONTS:
        copy_front(source, front, folder, toys=True)
    seconds = {"unet": (device.base, device.row), "vae_decoder": (0.0, device.decode)}
    for network, values in seconds.items():
        config = copy_model(MODELS / f"{network}.pbtxt", CODE, folder)
        message = parse_config(config)
        for name, value in zip(("base", "row"), values, strict=True):
            message.parameters[name].string_value = str(value)
        write_text(config, str(message))
    return folder


def write_single_threaded(source: Path, folder: Path, profile: str) -> Path:
    """A repository with the models of `source`, whose networks compute in one thread."""
    for model in (*FRONTS, *NETWORKS):
        copy_front(source, model, folder)
    for network in NETWORKS:
        config = folder / network / "configs" / f"{profile}.pbtxt"
        message = parse_config(config)
        message.parameters["intra_op_thread_count"].string_value = "1"
        write_text(config, str(message))
    return folder


@contextlib.contextmanager
def on_core(server: TritonServer, core: int) -> Iterator[TritonServer]:
    """The server on one core of this machine."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core]})  # its processes inherit it
    try:
        server.start()
    finally:
        os.sched_setaffinity(0, before)
    try:
        yield server
    finally:
        server.stop()
