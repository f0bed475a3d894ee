"""The fast network gives what the plain one gives; the estimate of memory holds; the limits are read."""

from __future__ import annotations

import weakref

import pytest
import torch
from parity import filled_network, inputs, tensor, text_states
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsyn.config import TrainConfig, UNetConfig
from medsyn.diffusion.sampling import guided_denoiser, sample
from medsyn.diffusion.solvers import DDIM, DPMPP_2M
from medsyn.memory import _cgroup_bytes, available_bytes
from medsyn.models.blocks import ConvUnit
from medsyn.models.fast.blocks import conv_unit
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.footprint import forward_bytes
from medsyn.models.fast.normalization import SMALL_GRID
from medsyn.models.fast.unet import FastUNet, PreparedText, set_activation_checkpointing
from medsyn.models.linear_estimate import PrincipalComponents, TextRegression
from medsyn.models.text_features import TokenKinds
from medsyn.models.unet import UNet
from medsyn.training.loop import train
from medsyn.training.task import Task

TOLERANCE = 5e-5  # float32, values of order 1: the parity numbers are met to 1e-4
TAU = 612.0
OPTIONS = [
    {},
    {"up_order": "B", "mults": (2, 1)},  # a level as wide as its input has no residual convolution
    {"patch_size": 2},
    {"sigma_data": 0.3, "add_condition": True},
    {"mask_padding": True, "num_bottom_blocks": 3},
    {"pooled_text": True, "num_bottom_blocks": 2},
    {"mean_volume": True, "sigma_share": 0.5},
    {"mean_volume": True, "num_components": 3},
    {"mean_volume": True, "num_components": 3, "num_text_kinds": 5},
]


def pair(options, text, seed=0):
    """Build the plain and the fast network of one kind with the same random weights."""
    small = {"dim": 8, "mults": (1, 2), "num_heads": 2, "num_groups": 4, "init_kernel": 3}
    only_low_res = {} if text else {"mean_volume": False, "num_components": 0, "num_text_kinds": 0}
    config = UNetConfig(**{**small, **options, **only_low_res})
    shape = {"cond_dim": 6, "num_tokens": 3} if text else {"condition_channels": 4}
    networks = []
    for build in (UNet, FastUNet):
        torch.manual_seed(seed)
        network = build(config, **shape)
        torch.nn.init.normal_(network.to_volume.weight)
        deviations = torch.tensor([0.3, 0.5, 0.2, 1.0])
        components = PrincipalComponents(
            tensor((3, 4, 8, 8, 8), 4) / 45,
            torch.tensor([9.0, 4.0, 1.0]),
            deviations,
            TextRegression(tensor((3, config.num_text_kinds or 6), 5), tensor((3,), 6)) if text else None,
            TokenKinds(tensor((5, 6), 7), tensor((5,), 8)) if config.num_text_kinds else None,
        )
        network.set_statistics(tensor((4, 8, 8, 8), 3), deviations, components)
        networks.append(network)
    plain, fast = networks
    for name, value in plain.state_dict().items():
        assert torch.equal(value, fast.state_dict()[name])  # the same names, and the same start of a training run
    given = {"text": tensor((2, 3, 6), 2)} if text else {"condition": tensor((2, 4, 8, 8, 8), 2)}
    if text:
        given["text"][:, 1] = 0
    return plain, fast, tensor((2, 4, 8, 8, 8), 1, 1.7), given


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_fast_prediction_and_gradients_are_the_plain_ones(options, text):
    """Against the plain network in double precision; as it samples, and as it trains with two times in a batch."""
    plain, fast, x, given = pair(options, text)
    tau = torch.tensor([37.0, 912.5])
    if text:
        given["drop_text"] = torch.tensor([True, False])
    doubled = {name: value if value.dtype == torch.bool else value.double() for name, value in given.items()}
    exact = plain.double()(x.double(), tau.double(), **doubled)
    exact.square().mean().backward()
    with torch.no_grad():
        sampled = fast(x, tau, **given)
    trained = fast(x, tau, **given)
    trained.square().mean().backward()
    for ours in (sampled, trained):
        assert (ours - exact).abs().max() < TOLERANCE
    for (name, parameter), wanted in zip(fast.named_parameters(), plain.parameters(), strict=True):
        error = (parameter.grad - wanted.grad).abs().max() / (1e-3 + wanted.grad.abs().max())
        assert error < 1e-3, name


@pytest.mark.parametrize("order", ["A", "B"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("one_batch", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0, -1.0])
def test_guided_step_is_the_plain_one(scale, one_batch, channels_last, order):
    network = filled_network("low", order, FastUNet)
    network.channels_last = channels_last
    x, text = inputs("low")["x"], text_states()
    with torch.no_grad():
        plain = guided_denoiser(filled_network("low", order), text=text, guidance_scale=scale)(x, TAU)
        fast = prepared_denoiser(network, text=text, guidance_scale=scale, one_batch=one_batch)(x, TAU)
    assert (fast - plain).abs().max() < TOLERANCE * max(1.0, abs(scale))


@pytest.mark.parametrize("one_batch", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_guided_step_of_other_networks_is_the_plain_one(options, one_batch):
    plain, fast, x, given = pair(options, text=True)
    with torch.no_grad():
        wanted = guided_denoiser(plain, **given, guidance_scale=2.0)(x, TAU)
        step = prepared_denoiser(fast, **given, guidance_scale=2.0, one_batch=one_batch)(x, TAU)
    assert (step - wanted).abs().max() < 2 * TOLERANCE


def test_a_step_without_text_is_the_plain_one():
    x = inputs("low")["x"]
    with torch.no_grad():
        plain = guided_denoiser(filled_network("low", "B"))(x, TAU)
        fast = prepared_denoiser(filled_network("low", "B", FastUNet))(x, TAU)
    assert (fast - plain).abs().max() < TOLERANCE


@pytest.mark.parametrize("options", OPTIONS)
def test_super_resolution_step_is_the_plain_one(options):
    plain, fast, x, given = pair(options, text=False)
    with torch.no_grad():
        wanted = guided_denoiser(plain, **given)(x, TAU)
        step = prepared_denoiser(fast, **given)(x, TAU)
    assert (step - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("solver", [DDIM, DPMPP_2M])
def test_whole_sample_is_the_plain_one(solver):
    x, text = inputs("low")["x"], text_states()
    with torch.no_grad():
        reference = guided_denoiser(filled_network("low", "B"), text=text, guidance_scale=2.0)
        plain = sample(solver, reference, x, 5)
        network = filled_network("low", "B", FastUNet)
        fast = sample(solver, prepared_denoiser(network, text=text, guidance_scale=2.0), x, 5)
    assert (fast - plain).abs().max() < 1e-3 and (fast - plain).abs().mean() < 1e-5


def test_keys_work_in_reduced_precision():
    x, text = inputs("low")["x"], text_states()
    network = filled_network("low", "A", FastUNet)
    with torch.no_grad():
        plain = guided_denoiser(filled_network("low", "A"), text=text, guidance_scale=2.0)(x, TAU)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = prepared_denoiser(network, text=text, guidance_scale=2.0)(x, TAU).float()
    assert (fast - plain).abs().mean() < 0.03 * plain.abs().mean()  # bfloat16 holds 8 bits


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("size", "tolerance"), [(16, 2e-5), (64, 1e-5)])
def test_norm_of_small_and_large_volumes_against_double_precision(size, tolerance, shared, mean):
    unit = ConvUnit(4, 8, (1, 3, 3), num_groups=4)
    x = tensor((2, 4, size, size, size), 1, 1.7) + mean
    scale, shift = tensor((2, 1 if shared else 2, 8), 2)
    assert (x[0, 0].numel() <= SMALL_GRID) == (size == 16)
    with torch.no_grad():
        fast = conv_unit(unit, x.contiguous(memory_format=torch.channels_last_3d), scale, shift)
        exact = unit.double()(x.double(), scale.double(), shift.double())
    assert (fast - exact).abs().max() < tolerance


class TypesOfActivations(TorchDispatchMode):
    """Collects the types of what SiLU returns: the activations between the norms, and the embedded time."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.silu, torch.ops.aten.silu_):
            self.types.add(out.dtype)
        return out


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_estimated_memory_is_near_what_lives(config, size, condition, dtype):
    """The estimate is no less than what is counted, on tensors without data for large networks, and not far more."""
    with torch.device("meta" if len(config.mults) == 4 else "cpu"):
        network = FastUNet(config, condition_channels=condition, cond_dim=None if condition else 768).eval().to(dtype)
        given = {"condition": torch.zeros(1, condition, *size)} if condition else {}
        x, tau = torch.zeros(1, 4, *size), torch.zeros(1)
        with torch.no_grad(), PeakOfTensors(network.parameters()) as counted:
            assert network(x, tau, **given).dtype == torch.float32
    estimate = forward_bytes(network, size, dtype.itemsize)
    assert counted.peak <= estimate <= 2.5 * counted.peak


@pytest.mark.parametrize("kind", ["low", "sr"])
def test_weights_of_half_the_size_give_the_same_step_up_to_their_rounding(kind):
    """And nothing between two norms is float32, which would take the memory that the small weights save."""
    network = filled_network(kind, "A", FastUNet)
    text = {"text": text_states()} if kind == "low" else {}
    given = {name: value for name, value in inputs(kind).items() if name not in ("x", "tau")}
    x = inputs(kind)["x"]
    with torch.no_grad():
        exact = network(x, torch.full((2,), TAU), **text, **given)
        network.to(torch.bfloat16)
        with TypesOfActivations() as seen:
            rounded = prepared_denoiser(network, **text, **given)(x, TAU)
    assert seen.types == {torch.bfloat16} and rounded.dtype == torch.float32
    error = (rounded - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.03, error


def test_activations_of_mixed_precision_training_are_half_the_size():
    network = filled_network("low", "A", FastUNet).train()
    with torch.autocast("cpu", torch.bfloat16), TypesOfActivations() as seen:
        network(**inputs("low"), text=text_states()).square().mean().backward()
    assert seen.types == {torch.bfloat16}
    assert all(p.grad.dtype == torch.float32 for p in network.parameters() if p.grad is not None)


def test_masked_padding_is_not_attended_to():
    """Zero states, as text.mask_padding leaves them: with the mask their number does not matter, without it does."""
    network, reference = filled_network("low", "A", FastUNet), filled_network("low", "A")
    text = text_states()
    text[:, 20:] = 0
    with torch.no_grad():
        padded = network(**inputs("low"), text=text)
        for block in [*network.bottom, *reference.bottom]:
            block.cross_attention.mask_padding = True
        masked = network(**inputs("low"), text=text)
        prepared = network.prepare_text(text)
        keys = PreparedText(tuple((k[:, :, :20], v[:, :, :20], None) for k, v, _ in prepared.keys))
        short = network(**inputs("low"), text=keys)
        guided = prepared_denoiser(network, text=text, guidance_scale=2.0, one_batch=False)(inputs("low")["x"], TAU)
        plain = guided_denoiser(reference, text=text, guidance_scale=2.0)(inputs("low")["x"], TAU)
    assert (masked - short).abs().max() < TOLERANCE < (masked - padded).abs().max()
    assert (guided - plain).abs().max() < 2 * TOLERANCE


def test_memory_of_this_host_and_of_a_limited_job(tmp_path):
    assert 1 << 20 < available_bytes(torch.device("cpu")) < 1 << 50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert _cgroup_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_bytes(tmp_path) == 1 << 62 == _cgroup_bytes(tmp_path / "absent")


def test_compiled_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Mixed precision, activation checkpointing; captured by the compiler with its plain backend. Names stay."""
    original, compiled = torch.nn.Module.compile, []

    def plain_backend(network):
        compiled.append(network)
        original(network, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", plain_backend)
    text = text_states()

    def build():
        return set_activation_checkpointing(filled_network("low", "A", FastUNet), True)

    def loss(network, batch):
        return network(**batch, text=text).square().mean()

    task = Task("toy", build, lambda _step, _slots: inputs("low"), loss)
    weights = []
    for flag in (False, True):
        config = TrainConfig(num_steps=2, batch_size=2, micro_batch_size=2, precision="bf16", compile=flag)
        weights.append(train(task, config, tmp_path / str(flag)).network.state_dict())
    assert len(compiled) == 1 and set(weights[0]) == set(weights[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)
