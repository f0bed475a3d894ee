"""The codebook of a VQ-VAE whose codes are moving averages (van den Oord et al. 2017, appendix A.1).

Rules and constants are those of Medical Diffusion's public code (FirasGit/medicaldiffusion on GitHub), which took them
from TATS (Ge et al. 2022): codes start as latents of the first batch, and codes that are rarely used start again as
latents of the current batch. Three things differ. The search takes the latents in parts, so it needs neither the matrix
of all distances nor the one-hot matrix: 128 MiB instead of 16 GiB and more. Whether the codes were initialised is a
buffer, so a resumed training run keeps its codes. The sums and the replacements use the latents of all processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsyn.models.fast.context import autocast_off
from medsyn.models.processes import from_all_processes, from_main_process

DECAY = 0.99
COMMITMENT = 0.25
_SMOOTHING = 1e-7
_SMALLEST_COUNT = 1.0  # codes of a smaller average count start again
_NOISE = 0.01  # of codes that start from the same latent; divided by the root of the channels
_DISTANCES = 2**25
"""Distances that are held at a time: 128 MiB in float32."""


@dataclass(frozen=True)
class Quantised:
    """values [B, C, d, h, w]: the codes, whose gradient is that of the latents. indices [B, d, h, w]: their numbers.

    commitment: 0.25 times the mean squared distance of the latents from their codes. used: how many codes the batch
    uses.
    """

    values: Tensor
    indices: Tensor
    commitment: Tensor
    used: Tensor


class Codebook(nn.Module):
    """`num_codes` vectors of `channels` numbers, kept in buffers: an optimiser does not change them."""

    codes: Tensor
    counts: Tensor
    sums: Tensor
    initialised: Tensor

    def __init__(self, num_codes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(num_codes, channels))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, latents: Tensor, *, update: bool) -> Quantised:
        """Quantise latents [B, C, d, h, w]; with `update` the codes then learn from them."""
        with autocast_off(latents):
            tokens = _tokens(latents.detach())
            if update and not self.initialised:
                self._initialise(from_all_processes(tokens))
            indices = self.indices(tokens)
            values = _volume(F.embedding(indices, self.codes), latents)
            commitment = COMMITMENT * F.mse_loss(latents.float(), values)
            everywhere = from_all_processes(indices) if update else indices
            if update:
                self._learn(from_all_processes(tokens), everywhere)
            through, places = latents + (values - latents).detach(), (len(latents), *latents.shape[2:])
        return Quantised(through, indices.view(places), commitment, self._number_used(everywhere))

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Return the code nearest to each of the latents [B, C, d, h, w], in the same shape."""
        return _volume(F.embedding(self.indices(_tokens(latents)), self.codes), latents)

    @torch.no_grad()
    def indices(self, tokens: Tensor) -> Tensor:
        """Return the number of the nearest code of tokens [n, C], by squared Euclidean distance."""
        norms = self.codes.square().sum(1)
        parts = tokens.split(max(1, _DISTANCES // len(self.codes)))
        # |token|^2 is the same for all codes
        return torch.cat([torch.addmm(norms, part, self.codes.t(), alpha=-2).argmin(1) for part in parts])

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest number of all codes, between which latents are expected."""
        return self.codes.amin(), self.codes.amax()

    @torch.no_grad()
    def _initialise(self, tokens: Tensor) -> None:
        self.codes.copy_(self._random_tokens(tokens))
        self.sums.copy_(self.codes)
        self.counts.fill_(1)
        self.initialised.fill_(True)

    @torch.no_grad()
    def _learn(self, tokens: Tensor, indices: Tensor) -> None:
        """Move the averages towards the batch, take the codes from them, and replace codes that are rarely used."""
        num_codes = len(self.codes)
        counts = torch.zeros_like(self.counts).index_add_(0, indices, torch.ones_like(indices, dtype=tokens.dtype))
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, tokens), 1 - DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + _SMOOTHING) / (total + num_codes * _SMOOTHING) * total
        rare = self.counts < _SMALLEST_COUNT
        self.codes.copy_(torch.where(rare[:, None], self._random_tokens(tokens), self.sums / smoothed[:, None]))

    def _random_tokens(self, tokens: Tensor) -> Tensor:
        """Return one of the tokens [n, C] per code, each once; too few are repeated and told apart by noise."""
        num_codes, channels = self.codes.shape
        repeats = -(-num_codes // len(tokens))
        generator = torch.default_generator  # on the CPU, so that every device gets the same numbers
        chosen = torch.randperm(len(tokens) * repeats, generator=generator)[:num_codes] % len(tokens)
        noise = torch.randn(num_codes, channels, generator=generator) * (_NOISE / channels**0.5)
        chosen, noise = from_main_process(chosen.to(tokens.device)), from_main_process(noise.to(tokens.device))
        return tokens[chosen] + noise if repeats > 1 else tokens[chosen]

    def _number_used(self, indices: Tensor) -> Tensor:
        return torch.zeros(len(self.codes), device=indices.device).index_fill_(0, indices, 1.0).sum()


def _tokens(latents: Tensor) -> Tensor:
    """[B, C, d, h, w] -> float32 [B d h w, C]."""
    return latents.float().movedim(1, -1).flatten(0, -2)


def _volume(tokens: Tensor, like: Tensor) -> Tensor:
    """[B d h w, C] -> [B, C, d, h, w]."""
    return tokens.view(len(like), *like.shape[2:], -1).movedim(-1, 1)
