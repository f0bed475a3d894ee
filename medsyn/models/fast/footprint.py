"""Estimated peak of live activations of the U-Net without gradients, from its widths: what batches are sized by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from medsyn.models.blocks import HEAD_DIM
from medsyn.models.unet import UNet

_MARGIN = 1.1  # attention, convolutions' work space


def forward_bytes(network: UNet, size: Sequence[int], element_bytes: int, slices: int | None = None) -> int:
    """Return the bytes per volume of `size` (D, H, W) at element_bytes a value, weights not counted.

    The peak lies at the top of the up path: there the first features and the widest input (the state above its skip)
    are alive, a block makes its hidden state, the normalised one and the residual, and the outer volumes are float32.
    In slabs of `slices` (`medsyn.models.fast.slabs`) a block holds its inputs and its hidden state whole, and of one
    slab the joined input, the result and float32 copies of it.
    """
    config = network.config
    voxels = math.prod(size) // config.patch_size**3
    widths = [config.dim, *(config.dim * mult for mult in config.mults)]
    peak = 0.0
    for level, (below, width) in enumerate(pairwise(widths)):
        here = voxels / 4**level
        skips = sum(w * voxels / 4**i for i, w in enumerate(widths[1 : level + 2]))
        if slices is None:  # state and skip joined, state, hidden and its kin
            block = (2 * width + width + 3 * max(below, width)) * here
        else:
            share = min((slices + 2 * config.patch_size) / size[0], 1.0)
            block = (width + below + share * max(below, width) * (3 + 8 / element_bytes)) * here
        peak = max(peak, widths[0] * voxels + skips + block)
    keys = 0 if network.null_cond_emb is None else 2 * network.null_cond_emb.shape[1] * HEAD_DIM * config.num_heads
    peak += keys * config.num_bottom_blocks
    outer = 4 * (network.channels + network.known_channels) * math.prod(size)
    return int(_MARGIN * (peak * element_bytes + 3 * outer))
