"""HA-GAN: parity with the authors' networks, sizes, spectral normalisation, and the mended defects."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from parity import compare, hashed, tensor
from torch import Tensor, nn

from medsyn.models.fast.sixteen_bits import GroupNorm
from medsyn.models.hagan import (
    HaganDiscriminator,
    HaganGenerator,
    HaganGlobalEncoder,
    HaganSlabEncoder,
    build_hagan,
)
from medsyn.models.hagan_sizes import HaganSizes
from medsyn.models.spectral_norm import SpectralConv3d, SpectralLinear, spectrally_normalised

TOLERANCE = 2e-4
SLAB, LOW, VOLUME = "slab", "low-resolution volume", "whole volume"
D_OF_GENERATED, D_OF_HASH, E_SLAB, G_OF_E, E_GLOBAL = "D(generated)", "D(hash)", "E^H", "G^H(E^H)", "E^G"
NUMBERS: dict[int, dict[str, str]] = {
    64: {
        SLAB: "65536 -0.017324 0.389821 -0.022576 0.083202 0.082463 0.106694 0.108496 -0.046054"
        " -0.115223 -0.122180 -0.137147",
        LOW: "8192 -0.363655 0.382187 0.110286 0.411885 0.166042 0.314380 0.126467 0.000987"
        " -0.314231 -0.481532 -0.503808",
        D_OF_GENERATED: "0.065271 0.007979",
        D_OF_HASH: "0.087650 -0.052166",
        E_SLAB: "32768 0.385838 0.566543 0.000000 0.486144 0.025753 0.749351 0.880083 0.000000 0 0 0",
        G_OF_E: "65536 0.090300 0.413613 -0.066757 0.022919 -0.003513 0.045836 0.072859 0.036659"
        " -0.121489 -0.131427 -0.088481",
        E_GLOBAL: "48 0.127677 0.735369 -0.095894 0.430644 1.140741 -0.758726 1.020680 -0.072150"
        " 0.868055 1.225492 -1.292501",
        VOLUME: "262144 -0.020065 0.378902 -0.013129 0.026475 0.019281 -0.010016 -0.012938 -0.073510"
        " 0.043433 0.078718 -0.145288",
    },
    128: {
        SLAB: "524288 -0.025583 0.372044 0.050588 0.083648 0.082242 0.065421 0.058779 0.007880"
        " -0.166410 -0.116030 -0.224974",
        LOW: "65536 -0.363131 0.380985 -0.345722 0.133098 0.243860 -0.043349 0.079348 0.136160"
        " -0.514260 -0.537346 -0.349328",
        D_OF_GENERATED: "-0.098866 -0.038849",
        D_OF_HASH: "-0.097760 -0.062028",
        E_GLOBAL: "48 -0.065602 0.618693 -0.351050 0.582858 -0.979002 0.083382 -0.637286 0.121895"
        " -1.285954 0.510125 0.253951",
        VOLUME: "2097152 -0.024524 0.362975 -0.042932 -0.005936 -0.023973 0.007507 -0.000140 0.029588"
        " -0.000664 0.046093 -0.161733",
    },
    256: {
        SLAB: "4194304 -0.032301 0.359640 0.070921 0.074782 0.086492 0.083565 0.083398 0.081550"
        " -0.078900 -0.015470 -0.201043",
        D_OF_GENERATED: "0.018775 0.044953",
        D_OF_HASH: "0.011092 0.116154",
    },
}


def tiny(size: int) -> HaganSizes:
    return HaganSizes(size=size, width=16, latent_dim=24, discriminator_width=64)


def authors_names(network: nn.Module) -> dict[str, str]:
    """Own name of each layer -> the authors' name, which numbers the layers that are left out at small sizes too."""
    layers: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        kind = {GroupNorm: "norm", nn.Linear: "linear", SpectralLinear: "linear"}.get(type(module))
        kind = "conv" if isinstance(module, nn.Conv3d) else kind
        if kind:
            layers.setdefault(f"{name.split('.')[0]} {kind}", []).append(name)
    convolutions: dict[str, tuple[str, int, int]] = {  # prefix, name, number of the last one
        HaganGenerator: {"common": ("", "tp_conv", 5), "high": ("", "tp_conv", 7), "low": ("sub_G.", "tp_conv", 3)},
        HaganDiscriminator: {"slab": ("", "conv", 7), "low": ("sub_D.", "conv", 5)},
        HaganSlabEncoder: {"layers": ("", "conv", 3)},
        HaganGlobalEncoder: {"layers": ("", "conv", 5)},
    }[type(network)]
    names: dict[str, str] = {}
    for part, (prefix, word, last) in convolutions.items():
        own = layers[f"{part} conv"]
        first = last - len(own) + 1
        names |= {name: f"{prefix}{word}{first + i}" for i, name in enumerate(own)}
        names |= {name: f"{prefix}bn{first + i}" for i, name in enumerate(layers.get(f"{part} norm", []))}
    linear = [name for group in ("stem linear", "head linear") for name in layers.get(group, [])]
    return names | {name: f"fc{i}" for i, name in enumerate(linear, start=1)}


def fill_by_rule(network: nn.Module) -> None:
    """Set parameters and left vectors to the hashed values of the authors' sorted names."""
    authors = authors_names(network)
    parameters = {}
    for own, value in network.named_parameters():
        layer, _, kind = own.rpartition(".")
        parameters[f"{authors[layer]}.{kind}"] = value
    with torch.no_grad():
        for rank, (name, value) in enumerate(sorted(parameters.items())):
            v = hashed(value.numel(), rank)
            if name.endswith(".bias"):
                v = 0.1 * v
            elif value.ndim == 1:
                v = 1 + 0.1 * v
            else:
                v = v * np.sqrt(3 * value.shape[0] / value.numel())
            value.copy_(torch.from_numpy(v).float().reshape(value.shape))
    spectral = [(authors[name], m) for name, m in network.named_modules() if hasattr(m, "left")]
    for k, (_, module) in enumerate(sorted(spectral, key=lambda pair: pair[0])):
        module.left.copy_(tensor(tuple(module.left.shape), 400000 + k))


@cache
def outputs(size: int) -> dict[str, Tensor]:
    """What the tiny networks of side `size` give, in the order of the specification and in training mode."""
    networks = build_hagan(tiny(size))
    for network in networks.values():
        fill_by_rule(network)
        network.train()
    g, d, e_slab, e_global = networks.values()
    low, start = size // 4, 3 * size // 8 + 2
    z = tensor((2, 24), 400100, 1.7)
    given_slab = tensor((2, 1, size // 8, size, size), 400101)
    given_low = tensor((2, 1, low, low, low), 400102)
    with torch.no_grad():
        found = dict(zip((SLAB, LOW), g.slab_and_low(z, start), strict=True))
        found[D_OF_GENERATED] = d(found[SLAB], found[LOW], start)
        found[D_OF_HASH] = d(given_slab, given_low, start)
        if size == 64:
            found[E_SLAB] = e_slab(given_slab)
            found[G_OF_E] = g.high(found[E_SLAB])
        if size < 256:  # the specification has no number of the largest
            found[E_GLOBAL] = e_global(tensor((2, 32, low, low, low), 400103))
            found[VOLUME] = g(z[:1])
    return found


@pytest.mark.parametrize(("size", "quantity"), [(size, name) for size, rows in NUMBERS.items() for name in rows])
def test_parity(size: int, quantity: str) -> None:
    """Compare with an independent implementation. At 64^3 there is no form of the authors; the numbers are its own.

    Whoever made the numbers saw one run in about 320 deviate in the generator, on two CPU threads and for an unknown
    reason: repeat a failure, and in float64, before you suspect the code.
    """
    values = outputs(size)[quantity].double().flatten().numpy()
    specified = [float(word) for word in NUMBERS[size][quantity].split()]
    if values.size > 2:
        assert values.size == specified.pop(0)
        values = np.concatenate([[values.mean(), values.std()], values[:6], values[-3:]])
    compare(f"HA-GAN {size}^3, {quantity}", values.tolist(), specified, TOLERANCE)


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        (HaganSizes(size=256), (52_518_210, 7_402_258, 161_152, 19_663_264)),
        (HaganSizes(size=128), (52_518_210, 7_241_442, 161_152, 19_663_168)),
        (HaganSizes(size=64), (52_518_210, 6_592_130, 161_152, 19_400_832)),
        (tiny(64), (5_143_842, 106_322, 40_896, 852_568)),
        (tiny(128), (5_143_842, 115_806, 40_896, 918_200)),
        (tiny(256), (5_143_842, 117_988, 40_896, 918_248)),
    ],
)
def test_numbers_of_parameters(sizes: HaganSizes, counts: tuple[int, ...]) -> None:
    with torch.device("meta"):
        found = [count(network) for network in build_hagan(sizes).values()]
    compare(f"HA-GAN {sizes.size}^3, width {sizes.width}: parameters of G, D, E^H, E^G", found, counts, 0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_numbers_of_parameters_of_the_low_resolution_parts() -> None:
    with torch.device("meta"):
        assert count(HaganGenerator(HaganSizes()).low) == 69_697
        assert count(HaganDiscriminator(HaganSizes()).low) == 2_771_425


@pytest.mark.parametrize("size", [64, 128, 256])
def test_shapes_at_the_papers_widths(size: int) -> None:
    slices, low = size // 8, size // 4
    with torch.device("meta"):
        g, d, e_slab, e_global = build_hagan(HaganSizes(size=size)).values()
        z, volume = torch.zeros(2, 1024), torch.zeros(2, 1, size, size, size)
        features = g.features(z)
        slab, low_volume = g.slab_and_low(z, 7 * size // 8)
        assert features.shape == e_slab.volume(volume).shape == (2, 64, low, low, low)
        assert slab.shape == (2, 1, slices, size, size)
        assert low_volume.shape == (2, 1, low, low, low)
        assert d(slab, low_volume, 0).shape == (2,)
        assert e_slab(slab).shape == (2, 64, slices // 4, low, low)
        assert e_global(features).shape == z.shape
        assert g(z[:1]).shape == (1, 1, size, size, size)


@pytest.mark.parametrize("layer", [SpectralLinear(9, 6), SpectralConv3d(3, 6, (2, 4, 4), (2, 2, 2), (0, 1, 1))])
def test_spectral_norm_divides_by_the_largest_singular_value(layer: nn.Module) -> None:
    x = tensor((2, 9), 1) if isinstance(layer, nn.Linear) else tensor((2, 3, 4, 4, 4), 1)
    with torch.no_grad():
        for _ in range(500):
            layer(x)
        out = layer.eval()(x)
        sigma = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        plain = nn.Linear(9, 6) if isinstance(layer, nn.Linear) else nn.Conv3d(3, 6, (2, 4, 4), 2, (0, 1, 1))
        plain.weight.copy_(layer.weight / sigma)
        plain.bias.copy_(layer.bias)
        torch.testing.assert_close(out, plain(x), rtol=1e-3, atol=1e-4)


def test_spectral_norm_is_in_float32_under_autocast() -> None:
    layer = SpectralLinear(64, 32).eval()
    exact = spectrally_normalised(layer.weight, layer.left, store=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spectrally_normalised(layer.weight, layer.left, store=False), exact)
        assert layer(torch.zeros(1, 64)).dtype == torch.bfloat16


def test_only_training_mode_stores_the_vector_of_the_iteration() -> None:
    """Evaluation mode makes the iteration too, but from the same vector every time."""
    torch.manual_seed(0)
    layer, x = SpectralLinear(9, 6), torch.randn(4, 9)
    before = layer.left.clone()
    trained = layer.train()(x)
    layer.left.copy_(before)
    layer.eval()
    assert torch.equal(layer(x), trained)
    assert torch.equal(layer(x), trained)
    assert torch.equal(layer.left, before)
    layer.train()(x)
    assert not torch.equal(layer.left, before)
    assert layer.left.norm().item() == pytest.approx(1, abs=1e-6)


def test_the_gradient_of_spectral_norm_takes_sigma_as_a_function_of_the_weight_alone() -> None:
    torch.manual_seed(0)
    layer, x = SpectralLinear(5, 3).double().eval(), torch.randn(4, 5).double()
    layer(x).square().sum().backward()
    with torch.no_grad():
        right = nn.functional.normalize(layer.left @ layer.weight)
        new_left = nn.functional.normalize(right @ layer.weight.T)

    def plain(weight: Tensor) -> Tensor:
        sigma = (new_left @ weight @ right.T).squeeze()
        return nn.functional.linear(x, weight / sigma, layer.bias.detach()).square().sum()

    expected = torch.autograd.functional.jacobian(plain, layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, expected)


def test_the_slab_begins_at_the_multiple_of_4_below_its_start() -> None:
    generator = HaganGenerator(tiny(64)).eval()
    z = tensor((1, 24), 1, 1.7)
    with torch.no_grad():
        slabs = [generator.slab_and_low(z, start)[0] for start in (24, 26, 27, 28)]
    assert torch.equal(slabs[0], slabs[1])
    assert torch.equal(slabs[0], slabs[2])
    assert not torch.equal(slabs[0], slabs[3])


def test_a_whole_volume_differs_from_slabs_most_at_their_ends() -> None:
    """A property of the authors' networks (see `HaganGenerator.forward`), not of a mistake in the place of the slab."""
    generator = HaganGenerator(tiny(128))
    fill_by_rule(generator)
    z = tensor((2, 24), 400100, 1.7)[:1]
    with torch.no_grad():
        slab = generator.slab_and_low(z, 48)[0]
        gap = (generator(z)[:, :, 48:64] - slab).abs().amax(dim=(0, 1, 3, 4))
    assert gap[3:-3].max() < 0.4
    assert min(gap[:3].max(), gap[-3:].max()) > 0.6


def test_the_discriminator_sees_slab_low_resolution_and_place_and_takes_one_sample() -> None:
    torch.manual_seed(0)
    discriminator = HaganDiscriminator(tiny(64)).eval()
    slab, low = tensor((2, 1, 8, 64, 64), 1), tensor((2, 1, 16, 16, 16), 2)
    with torch.no_grad():
        logits = discriminator(slab, low, 24)
        for other in (discriminator(-slab, low, 24), discriminator(slab, -low, 24), discriminator(slab, low, 28)):
            assert (other - logits).abs().min() > 1e-6
        torch.testing.assert_close(discriminator(slab[:1], low[:1], 24), logits[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 96}, "size\n +Input should be 64, 128 or 256"),
        ({"width": 24}, "width\n +Input should be a multiple of 16"),
        ({"discriminator_width": 48}, "discriminator_width\n +Input should be a multiple of 32"),
        ({"latent_dim": 0}, "latent_dim\n +Input should be greater than or equal to 1"),
    ],
)
def test_sizes_that_cannot_be_built(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaganSizes(**change)
