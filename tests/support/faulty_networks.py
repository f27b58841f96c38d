"""The front models as they are, on toy networks that can be told to be slow, to fail or to hang while they serve.

`unet` and `vae_decoder` are Python models of a few operations, no row depends on another, so images are right bit for
bit or wrong. What they are told stands in a file of JSON beside their code, read at each call.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from export.configs import parse_config
from support.common import ROOT

NETWORKS = ("unet", "vae_decoder")
MODEL = """
import json, pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

ORDERS = pathlib.Path(__file__).with_name("orders.json")


def pred(request):
    latent, timesteps = (pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in ("latent", "timesteps"))
    return np.tanh(0.8 * latent + timesteps[:, :, None, None].astype(np.float32) / 700).astype(np.float32)


def image(request):
    latent = pb_utils.get_input_tensor_by_name(request, "latent").as_numpy()
    return latent.repeat(4, axis=2).repeat(4, axis=3)


class TritonPythonModel:
    def execute(self, requests):
        orders = json.loads(ORDERS.read_text()) if ORDERS.exists() else {}
        time.sleep(orders.get("seconds", 0))
        if "error" in orders:
            # Not one error for all: Triton frees its memory with each response, and dies of the second time.
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(orders["error"])) for _ in requests]
        values = [{output}(each) + np.float32(orders.get("offset", 0)) for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("{output}", value)]) for value in values]
"""


def write_faulty(repository: Path, *, missing: str = "", tiny: bool = False, **limits: int) -> Path:
    """A repository for profile "cpu", perhaps without a network; limits: parameters of both front models.

    tiny: with `vae_decoder_tiny`, which computes what `vae_decoder` does; its orders are its own.
    """
    for model in ("mri_ldm", "mri_ldm_stream"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "model_repository" / model, repository / model, ignore=ignore)
        config = parse_config(repository / model / "config.pbtxt")
        for name, value in limits.items():
            config.parameters[name].string_value = str(value)
        (repository / model / "config.pbtxt").write_text(str(config))
        path = repository / model / "1" / "model.json"
        record = json.loads(path.read_text())
        record.pop("aligned_timesteps", None)  # they are of the demo weights
        record["max_batch_size"] = {"unet": 64, "vae_decoder": 4} | ({"vae_decoder_tiny": 4} if tiny else {})
        path.write_text(json.dumps(record))
    for model, output in zip(NETWORKS, ("pred", "image"), strict=True):
        if model != missing:
            config = parse_config(ROOT / "model_repository" / model / "configs" / "cpu.pbtxt")
            config.backend, config.default_model_filename = "python", "model.py"
            for folder in ("1", "configs"):
                (repository / model / folder).mkdir(parents=True)
            shutil.copy(ROOT / "model_repository" / model / "config.pbtxt", repository / model)
            (repository / model / "configs" / "cpu.pbtxt").write_text(str(config))
            (repository / model / "1" / "model.py").write_text(MODEL.replace("{output}", output))
    if tiny:
        folder = shutil.copytree(repository / "vae_decoder", repository / "vae_decoder_tiny")
        for path in folder.rglob("*.pbtxt"):
            path.write_text(path.read_text().replace('"vae_decoder"', '"vae_decoder_tiny"'))
    return repository


def order(repository: Path, network: str, **orders: float | str) -> None:
    """seconds: that each call takes longer; error: the message of each call; offset: added to what is right.

    Nothing: work as usual.
    """
    path = repository / network / "1" / "orders.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(orders))
    os.replace(temporary, path)
