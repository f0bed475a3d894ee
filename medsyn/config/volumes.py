"""Settings of the volumes: the model's grid and the tools that make masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from medsyn.config.section import Fraction, Hounsfield, Millimetres3, PathText, Registered, Section, Size3
from medsyn.mask_tools import MASK_TOOLS, tool_fault, tools_for


class PreprocessConfig(Section):
    """The model's grid. Paper: 316 x 316 x 292 mm to 256^3, window [-1024, 600] HU, low resolution x1/4."""

    size: Size3 = Field((64, 64, 64), description="voxels (D, H, W)")
    field_of_view_mm: Millimetres3 = Field((292.0, 316.0, 316.0), description="extent (z, y, x)")
    window_hu: tuple[Hounsfield, Hounsfield] = (-1024.0, 600.0)
    low_res_factor: int = Field(4, ge=1, le=64)
    alignment: Literal["lung_centre", "none", "atlas"] = Field(
        "lung_centre", description="grid centred on the lungs, left where it is, or affine registration to a lung atlas"
    )
    atlas: PathText | None = Field(
        None, description="lung mask to register to (values above 0); null: mean phantom lung"
    )
    interpolation: Literal["nearest", "linear", "cubic"] = Field(
        "linear", description="of the one resampling (cubic: B-splines, which may overshoot at edges)"
    )
    calibrate_air: bool = Field(
        False, description="scale HU so that the air around the patient is -1000 and water stays 0"
    )
    max_reject_fraction: Fraction = Field(
        0.2, description="stop a shard of which more than this share is not a chest CT"
    )

    @model_validator(mode="after")
    def _check(self) -> PreprocessConfig:
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu must be [low, high] with low < high")
        if any(size % self.low_res_factor for size in self.size):
            raise ValueError(f"size must be divisible by low_res_factor {self.low_res_factor}")
        return self


@dataclass(frozen=True)
class ToolFor(Registered):
    """Annotation of a setting that names a mask tool for `structure`; anatomy stands for what `measure` needs."""

    structure: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "examples": tools_for(self.structure, self.registry.builtin)}

    def _known(self, value: str) -> str:
        if fault := tool_fault(value, self.structure):
            raise ValueError(fault)
        return value


class MasksConfig(Section):
    """Which tool makes which mask."""

    lobes: Annotated[str, ToolFor(MASK_TOOLS, "lobes")] = "classical"
    airway: Annotated[str, ToolFor(MASK_TOOLS, "airway")] = "classical"
    vessels: Annotated[str, ToolFor(MASK_TOOLS, "vessels")] = "classical"
    lungmask_model: Literal["LTRCLobes_R231", "LTRCLobes", "R231"] = Field(
        "LTRCLobes_R231", description="lobes filled with R231's lungs, lobes alone, or R231's lungs with our fissures"
    )
    weights_dir: PathText = Field("weights", description="folder with the tools' weight files, see medsyn weights list")
    max_reject_fraction: Fraction = Field(0.2, description="stop a shard of which more than this share has no masks")
