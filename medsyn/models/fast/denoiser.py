"""The fast U-Net as a denoiser for the solvers, with what does not change between the steps of a volume computed once.

Once per volume: keys and values of the text and the condition's share of the first convolution. Once per step: the time
embedding (all samples of a step have one tau) and, with guidance, everything that precedes the text. The result is that
of `medsyn.diffusion.sampling.guided_denoiser` up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsyn.diffusion.base import Denoiser
from medsyn.models.fast.unet import FastUNet


def prepared_denoiser(
    network: FastUNet,
    *,
    text: Tensor | None = None,
    guidance_scale: float = 1.0,
    condition: Tensor | None = None,
    one_batch: bool = True,
    null: Tensor | None = None,
) -> Denoiser:
    """Return a denoiser of volumes [B, C, D, H, W] for one set of text states [B, num_tokens, cond_dim] or none.

    null [1, num_tokens, cond_dim] stands for no text, by default the network's learned null text.
    one_batch: with guidance, run both branches as one batch, which is faster and takes twice the memory.
    """
    given: dict[str, object] = {}
    if condition is not None:
        whole = network.slab_slices is None  # in slabs its features are not kept from step to step
        given["condition"] = network.prepare_condition(condition) if whole else condition
    if network.null_cond_emb is not None:
        null = network.null_cond_emb if null is None else null
        if text is None:
            given["text"] = network.prepare_text(null)
        elif guidance_scale == 1.0:
            given["text"] = network.prepare_text(text)
        else:
            given["text"] = network.prepare_text(torch.cat([text, null.expand(len(text), -1, -1).to(text.dtype)]))
            given |= {"guidance_scale": guidance_scale, "one_batch": one_batch}

    def denoise(x: Tensor, tau: float) -> Tensor:
        return network(x, torch.full((1,), tau, device=x.device), **given)

    return denoise
