"""Estimate a clean volume linearly from a noisy one and a text; the network then learns the rest.

This is the linear minimum-mean-square-error estimate (Wiener filter) under the assumption that the clean volumes are
Gaussian. Their mean is that of the training volumes, moved along the first principal components by what the text says
(ridge regression on `medsyn.models.text_features`). Around it they vary along these components, and beyond them with
one variance per channel (after probabilistic principal component analysis, Tipping and Bishop 1999, which has one such
variance in all).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medsyn.models.text_features import TokenKinds, text_features

_LEAST_VARIANCE = 1e-6  # per voxel beyond the components
_LEAST_SHARE = 1e-6  # of the largest variance: what is smaller is rounding
_PENALTIES = torch.logspace(-3, 3, 25, dtype=torch.float64)
"""Penalties of the ridge regression that are tried, in units of the mean squared singular value of the features."""


@dataclass(frozen=True)
class TextRegression:
    """Linear map from a text's features [F] to the shift of the mean along each component.

    weight [K, F], offset [K].
    """

    weight: Tensor
    offset: Tensor


@dataclass(frozen=True)
class PrincipalComponents:
    """Hold principal components of volumes and the variances along and beyond them.

    vectors [K, C, D, H, W] have length 1. variances [K] are those along them, given the text if there is one: in
    falling order without text, in rising order with it. residual_variance [C] is that of a voxel beyond them. `kinds`
    are those that the features of a text tell, None where they are its mean state.
    """

    vectors: Tensor
    variances: Tensor
    residual_variance: Tensor
    text: TextRegression | None = None
    kinds: TokenKinds | None = None


def principal_components(
    differences: Tensor, num_components: int, features: Tensor | None = None
) -> PrincipalComponents:
    """Return the first components of volumes [n, C, D, H, W] whose mean is zero; num_components is at most n - 2.

    They are fewer where the volumes span fewer dimensions. features [n, F]: those of the volumes' texts. With them
    the components are turned such that what the text leaves along them is uncorrelated; it is measured on volumes left
    out of the regression, one at a time. The variance beyond the components is that of these volumes, times
    n / (n - 1 - K): the components fit them better than others.
    """
    count, channels = differences.shape[:2]
    voxels = math.prod(differences.shape[2:])
    rows = differences.reshape(count, -1)
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, vectors = values.flip(0)[:num_components], vectors.flip(1)[:, :num_components]
    kept = int((values > _LEAST_SHARE * values[0]).sum())
    values, vectors = values[:kept], vectors[:, :kept]
    basis = (vectors / values.sqrt()).T.to(rows.dtype) @ rows
    total = torch.linalg.vector_norm(differences.reshape(count, channels, -1), dim=2).double().square().sum(dim=0)
    inside = values @ basis.reshape(kept, channels, voxels).double().square().sum(dim=2)
    residual = (total - inside) / (voxels * (count - 1 - kept))
    variances, text = values / count, None
    if features is not None:
        centre = features.double().mean(dim=0)
        weight, errors = ridge_regression(features.double() - centre, vectors * values.sqrt())
        variances, turn = torch.linalg.eigh(errors.T @ errors / count)
        basis = turn.T.to(rows.dtype) @ basis
        weight = (weight @ turn).T
        text = TextRegression(weight.to(rows.dtype), (-weight @ centre).to(rows.dtype))
    return PrincipalComponents(
        basis.reshape(kept, *differences.shape[1:]),
        variances.clamp(min=0).to(rows.dtype),
        residual.clamp(min=_LEAST_VARIANCE).to(rows.dtype),
        text,
    )


def ridge_regression(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [F, K] that predict targets [n, K] from features [n, F], and the errors [n, K].

    The means of both are 0. The errors are those of each row by a regression on the others (leave-one-out); the penalty
    is the one with the smallest mean square of these. Features that are all 0 give weights of 0.
    """
    count = len(features)
    left, singular, right = torch.linalg.svd(features, full_matrices=False)
    best, found = None, None
    for penalty in _PENALTIES * singular.square().mean().clamp(min=1e-12):
        shrink = singular / (singular.square() + penalty)
        influence = (left.square() * singular * shrink).sum(dim=1) + 1 / count
        errors = (targets - (left * singular * shrink) @ (left.T @ targets)) / (1 - influence)[:, None]
        square = errors.square().mean()
        if best is None or square < best:
            best, found = square, (right.T @ (shrink[:, None] * (left.T @ targets)), errors)
    assert found is not None
    return found


@dataclass(frozen=True)
class Flow:
    """Few calls in a row of which each stands for the exact solution until the next, for Gaussian volumes.

    In a direction of variance v, x over its noise level grows like sqrt(kappa^2 v + 1), kappa = sqrt(signal / noise).
    signals [N] of the calls, and the signal at which the estimate that ends sampling is made.
    """

    signals: Tensor
    end: float

    def share(self, variances: Tensor, signal: Tensor) -> Tensor:
        """Return the share [B, K] of x / sqrt(signal) - mean that the estimate keeps, in place of v / (v + noise)."""
        place = (signal[:, None] - self.signals.to(signal)).abs().argmin(dim=1)
        square = (signal / (1 - signal))[:, None]  # kappa^2
        end = self.end / (1 - self.end)
        last = (square * variances / (square * variances + 1) * end * variances / (end * variances + 1)).sqrt()
        following = self.signals.to(signal).roll(-1)[place]
        there = (following / (1 - following))[:, None]
        growth = ((there * variances + 1) / (square * variances + 1)).sqrt() - 1
        between = square.sqrt() * growth / (there.sqrt() - square.sqrt())
        return torch.where((place == len(self.signals) - 1)[:, None], last, between)


def linear_estimate(
    x: Tensor, signal: Tensor, mean: Tensor, components: PrincipalComponents, flow: Flow | None = None
) -> tuple[Tensor, Tensor]:
    """Return the estimate of x0 [B, C, D, H, W], and its expected error as a share of the deviation [B, C, 1, 1, 1].

    x [B, C, D, H, W] = sqrt(signal) x0 + sqrt(1 - signal) noise, signal [B] or [1], mean [C, D, H, W]. Exact if the
    variance beyond the components is the same in all channels. flow: what its calls stand for is estimated instead.
    """
    vectors, variances, residual = components.vectors, components.variances, components.residual_variance
    noise = ((1 - signal) / signal)[:, None]
    along, beyond = variances / (variances + noise), residual / (residual + noise)
    if flow is not None:
        along, beyond = flow.share(variances, signal), flow.share(residual, signal)
    difference = x / signal.sqrt()[:, None, None, None, None] - mean
    inside = torch.einsum("bcdhw,kcdhw->bk", difference, vectors)
    outside = difference - torch.einsum("bk,kcdhw->bcdhw", inside, vectors)
    estimate = mean + torch.einsum("bk,kcdhw->bcdhw", along * inside, vectors) + _wide(beyond) * outside
    return estimate, _wide(error_share(signal, components))


def mean_given_text(mean: Tensor, components: PrincipalComponents, text: Tensor) -> Tensor:
    """Return the mean [C, D, H, W] as a text [num_tokens, S] moves it; the components must be those given texts."""
    assert components.text is not None
    shift = components.text.weight @ text_features(text[None], components.kinds)[0] + components.text.offset
    return mean + torch.einsum("k,kcdhw->cdhw", shift, components.vectors)


def error_share(signal: Tensor, components: PrincipalComponents) -> Tensor:
    """Return the expected error of the estimate as a share of the volumes' deviation [B, C], for signal [B]."""
    noise = ((1 - signal) / signal)[:, None]
    shares = components.vectors.square().mean(dim=(2, 3, 4))  # [K, C]
    variances, residual = components.variances, components.residual_variance
    error = (variances * noise / (variances + noise)) @ shares + residual * noise / (residual + noise)
    return (error / (variances @ shares + residual)).sqrt()


def _wide(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]
