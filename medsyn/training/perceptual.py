"""The perceptual distance LPIPS (Zhang et al. 2018) of slices, from weights that the user brings."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsyn.errors import InputError
from medsyn.tensors import load_checkpoint


def load_lpips(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the distance of slices [B, 1, H, W] in [-1, 1] from others, a scalar that is the mean over B.

    path: the state dict of lpips.LPIPS(net="vgg"), of `torch.save` or as safetensors. The scaling of LPIPS repeats a
    grey slice in its three channels. Raises InputError without the package lpips, and for weights that do not fit.
    """
    try:
        import lpips
    except ImportError as error:
        raise InputError(
            f"perceptual_weights: {path} needs the package lpips, which cannot be imported ({error}); install it, or"
            " set perceptual_weights to null"
        ) from None
    network: Any = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)  # downloads nothing
    try:
        network.load_state_dict(load_checkpoint(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not the weights of LPIPS ({reason}), expected the state dict of lpips.LPIPS(net='vgg'); write it"
            " again"
        ) from None
    network.eval().requires_grad_(False)

    @cache
    def on(device: torch.device) -> Any:
        return deepcopy(network).to(device)  # a copy, because operations are counted on a device without data

    def distance(made: Tensor, real: Tensor) -> Tensor:
        mean: Tensor = on(made.device)(made, real).float().mean()
        return mean

    return distance
