"""Settings of the methods that are compared: one entry of the configuration each."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from medsyn.config.section import LabelText, Name, Section, unique
from medsyn.registry import METHODS

Channel = Literal["image", "lobe", "airway", "vessel"]


class MethodConfig(Section):
    """What the entries of all kinds of method share."""

    kind: Name = "medsyn"
    label: LabelText = Field(description="name in tables and figures")

    @property
    def takes_text(self) -> bool:
        """Whether answers depend on the text of a prompt; a method without text answers the prompts `reports` alone."""
        return True


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


def method_settings(entry: Any) -> Any:
    """Return the settings of an entry under `methods`, of the model that its kind asks for."""
    if not isinstance(entry, dict):
        return entry
    kind = entry.get("kind", "medsyn")
    if kind not in METHODS:
        raise ValueError(f"kind: {METHODS.unknown(kind)}")
    return METHODS[kind].entry(**entry)


class AnyKind:
    """Annotation of an entry under `methods`: its JSON schema is that of one of the package's own kinds."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(method_settings, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(METHODS[kind].entry.__pydantic_core_schema__) for kind in METHODS.builtin]}
