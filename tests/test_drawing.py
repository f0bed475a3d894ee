"""The prepared denoiser gives what the plain one gives; the estimate of memory holds; the limits are read."""

from __future__ import annotations

import weakref

import pytest
import torch
from parity import filled_network, inputs, tensor, text_states
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsyn.config import TrainConfig, UNetConfig
from medsyn.diffusion.samplers import ddim, dpmpp_2m, guided_denoiser
from medsyn.memory import _cgroup_bytes, available_bytes
from medsyn.models import blocks
from medsyn.models.blocks import ConvUnit
from medsyn.models.drawing import prepared_denoiser
from medsyn.models.footprint import forward_bytes
from medsyn.models.unet import UNet
from medsyn.training.loop import Task, train

TOLERANCE = 5e-5  # float32, values of order 1: the parity numbers are met to 1e-4
TAU = torch.full((2,), 612.0)


@pytest.mark.parametrize("order", ["A", "B"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("one_batch", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0, -1.0])
def test_guided_step_is_the_plain_one(scale, one_batch, channels_last, order):
    network = filled_network("low", order).eval()
    network.channels_last = False
    x, text = inputs("low")["x"], text_states()
    with torch.no_grad():
        plain = guided_denoiser(network, text=text, guidance_scale=scale)(x, TAU)
        network.channels_last = channels_last
        fast = prepared_denoiser(network, text=text, guidance_scale=scale, one_batch=one_batch)(x, TAU)
    assert (fast - plain).abs().max() < TOLERANCE * max(1.0, abs(scale))


def test_a_step_without_text_is_the_plain_one():
    network = filled_network("low", "B").eval()
    x = inputs("low")["x"]
    with torch.no_grad():
        plain, fast = guided_denoiser(network)(x, TAU), prepared_denoiser(network)(x, TAU)
    assert (fast - plain).abs().max() < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"patch_size": 2}, {"sigma_data": 0.3, "add_condition": True}])
def test_super_resolution_step_is_the_plain_one(options):
    config = UNetConfig(dim=8, mults=(1, 2), num_heads=2, num_groups=4, init_kernel=3, num_bottom_blocks=1, **options)
    torch.manual_seed(0)
    network = UNet(config, condition_channels=4).eval()
    torch.nn.init.normal_(network.to_volume.weight)
    x, condition = tensor((2, 4, 8, 8, 8), 1, 1.7), tensor((2, 4, 8, 8, 8), 2)
    with torch.no_grad():
        network.channels_last = False
        plain = guided_denoiser(network, condition=condition)(x, TAU)
        network.channels_last = True
        fast = prepared_denoiser(network, condition=condition)(x, TAU)
    assert (fast - plain).abs().max() < TOLERANCE


def test_mults_that_fall_are_drawn_too():
    """A level whose input is as wide as its output has no residual convolution to split."""
    network = UNet(UNetConfig(dim=8, mults=(2, 1), num_heads=2), cond_dim=6, num_tokens=3).eval()
    x, text = tensor((2, 4, 4, 8, 8), 1, 1.7), tensor((2, 3, 6), 2)
    with torch.no_grad():
        plain = guided_denoiser(network, text=text, guidance_scale=2.0)(x, TAU)
        fast = prepared_denoiser(network, text=text, guidance_scale=2.0)(x, TAU)
    assert (fast - plain).abs().max() < TOLERANCE


@pytest.mark.parametrize("solver", [ddim, dpmpp_2m])
def test_whole_draw_is_the_plain_one(solver):
    network = filled_network("low", "B").eval()
    x, text = inputs("low")["x"], text_states()
    with torch.no_grad():
        plain = solver(guided_denoiser(network, text=text, guidance_scale=2.0), x, 5)
        fast = solver(prepared_denoiser(network, text=text, guidance_scale=2.0), x, 5)
    assert (fast - plain).abs().max() < 1e-3 and (fast - plain).abs().mean() < 1e-5


def test_keys_work_in_reduced_precision():
    network = filled_network("low", "A").eval()
    x, text = inputs("low")["x"], text_states()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = guided_denoiser(network, text=text, guidance_scale=2.0)(x, TAU).float()
        fast = prepared_denoiser(network, text=text, guidance_scale=2.0)(x, TAU).float()
    assert (fast - plain).abs().mean() < 0.03 * plain.abs().mean()  # bfloat16 holds 8 bits


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("shared", [True, False])
def test_norm_of_small_volumes_against_double_precision(mean, shared):
    unit = ConvUnit(4, 8, (1, 3, 3), num_groups=4).eval()
    x = tensor((2, 4, 16, 16, 16), 1, 1.7) + mean
    scale, shift = tensor((2, 1 if shared else 2, 8), 2)
    assert x[0, 0].numel() <= blocks._SMALL_GRID
    with torch.no_grad():
        fast = unit(x.contiguous(memory_format=torch.channels_last_3d), scale, shift)
        exact = unit.double()(x.double(), scale.double(), shift.double())
    assert (fast - exact).abs().max() < 2e-5


class PeakOfTensors(TorchDispatchMode):
    """Counts the bytes of the storages alive that were made under it."""

    def __init__(self, weights) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def free(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize(
    ("config", "size", "condition"),
    [
        (UNetConfig(dim=160, mults=(1, 2, 4, 8), num_heads=8), (64, 64, 64), 0),
        (UNetConfig(dim=56, mults=(1, 2, 4, 8), num_heads=4, num_bottom_blocks=1), (256, 256, 256), 4),
        (UNetConfig(dim=8, mults=(1, 4, 8), init_kernel=3, num_groups=4), (16, 16, 16), 0),
        (UNetConfig(dim=32, mults=(1, 2), init_kernel=1, patch_size=4), (64, 64, 64), 4),
    ],
)
def test_estimated_memory_is_near_what_lives(config, size, condition):
    """The estimate is no less than what is counted, on tensors without data for large networks, and not far more."""
    with torch.device("meta" if len(config.mults) == 4 else "cpu"):
        network = UNet(config, condition_channels=condition, cond_dim=None if condition else 768).eval()
        given = {"condition": torch.zeros(1, condition, *size)} if condition else {}
        x, tau = torch.zeros(1, 4, *size), torch.zeros(1)
        with torch.no_grad(), PeakOfTensors(network.parameters()) as counted:
            network(x, tau, **given)
    estimate = forward_bytes(network, size, 4)
    assert counted.peak <= estimate <= 2.5 * counted.peak


def test_memory_of_this_host_and_of_a_limited_job(tmp_path):
    assert 1 << 20 < available_bytes(torch.device("cpu")) < 1 << 50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert _cgroup_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_bytes(tmp_path) == 1 << 62 == _cgroup_bytes(tmp_path / "absent")


def test_compiled_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Captured by the compiler with its plain backend; the names of the weights stay as they are."""
    original, compiled = torch.nn.Module.compile, []

    def plain_backend(network):
        compiled.append(network)
        original(network, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", plain_backend)
    task = Task(
        name="toy",
        build=lambda: torch.nn.Linear(3, 2),
        batch=lambda step, slots: tensor((len(slots), 3), step),
        loss=lambda network, batch: network(batch).square().mean(),
    )
    weights = []
    for flag in (False, True):
        config = TrainConfig(num_steps=4, batch_size=2, micro_batch_size=2, compile=flag)
        weights.append(train(task, config, tmp_path / str(flag)).network.state_dict())
    assert len(compiled) == 1 and set(weights[0]) == set(weights[1]) == {"weight", "bias"}
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-6)
