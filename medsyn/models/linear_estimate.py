"""The best linear guess of a clean volume from a noisy one, which leaves a denoiser only what is not linear.

The clean volumes are taken for Gaussian: with the mean of the training volumes, the variances of their first principal
components, and one variance per channel for what lies beyond these (after probabilistic principal component analysis,
Tipping and Bishop 1999, which has one such variance in all).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrincipalComponents:
    """vectors [K, C, D, H, W] of length 1, variances [K] along them, rest [C]: variance per voxel beyond them."""

    vectors: Tensor
    variances: Tensor
    rest: Tensor


def principal_components(differences: Tensor, num_components: int) -> PrincipalComponents:
    """Return the first components of volumes [n, C, D, H, W] whose mean is zero; num_components is at most n - 2.

    The variance beyond them is that of the volumes, times n / (n - 1 - num_components): they fit these volumes better
    than others.
    """
    count, channels = differences.shape[:2]
    rows = differences.reshape(count, -1)
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, vectors = values.flip(0)[:num_components], vectors.flip(1)[:, :num_components]
    basis = ((vectors / values.sqrt()).T.to(rows.dtype) @ rows).reshape(-1, *differences.shape[1:])
    left = rows - (rows @ basis.flatten(1).T) @ basis.flatten(1)
    rest = left.reshape(count, channels, -1).square().mean(dim=(0, 2)) * count / (count - 1 - num_components)
    return PrincipalComponents(basis, (values / count).to(rows.dtype), rest)


def linear_estimate(x: Tensor, signal: Tensor, mean: Tensor, components: PrincipalComponents) -> tuple[Tensor, Tensor]:
    """Return the guess of x0 [B, C, D, H, W], and its expected error as a share of the deviation [B, C, 1, 1, 1].

    x [B, C, D, H, W] = sqrt(signal) x0 + sqrt(1 - signal) noise, signal [B], mean [C, D, H, W]. Exact if the variance
    beyond the components is the same in all channels.
    """
    vectors, variances, rest = components.vectors, components.variances, components.rest
    noise = ((1 - signal) / signal)[:, None]
    along, beyond = variances / (variances + noise), rest / (rest + noise)
    difference = x / signal.sqrt()[:, None, None, None, None] - mean
    inside = torch.einsum("bcdhw,kcdhw->bk", difference, vectors)
    beyond_them = difference - torch.einsum("bk,kcdhw->bcdhw", inside, vectors)
    guess = mean + torch.einsum("bk,kcdhw->bcdhw", along * inside, vectors) + _wide(beyond) * beyond_them
    shares = vectors.square().mean(dim=(2, 3, 4))  # [K, C]
    error = (variances * (1 - along)) @ shares + rest * (1 - beyond)
    return guess, _wide((error / (variances @ shares + rest)).sqrt())


def _wide(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]
