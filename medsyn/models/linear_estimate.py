"""The best linear guess of a clean volume from a noisy one and a text, which leaves a denoiser what is not linear.

The clean volumes are taken for Gaussian. Their mean is that of the training volumes, moved along the first principal
components by the mean state of the text (ridge regression). Around it they vary along these components, and beyond them
with one variance per channel (after probabilistic principal component analysis, Tipping and Bishop 1999, which has one
such variance in all).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PENALTIES = torch.logspace(-3, 3, 25, dtype=torch.float64)
"""Penalties of the ridge regression that are tried, in units of the mean squared singular value of the states."""


@dataclass(frozen=True)
class TextRegression:
    """Standard deviations along each component by which a mean state [S] moves the mean: weight [K, S], offset [K]."""

    weight: Tensor
    offset: Tensor


@dataclass(frozen=True)
class PrincipalComponents:
    """vectors [K, C, D, H, W] of length 1, variances [K] along them given the text, rest [C] per voxel beyond them."""

    vectors: Tensor
    variances: Tensor
    rest: Tensor
    text: TextRegression | None = None


def principal_components(differences: Tensor, num_components: int, states: Tensor | None = None) -> PrincipalComponents:
    """Return the first components of volumes [n, C, D, H, W] whose mean is zero; num_components is at most n - 2.

    states [n, S]: mean states of the volumes' texts. With them the components are turned such that what the text leaves
    along them is uncorrelated; it is measured on volumes left out of the regression, one at a time. The variance beyond
    the components is that of these volumes, times n / (n - 1 - num_components): they fit them better than others.
    """
    count, channels = differences.shape[:2]
    rows = differences.reshape(count, -1)
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, vectors = values.flip(0)[:num_components], vectors.flip(1)[:, :num_components]
    basis = (vectors / values.sqrt()).T.to(rows.dtype) @ rows
    left = rows - (rows @ basis.T) @ basis
    rest = left.reshape(count, channels, -1).square().mean(dim=(0, 2)) * count / (count - 1 - num_components)
    variances, text = values / count, None
    if states is not None:
        weight, residuals = ridge_regression(states.double() - states.mean(dim=0), vectors * values.sqrt())
        variances, turn = torch.linalg.eigh(residuals.T @ residuals / count)
        basis = turn.T.to(rows.dtype) @ basis
        weight = ((weight @ turn) / variances.sqrt()).T.to(rows.dtype)
        text = TextRegression(weight, -weight @ states.mean(dim=0).to(rows.dtype))
    return PrincipalComponents(basis.reshape(-1, *differences.shape[1:]), variances.to(rows.dtype), rest, text)


def ridge_regression(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [S, K] that predict targets [n, K] from states [n, S], and the errors [n, K].

    The means of both are 0. The errors are those of each row by a regression on the others (leave-one-out); the penalty
    is the one with the smallest mean square of these.
    """
    count = len(states)
    left, singular, right = torch.linalg.svd(states, full_matrices=False)
    best, found = None, None
    for penalty in _PENALTIES * singular.square().mean():
        shrink = singular / (singular.square() + penalty)
        influence = (left.square() * singular * shrink).sum(dim=1) + 1 / count
        errors = (targets - (left * singular * shrink) @ (left.T @ targets)) / (1 - influence)[:, None]
        square = errors.square().mean()
        if best is None or square < best:
            best, found = square, (right.T @ (shrink[:, None] * (left.T @ targets)), errors)
    assert found is not None
    return found


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
    return guess, _wide(error_share(signal, components))


def moved_mean(mean: Tensor, components: PrincipalComponents, states: Tensor) -> Tensor:
    """Return the mean [C, D, H, W] as the mean state of a text [S] moves it; components.text must be known."""
    assert components.text is not None
    moves = components.text.weight @ states + components.text.offset
    return mean + torch.einsum("k,kcdhw->cdhw", moves * components.variances.sqrt(), components.vectors)


def error_share(signal: Tensor, components: PrincipalComponents) -> Tensor:
    """Return the expected error of the guess as a share of the volumes' deviation [B, C], for signal [B]."""
    noise = ((1 - signal) / signal)[:, None]
    shares = components.vectors.square().mean(dim=(2, 3, 4))  # [K, C]
    variances, rest = components.variances, components.rest
    error = (variances * noise / (variances + noise)) @ shares + rest * noise / (rest + noise)
    return (error / (variances @ shares + rest)).sqrt()


def _wide(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]
