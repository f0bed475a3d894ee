"""Med3D's 3-D ResNet (Chen et al. 2019, MedicalNet), the feature extractor of FID and MMD (Table I).

Takes (B, 1, D, H, W): HU clipped to the window and mapped to [-1, 1]. Gives (B, 8 w) features for depth 10 and
(B, 32 w) for depth 50, w = `base_width` (Med3D: 64, hence 512 and 2048): global average pooling of the last layer.
Names and shapes of the parameters are MedicalNet's, so its checkpoints load strictly. The output stride is 8: the
third and fourth layer keep the resolution and dilate their 3^3 convolutions by 2 and 4 instead.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
BLOCKS_PER_LAYER = {10: (1, 1, 1, 1), 50: (3, 4, 6, 3)}
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)


def _convolution(num_in: int, num_out: int, stride: int, dilation: int) -> nn.Conv3d:
    return nn.Conv3d(num_in, num_out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _shortcut(num_in: int, num_out: int, stride: int) -> nn.Sequential:
    """Build the shortcut of type B: a strided 1^3 convolution and its normalisation."""
    return nn.Sequential(nn.Conv3d(num_in, num_out, 1, stride=stride, bias=False), nn.BatchNorm3d(num_out))


class BasicBlock(nn.Module):
    """Two 3^3 convolutions around a shortcut (depth 10)."""

    expansion = 1

    def __init__(self, num_in: int, width: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(num_in, width, stride, dilation)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = _shortcut(num_in, width, stride) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, D, H, W) -> (B, width, D/stride, H/stride, W/stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + residual)


class Bottleneck(nn.Module):
    """1^3, 3^3 and 1^3 convolutions around a shortcut (depth 50); stride and dilation sit on the 3^3 one."""

    expansion = 4

    def __init__(self, num_in: int, width: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        num_out = width * self.expansion
        self.conv1 = nn.Conv3d(num_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _convolution(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, num_out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(num_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(num_in, num_out, stride) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, D, H, W) -> (B, 4 width, D/stride, H/stride, W/stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + residual)


class ResNet3d(nn.Module):
    """Med3D's trunk without a head; `depth` is 10 or 50."""

    def __init__(self, depth: int = 50, base_width: int = 64) -> None:
        super().__init__()
        if depth not in BLOCKS_PER_LAYER:
            raise ValueError(f"depth must be one of {sorted(BLOCKS_PER_LAYER)}, got {depth}")
        block = Bottleneck if depth == 50 else BasicBlock
        self.depth, self.base_width = depth, base_width
        self.conv1 = nn.Conv3d(1, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(base_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        num_in = base_width
        for index, (num_blocks, stride, dilation) in enumerate(
            zip(BLOCKS_PER_LAYER[depth], STRIDES, DILATIONS, strict=True)
        ):
            width = base_width * 2**index
            blocks = []
            for position in range(num_blocks):
                first = position == 0
                changes = stride != 1 or num_in != width * block.expansion
                blocks.append(block(num_in, width, stride if first else 1, dilation, shortcut=first and changes))
                num_in = width * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.num_features = num_in
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, 1, D, H, W) in [-1, 1] -> (B, num_features, D/8, H/8, W/8)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(4):
            x = getattr(self, f"layer{index + 1}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, D, H, W) in [-1, 1] -> (B, num_features)."""
        return self.feature_map(x).mean(dim=(2, 3, 4))


class ResNetClassifier(nn.Module):
    """A ResNet3d with a linear head: (B, 1, D, H, W) -> (B, num_labels) logits, one per finding."""

    def __init__(self, trunk: ResNet3d, num_labels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.num_features, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, D, H, W) in [-1, 1] -> (B, num_labels) logits."""
        return self.head(self.trunk(x))


def finding_classifier(depth: int, base_width: int, num_labels: int) -> ResNetClassifier:
    """Return a classifier of `num_labels` findings with new weights."""
    return ResNetClassifier(ResNet3d(depth, base_width), num_labels)


def one_finding_classifier(base_width: int) -> ResNetClassifier:
    """Return Table VI's classifier with new weights: a ResNet-10 with one output."""
    return finding_classifier(10, base_width, 1)


def channels_last(network: Network) -> Network:
    """Lay out convolution weights with the channel axis last in memory: the same function, a third faster on a CPU."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def to_unit(hu: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """Return HU of any shape as float32 in [-1, 1], clipped to `window_hu` (low, high)."""
    low, high = window_hu
    return (hu.to(torch.float32).clamp(low, high) - low) * (2.0 / (high - low)) - 1.0
