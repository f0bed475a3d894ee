"""Describe a text to a linear map: by the mean state of its tokens, or by the kinds of its token states.

The mean state of a text blurs which word stands beside which: it tells that an effusion and a left side occur, not that
the effusion is on the left. The state of one token of a language model tells it, because it depends on the words around
the token. So the training texts' states are grouped by k-means into kinds, and a text is described by which kinds it
has, with soft assignment (van Gemert et al. 2008, "Kernel codebooks for scene categorization").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NUM_STEPS = 20  # of k-means, which is written here because training needs no package that has one
_MOST_TOKENS = 50_000  # that k-means reads
_LEAST_SQUARE = 1e-6


@dataclass(frozen=True)
class TokenKinds:
    """Kinds of token states: a state s [S] has them by the shares softmax(weight s + bias).

    weight [N, S], bias [N].
    """

    weight: Tensor
    bias: Tensor


def token_kinds(states: Tensor, count: int, generator: torch.Generator) -> TokenKinds:
    """Group token states [n, S] into `count` kinds by k-means.

    The shares are those of a mixture of equal Gaussians around the centres, whose variance is half the mean squared
    distance of the states from their centres. Where there are fewer states than kinds, some centres are equal.
    """
    states = states[torch.randperm(len(states), generator=generator)[:_MOST_TOKENS]].double()
    centres = states[torch.arange(count) % len(states)].clone()
    for _ in range(_NUM_STEPS):
        nearest = torch.cdist(states, centres).argmin(dim=1)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        means = torch.zeros_like(centres).index_add_(0, nearest, states) / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
    square = torch.cdist(states, centres).amin(dim=1).square().mean().clamp(min=_LEAST_SQUARE)
    return TokenKinds((2 * centres / square).float(), (-centres.square().sum(dim=1) / square).float())


def text_features(text: Tensor, kinds: TokenKinds | None) -> Tensor:
    """Return whether texts [B, num_tokens, S] have each kind: the largest share that a token has of it, [B, N].

    Without kinds it is the mean state [B, S]. Tokens whose states are all zero, which mark padding, have no kind.
    """
    if kinds is None:
        return mean_state(text)
    shares = torch.softmax(text @ kinds.weight.T + kinds.bias, dim=-1) * text.any(dim=-1, keepdim=True)
    return shares.amax(dim=1)


def mean_state(text: Tensor) -> Tensor:
    """Return the mean state [B, cond_dim] of text [B, num_tokens, cond_dim].

    Tokens whose states are all zero, which mark padding, are left out of the mean.
    """
    return text.sum(dim=1) / text.any(dim=-1).sum(dim=1, keepdim=True).clamp(min=1)
