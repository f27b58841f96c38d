"""Features for evaluation: this project's encoder, the one that is shipped, and ResNet-50 from a file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from support.common import ROOT
from support.reference_resnet import reference
from training.checkpoint import CheckpointError, load_snapshot, save_snapshot
from training.config import load_config
from training.evaluation import ENCODER
from training.evaluation.features import extract, load_extractor

CPU = torch.device("cpu")


def test_encoder_features_are_those_ahead_of_the_latent(small_snapshot, tmp_path) -> None:
    """The extractor's map, put through the two blocks that it leaves out, is the encoder's output."""
    from training.networks import build_autoencoder

    save_snapshot(small_snapshot, tmp_path / "snapshot")
    extractor, origin = load_extractor(tmp_path / "snapshot", CPU)
    assert "relative only" in origin
    autoencoder = build_autoencoder(small_snapshot.config.autoencoder).eval()
    autoencoder.load_state_dict(small_snapshot.autoencoder)
    seen = []
    autoencoder.encoder.blocks[-2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = np.random.default_rng(0).random((3, 32, 32), np.float32)
    autoencoder.encoder(torch.from_numpy(images)[:, None])
    features = extract(extractor, images, CPU, "")
    assert features.shape == (3, 16)
    torch.testing.assert_close(features, seen[0].mean((2, 3)).double())


def test_a_file_of_resnet_weights_gives_its_last_features(tmp_path) -> None:
    """Random weights in torchvision's layout, by ImageNet's statistics of the channels, against the oracle's map."""
    network, path = reference(keras=False), tmp_path / "resnet50.pth"
    torch.save(network.state_dict(), path)
    images = np.random.default_rng(0).random((3, 64, 64), np.float32)
    extractor, origin = load_extractor(path, CPU)
    path.unlink()  # 94 MB
    assert "ResNet-50: compare only with figures by the same weights" in origin
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network((torch.from_numpy(images)[:, None] - mean) / std).mean((2, 3)).double()
    assert expected.std(0).mean() > 0.01  # the slices differ
    torch.testing.assert_close(extract(extractor, images, CPU, ""), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"resnet50\.pth does not exist: give a snapshot folder"):
        load_extractor(path, CPU)


def test_the_default_encoder_is_shipped_whole(tmp_path) -> None:
    """Stage 1 of the first demo weights with its record: figures by it can be compared with earlier ones."""
    snapshot = load_snapshot(ENCODER)
    assert ENCODER.resolve() == ROOT / "training" / "encoder"
    assert snapshot.unet is None
    assert snapshot.config.autoencoder == replace(load_config("demo").autoencoder, channels=(16, 32, 64))
    assert "PHANTOM" in snapshot.history["autoencoder"]["data"]["description"]
    features = extract(load_extractor(ENCODER, CPU)[0], np.zeros((1, 64, 64), np.float32), CPU, "")
    assert features.shape == (1, 64)
