"""Settings of the methods that are compared: one entry of the configuration each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from medsyn.config.section import LabelText, Name, Section, unique

Channel = Literal["image", "lobe", "airway", "vessel"]


class MethodConfig(Section):
    """What the entries of all kinds of method share."""

    kind: Name = "medsyn"
    label: LabelText = Field(description="name in tables and figures")


class MedSynConfig(MethodConfig):
    """One model of this package: the full model, an ablation, or another language model."""

    channels: tuple[Channel, ...] = Field(
        ("image", "lobe", "airway", "vessel"), description="image, and any of the others"
    )
    text_encoder: Name = "biomedical"
    super_res_from: Name | None = Field(None, description="use another method's super-resolution net")

    @model_validator(mode="after")
    def _check(self) -> MedSynConfig:
        if "image" not in self.channels:
            raise ValueError(f"channels: {list(self.channels)} has no 'image', which is what the model draws; add it")
        unique("channels", self.channels)
        return self


KINDS: Mapping[str, type[MethodConfig]] = {"medsyn": MedSynConfig}


def method_settings(entry: Any) -> Any:
    """Return the settings of an entry under `methods`, of the model that its kind asks for."""
    if not isinstance(entry, dict):
        return entry
    kind = entry.get("kind", "medsyn")
    if kind not in KINDS:
        raise ValueError(f"kind: '{kind}' is not a known method, expected one of {', '.join(KINDS)}")
    return KINDS[kind](**entry)
