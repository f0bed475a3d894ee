"""The network against the parity numbers of the authors' release: sizes, names, outputs, intermediate values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import compare, filled_network, hashed, inputs, text_states

from medsyn.config import UNetConfig, load_config, stage_configs
from medsyn.diffusion.schedule import add_noise, alpha_bar
from medsyn.errors import InputError
from medsyn.models.fast.unet import FastUNet
from medsyn.models.medsyn_keys import from_medsyn_keys, medsyn_names, read_shape, strip_prefixes, to_medsyn_keys
from medsyn.models.unet import UNet, from_patches, to_patches
from medsyn.models.weights import build

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4

# kind, dim, mults, cond_dim, heads -> parameters, keys of the state dict (at mults 2-3-6-8 the first level changes its
# width, so it has a res_conv: two keys more than at 1-2-4-8)
SIZES = [
    ("low", 160, (1, 2, 4, 8), 768, 8, 716_215_684, 377),
    ("low", 16, (1, 2, 4), 768, 4, 2_909_316, 309),
    ("low", 8, (1, 2, 4), 24, 2, 518_404, 309),
    ("low", 64, (2, 3, 6, 8), 768, 8, 143_940_420, 379),
    ("sr", 56, (1, 2, 4, 8), None, 4, 54_307_908, 317),
    ("sr", 16, (1, 2, 4), None, 4, 1_241_476, 249),
    ("sr", 8, (1, 2, 4), None, 2, 322_948, 249),
]

# sha256 of the sorted lines "name shape" of the release's state dicts
LOW_RES_KEYS = "8637ffb58d6f5abab5f8fa97ab4b1ca69315ba1d615e68cf8c70877a0a5f9ad7"
SUPER_RES_KEYS = "93e7f0ef0bcee91ca6456be39c1c12e7780ebe6138b96c1d9103a0a84f031442"

# kind, order, text -> mean, standard deviation, first 8, last 4
OUTPUTS = {
    ("low", "A", True): "0.034213 1.298319 0.545402 1.745416 -0.304369 -0.407971 1.114449 0.051597 -0.615534 -2.349047"
    " 1.082601 -0.479103 0.712570 0.607958",
    ("low", "A", False): "0.033936 1.297240 0.531676 1.799799 -0.266921 -0.342280 1.126828 0.135896 -0.569773 -2.330834"
    " 1.059707 -0.542582 0.748346 0.610790",
    (
        "low",
        "B",
        True,
    ): "-0.151541 1.192538 0.281364 1.966700 -0.312162 -0.525445 1.365707 -0.155452 -0.478422 -2.295501"
    " 0.053243 -0.954977 0.101465 0.465125",
    ("low", "B", False): "-0.151936 1.191133 0.282814 1.968031 -0.301885 -0.544676 1.404630 -0.146217 -0.465652"
    " -2.335394 0.002058 -1.038513 0.117163 0.465307",
    ("sr", "A", False): "0.373046 1.173662 0.321621 0.549283 0.346762 0.587506 0.543565 0.023496 1.374820 -0.053716"
    " 1.270447 1.255092 0.749241 1.179726",
    ("sr", "B", False): "0.212547 1.148442 0.832821 0.969864 -0.208309 0.726427 0.259909 -0.023039 0.903804 -0.293074"
    " 1.349092 1.416535 0.105671 1.223260",
}

# our module -> shape, mean, standard deviation, first 3 (low resolution with text)
INTERMEDIATE_A = {
    "time_mlp.0": ("2x8", "0.296148 0.642103 -0.643538 0.989275 0.079630"),
    "time_mlp": ("2x32", "0.008276 0.426527 -0.794377 0.230889 0.827656"),
    "init_conv": ("2x8x6x16x12", "-0.007692 0.728732 0.189105 0.405612 0.254286"),
    "downs.0.first": ("2x8x6x16x12", "0.190056 0.933595 0.362379 0.855957 0.030240"),
    "downs.0.second": ("2x8x6x16x12", "0.384115 1.064254 0.609561 0.741585 -0.080361"),
    "downs.0.resample": ("2x8x6x8x6", "-0.132294 1.048547 -0.065279 -0.097865 -1.501895"),
    "downs.0.solid": ("2x8x6x8x6", "0.079605 1.190474 -0.205096 0.269628 -1.420550"),
    "downs.1.solid": ("2x16x6x4x3", "0.300814 1.488716 -0.203703 3.247554 -1.118485"),
    "downs.2.solid": ("2x32x6x4x3", "0.653163 1.717385 1.528274 0.814597 0.240815"),
    "bottom_in": ("2x32x6x4x3", "0.857618 1.805144 1.474921 2.002634 0.588496"),
    "attention": ("2x32x6x4x3", "0.853673 1.842621 1.457761 1.914503 0.431291"),
    "bottom.0.cross_attention": ("2x32x6x4x3", "0.839117 1.847254 1.710849 2.027956 0.415162"),
    "bottom.0.solid": ("2x32x6x4x3", "1.048220 1.945239 1.777292 1.886040 0.412700"),
    "bottom.3.solid": ("2x32x6x4x3", "1.450949 2.895093 2.177258 1.051174 -1.126892"),
    "bottom_out": ("2x32x6x4x3", "1.666185 2.972061 2.740050 1.911781 -0.764390"),
    "ups.0.first": ("2x16x6x4x3", "0.515681 2.625210 -2.120774 -0.760199 -1.853173"),
    "ups.0.resample": ("2x16x6x8x6", "0.022285 1.167983 0.801370 -1.415720 0.211873"),
    "ups.0.solid": ("2x16x6x8x6", "0.395395 1.396455 0.688215 -1.264045 0.220053"),
    "ups.1.solid": ("2x8x6x16x12", "0.414963 1.109742 0.243558 -0.770040 0.104434"),
    "ups.2.solid": ("2x8x6x16x12", "0.665349 1.537810 0.621420 -0.240114 0.321268"),
    "head": ("2x8x6x16x12", "0.281751 1.296907 0.194928 -0.398804 -1.266320"),
}
INTERMEDIATE_B = {
    "ups.0.solid": ("2x16x6x4x3", "0.900884 2.726678 -2.448761 -0.529287 -2.400565"),
    "ups.0.resample": ("2x16x6x8x6", "0.034182 1.227987 1.008841 -1.620584 0.033176"),
    "ups.2.solid": ("2x8x6x16x12", "0.622747 1.409454 0.646874 -0.341062 -0.028122"),
}
INTERMEDIATE_SR_A = {
    "init_conv": ("2x8x6x16x12", "-0.012562 0.597490 0.432747 -0.022327 -0.281824"),
    "downs.0.solid": ("2x8x6x8x6", "0.080926 1.168956"),
    "downs.2.solid": ("2x32x6x4x3", "0.632119 1.702986"),
    "attention": ("2x32x6x4x3", "0.799596 1.861861"),
    "bottom.0.solid": ("2x32x6x4x3", "1.003307 1.945166"),
    "bottom_out": ("2x32x6x4x3", "1.214084 2.039537"),
    "ups.0.resample": ("2x16x6x8x6", "-0.002316 0.935248"),
    "ups.0.solid": ("2x16x6x8x6", "0.417234 1.245885"),
    "ups.2.solid": ("2x8x6x16x12", "0.483083 1.517645"),
}


def meta_network(kind, dim, mults, cond_dim, heads):
    config = UNetConfig(dim=dim, mults=mults, num_heads=heads, num_bottom_blocks=4 if kind == "low" else 1)
    with torch.device("meta"):
        return UNet(config, condition_channels=0 if kind == "low" else 4, cond_dim=cond_dim)


def test_hash_rule():
    compare("hash, stream 0", hashed(4, 0), [-0.6660353, -0.17918372, 0.24587787, -0.29354237], 1e-7)
    compare("hash, stream 100001", hashed(4, 100001), [-0.4424624, -0.08540208, 0.98598032, 0.23233386], 1e-7)


@pytest.mark.parametrize(("kind", "dim", "mults", "cond_dim", "heads", "parameters", "keys"), SIZES)
def test_number_of_parameters_and_keys(kind, dim, mults, cond_dim, heads, parameters, keys):
    network = meta_network(kind, dim, mults, cond_dim, heads)
    counted = sum(p.numel() for p in network.parameters())
    names = len(to_medsyn_keys(network.state_dict(), network.config.num_bottom_blocks))
    note = " (see above)" if mults == (2, 3, 6, 8) else ""
    compare(
        f"{kind} {dim}, {'-'.join(map(str, mults))}: parameters, keys{note}", (counted, names), (parameters, keys), 0
    )


@pytest.mark.parametrize(("size", "blocks", "digest"), [(SIZES[0], 4, LOW_RES_KEYS), (SIZES[4], 1, SUPER_RES_KEYS)])
def test_every_name_and_shape_of_the_released_networks(size, blocks, digest):
    state = to_medsyn_keys(meta_network(*size[:5]).state_dict(), blocks)
    lines = sorted(f"{name} {'x'.join(map(str, value.shape))}" for name, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest, lines


@pytest.mark.parametrize(("name", "parameters"), [("low_res", 716_215_684), ("super_res", 54_307_908)])
def test_paper_configuration_builds_the_released_networks(name, parameters):
    stage = stage_configs(load_config(ROOT / "config/paper.yaml"))[f"{name}_medsyn"]
    with torch.device("meta"):
        network = build(stage, 768 if name == "low_res" else None)
    assert sum(p.numel() for p in network.parameters()) == parameters
    state = to_medsyn_keys(network.state_dict(), network.config.num_bottom_blocks)
    released = meta_network(*(SIZES[0] if name == "low_res" else SIZES[4])[:5])
    theirs = to_medsyn_keys(released.state_dict(), released.config.num_bottom_blocks)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in theirs.items()}


def test_names_and_shapes_of_the_released_networks():
    """Spot checks over every family of names, at full size: what the digests above stand for."""
    low = to_medsyn_keys(meta_network(*SIZES[0][:5]).state_dict(), 4)
    high = to_medsyn_keys(meta_network(*SIZES[4][:5]).state_dict(), 1)
    for state, name, shape in (
        (low, "null_cond_emb", (1, 192, 768)),
        (low, "init_conv.weight", (160, 4, 7, 7, 7)),
        (low, "downs.1.3.weight", (320, 320, 1, 4, 4)),
        (low, "downs.3.2.block2.proj.weight", (1280, 1280, 3, 3, 3)),
        (low, "ups.0.0.res_conv.weight", (640, 2560, 1, 1, 1)),
        (low, "mid_spatial_attn4.fn.fn.fn.to_qkv.weight", (768, 1280)),
        (low, "mid_spatial_attn3.fn.norm.gamma", (1, 1280, 1, 1, 1)),
        (low, "mid_cross_attn2.fn.fn.to_q.weight", (256, 1280, 1, 1)),
        (low, "mid_cross_attn2.fn.norm.gamma", (1, 1280, 1, 1, 1)),
        (low, "mid_temporal_attn4.mlp.1.weight", (2560, 640)),
        (low, "final_conv.1.weight", (4, 160, 1, 1, 1)),
        (high, "init_conv0.weight", (56, 8, 7, 7, 7)),
        (high, "downs.0.4.block1.proj.weight", (56, 56, 3, 3, 3)),
        (high, "downs.2.5.weight", (224, 224, 1, 4, 4)),
        (high, "mid_temporal_conv.block1.proj.weight", (448, 448, 3, 3, 3)),
        (high, "mid_spatial_attn.fn.fn.fn.to_out.weight", (448, 128)),
        (high, "final_conv0.0.res_conv.weight", (56, 112, 1, 1, 1)),
    ):
        assert tuple(state[name].shape) == shape
    assert "downs.3.3.weight" not in low and "ups.3.5.weight" not in high


def check(quantity: str, value: torch.Tensor, numbers: str) -> None:
    """`numbers`: mean, standard deviation, then none, the first 3, or the first 8 and the last 4 values."""
    specified = [float(number) for number in numbers.split()]
    flat = value.flatten().tolist()
    ours = [value.mean().item(), value.std(unbiased=False).item(), *flat[: min(len(specified) - 2, 8)]]
    compare(quantity, ours + flat[-4:] if len(specified) == 14 else ours, specified, TOLERANCE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", ["plain", "fast, channels last", "fast, channels first"])
@pytest.mark.parametrize(("kind", "order", "text"), OUTPUTS)
def test_output(kind, order, text, form, training):
    """Of the plain network and of the fast one, as they sample and as they train, where the fast one differs."""
    network = filled_network(kind, order, UNet if form == "plain" else FastUNet)
    network.channels_last = form == "fast, channels last"
    with torch.set_grad_enabled(training):
        output = network(**inputs(kind), text=text_states() if text else None)
    name = f"{kind} {order}{', text' if text else ''}, {form}{', with gradient' if training else ''}"
    check(name, output, OUTPUTS[kind, order, text])


@pytest.mark.parametrize(
    ("kind", "order", "table"),
    [("low", "A", INTERMEDIATE_A), ("low", "B", INTERMEDIATE_B), ("sr", "A", INTERMEDIATE_SR_A)],
)
def test_intermediate_values(kind, order, table):
    network = filled_network(kind, order)
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        def hook(_module, _arguments, output):
            if name not in seen:  # the shared attention is called once per block
                seen[name] = output.clone()

        return hook

    for name in table:
        network.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        network(**inputs(kind), text=text_states() if kind == "low" else None)
    for name, (shape, numbers) in table.items():
        assert "x".join(map(str, seen[name].shape)) == shape, name
        check(f"{kind} {order} after `{name}`", seen[name], numbers)


def test_text_drop_is_per_sample():
    network = filled_network("low", "A")
    with torch.no_grad():
        mixed = network(**inputs("low"), text=text_states(), drop_text=torch.tensor([True, False]))
        with_text, without = network(**inputs("low"), text=text_states()), network(**inputs("low"))
    assert torch.allclose(mixed[0], without[0], atol=1e-5) and torch.allclose(mixed[1], with_text[1], atol=1e-5)
    assert (with_text[0] - without[0]).abs().max() > 0.01


def test_every_parameter_is_trained():
    for kind in ("low", "sr"):
        network = filled_network(kind, "A").train()
        text = {"text": text_states(), "drop_text": torch.tensor([True, False])} if kind == "low" else {}
        network(**inputs(kind), **text).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_slices_do_not_attend_to_each_other():
    network = filled_network("low", "A")
    x = torch.randn(1, 32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 1] += 1 + x[:, :, 2]
    norm = network.bottom[0].norm
    with torch.no_grad():
        a, b = network.attention(x, norm), network.attention(changed, norm)
    assert torch.equal(a[:, :, [0, 2]], b[:, :, [0, 2]]) and not torch.allclose(a[:, :, 1], b[:, :, 1])


@pytest.mark.parametrize("kind", ["low", "sr"])
def test_checkpoints_of_the_release_round_trip(kind):
    network = filled_network(kind, "B")
    blocks = network.config.num_bottom_blocks
    theirs = {f"module.denoise_fn.{k}": v for k, v in to_medsyn_keys(network.state_dict(), blocks).items()}
    theirs["module.betas"] = torch.zeros(3)  # stale schedule buffer of older releases
    config, arguments = read_shape(strip_prefixes(theirs), "B")
    twin = UNet(config, **arguments)
    assert config == network.config and twin.condition_channels == network.condition_channels
    twin.load_state_dict(from_medsyn_keys(theirs, twin))
    with torch.no_grad():
        assert torch.equal(twin(**inputs(kind)), network(**inputs(kind)))
    for damage in ("missing", "extra", "shape"):
        broken = strip_prefixes(theirs)
        name = sorted(broken)[5]
        if damage == "missing":
            del broken[name]
        elif damage == "extra":
            broken["unknown.weight"] = torch.zeros(1)
        else:
            broken[name] = torch.zeros(1, 2, 3)
        with pytest.raises(InputError):
            from_medsyn_keys(broken, twin)


def test_wrong_arguments_are_refused():
    network = filled_network("sr", "A")
    with pytest.raises(ValueError, match="condition"):
        network(inputs("sr")["x"], inputs("sr")["tau"])
    with pytest.raises(ValueError, match="text states"):
        filled_network("low", "A")(**inputs("low"), text=text_states()[:, :10])
    with pytest.raises(ValueError, match="one bottom block"):
        medsyn_names(network.state_dict(), 2)


def test_tall_volumes_run_and_depth_is_kept():
    network = filled_network("low", "B")
    x = torch.from_numpy(hashed(4 * 5 * 8 * 8, 3)).float().reshape(1, 4, 5, 8, 8)
    with torch.no_grad():
        assert network(x, torch.tensor([3.0])).shape == x.shape
    assert np.isfinite(network(x, torch.tensor([999.0])).detach().numpy()).all()


def test_add_condition_starts_from_the_condition_and_adds_it_to_the_output():
    x, tau, condition = torch.randn(1, 4, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 4, 4, 8, 8)
    network = UNet(UNetConfig(dim=8, mults=(1, 2), init_kernel=3, add_condition=True), condition_channels=4)
    with torch.no_grad():
        torch.testing.assert_close(network(x, tau, condition=condition), condition)
        network.to_volume.bias.fill_(0.5)
        torch.testing.assert_close(network(x, tau, condition=condition), condition + 0.5)


def test_patches_are_inverted_and_hold_their_voxels():
    x = torch.arange(2 * 3 * 4 * 8 * 6, dtype=torch.float32).view(2, 3, 4, 8, 6)
    patches = to_patches(x, 2)
    assert patches.shape == (2, 24, 2, 4, 3)
    assert set(patches[1, :8, 1, 2, 0].tolist()) == set(x[1, 0, 2:4, 4:6, 0:2].flatten().tolist())
    assert torch.equal(from_patches(patches, 2), x)


def test_a_network_over_patches_predicts_the_whole_grid():
    network = UNet(UNetConfig(dim=8, mults=(1, 2), init_kernel=1, patch_size=4), condition_channels=4)
    x, condition = torch.randn(1, 4, 8, 16, 24), torch.randn(1, 4, 8, 16, 24)
    assert network.init_conv.in_channels == 8 * 64
    assert network(x, torch.tensor([300.0]), condition=condition).shape == x.shape


@pytest.mark.parametrize("add_condition", [False, True])
def test_sigma_data_keeps_what_the_noise_does_not_hide(add_condition):
    config = UNetConfig(dim=8, mults=(1, 2), init_kernel=3, sigma_data=0.5, add_condition=add_condition)
    network = UNet(config, condition_channels=4)
    torch.nn.init.ones_(network.to_volume.weight)
    bare = UNet(config.model_copy(update={"sigma_data": None, "add_condition": False}), condition_channels=4)
    bare.load_state_dict(network.state_dict())
    x0, noise, condition = torch.rand(3, 2, 4, 4, 8, 8).unbind(0)
    clean, hidden = (torch.full((2,), t) for t in (0.0, 1.0))
    with torch.no_grad():
        output = bare(x0, clean, condition=condition)
        kept = network(add_noise(x0, noise, clean), 1000 * clean, condition=condition)
        predicted = network(noise, 1000 * hidden, condition=condition)
        plain = bare(noise, 1000 * hidden, condition=condition)
    assert (kept - x0).abs().max() < 0.03 * (1 + output.abs().max())  # sqrt((1 - alpha_bar(0)) / s^2) = 0.025
    expected = plain + condition if add_condition else plain
    torch.testing.assert_close(predicted, expected, atol=0.02, rtol=0.01)


def test_standardize_predicts_differences_from_the_mean_volume_in_standard_deviations():
    network = UNet(UNetConfig(dim=8, mults=(1, 2), init_kernel=3, standardize=True), cond_dim=6, num_tokens=3)
    mean, std = torch.rand(4, 4, 8, 8), torch.tensor([0.3, 0.2, 0.1, 0.05])
    network.set_statistics(mean, std)
    torch.nn.init.zeros_(network.to_volume.weight)
    x0, noise = mean + std[:, None, None, None] * torch.randn(2, 4, 4, 8, 8), torch.randn(2, 4, 4, 8, 8)
    clean, hidden = torch.zeros(2), torch.ones(2)
    with torch.no_grad():
        network.to_volume.bias.fill_(0.0)
        assert (network(add_noise(x0, noise, clean), 1000 * clean) - x0).abs().max() < 0.1
        torch.testing.assert_close(network(noise, 1000 * hidden), mean.expand(2, -1, -1, -1, -1), atol=0.02, rtol=0)
        network.to_volume.bias.fill_(1.0)
        one_more = (mean + std[:, None, None, None]).expand(2, -1, -1, -1, -1)
        torch.testing.assert_close(network(noise, 1000 * hidden), one_more, atol=0.02, rtol=0)


def test_without_a_network_standardize_is_the_best_linear_denoiser_of_each_channel():
    network = UNet(UNetConfig(dim=8, mults=(1, 2), init_kernel=3, standardize=True))
    mean, std = torch.rand(4, 16, 16, 16), torch.tensor([0.5, 0.2, 0.1, 0.05])
    network.set_statistics(mean, std)
    torch.nn.init.zeros_(network.to_volume.weight)
    torch.nn.init.zeros_(network.to_volume.bias)
    t = torch.tensor([0.4])
    x0 = mean + std[:, None, None, None] * torch.randn(1, 4, 16, 16, 16)
    with torch.no_grad():
        error = (network(add_noise(x0, torch.randn_like(x0), t), 1000 * t) - x0).square().mean(dim=(0, 2, 3, 4))
    signal = alpha_bar(t)
    least = std**2 * (1 - signal) / (signal * std**2 + 1 - signal)  # of jointly normal variables
    torch.testing.assert_close(error, least, rtol=0.1, atol=0)


def test_pooled_text_is_the_mean_over_the_tokens_that_are_not_padding():
    network = UNet(UNetConfig(dim=8, mults=(1, 2), init_kernel=3, pooled_text=True), cond_dim=6, num_tokens=3)
    text = torch.randn(2, 3, 6)
    text[1, 2] = 0
    pooled = network.pooled_text(text)
    torch.testing.assert_close(pooled[0], network.text_mlp(text[0].mean(0)))
    torch.testing.assert_close(pooled[1], network.text_mlp(text[1, :2].mean(0)))
    assert network.pooled_text(torch.zeros(1, 3, 6)).isfinite().all()
    assert UNet(UNetConfig(dim=8, mults=(1, 2), init_kernel=3), cond_dim=6, num_tokens=3).pooled_text(text) is None
