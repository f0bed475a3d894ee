"""Settings of sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from medsyn.config.section import Count, Name, OwnSeed, Precision, Registered, Section, Shards, Share, Steps
from medsyn.registry import SOLVERS

EndTime = Annotated[
    Share,
    Field(
        description="time t of the last call of the network, whose prediction is the volume: above 0 for a network that"
        " learned little at low noise"
    ),
]


def _off(value: Any) -> Any:
    """Return the word that YAML reads as false."""
    return "off" if value is False else value


class SamplingConfig(Section):
    """How volumes are sampled (paper: 50 and 20 DDIM steps)."""

    solver: Annotated[Name, Registered(SOLVERS)] = Field(
        "ddim",
        description="ddim is the paper's; dpmpp_2m and unipc are of second and third order, for fewer steps; or one of"
        " a plugin",
    )
    num_steps_low_res: Steps = 50
    num_steps_super_res: Steps = 20
    end_time_low_res: EndTime = 0.0
    end_time_super_res: EndTime = 0.0
    guidance_scale: float = Field(1.0, description="x0_null + w (x0_text - x0_null); 1 is no guidance")
    null_text: Literal["learned", "zero"] = Field(
        "learned",
        description="states that stand for no text: the null text learned in training, or zeros (the paper's Table V)",
    )
    fix_super_res: bool = Field(False, description="keep given channels at both resolutions; the authors: low only")
    batch_size: Count | Literal["auto"] = Field(
        8,
        description="volumes at a time at low resolution; auto: what the memory allows (changes rounding)",
    )
    tile: Annotated[Count | Literal["auto", "off"], BeforeValidator(_off)] = Field(
        "auto",
        description="slices of a slab in which super-resolution is computed: less memory, the same volume up to"
        " rounding; off: whole volumes; auto: whole where that fits the memory",
    )
    compile: bool = Field(False, description="torch.compile the networks; pays on a GPU over many volumes")
    precision: Precision = "fp32"
    num_shards: Shards = 2
    seed: OwnSeed = 0
