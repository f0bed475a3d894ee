"""Choose slabs of super-resolution for the memory that is found, and refuse before sampling what cannot fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medsyn.config import SamplingConfig
from medsyn.errors import InputError
from medsyn.models.fast.footprint import forward_bytes
from medsyn.models.unet import UNet

SHARE_OF_MEMORY = 0.7
"""Share of the free memory that settings chosen by `auto` may need; the rest is for work space and other programs."""
_LEAST_SLICES = 8  # thinner slabs compute more slices twice and save little
_GIB = 2**30
_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class SamplingPlan:
    """slices: of a slab of super-resolution, None for whole volumes; needed, available: bytes."""

    slices: int | None
    needed: int
    available: int

    def in_words(self) -> str:
        """Return the plan in one line."""
        form = "whole volumes" if self.slices is None else f"slabs of {self.slices} slices"
        return (
            f"plan: super-resolution in {form}; sampling needs about {self.needed / _GIB:.1f} GiB beside the weights,"
            f" {self.available / _GIB:.1f} GiB are free"
        )


def plan_sampling(
    sampling: SamplingConfig, networks: tuple[UNet, UNet], size: Sequence[int], factor: int, available: int
) -> SamplingPlan:
    """Plan the sampling of one volume at a time within `available` bytes; where nothing fits, InputError.

    networks: low_res, super_res, whose weights are held already; size: (D, H, W) at full resolution, `factor` times the
    low one. `auto` takes whole volumes, or else the thickest slabs, that need SHARE_OF_MEMORY of what is available; or
    the thinnest slabs, if they fit at all.
    """

    def needed(slices: int | None, precision: str = sampling.precision) -> int:
        element = _ELEMENT_BYTES[precision]
        low = forward_bytes(networks[0], [edge // factor for edge in size], element)
        return max(low, forward_bytes(networks[1], size, element, slices))

    thicknesses = slab_thicknesses(size[0])
    if sampling.tile == "auto":
        choices: list[int | None] = [None, *thicknesses]
        comfortable = (slices for slices in choices if needed(slices) <= SHARE_OF_MEMORY * available)
        chosen = next(comfortable, min(choices, key=needed))
    else:
        chosen = sampling.tile if isinstance(sampling.tile, int) and sampling.tile < size[0] else None
    plan = SamplingPlan(chosen, needed(chosen), available)
    if plan.needed > available:
        remedies = [f"sampling.tile {slices}" for slices in thicknesses if needed(slices) <= available][:1]
        if not remedies and sampling.precision == "fp32":
            fitting = [slices for slices in (None, *thicknesses) if needed(slices, "bf16") <= available][:1]
            remedies = [f"sampling.precision bf16 with sampling.tile {slices or 'off'}" for slices in fitting]
        least = min(needed(slices, "bf16") for slices in (None, *thicknesses))
        raise InputError(
            f"sampling.tile {sampling.tile}: one volume of {' x '.join(map(str, size))} needs about"
            f" {plan.needed / _GIB:.2g} GiB, {available / _GIB:.2g} GiB are free;"
            f" {'set ' + remedies[0] if remedies else f'{least / _GIB:.2g} GiB would do in bf16: use a larger machine'}"
        )
    return plan


def slab_thicknesses(depth: int) -> list[int]:
    """List the slices of slabs that `auto` may choose for a volume of `depth` slices, thickest first."""
    halves = (depth >> i for i in range(2, depth.bit_length()))
    return [slices for slices in halves if slices >= _LEAST_SLICES]
