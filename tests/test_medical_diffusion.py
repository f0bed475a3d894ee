"""The networks of Medical Diffusion against the parity numbers and the sizes of the public code."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch
from parity import compare_baseline, count, filled, summary, tensor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medsyn.models.latent_unet import LatentUNet
from medsyn.models.patch_discriminator import PatchDiscriminator
from medsyn.models.vqgan import VQGAN, Decoder, Encoder
from medsyn.training.vqgan import VQGANLoss, autoencoder_loss, discriminator_loss

TOLERANCE = 2e-4
ENCODER_NAMES = (
    (r"^first\.", "conv_first.conv."),
    (r"^levels\.(\d)\.0\.", r"conv_blocks.\1.down.conv."),
    (r"^levels\.(\d)\.1\.conv(\d)\.", r"conv_blocks.\1.res.conv\2.conv."),
    (r"^levels\.(\d)\.1\.", r"conv_blocks.\1.res."),
    (r"^norm\.", "final_block.0."),
)
DECODER_NAMES = (
    (r"^last\.", "conv_last.conv."),
    (r"^levels\.(\d)\.0\.conv\.", r"conv_blocks.\1.up.convt."),
    (r"^levels\.(\d)\.([12])\.conv(\d)\.", r"conv_blocks.\1.res\2.conv\3.conv."),
    (r"^levels\.(\d)\.([12])\.", r"conv_blocks.\1.res\2."),
    (r"^norm\.", "final_block.0."),
)
UNET_NAMES = (
    (r"\.spatial\.norm\.", ".2.fn.norm."),
    (r"\.spatial\.", ".2.fn.fn."),
    (r"\.temporal\.norm\.", ".3.fn.norm."),
    (r"\.temporal\.", ".3.fn.fn.fn."),
    (r"\.first\.", ".0."),
    (r"\.second\.", ".1."),
    (r"\.resample\.", ".4."),
    (r"^init_temporal\.norm\.", "init_temporal_attn.fn.norm."),
    (r"^init_temporal\.", "init_temporal_attn.fn.fn.fn."),
    (r"^bottom_in\.", "mid_block1."),
    (r"^bottom_out\.", "mid_block2."),
    (r"^bottom_norm\.", "mid_spatial_attn.fn.norm."),
    (r"^bottom_spatial\.", "mid_spatial_attn.fn.fn.fn."),
    (r"^bottom_temporal\.norm\.", "mid_temporal_attn.fn.norm."),
    (r"^bottom_temporal\.", "mid_temporal_attn.fn.fn.fn."),
    (r"^head\.", "final_conv.0."),
    (r"^to_noise\.", "final_conv.1."),
    (r"^bias\.table\.", "time_rel_pos_bias.relative_attention_bias."),
)
"""How our names of parameters become those of the public code."""


def public_names(network: nn.Module, rules: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return our name of every parameter by its public name, in the order of the public names."""
    names = {}
    for own, _ in network.named_parameters():
        name = own
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        names[name] = own
    return dict(sorted(names.items()))


def check(quantity: str, network: nn.Module, value: torch.Tensor, numbers: str, parameters: int) -> None:
    """Compare the summary of an output, and the number of parameters."""
    compare_baseline(f"Medical Diffusion, {quantity}", summary(value), numbers, TOLERANCE)
    compare_baseline(f"Medical Diffusion, tiny {quantity}: parameters", [count(network)], [parameters], 0)


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(
    ("network", "rules", "digest"),
    [
        (Encoder(4, 2, 4), ENCODER_NAMES, "f1f1126af19278eaa324df4558eb5408437c385717635e3403b3d004cef6d0f9"),
        (Decoder(4, 2, 4), DECODER_NAMES, "0100433ff46a30023f21a6af54e00b93017241b7edaa6b007852be0e7bb90921"),
        (LatentUNet(8, (1, 2, 4)), UNET_NAMES, "63bba9082629a5380b5581c4f46db1122e9e96d692c94f9dfecce251b65c8bc0"),
    ],
    ids=["encoder", "decoder", "unet"],
)
def test_every_name_and_shape_of_the_public_networks(network, rules, digest):
    names = public_names(network, rules)
    lines = [f"{name} {'x'.join(map(str, network.get_parameter(own).shape))}" for name, own in names.items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest, lines


def test_encoder():
    encoder = Encoder(4, 2, 4)
    filled(encoder, public_names(encoder, ENCODER_NAMES))
    numbers = "768 .199428 .545910 -.144556 -.149355 -.267870 1.315253 -.158153 1.869283 .729188 .045300 .363289"
    check("encoder", encoder, encoder(tensor((2, 1, 16, 12, 8), 400301)), numbers, 27_832)


def test_decoder():
    decoder = Decoder(4, 2, 4)
    filled(decoder, public_names(decoder, DECODER_NAMES))
    numbers = "3072 .091745 .917449 1.101808 .215268 .241917 -.157485 -.501597 -.451595 -.543941 .742785 .976175"
    check("decoder", decoder, decoder(tensor((2, 16, 4, 3, 2), 400302)), numbers, 59_697)


def test_denoiser():
    network = LatentUNet(8, (1, 2, 4))
    filled(network, public_names(network, UNET_NAMES))
    x = tensor((2, 8, 10, 8, 12), 400303, 1.7)
    numbers = "15360 -.104388 1.460122 .539059 1.141259 -1.472597 -1.065524 1.401850 .970631 -.092383 .939602 .042674"
    check("denoiser", network, network(x, torch.tensor([7, 250])), numbers, 393_240)


@pytest.mark.parametrize(
    ("num_levels", "specified"),
    [
        (3, (1_851_616, 4_030_401, 1_032, 1_152, 5_884_201, 131_072)),
        (2, (441_568, 948_417, 520, 576, 1_391_081, 131_072)),
    ],
)
def test_number_of_parameters_of_the_compressor(num_levels, specified):
    network = on_meta(lambda: VQGAN(num_levels=num_levels))
    parts = (network.encoder, network.decoder, network.to_latent, network.from_latent, network)
    ours = [*map(count, parts), network.codebook.codes.numel()]
    quantity = f"VQ-GAN, factor {network.factor}: parameters of encoder, decoder, two 1x1 convolutions, all, codebook"
    compare_baseline(quantity, ours, specified, 0)


def test_number_of_parameters_of_the_discriminators():
    ours = [count(PatchDiscriminator(2)), count(on_meta(lambda: PatchDiscriminator(3)))]
    compare_baseline("discriminators of slices and volumes: parameters", ours, [2_764_481, 11_049_665], 0)


@pytest.mark.parametrize(
    ("dim", "mults", "parameters"),
    [
        (16, (1, 2, 4, 8), 3_019_944),
        (32, (1, 2, 4, 8), 9_981_512),
        (64, (1, 2, 4, 8), 35_730_312),
        (16, (1, 2, 4), 1_052_840),
    ],
)
def test_number_of_parameters_of_the_denoiser(dim, mults, parameters):
    ours = count(on_meta(lambda: LatentUNet(dim, mults)))
    compare_baseline(f"latent U-Net {dim}, {'-'.join(map(str, mults))}: parameters", [ours], [parameters], 0)


@pytest.mark.parametrize("side", [128, 256])
def test_shapes_at_the_size_of_the_paper(side):
    compressor, denoiser = on_meta(VQGAN), on_meta(LatentUNet)
    x = torch.empty(1, 1, side, side, side, device="meta")
    latents = compressor.latents(x)
    assert latents.shape == (1, 8, side // 8, side // 8, side // 8)
    assert denoiser(latents, torch.empty(1, device="meta", dtype=torch.long)).shape == latents.shape
    result = compressor(x, update_codebook=False)
    assert result.volume.shape == x.shape and result.commitment.shape == ()
    assert on_meta(lambda: PatchDiscriminator(3))(x)[0].shape[2:] == (side // 8 + 3,) * 3


def teraflops(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


@pytest.mark.parametrize(
    ("num_levels", "side", "batch", "specified"),
    [(3, 256, 1, (27.9, 14.9)), (2, 256, 1, (24.2, 13.6)), (3, 128, 2, (7.2, 4.0))],
)
def test_operations_of_an_iteration_of_the_compressor(num_levels, side, batch, specified):
    """Forward and backward pass of the autoencoder's phase and of the discriminators', at the paper's widths."""
    networks = on_meta(
        lambda: {
            "autoencoder": VQGAN(num_levels=num_levels).eval(),
            "slices": PatchDiscriminator(2),
            "volumes": PatchDiscriminator(3),
        }
    )
    volume = torch.empty(batch, 1, side, side, side, device="meta")
    given = {"volume": volume, "slice": torch.zeros(batch, dtype=torch.long, device="meta")}
    frozen = (networks["slices"], networks["volumes"])
    weights = VQGANLoss(adversarial_start=0)
    for network in frozen:
        network.requires_grad_(False)
    ours = [teraflops(lambda: autoencoder_loss(networks, given, 0, weights)[0].backward())]
    for network in frozen:
        network.requires_grad_(True)
    ours.append(teraflops(lambda: discriminator_loss(networks, given, weights)[0].backward()))
    compare_baseline(
        f"VQ-GAN, factor {2**num_levels}, {side}^3, batch {batch}: TFLOP of both phases", ours, specified, 0.015, True
    )


@pytest.mark.parametrize(
    ("dim", "side", "specified"), [(32, 32, (0.137, 13.8)), (64, 64, (3.15, 316)), (16, 16, (0.0071, 0.71))]
)
def test_operations_of_the_denoiser(dim, side, specified):
    """A training sample, and a sampled volume of 300 steps without its decoding."""
    network = on_meta(lambda: LatentUNet(dim))
    x, step = torch.empty(1, 8, side, side, side, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    ours = [teraflops(lambda: network(x, step).mean().backward())]
    with torch.no_grad():
        ours.append(300 * teraflops(lambda: network(x, step)))
    compare_baseline(
        f"latent U-Net {dim}, {side}^3: TFLOP of a training sample, of a sampled volume", ours, specified, 0.01, True
    )
