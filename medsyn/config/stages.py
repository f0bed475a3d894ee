"""What a verb reads: one model per results/config/<stage>.json, with just what that stage depends on.

A stage is composed of sections of the configuration, or of their shared bases, so that no field is declared twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveInt, model_validator

from medsyn.config.cohort import CohortConfig, PhantomConfig
from medsyn.config.evaluation import (
    NUM_DIAGNOSTIC_VOLUMES,
    AnatomyTool,
    AugmentationConfig,
    EvaluationConfig,
    FeaturesConfig,
    PromptSettings,
)
from medsyn.config.experiment import Config
from medsyn.config.networks import DenoiserTrainConfig, Reduction, UNetConfig, check_balance
from medsyn.config.sampling import SamplingConfig
from medsyn.config.section import Count, PathText, Registered, Section
from medsyn.config.study import StudyConfig, StudyStage
from medsyn.config.text import ReportSection, TextEncoderConfig, TextInputs
from medsyn.config.volumes import PreprocessConfig
from medsyn.errors import InputError
from medsyn.layout import REAL
from medsyn.registry import METHODS

SectionType = TypeVar("SectionType", bound=Section)
Window = tuple[float, float]
"""Of HU, [low, high]."""


class CohortStage(CohortConfig):
    """config/cohort.json: the cohort's settings, and which sections its reports are read by."""

    sections: tuple[ReportSection, ...] = ("report", "findings", "impression")


class MeasureStage(Section):
    """config/measure.json"""

    anatomy_tool: AnatomyTool = "classical"
    weights_dir: PathText = "weights"


class DiagnosticsStage(MeasureStage):
    """config/diagnostics.json"""

    num_volumes: Count = NUM_DIAGNOSTIC_VOLUMES


class RegionsStage(MeasureStage):
    """config/regions.json"""

    num_threshold_volumes: Count = Field(256, description="training volumes of a shard that are measured, at most")


class TextEncoderStage(TextInputs):
    """config/text_<encoder>.json"""

    encoder: TextEncoderConfig


class ModelStage(Section):
    """config/<low_res|super_res>_<method>.json: everything the training of one network depends on."""

    stage: Literal["low_res", "super_res"]
    channels: tuple[str, ...]
    unet: UNetConfig
    train: DenoiserTrainConfig
    window_hu: Window
    low_res_factor: PositiveInt
    low_res_reduction: Reduction = "nearest"
    num_tokens: PositiveInt = 1
    sections: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_balance(self) -> ModelStage:
        check_balance(self.unet, self.train)
        return self


class Distillation(Section):
    """How a network was distilled, and so how it must be sampled.

    teacher: SHA-256 of the weights it learned from; guidance_scale: of the teacher, which the network has learned;
    times: tau of its calls, the last of which gives the volume; end_time: t of the teacher's last call.
    """

    teacher: str
    guidance_scale: float
    times: tuple[float, ...]
    end_time: float


class DistilledStage(ModelStage):
    """Settings in the file of a distilled network: those of its teacher, its own training, and the distillation."""

    distillation: Distillation


class SamplingStage(Section):
    """config/sampling.json"""

    sampling: SamplingConfig
    preprocess: PreprocessConfig


class FeaturesStage(Section):
    """config/features.json"""

    features: FeaturesConfig
    window_hu: Window


class AugmentationStage(Section):
    """config/augmentation.json"""

    augmentation: AugmentationConfig
    window_hu: Window


class PromptsStage(PromptSettings):
    """config/prompts.json: what the prompts of all evaluations depend on."""

    augmentation_findings: tuple[str, ...]
    num_reports_per_class: PositiveInt


def stage_configs(config: Config) -> dict[str, Section]:
    """Return the content of every results/config/<stage>.json."""
    config = _with_seed(config, config.seed, keep=(CohortConfig, PhantomConfig))
    evaluation, window_hu = config.evaluation, config.preprocess.window_hu
    measuring = {"anatomy_tool": evaluation.anatomy_tool, "weights_dir": config.masks.weights_dir}
    stages: dict[str, Section] = {
        "cohort": CohortStage(**_fields(CohortConfig, config.cohort), sections=config.text.sections),
        "phantom": config.phantom,
        "preprocess": config.preprocess,
        "masks": config.masks,
        "measure": MeasureStage(**measuring),
        "regions": RegionsStage(
            **measuring, num_threshold_volumes=-(-evaluation.num_threshold_volumes // config.cohort.num_shards)
        ),
        "diagnostics": DiagnosticsStage(**measuring, num_volumes=evaluation.num_diagnostic_volumes),
        "features": FeaturesStage(features=evaluation.features, window_hu=window_hu),
        "augmentation": AugmentationStage(augmentation=evaluation.augmentation, window_hu=window_hu),
        "evaluation": evaluation,
        "prompts": prompts_stage(evaluation),
        "study": study_stage(config),
    }
    for name, encoder in config.text.encoders.items():
        stages[f"text_{name}"] = TextEncoderStage(**_fields(TextInputs, config.text), encoder=encoder)
    for name, method in config.methods.items():
        for stage, settings in METHODS[method.kind].stages(config, name).items():
            if stages.setdefault(stage, settings) != settings:
                raise InputError(
                    f"methods.{name}: its settings {stage}.json have the name of another stage's; rename the method"
                )
    return stages


def prompts_stage(evaluation: EvaluationConfig) -> PromptsStage:
    """Return the part of the evaluation's settings that prompts depend on."""
    augmentation = evaluation.augmentation
    return PromptsStage(
        **_fields(PromptSettings, evaluation),
        augmentation_findings=augmentation.findings,
        num_reports_per_class=augmentation.num_reports_per_class,
    )


def study_stage(config: Config) -> StudyStage:
    """Return the settings of the reader study, with the names of what it shows."""
    study = config.study
    paper = [name for name, entry in config.methods.items() if entry.kind in ("hagan", "medical_diffusion")]
    ranked = study.ranking.methods or (REAL, config.reference, *paper)
    shown = study.recognition.method or config.reference
    settings = _fields(StudyConfig, study) | {
        "ranking": study.ranking.model_copy(update={"methods": ranked}),
        "recognition": study.recognition.model_copy(update={"method": shown}),
    }
    labels = {name: entry.label for name, entry in config.methods.items()}
    labels |= {name: entry.label for name, entry in study.folders.items()}
    methods = {name: label for name, label in labels.items() if name in (*ranked, shown)}
    return StudyStage(**settings, reference=config.reference, methods=methods, preprocess=config.preprocess)


def stage_texts(config: Config) -> dict[str, str]:
    """Return the text of every results/config/<stage>.json.

    A stage that names something of a plugin lists that plugin, and the evaluation lists all of them, which may hold
    exhibits: a new plugin makes the tables again, and nothing else. Keys stand in the order of the configuration,
    which is that of the prompts and of the tables' rows.
    """
    texts = {}
    for name, stage in stage_configs(config).items():
        plugins = config.plugins if name == "evaluation" else sorted(set(_plugins_of(stage)))
        values = stage.model_dump(mode="json") | ({"plugins": list(plugins)} if plugins else {})
        texts[name] = json.dumps(values, indent=2, allow_nan=False)
    return texts


def _plugins_of(section: Section) -> Iterator[str]:
    """Yield the plugins that registered what a section and the sections below it name."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        for note in field.metadata:
            if isinstance(note, Registered) and (plugin := note.registry.plugin_of(value)):
                yield plugin
        for part in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(part, Section):
                yield from _plugins_of(part)


def _fields(base: type[Section], section: Section) -> dict[str, Any]:
    """Return the fields of `base` from a section that has them."""
    return {name: getattr(section, name) for name in base.model_fields}


def _with_seed(section: SectionType, seed: int, keep: tuple[type[Section], ...]) -> SectionType:
    """Return `section` with `seed` in every section below it that leaves its own seed out, types `keep` excepted."""
    changes: dict[str, Any] = {}
    for name, value in section:
        if name == "seed" and name not in section.model_fields_set:
            changes[name] = seed
        elif isinstance(value, Section) and not isinstance(value, keep):
            changes[name] = _with_seed(value, seed, keep)
        elif isinstance(value, dict):
            changes[name] = {k: _with_seed(v, seed, keep) if isinstance(v, Section) else v for k, v in value.items()}
    return section.model_copy(update=changes)
