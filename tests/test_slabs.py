"""A network computed in slabs of slices gives what the whole volume gives, with less memory."""

from __future__ import annotations

import pytest
import torch
from parity import tensor

from medsyn.config import UNetConfig
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.unet import FastUNet

TAU = 612.0


def network(order="A", text=False, dtype=torch.float32, **options):
    """Build a network whose group norms see different moments in every slab."""
    torch.manual_seed(0)
    small = {"dim": 8, "mults": (1, 2, 2), "num_heads": 2, "num_groups": 4, "init_kernel": 7, "up_order": order}
    shape = {"cond_dim": 6, "num_tokens": 3} if text else {}
    built = FastUNet(UNetConfig(**{**small, **options}), condition_channels=4, **shape).eval()
    torch.nn.init.normal_(built.to_volume.weight)
    built.set_precision(dtype)
    return built


def steps(built, slices, depth, batch=1, text=None, scale=1.0):
    """One denoising step of the whole volume and of the same in slabs; the content changes along the depth."""
    ramp = torch.linspace(-2, 3, depth)[:, None, None]
    x, condition = (tensor((batch, 4, depth, 8, 8), seed, 1.7) + ramp for seed in (1, 2))
    results = []
    for chosen in (None, slices):
        built.slab_slices = chosen
        denoiser = prepared_denoiser(built, condition=condition, text=text, guidance_scale=scale)
        with torch.no_grad():
            results.append(denoiser(x, TAU))
    return results


@pytest.mark.parametrize("order", ["A", "B"])
@pytest.mark.parametrize(("depth", "slices"), [(12, 1), (12, 3), (13, 4), (16, 8), (5, 7), (1, 1), (9, 8)])
def test_slabs_are_the_whole_volume(order, depth, slices):
    whole, slabs = steps(network(order), slices, depth)
    assert (slabs - whole).abs().max() < 2e-5 * whole.abs().max()


@pytest.mark.parametrize("options", [{"patch_size": 2}, {"add_condition": True, "sigma_data": 0.3}, {"init_kernel": 1}])
@pytest.mark.parametrize("channels_last", [True, False])
def test_other_networks_and_batches(options, channels_last):
    built = network(**options)
    built.channels_last = channels_last
    whole, slabs = steps(built, 3, 12, batch=2)
    assert (slabs - whole).abs().max() < 2e-5 * whole.abs().max()


def test_text_and_guidance():
    whole, slabs = steps(network(text=True), 4, 10, text=tensor((1, 3, 6), 3), scale=2.0)
    assert (slabs - whole).abs().max() < 2e-5 * whole.abs().max()


@pytest.mark.parametrize("order", ["A", "B"])
def test_slabs_in_16_bits_are_as_near_to_float32_as_the_whole(order):
    exact, _ = steps(network(order), 4, 13)
    whole, slabs = steps(network(order, dtype=torch.bfloat16), 4, 13)
    assert slabs.dtype == torch.float32
    errors = [(found - exact).square().mean().sqrt() / exact.std() for found in (whole, slabs)]
    assert errors[1] < 1.2 * errors[0] < 0.05, errors


def test_statistics_of_one_slab_alone_would_be_seen():
    """The norms read the whole volume: the slab of slices 0 to 3 differs if the other slices do not exist."""
    built = network()
    whole, _ = steps(built, 4, 13)
    cut, _ = steps(built, 4, 4)
    assert (whole[:, :, 0] - cut[:, :, 0]).abs().max() > 1e-2 * whole.abs().max()


def test_training_ignores_slabs():
    built = network()
    built.slab_slices = 2
    x = tensor((1, 4, 4, 8, 8), 1)
    built(x, torch.zeros(1), condition=x).sum().backward()
    assert all(p.grad is not None for p in built.parameters())
