"""Validate every setting of the project. Models are frozen, unknown keys are errors, units stand in names.

YAML files hold a `Config`. A verb never reads YAML: the verb `config` validates the file once and writes one JSON file
per stage with just what that stage depends on (`stages`), so that editing a setting re-runs its stage and what follows,
and nothing else.
"""

from medsyn.config.cohort import CohortConfig, PhantomConfig
from medsyn.config.compute import ComputeConfig
from medsyn.config.evaluation import (
    AugmentationConfig,
    EvaluationConfig,
    FeaturesConfig,
    Finding,
    Measure,
    PromptPairConfig,
    PromptSettings,
)
from medsyn.config.experiment import Config
from medsyn.config.methods import MedSynConfig, MethodConfig
from medsyn.config.networks import (
    DenoiserTrainConfig,
    Interpolation,
    LowResConfig,
    Reduction,
    StageModelConfig,
    SuperResConfig,
    TrainConfig,
    UNetConfig,
)
from medsyn.config.reading import check_keys, load_config, load_stage, validate
from medsyn.config.sampling import SamplingConfig
from medsyn.config.section import Section
from medsyn.config.stages import (
    AugmentationStage,
    CohortStage,
    DiagnosticsStage,
    Distillation,
    DistilledStage,
    FeaturesStage,
    MeasureStage,
    ModelStage,
    PromptsStage,
    RegionsStage,
    SamplingStage,
    TextEncoderStage,
    prompts_stage,
    stage_configs,
    stage_texts,
    study_stage,
)
from medsyn.config.study import StudyConfig, StudyStage
from medsyn.config.text import LongReports, ReportSection, TextConfig, TextEncoderConfig
from medsyn.config.volumes import MasksConfig, PreprocessConfig

__all__ = [
    "AugmentationConfig",
    "AugmentationStage",
    "CohortConfig",
    "CohortStage",
    "ComputeConfig",
    "Config",
    "DenoiserTrainConfig",
    "DiagnosticsStage",
    "Distillation",
    "DistilledStage",
    "EvaluationConfig",
    "FeaturesConfig",
    "FeaturesStage",
    "Finding",
    "Interpolation",
    "LongReports",
    "LowResConfig",
    "MasksConfig",
    "Measure",
    "MeasureStage",
    "MedSynConfig",
    "MethodConfig",
    "ModelStage",
    "PhantomConfig",
    "PreprocessConfig",
    "PromptPairConfig",
    "PromptSettings",
    "PromptsStage",
    "Reduction",
    "RegionsStage",
    "ReportSection",
    "SamplingConfig",
    "SamplingStage",
    "Section",
    "StageModelConfig",
    "StudyConfig",
    "StudyStage",
    "SuperResConfig",
    "TextConfig",
    "TextEncoderConfig",
    "TextEncoderStage",
    "TrainConfig",
    "UNetConfig",
    "check_keys",
    "load_config",
    "load_stage",
    "prompts_stage",
    "stage_configs",
    "stage_texts",
    "study_stage",
    "validate",
]
