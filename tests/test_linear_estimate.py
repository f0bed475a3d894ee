"""The best linear guess of a clean volume by principal components."""

from __future__ import annotations

import pytest
import torch

from medsyn.config import UNetConfig
from medsyn.diffusion.schedule import alpha_bar
from medsyn.models.linear_estimate import PrincipalComponents, linear_estimate, principal_components
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
    torch.testing.assert_close(found.rest.sqrt(), torch.full((2,), REST), rtol=0.03, atol=0)  # 123 of 128 directions


def test_the_rest_of_few_volumes_is_that_of_others(basis):
    few, others = gaussian_volumes(basis, 12, 3), gaussian_volumes(basis, 2000, 4)
    found = principal_components(few - few.mean(dim=0), 5)
    beyond = others - few.mean(dim=0)
    rows = beyond.reshape(len(others), -1)
    vectors = found.vectors.reshape(5, -1)
    left = (rows - rows @ vectors.T @ vectors).square().mean()
    assert 0.4 < found.rest.mean() / left < 2.5  # without the correction a quarter


@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.95])
def test_the_guess_has_the_least_error_and_states_it(basis, t):
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


def test_an_untrained_network_with_components_is_the_guess(basis):
    config = UNetConfig(dim=8, mults=(1, 2), init_kernel=3, num_groups=4, mean_volume=True, num_components=5)
    network = UNet(config, channels=2, cond_dim=6, num_tokens=3)
    known = PrincipalComponents(basis.reshape(5, *SHAPE), DEVIATIONS**2, torch.full((2,), REST**2))
    network.set_statistics(torch.full(SHAPE, 0.5), components=known)
    x, tau = torch.randn(2, *SHAPE), torch.tensor([500.0, 990.0])
    guess, share = linear_estimate(x, alpha_bar(tau / 1000), torch.full(SHAPE, 0.5), known)
    with torch.no_grad():
        torch.testing.assert_close(network(x, tau), guess)
        torch.nn.init.normal_(network.to_volume.weight)
        difference = (network(x, tau) - guess).abs().mean(dim=(2, 3, 4))
    assert (share[0] < share[1]).all() and (difference[0] < difference[1]).all()  # less is left where less is hidden
