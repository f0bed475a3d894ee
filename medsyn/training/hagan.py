"""Training of HA-GAN (`medsyn.models.hagan`): a PhasedTask of four phases.

The recipe is that of the authors' repository (batmanlab/HA-GAN on GitHub): non-saturating loss with logits, one update
of each network per step, no average of the weights. Its settings are the defaults of `medsyn.methods.hagan`. Every step
has one first slice `start` of the slabs, which all phases and samples share.

1. discriminator: cross-entropy of D(slab, low, start) on real and on generated volumes, the generator frozen.
2. generator: cross-entropy of D(G(z)) towards "real", new z, the discriminator frozen.
3. slab_encoder: mean |G^H(E^H(slab)) - slab|, the generator frozen.
4. global_encoder: mean |G(z') - x| of the slab and of the low-resolution volume, averaged, where z' is the code of the
   whole volume; the generator and the slab encoder frozen.

Phases 3 and 4 never change the generator, so a run that is only sampled from may leave them out.

The original takes any integer in 0..7R/8 as start, although the generated slab begins at the multiple of 4 below it:
the discriminator compares slabs that lie up to 3 slices apart. Here the starts are multiples of 4, unless `any_start`.
The original goes through the volumes in the order of their names; the order here is that of `real_volumes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medsyn.diffusion.seeds import seeded
from medsyn.models.hagan import build_hagan
from medsyn.models.hagan_sizes import HaganSizes
from medsyn.training.cost import count_phase_flops
from medsyn.training.gan import Volumes
from medsyn.training.need import count_phased_training
from medsyn.training.task import Networks, Phase, PhasedTask

_START, _FAKE, _LEARN = 201, 202, 203  # second parts of the seeds of this module
CERTAIN = 1e-3
"""Discriminator's loss of a collapse: its mean error on a volume is 0.05 %, and it learns a thousandth as fast."""
SAME = 0.01
"""Spread of the generated volumes, as a share of that of the real ones, of a collapse."""


class HaganBatches:
    """The batches of the four phases, as functions of the seed, the number of the update and the slots."""

    def __init__(self, sizes: HaganSizes, real_volumes: Volumes, seed: int, *, any_start: bool = False) -> None:
        self.sizes, self.real_volumes, self.seed, self.any_start = sizes, real_volumes, seed, any_start

    def start(self, step: int) -> int:
        """Return the first slice of the slabs of a step: a multiple of 4, or with `any_start` any slice, to 7R/8."""
        grid = 1 if self.any_start else 4
        number = torch.randint(self.sizes.last_start // grid + 1, (), generator=seeded(self.seed, _START, step))
        return grid * int(number)

    def latents(self, stream: int, step: int, slots: Sequence[int]) -> Tensor:
        """Return standard normal latents [B, latent_dim], other ones for each stream, step and slot."""
        generators = [seeded(self.seed, stream, step, slot) for slot in slots]
        return torch.stack([torch.randn(self.sizes.latent_dim, generator=generator) for generator in generators])

    def discriminator(self, step: int, slots: Sequence[int]) -> dict[str, Any]:
        """Return slab [B, 1, S, R, R] and low [B, 1, L, L, L] of real volumes, z and start."""
        return {**self._real(step, slots), "z": self.latents(_FAKE, step, slots)}

    def generator(self, step: int, slots: Sequence[int]) -> dict[str, Any]:
        """Return z and start."""
        return {"z": self.latents(_LEARN, step, slots), "start": self.start(step)}

    def slab_encoder(self, step: int, slots: Sequence[int]) -> dict[str, Any]:
        """Return the slab [B, 1, S, R, R] of real volumes."""
        return {"slab": self._real(step, slots)["slab"]}

    def global_encoder(self, step: int, slots: Sequence[int]) -> dict[str, Any]:
        """Return real volumes [B, 1, R, R, R], and slab, low and start as for the discriminator."""
        volume = self.real_volumes(step, slots)
        return {"volume": volume, **self._parts(volume, step)}

    def _real(self, step: int, slots: Sequence[int]) -> dict[str, Any]:
        return self._parts(self.real_volumes(step, slots), step)

    def _parts(self, volume: Tensor, step: int) -> dict[str, Any]:
        start = self.start(step)
        slab = volume[:, :, start : start + self.sizes.slab_slices].contiguous()
        return {"slab": slab, "low": volume[:, :, ::4, ::4, ::4].contiguous(), "start": start}


def discriminator_loss(networks: Networks, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of both cross-entropies.

    The metrics get the mean logits of real and generated volumes. In micro-batches of several volumes they also get the
    spread of both: the mean absolute difference of each slab from the next of the micro-batch.
    """
    generator, discriminator = _of(networks, "generator", "discriminator")
    real = discriminator(batch["slab"], batch["low"], batch["start"])
    slab, low = generator.slab_and_low(batch["z"], batch["start"])
    generated = discriminator(slab, low, batch["start"])
    loss = _cross_entropy(real, 1.0) + _cross_entropy(generated, 0.0)
    shown = {"real_logit": real.mean(), "generated_logit": generated.mean()}
    if len(slab) > 1:
        shown |= {"real_spread": _spread(batch["slab"]), "generated_spread": _spread(slab)}
    return loss, shown


def generator_loss(networks: Networks, batch: Mapping[str, Any], step: int) -> Tensor:
    """Return the cross-entropy of the generated volumes towards "real"."""
    generator, discriminator = _of(networks, "generator", "discriminator")
    logits = discriminator(*generator.slab_and_low(batch["z"], batch["start"]), batch["start"])
    return _cross_entropy(logits, 1.0)


def slab_encoder_loss(networks: Networks, batch: Mapping[str, Any], step: int) -> Tensor:
    """Return the mean absolute difference between a real slab and what the generator makes of its features."""
    generator, encoder = _of(networks, "generator", "slab_encoder")
    return _absolute(generator.high(encoder(batch["slab"])), batch["slab"])


def global_encoder_loss(networks: Networks, batch: Mapping[str, Any], step: int) -> Tensor:
    """Return the mean absolute difference between a real volume and that of its code, over slab and low resolution."""
    generator, slab_encoder, encoder = _of(networks, "generator", "slab_encoder", "global_encoder")
    with torch.no_grad():
        features = slab_encoder.volume(batch["volume"])
    slab, low = generator.slab_and_low(encoder(features), batch["start"])
    return (_absolute(slab, batch["slab"]) + _absolute(low, batch["low"])) / 2


def hagan_task(
    sizes: HaganSizes,
    real_volumes: Volumes,
    seed: int,
    *,
    discriminator_learning_rate: float,
    encoders: bool = True,
    any_start: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> PhasedTask:
    """Return the task that trains HA-GAN on `real_volumes`, of which three phases ask for those of a step.

    The optimisers of all phases have the settings of the run, but that of the discriminator has its own learning rate.
    encoders: train the two encoders too, which changes neither generator nor discriminator. any_start: see the module.
    identity: what tells the data from others (JSON). The vectors of the spectral normalisation advance with every
    micro-batch, so the weights depend slightly on `micro_batch_size`; the authors have one micro-batch per process.
    """
    batches = HaganBatches(sizes, real_volumes, seed, any_start=any_start)
    rate = {"learning_rate": discriminator_learning_rate}
    phases = [
        Phase("discriminator", ("discriminator",), batches.discriminator, discriminator_loss, settings=rate),
        Phase("generator", ("generator",), batches.generator, generator_loss),
    ]
    if encoders:
        phases += [
            Phase("slab_encoder", ("slab_encoder",), batches.slab_encoder, slab_encoder_loss),
            Phase("global_encoder", ("global_encoder",), batches.global_encoder, global_encoder_loss),
        ]

    def build() -> dict[str, nn.Module]:
        return build_hagan(sizes, encoders=encoders)

    facts = {name: getattr(sizes, name) for name in HaganSizes.model_fields}
    return PhasedTask(
        "hagan",
        build,
        phases,
        identity={"sizes": facts, "data_seed": seed, "any_start": any_start, **(identity or {})},
        collapsed=_collapsed,
        flops=lambda step: sum(count_phase_flops(build, phases, step).values()),
        memory=lambda config, processes: count_phased_training(build, phases, config, num_processes=processes),
    )


def _of(networks: Networks, *names: str) -> list[Any]:
    return [networks[name] for name in names]


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target, dtype=torch.float32))


def _spread(slabs: Tensor) -> Tensor:
    return _absolute(slabs, slabs.roll(1, dims=0))


def _collapsed(row: Mapping[str, Any]) -> str | None:
    """Say so where the discriminator is certain of every volume, or the generator makes one volume of all latents.

    The values are means since the last row. Spreads are of slabs of the same place, so only other volumes differ.
    """
    loss = row["discriminator_loss"]
    if loss is not None and loss < CERTAIN:
        return f"the discriminator tells all volumes apart (mean loss {loss:.1e}, expected at least {CERTAIN:g})"
    real, generated = row.get("discriminator_real_spread"), row.get("discriminator_generated_spread")
    if real is None or generated is None or generated >= SAME * real:
        return None
    return (
        f"the generator makes the same volume of different latents (mean difference {generated:.1e}, of real volumes"
        f" {real:.1e}, expected at least {SAME:.0%} of that)"
    )


def _absolute(made: Tensor, real: Tensor) -> Tensor:
    return (made.float() - real).abs().mean()
