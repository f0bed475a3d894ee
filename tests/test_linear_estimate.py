"""The best linear estimate of a clean volume by principal components."""

from __future__ import annotations

import pytest
import torch

from medsyn.config import UNetConfig
from medsyn.diffusion.schedule import alpha_bar
from medsyn.models.linear_estimate import (
    PrincipalComponents,
    linear_estimate,
    principal_components,
    ridge_regression,
)
from medsyn.models.unet import UNet

SHAPE = (2, 4, 4, 4)
DEVIATIONS = torch.tensor([9.0, 6.0, 4.0, 3.0, 2.0])
REST = 0.3


@pytest.fixture(scope="module")
def basis():
    return torch.linalg.qr(torch.randn(128, 5, generator=torch.Generator().manual_seed(1)))[0].T


def gaussian_volumes(basis, count, seed):
    """Draw volumes with mean 0.5, five known components, and white noise beyond them."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.randn(count, 5, generator=generator) * DEVIATIONS
    beyond = torch.randn(count, 128, generator=generator)
    beyond = beyond - beyond @ basis.T @ basis
    return (0.5 + along @ basis + REST * beyond).reshape(count, *SHAPE)


def test_components_of_gaussian_volumes_are_found(basis):
    volumes = gaussian_volumes(basis, 4000, 2)
    found = principal_components(volumes - volumes.mean(dim=0), 5)
    torch.testing.assert_close(found.variances.sqrt(), DEVIATIONS, rtol=0.04, atol=0)
    overlap = (found.vectors.reshape(5, -1) @ basis.T).abs()
    torch.testing.assert_close(overlap, torch.eye(5), rtol=0, atol=0.05)
    torch.testing.assert_close(
        found.residual_variance.sqrt(), torch.full((2,), REST), rtol=0.03, atol=0
    )  # 123 of 128 directions


def test_the_rest_of_few_volumes_is_that_of_others(basis):
    few, others = gaussian_volumes(basis, 12, 3), gaussian_volumes(basis, 2000, 4)
    found = principal_components(few - few.mean(dim=0), 5)
    beyond = others - few.mean(dim=0)
    rows = beyond.reshape(len(others), -1)
    vectors = found.vectors.reshape(5, -1)
    left = (rows - rows @ vectors.T @ vectors).square().mean()
    assert 0.4 < found.residual_variance.mean() / left < 2.5  # without the correction a quarter


def test_a_constant_channel_repeated_volumes_and_equal_texts_give_finite_estimates(basis):
    volumes = gaussian_volumes(basis, 6, 7).repeat(3, 1, 1, 1, 1)
    volumes[:, 1] = -1  # a structure that no training volume shows
    mean = volumes.mean(dim=0)
    found = principal_components(volumes - mean, 12, torch.ones(18, 4))
    assert len(found.vectors) == 5  # six volumes span no more
    torch.testing.assert_close(found.vectors.flatten(1).norm(dim=1), torch.ones(5))
    assert not found.text.weight.any()
    for t in (0.0, 0.5, 1.0):
        estimate, share = linear_estimate(torch.randn(2, *SHAPE), alpha_bar(torch.full((2,), t)), mean, found)
        assert estimate.isfinite().all() and share.isfinite().all() and (share > 0).all()


def test_the_estimate_is_float32_under_autocast(basis):
    config = UNetConfig(dim=8, mults=(1, 2), init_kernel=3, num_groups=4, mean_volume=True, num_components=5)
    network = UNet(config, channels=2, cond_dim=6, num_tokens=3)
    known = PrincipalComponents(basis.reshape(5, *SHAPE), DEVIATIONS**2, torch.full((2,), REST**2))
    network.set_statistics(torch.full(SHAPE, 0.5), components=known)
    x, tau, text = torch.randn(2, *SHAPE), torch.tensor([500.0, 990.0]), torch.randn(2, 3, 6)

    def parts():
        coefficients = network.text_coefficients(text)
        return [*network.estimate(x, tau, None), coefficients, network.text_shift(coefficients, tau)]

    network.data_text_weight = torch.randn(5, 6)
    exact = parts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(one, other) for one, other in zip(parts(), exact, strict=True))


def test_errors_of_the_regression_are_those_of_volumes_left_out():
    generator = torch.Generator().manual_seed(9)
    states = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = states @ torch.randn(6, 3, generator=generator, dtype=torch.float64)
    targets = targets + torch.randn(40, 3, generator=generator, dtype=torch.float64)
    states, targets = states - states.mean(dim=0), targets - targets.mean(dim=0)
    weights, errors = ridge_regression(states, targets)
    singular = torch.linalg.svdvals(states)
    gram, right = states.T @ states, states.T @ targets
    penalty = ((right - gram @ weights) * weights).sum() / weights.square().sum()  # (gram + penalty) weights = right
    assert 1e-3 < penalty / singular.square().mean() < 1
    for left_out in (0, 17):
        others = [row for row in range(40) if row != left_out]
        x, y = states[others], targets[others]
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        x, y = x - x_mean, y - y_mean
        fitted = torch.linalg.solve(x.T @ x + penalty * torch.eye(6, dtype=torch.float64), x.T @ y)
        expected = targets[left_out] - y_mean - (states[left_out] - x_mean) @ fitted
        torch.testing.assert_close(errors[left_out], expected, rtol=1e-6, atol=1e-8)


def test_a_text_that_tells_nothing_moves_little_and_one_that_tells_all_leaves_little(basis):
    generator = torch.Generator().manual_seed(10)
    volumes = gaussian_volumes(basis, 400, 11)
    differences = volumes - volumes.mean(dim=0)
    silent = principal_components(differences, 5, torch.randn(400, 8, generator=generator))
    told = principal_components(differences, 5, (differences.reshape(400, -1) @ basis.T)[:, :3] + 4)
    alone = principal_components(differences, 5).variances
    torch.testing.assert_close(silent.variances.sort(descending=True)[0], alone, rtol=0.05, atol=0)
    assert silent.text.weight.norm() < 0.5
    left = told.variances.sort(descending=True)[0]
    torch.testing.assert_close(left[:2].sqrt(), DEVIATIONS[3:], rtol=0.15, atol=0)  # the two it does not tell
    assert left[2] < 0.01
    assert told.text.weight @ torch.full((3,), 4.0) + told.text.offset == pytest.approx(torch.zeros(5), abs=1)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.95])
def test_the_estimate_has_the_least_error_and_states_it(basis, t):
    volumes = gaussian_volumes(basis, 2000, 5)
    known = PrincipalComponents(basis.reshape(5, *SHAPE), DEVIATIONS**2, torch.full((2,), REST**2))
    signal = alpha_bar(torch.full((2000,), t))
    noise = torch.randn(volumes.shape, generator=torch.Generator().manual_seed(6))
    wide = signal[:, None, None, None, None]
    noisy = wide.sqrt() * volumes + (1 - wide).sqrt() * noise
    guess, share = linear_estimate(noisy, signal, torch.full(SHAPE, 0.5), known)
    error = (guess - volumes).square().mean(dim=(0, 2, 3, 4)).sqrt()
    deviation = (volumes - 0.5).square().mean(dim=(0, 2, 3, 4)).sqrt()
    torch.testing.assert_close(error, share[0, :, 0, 0, 0] * deviation, rtol=0.03, atol=0)
    level = (1 - signal[0]) / signal[0]
    least = (DEVIATIONS**2 * level / (DEVIATIONS**2 + level)).sum() + 123 * REST**2 * level / (REST**2 + level)
    torch.testing.assert_close(error.square().mean(), least / 128, rtol=0.08, atol=0)  # of jointly normal variables


def test_an_untrained_network_with_components_is_the_estimate(basis):
    config = UNetConfig(dim=8, mults=(1, 2), init_kernel=3, num_groups=4, mean_volume=True, num_components=5)
    network = UNet(config, channels=2, cond_dim=6, num_tokens=3)
    known = PrincipalComponents(basis.reshape(5, *SHAPE), DEVIATIONS**2, torch.full((2,), REST**2))
    network.set_statistics(torch.full(SHAPE, 0.5), components=known)
    x, tau = torch.randn(2, *SHAPE), torch.tensor([500.0, 990.0])
    guess, share = linear_estimate(x, alpha_bar(tau / 1000), torch.full(SHAPE, 0.5), known)
    with torch.no_grad():
        torch.testing.assert_close(network(x, tau), guess)
        network.data_text_offset = torch.tensor([18.0, 0.0, 0.0, 0.0, 0.0])
        moved = network(x, tau, text=torch.zeros(2, 3, 6))
        torch.testing.assert_close(
            moved, linear_estimate(x, alpha_bar(tau / 1000), torch.full(SHAPE, 0.5) + 18 * known.vectors[0], known)[0]
        )
        network.data_text_offset = torch.zeros(5)
        torch.nn.init.normal_(network.to_volume.weight)
        difference = (network(x, tau) - guess).abs().mean(dim=(2, 3, 4))
    assert (share[0] < share[1]).all() and (difference[0] < difference[1]).all()  # less is left where less is hidden
