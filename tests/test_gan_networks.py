"""WGAN and alpha-GAN: parity numbers of an independent implementation, parameter counts and shapes at full size."""

from __future__ import annotations

import pytest
import torch
from parity import compare_baseline, count, filled, summary, tensor
from torch import Tensor

from medsyn.diffusion.objective import LowResolution
from medsyn.models.batch_norm import use_standing_statistics
from medsyn.models.gan import (
    CodeDiscriminator,
    Encoder,
    Generator,
    alpha_discriminator,
    alpha_encoder,
    kwon_critic,
    wgan_critic,
)

LATENT, TOLERANCE = 24, 2e-4


def latent() -> Tensor:
    return tensor((3, LATENT), 400200, 1.7)


def volumes(size: int) -> Tensor:
    return tensor((3, 1, size, size, size), 400201)


@pytest.mark.parametrize(
    ("size", "specified"),
    [
        (
            64,
            "786432 0.121249 0.426249 0.009561 -0.165259 -0.132831 -0.147348 -0.173705 -0.171783"
            " 0.003339 -0.004508 -0.002791",
        ),
        (
            128,
            "6291456 0.119291 0.263096 0.137419 0.490341 0.658233 0.524106 0.446813 0.468871"
            " 0.033736 0.151645 -0.080257",
        ),
    ],
)
def test_generator(size, specified):
    with torch.no_grad():
        made = filled(Generator(size, LATENT, width=4))(latent())
    compare_baseline(f"alpha-GAN {size}, generator", summary(made), specified, TOLERANCE)


@pytest.mark.parametrize(
    ("size", "specified"), [(64, [-0.444256, 0.106606, 0.036651]), (128, [-0.388506, 0.391902, 0.507989])]
)
def test_discriminator(size, specified):
    with torch.no_grad():
        logits = filled(alpha_discriminator(size, top_width=64))(volumes(size))
    assert logits.shape == (3, 1)
    compare_baseline(f"alpha-GAN {size}, discriminator", logits.flatten().tolist(), specified, TOLERANCE)


@pytest.mark.parametrize(
    ("size", "specified"),
    [
        (
            64,
            "72 0.220266 0.757141 -0.444256 -0.769847 0.808725 -1.245358 -0.968664 0.766627"
            " 0.180956 -0.395043 0.841356",
        ),
        (
            128,
            "72 0.080466 0.651589 -0.388505 0.103894 0.090814 0.217337 -0.087179 -0.124899 -0.197791 1.068416 0.258023",
        ),
    ],
)
def test_encoder(size, specified):
    with torch.no_grad():
        codes = filled(alpha_encoder(size, LATENT, top_width=64))(volumes(size))
    compare_baseline(f"alpha-GAN {size}, encoder", summary(codes), specified, TOLERANCE)


def test_code_discriminator():
    with torch.no_grad():
        logits = filled(CodeDiscriminator(LATENT, 40))(latent())
    compare_baseline(
        "alpha-GAN, code discriminator", logits.flatten().tolist(), [-0.081000, 1.043950, -0.838083], TOLERANCE
    )


@pytest.mark.parametrize(
    ("name", "build", "parameters"),
    [
        ("WGAN 64, generator", lambda: Generator(64, 1000, linear_stem=True), 37_449_280),
        ("WGAN 64, critic", kwon_critic, 11_049_665),
        ("WGAN 128, generator", lambda: Generator(128, 1024), 85_915_200),
        ("WGAN 128, critic", wgan_critic, 3_289_953),
        ("alpha-GAN 64, generator", lambda: Generator(64), 37_416_512),
        ("alpha-GAN 64, discriminator", lambda: alpha_discriminator(64), 11_049_665),
        ("alpha-GAN 64, encoder", lambda: alpha_encoder(64), 43_785_896),
        ("alpha-GAN, code discriminator", CodeDiscriminator, 20_901_889),
        ("alpha-GAN 128, generator", Generator, 84_342_336),
        ("alpha-GAN 128, discriminator", alpha_discriminator, 11_178_849),
        ("alpha-GAN 128, encoder", alpha_encoder, 43_915_080),
    ],
)
def test_number_of_parameters(name, build, parameters):
    with torch.device("meta"):
        network = build()
    compare_baseline(f"{name}: parameters", [count(network)], [parameters], 0)


@pytest.mark.parametrize(("size", "total"), [(64, 113_153_962), (128, 160_338_154)])
def test_number_of_parameters_of_a_whole_alpha_gan(size, total):
    with torch.device("meta"):
        networks = [Generator(size), alpha_discriminator(size), alpha_encoder(size), CodeDiscriminator()]
    compare_baseline(f"alpha-GAN {size}: parameters of all networks", [sum(map(count, networks))], [total], 0)


def test_shapes_at_the_size_of_the_paper():
    """Volumes of 128^3, which are enlarged to 256^3, go through every network."""
    with torch.device("meta"):
        for generator in (Generator(128, 1024), Generator(128, 1000)):
            made = generator(torch.empty(4, generator.latent_dim))
            assert made.shape == (4, 1, 128, 128, 128)
            assert LowResolution(2).enlarge(made).shape == (4, 1, 256, 256, 256)
        assert wgan_critic()(made).shape == (4, 16)
        assert alpha_discriminator()(made).shape == (4, 1)
        code = alpha_encoder()(made)
        assert code.shape == (4, 1000)
        assert CodeDiscriminator()(code).shape == (4, 1)
        assert Generator(64, linear_stem=True)(code).shape == (4, 1, 64, 64, 64)
        assert kwon_critic()(torch.empty(4, 1, 64, 64, 64)).shape == (4, 8)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_critic_keeps_sixteen_slabs_at_any_size(size):
    with torch.device("meta"):
        logits = wgan_critic(size, top_width=128)(Generator(size, 8, width=4)(torch.empty(2, 8)))
    assert logits.shape == (2, 16)


def test_in_evaluation_mode_a_volume_depends_on_its_latent_alone():
    generator = Generator(16, 8, width=4)
    z = tensor((3, 8), 1, 1.7)
    with torch.no_grad():
        generator(z)  # moves the statistics away from 0 and 1
        assert not torch.allclose(generator(z)[:1], generator(z[:1]), atol=1e-2)
        generator.eval()
        assert torch.allclose(generator(z)[:1], generator(z[:1]), atol=1e-6)


@pytest.mark.parametrize("size", [0, 8, 48, -32])
def test_a_size_that_no_number_of_halvings_reaches_is_refused(size):
    for build in (Generator, wgan_critic, kwon_critic, alpha_discriminator, alpha_encoder):
        with pytest.raises(ValueError, match=f"power of two and at least 16, got {size}"):
            build(size)


def test_a_width_that_cannot_be_halved_often_enough_is_refused():
    with pytest.raises(ValueError, match="top_width must be a multiple of 16, got 40"):
        alpha_discriminator(128, top_width=40)


def test_only_the_layers_after_the_first_are_normalised():
    names = {name for name, _ in alpha_discriminator(32, top_width=16).named_parameters()}
    assert {name.split(".")[0] for name in names} == {"conv1", "conv2", "bn2", "conv3", "bn3", "conv4"}
    assert isinstance(alpha_discriminator(32, top_width=16), Encoder)


def test_standing_statistics_are_those_of_the_given_batches_alone():
    torch.manual_seed(0)
    generator = Generator(16, 8, width=4)
    latents = torch.randn(64, 8)
    generator.train()
    generator(30 * latents)  # as codes of an encoder, far from the distribution of sampling
    wrong = generator.eval()(latents)
    use_standing_statistics(generator, latents.split(16))
    assert not generator.training and generator.bn1.momentum == 0.1
    x = generator.tp_conv1(latents[:, :, None, None, None])
    wanted = torch.stack([x[part].mean((0, 2, 3, 4)) for part in torch.arange(64).split(16)]).mean(0)
    torch.testing.assert_close(generator.bn1.running_mean, wanted, atol=1e-6, rtol=1e-5)
    by_batch = generator.train()(latents)
    settled = generator.eval()(latents)
    assert (settled - by_batch).abs().mean() < 0.2 * (wrong - by_batch).abs().mean()
