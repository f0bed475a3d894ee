"""Codebook, VQ-GAN and latent diffusion: their rules, and that they learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baseline_runs import SETTINGS as SHORT
from baseline_runs import cubes, tiny_vqgan, vqgan

from medsyn.config import TrainConfig
from medsyn.diffusion.discrete import _posterior, add_noise, cosine_alpha_bar, sample_ancestral, spaced_steps
from medsyn.live_bytes import LiveBytes
from medsyn.models import codebook as codebook_module
from medsyn.models.codebook import Codebook
from medsyn.models.fast.unet import set_activation_checkpointing
from medsyn.models.latent_unet import LatentUNet, buckets, rotated
from medsyn.models.vqgan import VQGAN
from medsyn.training.loop import DivergedError, train
from medsyn.training.vqgan import VQGANLoss, axial, denoiser_task, discriminator_loss

SETTINGS = SHORT.model_copy(update={"num_steps": 6})


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_search_in_parts_finds_the_nearest_codes(monkeypatch):
    book = Codebook(50, 8)
    tokens = seeded(333, 8)
    expected = torch.cdist(tokens.double(), book.codes.double()).argmin(1)
    assert torch.equal(book.indices(tokens), expected)
    monkeypatch.setattr(codebook_module, "_DISTANCES", 50 * 7)
    assert torch.equal(book.indices(tokens), expected)


def test_the_search_needs_no_matrix_of_all_distances():
    """At 32^3 latents and 16,384 codes the distances are 2 GiB per volume; the search stays below 160 MiB."""
    with torch.device("meta"):
        book = Codebook(16_384, 8)
    tokens = torch.empty(32**3, 8, device="meta")
    with LiveBytes() as live:
        book.indices(tokens)
    assert 128 * 2**20 <= live.peak < 160 * 2**20


def test_codes_start_as_latents_of_the_first_batch():
    book = Codebook(16, 3)
    latents = seeded(2, 3, 2, 2, 4)
    tokens = latents.movedim(1, -1).reshape(-1, 3)
    book(latents, update=False)
    assert not book.initialised
    result = book(latents, update=True)
    assert book.initialised and result.used == 16
    own = torch.cdist(book.sums / book.counts[:, None], tokens).argmin(1)
    assert sorted(own.tolist()) != list(range(16)), "32 tokens for 16 codes: not the first 16 in order"
    few = Codebook(100, 3)
    few(latents, update=True)
    assert len(few.codes.unique(dim=0)) == 100, "repeated latents are told apart by noise"
    assert torch.cdist(few.codes, tokens).amin(1).max() < 0.1


def test_codes_are_moving_averages_and_rare_ones_start_again():
    """Two codes and a third one without latents: the formula by hand."""
    book = Codebook(3, 1)
    book.initialised.fill_(True)
    book.codes.copy_(torch.tensor([[0.0], [10.0], [100.0]]))
    book.counts.copy_(torch.tensor([2.0, 4.0, 1.005]))
    book.sums.copy_(book.codes * book.counts[:, None])
    result = book(torch.tensor([1.0, 2.0, 12.0]).view(1, 1, 1, 1, 3), update=True)
    assert result.indices.flatten().tolist() == [0, 0, 1] and result.used == 2
    assert result.values.flatten().tolist() == [0, 0, 10], "quantised by the codes before the update"
    assert result.commitment.item() == pytest.approx(0.25 * (1 + 4 + 4) / 3)
    assert book.counts.tolist() == pytest.approx([2.0, 3.97, 1.005 * 0.99])
    assert book.sums.flatten().tolist() == pytest.approx([0.03, 39.72, 100.5 * 0.99])
    assert book.codes[:2].flatten().tolist() == pytest.approx([0.015, 39.72 / 3.97], rel=1e-5)
    assert book.codes[2].item() in (1.0, 2.0, 12.0)


def test_the_gradient_passes_the_codebook_and_the_commitment_draws_to_it():
    book = Codebook(4, 2)
    latents = seeded(1, 2, 2, 2, 2).requires_grad_()
    result = book(latents, update=False)
    (result.values * 3).sum().backward()
    assert torch.equal(latents.grad, torch.full_like(latents, 3))
    latents.grad = None
    result = book(latents, update=False)
    result.commitment.backward()
    assert torch.allclose(latents.grad, 0.5 * (latents - result.values).detach() / latents.numel())


def test_checkpointing_gives_the_same_gradients():
    plain = VQGAN(8, 2, 8, 8, 32)
    saving = set_activation_checkpointing(VQGAN(8, 2, 8, 8, 32), True)
    saving.load_state_dict(plain.state_dict())
    x = seeded(1, 1, 8, 8, 8)
    for network in (plain, saving):
        result = network(x, update_codebook=False)
        (result.volume.square().mean() + result.commitment).backward()
    pairs = zip(plain.parameters(), saving.parameters(), strict=True)
    assert all(a.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-7) for a, b in pairs)


def test_checkpointing_takes_less_than_half_of_the_memory():
    """Forward and backward pass of one volume of 256^3 in float32, counted on tensors without data."""
    peaks = {}
    for checkpointing in (False, True):
        with torch.device("meta"):
            network = set_activation_checkpointing(VQGAN(), checkpointing)
        x = torch.empty(1, 1, 256, 256, 256, device="meta")
        with LiveBytes() as live:
            network(x, update_codebook=False).volume.mean().backward()
        peaks[checkpointing] = live.peak / 2**30
    assert peaks[True] < 0.5 * peaks[False]


def test_decoding_undoes_encoding_up_to_the_codes():
    network = tiny_vqgan().eval()
    x = cubes(0, [0, 1])["volume"]
    with torch.no_grad():
        assert torch.allclose(network.decode(network.encode(x)), network(x).volume, atol=1e-5)
    low, high = network.codebook.bounds()
    network.codebook.codes.copy_(network.codebook.codes.clamp(-0.5, 0.5))
    assert (network.codebook.bounds()[0], network.codebook.bounds()[1]) == (-0.5, 0.5) and low < -0.5 and high > 0.5
    with pytest.raises(ValueError, match=r"divisible by 2, got \(8, 7, 8\)"):
        network.encode(x[:, :, :, :7])


def test_a_tiny_vqgan_learns_cubes(tmp_path):
    """A volume without its cube has an error of 0.25."""
    settings = SETTINGS.model_copy(update={"num_steps": 150, "log_every": 150, "checkpoint_every": 1000})
    result = train(vqgan(1000), settings, tmp_path / "state")
    [row] = result.metrics
    assert vqgan().collapsed(row) is None
    assert 8 <= row["autoencoder_codes_used"] <= 64 and "discriminators_loss" in row
    x = cubes(10**6, range(8))["volume"]
    with torch.no_grad():
        made = result.networks["autoencoder"](x).volume
    assert (made - x).abs().mean() < 0.16


def test_discriminators_begin_at_their_step(tmp_path):
    rows = train(vqgan(3), SETTINGS, tmp_path / "state").metrics
    assert rows[0]["discriminators_loss"] is None and "autoencoder_adversarial" not in rows[0]
    for row in rows[1:]:
        assert row["discriminators_loss"] == pytest.approx(row["discriminators_slices"] + row["discriminators_volumes"])
        assert row["autoencoder_feature_matching"] > 0
    added = rows[-1]["autoencoder_adversarial"] + 4 * rows[-1]["autoencoder_feature_matching"]
    parts = 4 * rows[-1]["autoencoder_reconstruction"] + rows[-1]["autoencoder_commitment"] + added
    assert rows[-1]["autoencoder_loss"] == pytest.approx(parts, rel=1e-5)


def test_both_optimisers_have_the_settings_of_the_run():
    settings = SETTINGS.model_copy(update={"betas": (0.1, 0.2), "weight_decay": 0.3, "max_grad_norm": 0.4})
    assert all(phase.config(settings) == settings for phase in vqgan().phases)


def both_slices(batch, made):
    return axial(batch["volume"], batch["slice"]), axial(made, batch["slice"])


def test_discriminators_learn_to_tell_volumes_from_reconstructions():
    """Their loss is 2 where they know nothing and 0 where they know all."""
    torch.manual_seed(0)
    networks = {**vqgan(0).build()}
    learning = [*networks["slices"].parameters(), *networks["volumes"].parameters()]
    optimizer = torch.optim.Adam(learning, 2e-3, betas=(0.5, 0.9))
    losses = []
    for step in range(30):
        loss, _ = discriminator_loss(networks, cubes(step, range(4)), VQGANLoss())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 1.7 and losses[-1] < 0.5
    batch = cubes(99, range(4))
    with torch.no_grad():
        made = networks["autoencoder"](batch["volume"], update_codebook=False).volume
        for name, true, false in (("volumes", batch["volume"], made), ("slices", *both_slices(batch, made))):
            assert networks[name](true)[0].mean() > 0.3 and networks[name](false)[0].mean() < -0.3, name
    assert all(p.grad is None for p in networks["autoencoder"].parameters())


def test_mixed_precision_keeps_the_codebook_in_float32(tmp_path):
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    result = train(vqgan(3), settings, tmp_path / "state")
    book = result.networks["autoencoder"].codebook
    latents = seeded(2, 4, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = book(latents, update=False)
    assert book.codes.dtype == torch.float32 and torch.equal(lower.indices, book(latents, update=False).indices)
    assert result.metrics[-1]["discriminators_loss"] > 0


def test_slices_are_axial():
    volume = torch.arange(2 * 3 * 4 * 5.0).view(2, 1, 3, 4, 5)
    taken = axial(volume, torch.tensor([2, 0]))
    assert torch.equal(taken, torch.stack([volume[0, :, 2], volume[1, :, 0]]))


@pytest.mark.parametrize("twice", [False, True])
def test_the_codebook_learns_once_per_batch_unless_the_original_is_restored(twice):
    networks = {**vqgan(0).build()}
    networks["autoencoder"](cubes(0, [0])["volume"])
    before = networks["autoencoder"].codebook.counts.clone()
    discriminator_loss(networks, cubes(1, [0, 1]), VQGANLoss(codebook_learns_twice=twice))
    assert torch.equal(networks["autoencoder"].codebook.counts, before) is not twice


def test_a_codebook_that_uses_one_code_ends_the_run(tmp_path):
    def build():
        network = tiny_vqgan()
        torch.nn.init.zeros_(network.to_latent.weight)
        network.codebook.initialised.fill_(True)
        return network

    task = vqgan(100)
    networks = task.build()
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-12})
    task = replace(task, build=lambda: {**networks, "autoencoder": build()})
    with pytest.raises(DivergedError, match="batches use 1 codes of the codebook, expected at least 2"):
        train(task, settings, tmp_path / "state")


def test_schedule_of_the_public_code():
    """Beta is at most 0.9999 (schedulers of libraries: 0.999), and the signal falls at every step."""
    alpha_bar = cosine_alpha_bar(300)
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert betas[-1].item() == pytest.approx(0.9999) and (betas[:-1] < 0.9).all() and (betas > 0).all()
    assert alpha_bar[149].item() == pytest.approx(0.4939, abs=2e-3)
    x0, noise = seeded(2, 3, seed=1), seeded(2, 3, seed=2)
    mixed = add_noise(alpha_bar, x0, noise, torch.tensor([0, 299]))
    assert torch.allclose(mixed[0], x0[0], atol=0.05) and torch.allclose(mixed[1], noise[1], atol=1e-3)


@pytest.mark.parametrize("count", [300, 50])
def test_ancestral_sampling_of_a_known_distribution(count):
    """With the exact noise of x0 ~ N(0.2, 0.1^2): samples have this mean and deviation."""
    alpha_bar = cosine_alpha_bar(300)

    def exact(x, step):
        signal = alpha_bar[step].view(-1, 1).float()
        spread = signal * 0.01 + 1 - signal
        return (1 - signal).sqrt() / spread * (x - signal.sqrt() * 0.2)

    samples = sample_ancestral(exact, alpha_bar, range(4), (2000,), count=count)
    assert samples.mean().item() == pytest.approx(0.2, abs=0.01)
    assert samples.std().item() == pytest.approx(0.1, abs=0.01 if count == 300 else 0.02)
    alone = sample_ancestral(exact, alpha_bar, [2], (2000,), count=count)
    assert torch.equal(alone[0], samples[2]), "a sample depends on its seed alone"


@pytest.mark.parametrize(("now", "after"), [(299, 0), (200, 199), (200, 50), (1, 0)])
def test_a_step_back_has_the_distribution_of_the_earlier_step(now, after):
    """A known x0 with the noise of step `now`, then a sample of the posterior: the noise of step `after`."""
    signals = cosine_alpha_bar(300)
    x0 = torch.full((200_000,), 0.7)
    x = add_noise(signals, x0[None], seeded(1, len(x0), seed=1), torch.tensor([now]))[0]
    made = _posterior(x0, x, float(signals[now]), float(signals[after]), seeded(len(x0), seed=2))
    spread = (1 - float(signals[after])) ** 0.5
    assert made.mean().item() == pytest.approx(0.7 * float(signals[after]) ** 0.5, abs=0.02 * spread)
    assert made.std().item() == pytest.approx(spread, rel=0.02)


def test_spaced_steps():
    assert spaced_steps(300, 300) == list(range(299, -1, -1)) and spaced_steps(300, 3) == [299, 149, 0]
    assert spaced_steps(300, 1) == [299]
    with pytest.raises(ValueError, match=r"in 1\.\.300, got 301"):
        spaced_steps(300, 301)


def test_buckets_of_distances():
    distance = torch.tensor([0, 1, 7, 8, 9, 15, 16, 31, 32, 500])
    assert buckets(distance).tolist() == [0, 1, 7, 8, 8, 11, 12, 15, 15, 15]
    assert buckets(-distance[1:]).tolist() == [17, 23, 24, 24, 27, 28, 31, 31, 31]


def test_rotation_keeps_lengths_and_depends_on_the_distance_only():
    q, k = (seeded(1, 32, seed=seed).expand(6, 32) for seed in (0, 1))
    products = rotated(q) @ rotated(k).T
    assert torch.allclose(rotated(q).norm(dim=-1), q.norm(dim=-1))
    assert torch.allclose(products.diagonal(2), products.diagonal(2)[:1].expand(4), atol=1e-4)
    assert not torch.allclose(products[0, 2], products[0, 3])


def test_every_parameter_of_the_denoiser_is_trained():
    network = LatentUNet(8, (1, 2), channels=2, num_heads=2)
    network(seeded(2, 2, 3, 4, 4), torch.tensor([0, 9])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_tiny_denoiser_learns_the_value_of_its_latents(tmp_path):
    """Latents are 0.5 everywhere; so are samples after training."""

    def batch(step, slots):
        generator = torch.Generator().manual_seed(step)
        made = {"noise": torch.randn(8, 1, 2, 4, 4, generator=generator)}
        made["latents"] = torch.full_like(made["noise"], 0.5)
        made["step"] = torch.randint(0, 300, (8,), generator=generator)
        return {key: value[list(slots)] for key, value in made.items()}

    settings = TrainConfig(num_steps=120, batch_size=8, micro_batch_size=8, learning_rate=3e-3, weight_decay=0.0)
    settings = settings.model_copy(update={"ema_decay": 0.9, "log_every": 30})
    task = denoiser_task(lambda: LatentUNet(8, (1,), channels=1, num_heads=1), batch, num_diffusion_steps=300)
    result = train(task, settings, tmp_path / "state")
    assert result.metrics[-1]["loss"] < 0.5 * result.metrics[0]["loss"]
    samples = sample_ancestral(result.network, cosine_alpha_bar(300), range(6), (1, 2, 4, 4), count=30)
    assert samples.mean().item() == pytest.approx(0.5, abs=0.15) and samples.std() < 0.3
