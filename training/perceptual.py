"""The perceptual loss of stage 1: the distance between the ResNet-50 features of two images, without torchvision.

The weights come from a local file; nothing is downloaded. This code does not check the licence of the weights: the
bundle's README calls torchvision's ImageNet weights non-commercial and leaves the check to the user.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from monai.networks.nets import ResNetFeatures
from torch import Tensor

from training.checkpoint import CheckpointError, StateDict
from training.weights import read_weights


class Layout(NamedTuple):
    """One of the published forms of ResNet-50 weights, and the input that they were trained on.

    mean, std: of the three input channels, for images in [0, 1]: the network sees (image - mean) / std.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The bundle's: torchvision's keys, and its z-score by the statistics of ImageNet.
IMAGENET = Layout("ImageNet, torchvision's keys", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# RadImageNet's own PyTorch file numbers the children of torchvision's network (backbone.0, backbone.4.0.conv1). The
# example beside it maps [0, 1] to [-1, 1].
RADIMAGENET = Layout("RadImageNet, numbered children", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# RadImageNet's older file, converted from Keras, is the one that MONAI's `radimagenet_resnet50` loads: torchvision's
# keys with a bias for each convolution. As MONAI does: ImageNet's mean in the order BGR, and no division.
RADIMAGENET_KERAS = Layout("RadImageNet, converted from Keras", (0.406, 0.456, 0.485), (1.0, 1.0, 1.0))

CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
CLASSIFIER = {"fc.weight", "fc.bias"}
COUNTER = ".num_batches_tracked"  # not needed here, and missing in files older than PyTorch 0.4.1


def detect_layout(weights: StateDict, path: Path) -> tuple[Layout, StateDict]:
    """The layout, known by its keys, and the weights under torchvision's keys without classifier and counters.

    RadImageNet weights that were renamed to torchvision's keys look like ImageNet's and are treated as such.

    Raises:
        CheckpointError: none of the three layouts; the message names `path`.
    """
    if "backbone.0.weight" in weights:
        layout = RADIMAGENET
        weights = {
            re.sub(r"^backbone\.(\d+)", lambda child: CHILDREN.get(child[1], child[0]), key): tensor
            for key, tensor in weights.items()
        }
    elif "conv1.bias" in weights:
        layout = RADIMAGENET_KERAS
    elif "conv1.weight" in weights:
        layout = IMAGENET
    else:
        raise CheckpointError(
            f"{path} holds no ResNet-50 of a known layout: neither conv1.weight nor backbone.0.weight "
            f"is among its {len(weights)} names ({', '.join(list(weights)[:3])}, ...)"
        )
    kept = {key: tensor for key, tensor in weights.items() if key not in CLASSIFIER and not key.endswith(COUNTER)}
    return layout, kept


def as_keras(network: ResNetFeatures) -> None:
    """Change MONAI's ResNet-50, which is that of torchvision, into that of Keras, in place.

    In Keras each convolution has a bias, a block halves the image in its first convolution and not in the 3x3 one, and
    batch norm has another epsilon. Except for the biases the weights would fit torchvision's network, but they would
    give other features.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1.001e-5
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride


def load_resnet50(path: Path) -> tuple[ResNetFeatures, Layout]:
    """A ResNet-50 with the weights of a file, and their layout. Does not change torch's random state.

    Raises:
        CheckpointError: the file cannot be read, has no known layout, or does not have exactly the tensors of a
            ResNet-50 (the classifier is optional). The message names `path` and the tensors.
    """
    layout, weights = detect_layout(read_weights(path), path)
    with torch.device("meta"):  # shapes without values: random ones take time and change torch's state
        network = ResNetFeatures("resnet50", pretrained=False, spatial_dims=2, in_channels=3)
        if layout is RADIMAGENET_KERAS:
            as_keras(network)
    expected = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith(COUNTER)}
    shared = expected.keys() & weights.keys()
    faults = {
        "missing": sorted(expected.keys() - weights.keys()),
        "not a ResNet-50's": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(key for key in shared if expected[key].shape != weights[key].shape),
    }
    if any(faults.values()):
        parts = [
            f"{len(keys)} tensors {fault} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for fault, keys in faults.items()
            if keys
        ]
        raise CheckpointError(f"{path} does not fit a ResNet-50 ({layout.name}): {'; '.join(parts)}")
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith(COUNTER)}
    network.load_state_dict(weights | counters, assign=True)
    return network.float(), layout


class ResNet50Features(torch.nn.Module):
    """The last features of a frozen ResNet-50, those of the bundle: torchvision's layer `layer4.2.relu_2`.

    The input is normalised as in the training of the weights (`Layout`), because a network says little about other
    inputs. For ImageNet this is the z-score of the bundle, which supports no other weights. RadImageNet converted from
    Keras is treated as in MONAI's class for it. RadImageNet's own PyTorch file, which MONAI cannot load, is treated as
    in the example of its authors.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError as `load_resnet50` does."""
        super().__init__()
        self.network, self.layout = load_resnet50(path)
        self.register_buffer("mean", torch.tensor(self.layout.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.layout.std).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "ResNet50Features":
        """Stay in evaluation mode in any case: batch statistics would change the features."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [B, 1, H, W] in [0, 1] -> features [B, 2048, ceil(H / 32), ceil(W / 32)], none negative."""
        features: Tensor = self.network((images - self.mean) / self.std)[-1]  # broadcasts one channel to three
        return features


class PerceptualLoss(torch.nn.Module):
    """Squared distance of two images' features, each scaled to length 1 over the channels (Zhang et al. 2018, eq. 1).

    Computes the same as `PerceptualLoss` of MONAI 1.6.1 with `network_type="resnet50"`, which the bundle uses. Under
    autocast the features are computed in the lower precision, the distance in float32.
    """

    def __init__(self, features: torch.nn.Module) -> None:
        """features: images [B, 1, H, W] -> [B, C, h, w], such as `ResNet50Features`."""
        super().__init__()
        self.features = features

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Both float [B, 1, H, W] in [0, 1] -> a float32 scalar; the gradient goes to `prediction` alone.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}: must be equal")
        with torch.no_grad():
            wanted = unit_length(self.features(target))
        difference = unit_length(self.features(prediction)) - wanted
        return difference.square().sum(dim=1).mean(dim=(1, 2)).mean()


def unit_length(features: Tensor) -> Tensor:
    """[B, C, h, w] divided by its 2-norm over the channels, in float32.

    As in MONAI, epsilon is added under the root. Where all channels are 0, the root of 0 would have an infinite slope,
    and the gradient would be NaN, as it was in MONAI before 1.6.1.
    """
    features = features.float()
    return features / torch.sqrt(features.square().sum(dim=1, keepdim=True) + 1e-10)


def build_perceptual_loss(weights: str, warn: bool = True) -> PerceptualLoss | None:
    """The loss for the setting `perceptual.weights`: None for `none`, with a warning on standard error if `warn`.

    The bundle's default falls back to random features. This does not, because they train nothing.

    Raises:
        CheckpointError: the path holds no usable ResNet-50.
    """
    if weights == "none":
        if warn:
            print(
                "WARNING: perceptual.weights = none: no perceptual loss, so this is not the bundle's recipe for the "
                "autoencoder. Give --perceptual.weights a file of ResNet-50 weights.",
                file=sys.stderr,
            )
        return None
    return PerceptualLoss(ResNet50Features(Path(weights)))
