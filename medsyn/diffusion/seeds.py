"""Random numbers of training and sampling: pure functions of seeds, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Stream = Literal["low_res", "super_res", "diffusion", "latent", "statistics"]
_STREAMS: dict[Stream, int] = {"low_res": 0, "super_res": 1, "diffusion": 2, "latent": 3, "statistics": 4}
"""Number of a stream of noise: of our two denoisers, of a diffusion over latents, of the latents of a generator and
of those that its batch statistics are taken of."""


def volume_noise(seeds: Sequence[int], shape: Sequence[int], stream: Stream) -> Tensor:
    """Return the noise [len(seeds), *shape] that a network starts from: standard normal, float32, on the CPU.

    Each volume has its own generator, so that its noise depends on its seed and the stream only, not on its batch.
    """
    return torch.stack([torch.randn(*shape, generator=volume_generator(seed, stream)) for seed in seeds])


def volume_generator(seed: int, stream: Stream) -> torch.Generator:
    """Return the generator of one volume's noise."""
    return seeded(seed, _STREAMS[stream])


def seeded(*key: int) -> torch.Generator:
    """Return a CPU generator that is a pure function of non-negative integers (numpy's SeedSequence mixes them)."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state & (2**63 - 1))
