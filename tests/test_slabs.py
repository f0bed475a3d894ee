"""A network computed in slabs of slices gives what the whole volume gives, with less memory."""

from __future__ import annotations

import pytest
import torch
from parity import tensor

from medsyn.config import SamplingConfig, UNetConfig
from medsyn.errors import InputError
from medsyn.live_bytes import META, CudaRules, LiveBytes
from medsyn.methods.sampling_plan import plan_sampling
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.footprint import forward_bytes
from medsyn.models.fast.unet import FastUNet
from medsyn.training.cost import GIB

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


@pytest.mark.parametrize("order", ["A", "B"])
def test_float32_slabs_held_in_16_bits_are_nearer_to_float32_than_16_bits_throughout(order):
    built = network(order)
    exact, _ = steps(built, 4, 13)
    built.slab_stored = torch.bfloat16
    _, held = steps(built, 4, 13)
    whole, _ = steps(network(order, dtype=torch.bfloat16), 4, 13)
    assert held.dtype == torch.float32
    errors = [float((found - exact).square().mean().sqrt() / exact.std()) for found in (held, whole)]
    assert 1e-4 < errors[0] < errors[1], errors


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


def paper(order="B"):
    """Build the paper's two networks without data."""
    sizes = {"mults": (1, 2, 4, 8), "up_order": order}
    with torch.device("meta"):
        low = FastUNet(UNetConfig(dim=160, num_heads=8, **sizes), cond_dim=768)
        high = FastUNet(UNetConfig(dim=56, num_heads=4, num_bottom_blocks=1, **sizes), condition_channels=4)
    return low.eval(), high.eval()


@pytest.mark.parametrize("order", ["A", "B"])
def test_estimate_of_slabs_is_near_what_is_counted(order):
    """On tensors without data: the paper's 256^3 in bfloat16 takes 8 to 10 GiB instead of 15."""
    live, (_, high) = LiveBytes(), paper(order)
    high.set_precision(torch.bfloat16)
    high.slab_slices = 64
    with live, CudaRules(), torch.no_grad():
        x = torch.empty(1, 4, 256, 256, 256, device=META)
        prepared_denoiser(high, condition=torch.empty_like(x))(x, TAU)
    estimate = forward_bytes(high, (256, 256, 256), 2, 64)
    assert live.peak < 11.5 * GIB < 14.7 * GIB < forward_bytes(high, (256, 256, 256), 2)
    assert live.peak <= estimate <= 1.5 * live.peak


def plan(gib, **settings):
    return plan_sampling(SamplingConfig(precision="bf16", **settings), paper(), (256, 256, 256), 4, int(gib * GIB))


def test_auto_takes_whole_volumes_or_the_thickest_slabs_that_fit():
    found = [plan(gib).slices for gib in (80, 20, 16, 12)]
    assert found[0] is None and None not in found[1:]
    assert found[1:] == sorted(found[1:], reverse=True) and found[1] > found[-1] >= 8
    assert all(plan(gib).needed <= gib * GIB for gib in (80, 20, 16, 12))


def test_given_slabs_are_taken_and_a_slab_of_the_whole_depth_is_no_slab():
    assert plan(40, tile=24).slices == 24
    assert plan(80, tile=256).slices is None
    assert SamplingConfig.model_validate({"tile": False}).tile == "off"  # YAML's off


def test_the_plan_is_one_line():
    words = plan(16).in_words()
    assert "slabs of" in words and "16.0 GiB are free" in words and "\n" not in words


@pytest.mark.parametrize(
    ("gib", "settings", "words"),
    [
        (14, {"tile": "off"}, "set sampling.tile "),
        (14, {"precision": "fp32"}, "set sampling.precision bf16 with sampling.tile "),
        (4, {}, "use a larger machine"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(gib, settings, words):
    with pytest.raises(InputError, match=words) as caught:
        plan_sampling(SamplingConfig(**{"precision": "bf16", **settings}), paper(), (256, 256, 256), 4, int(gib * GIB))
    message = str(caught.value)
    assert "256 x 256 x 256" in message and f"{gib} GiB are free" in message and "\n" not in message
