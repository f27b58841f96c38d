"""ResNet-50 in torchvision's keys, or RadImageNet's of Keras, written down from the paper: an oracle of random weights.

torchvision does not exist here, so this follows He et al. 2016, with the stride in the 3x3 convolution as torchvision
has it, or in the first 1x1 as Keras has it.
"""

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; [B, channels, H, W] -> [B, 4 * width, H / stride, W / stride]."""

    def __init__(self, channels: int, width: int, stride: int, keras: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if keras else (1, stride)
        eps = 1.001e-5 if keras else 1e-5
        self.conv1 = nn.Conv2d(channels, width, 1, first, bias=keras)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=keras)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=keras)
        self.bn3 = nn.BatchNorm2d(4 * width, eps)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=keras)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width, eps))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))).relu()


class ReferenceResNet50(nn.Module):
    """torchvision's ResNet-50 in its keys and its order of children, or RadImageNet's of Keras; up to the last ReLU."""

    def __init__(self, keras: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=keras)
        self.bn1 = nn.BatchNorm2d(64, 1.001e-5 if keras else 1e-5)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, width, 2 if stage > 1 and block == 0 else 1, keras))
                channels = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def reference(keras: bool) -> ReferenceResNet50:
    """Random weights with the batch-norm statistics of noise.

    With statistics drawn at random the features grow to 1e9, and nothing small, such as a missing bias, shows.
    """
    torch.manual_seed(3)
    network = ReferenceResNet50(keras).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.2, 0.6)
            module.bias.normal_(0, 0.1)
            module.momentum = 1.0  # the statistics of the last batch
    network(torch.randn(4, 3, 64, 64))
    return network.eval()
