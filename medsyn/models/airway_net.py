"""NaviAirway's network: a 3-D U-Net of four levels that marks the airway (Wang et al. 2022, arXiv:2203.04294).

Facts from the authors' MIT-licensed release (AntonotnaWang/NaviAirway on GitHub); names and shapes of the parameters
are theirs, so their checkpoints load strictly: 85 tensors, 10,764,916 parameters at width 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_LEVELS = 4
SIZE_MULTIPLE = 2 ** (NUM_LEVELS - 1)
"""Every side of the input must be a multiple of this."""
ATTENTION_WIDTH = 8


class NormConv(nn.Module):
    """GroupNorm of the input (one group if it has fewer channels than groups), 3^3 convolution without bias, ReLU."""

    def __init__(self, num_in: int, num_out: int, num_groups: int, dilation: int = 1) -> None:
        super().__init__()
        self.groupnorm = nn.GroupNorm(num_groups if num_in >= num_groups else 1, num_in)
        self.conv = nn.Conv3d(num_in, num_out, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, D, H, W) -> (B, num_out, D, H, W).

        On a CPU dilated convolutions are four times as fast in the channels-last layout, which takes a quarter off the
        network's time. The rest stays contiguous: PyTorch's sums over channels-last volumes lose digits.
        """
        x = self.groupnorm(x)
        if self.conv.dilation == (1, 1, 1) or x.device.type != "cpu":
            return F.relu_(self.conv(x))
        return F.relu_(self.conv(x.contiguous(memory_format=torch.channels_last_3d)).contiguous())


class ChannelAttention(nn.Module):
    """Squeeze and excitation: every channel times a weight in (0, 1) that is a function of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, ATTENTION_WIDTH, bias=False),
            nn.ReLU(),
            nn.Linear(ATTENTION_WIDTH, channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        return x * self.fc(x.mean((2, 3, 4))).sigmoid()[:, :, None, None, None]


class Stage(nn.Module):
    """One level: a convolution, plus its own dilated (4) and attended convolution, and a second one to `num_out`."""

    def __init__(self, num_in: int, num_mid: int, num_out: int, num_groups: int) -> None:
        super().__init__()
        self.conv1 = NormConv(num_in, num_mid, num_groups)
        self.conv2 = NormConv(num_mid, num_out, num_groups)
        self.dilation_conv = NormConv(num_mid, num_mid, num_groups, dilation=4)
        self.att = ChannelAttention(num_mid)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, D, H, W) -> (B, num_out, D, H, W)."""
        x = self.conv1(x)
        return self.conv2(x + self.att(self.dilation_conv(x)))


class Decoder(Stage):
    """A stage over the skip and, after it, the level below enlarged twofold by a transposed convolution."""

    def __init__(self, num_below: int, num_skip: int, num_groups: int) -> None:
        super().__init__(num_skip + num_below, num_skip, num_skip, num_groups)
        self.upsample = nn.ConvTranspose3d(num_below, num_below, 4, stride=2, padding=1)

    def join(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, num_below, D/2, H/2, W/2), (B, num_skip, D, H, W) -> (B, num_skip, D, H, W)."""
        return self(torch.cat([skip, self.upsample(below)], dim=1))


class AirwayNet(nn.Module):
    """(B, 1, D, H, W) normalised intensity -> (B, 2, D, H, W) logits, channel 0 background and 1 airway.

    D, H and W are multiples of SIZE_MULTIPLE. Level i gives `width` * 2^i channels; the released networks have width 32
    and 8 groups. `width` must be twice a multiple of `num_groups`.
    """

    def __init__(self, width: int = 32, num_groups: int = 8) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(NUM_LEVELS)]
        self.encoders = nn.ModuleList(
            Stage(num_in, num_out // 2, num_out, num_groups)
            for num_in, num_out in zip([1, *widths], widths, strict=False)
        )
        self.decoders = nn.ModuleList(Decoder(2 * num_skip, num_skip, num_groups) for num_skip in reversed(widths[:-1]))
        self.final_conv = nn.Conv3d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; their softmax over the channels is the probability."""
        if any(side % SIZE_MULTIPLE for side in x.shape[2:]):
            raise ValueError(f"sides must be multiples of {SIZE_MULTIPLE}, got {tuple(x.shape[2:])}")
        skips: list[Tensor] = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for decoder in self.decoders:
            x = decoder.join(x, skips.pop())  # type: ignore[operator]
        return self.final_conv(x)
