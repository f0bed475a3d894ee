"""Every setting of the project: frozen models, one section per stage, unknown keys are errors, units in names.

YAML files hold a `Config`. A verb never reads YAML: the verb `config` validates the file once and writes one JSON file
per stage with just what that stage depends on, so that editing a setting re-runs its stage and what follows, nothing
else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from medsyn.config_checks import check_config, unique
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.yaml_file import read_yaml

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Shards = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Voxels = Annotated[int, Field(ge=1, le=4096)]
OwnSeed = Annotated[Seed, Field(description="seed of this section; when left out, the configuration's seed")]
DataSeed = Annotated[Seed, Field(description="seed of the data; does not follow the configuration's seed")]
Size3 = tuple[Voxels, Voxels, Voxels]
Millimetres = Annotated[float, Field(gt=0, le=10_000)]
Millimetres3 = tuple[Millimetres, Millimetres, Millimetres]
Hounsfield = Annotated[float, Field(ge=-32768, le=32767)]
Finding = Literal["pleural_effusion", "emphysema", "cardiomegaly", "consolidation", "ground_glass_opacity", "nodule"]
Measure = Literal["effusion_volume_ml", "laa950_percent", "cardiothoracic_ratio"]
ReportSection = Literal["report", "findings", "impression"]
PromptSource = Literal["sentences", "reports"]
LongReports = Literal["shorten_findings", "cut_end"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]


def _path(value: str) -> str:
    """Return a path that a command line and a rule can hold; another one is a ValueError."""
    if not value.strip() or value != value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is empty, begins or ends with a space or holds a control character; rename it")
    if value.startswith(("-", "~")):
        raise ValueError(f"{value!r} begins with '{value[0]}', expected a plain path; write it in full")
    if any(len(os.fsencode(part)) > 255 for part in value.split("/")):
        raise ValueError("a name in it has more than 255 bytes, which no file system takes; shorten it")
    return value


def _results_dir(value: str) -> str:
    """Return the path of the results, without slashes too many; one that Snakemake cannot hold is a ValueError."""
    if not set(value).isdisjoint("{}<>"):
        raise ValueError(f"{value!r} holds one of {{}}<>, which Snakemake reads as placeholders; rename it")
    return os.path.normpath(_path(value))


def _label(value: str) -> str:
    """Return a name that a command line and a table can hold; another one is a ValueError."""
    if not value.strip() or not value.isprintable() or value.startswith("-"):
        raise ValueError(f"{value!r} is empty, begins with '-' or holds a control character; choose another")
    return value


LabelText = Annotated[str, Field(max_length=200), AfterValidator(_label)]
Sentence = Annotated[str, Field(min_length=1, max_length=10_000)]
Steps = Annotated[int, Field(ge=1, le=1000)]
PathText = Annotated[str, AfterValidator(_path)]
ResultsDir = Annotated[str, AfterValidator(_results_dir)]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class CohortConfig(Section):
    """Who is in: the embedded phantoms or a manifest that the user brings."""

    source: Literal["phantom", "manifest"] = Field("phantom", description="embedded phantoms, or your own CSV")
    manifest: PathText = Field("config/cohort.csv", description="CSV with subject_id, image, findings, impression")
    reports: PathText | None = Field(
        None,
        description="CSV with report_id, findings, impression and, if known, patient_id: reports without images, which"
        " train the text encoder as well (paper: 209,683); null: none",
    )
    validation_fraction: Fraction = Field(0.12, description="patient-level split; the paper holds out 12 %")
    max_reject_fraction: Fraction = Field(0.2, description="stop when more than this share of subjects is rejected")
    num_shards: Shards = Field(2, description="every per-volume stage runs as this many jobs")
    seed: DataSeed = 0


class PhantomConfig(Section):
    """The embedded cohort of procedural chest phantoms."""

    num_subjects: Count = 360
    num_text_only_reports: int = Field(
        1200, ge=0, le=10_000_000, description="reports without images, for the text encoder"
    )
    size: int = Field(64, ge=16, le=1024, description="voxels along each axis; the field of view is fixed")
    seed: DataSeed = 0


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
    max_reject_fraction: Fraction = Field(0.2, description="stop a shard when more of it than this is no chest CT")

    @model_validator(mode="after")
    def _check(self) -> PreprocessConfig:
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu must be [low, high] with low < high")
        if any(size % self.low_res_factor for size in self.size):
            raise ValueError(f"size must be divisible by low_res_factor {self.low_res_factor}")
        return self


class MasksConfig(Section):
    """Which tool makes which mask."""

    lobes: Literal["classical", "lungmask", "totalsegmentator"] = "classical"
    airway: Literal["classical", "totalsegmentator", "naviairway"] = "classical"
    vessels: Literal["classical", "totalsegmentator"] = "classical"
    lungmask_model: Literal["LTRCLobes_R231", "LTRCLobes", "R231"] = Field(
        "LTRCLobes_R231", description="lobes filled with R231's lungs, lobes alone, or R231's lungs with our fissures"
    )
    weights_dir: PathText = Field("weights", description="folder with the tools' weight files, see medsyn weights list")
    max_reject_fraction: Fraction = Field(0.2, description="stop a shard when more of it than this has no masks")


class TextEncoderConfig(Section):
    """One language model: where it starts and how it is fine-tuned on the reports."""

    init: PathText = Field("scratch", description="'scratch', or a local folder or hub name of a BERT checkpoint")
    vocabulary: Literal["reports", "english"] = Field(
        "reports", description="from scratch: corpus of the tokenizer and, for english, of the pretraining"
    )
    vocabulary_size: int = Field(1000, ge=100, le=1_000_000)
    hidden_size: Width = 96
    num_layers: int = Field(2, ge=1, le=256)
    num_heads: int = Field(4, ge=1, le=1024, description="from scratch: must divide hidden_size")
    num_english_steps: int = Field(0, ge=0, description="masked-language-model steps on general English first")
    num_epochs: Count = Field(5, description="epochs over all reports of the training split (paper: 5)")
    batch_size: Count = 8
    learning_rate: PositiveFloat = 1e-3
    dropout: Share = Field(0.0, description="from scratch only; a checkpoint keeps its own")
    small_corpus: bool = Field(
        False,
        description="for hundreds of reports: from scratch, attention begins as a comparison of the sections; a batch"
        " holds every pair beside its swap (layers >= 2, heads and batch size multiples of 4)",
    )
    num_warmup_steps: int = Field(50, ge=0, description="optimiser steps of linear warm-up, at most one epoch")
    mask_fraction: float = Field(0.15, gt=0, lt=1)
    swap_fraction: Fraction = 0.5
    pairing_weight: PositiveFloat = Field(1.0, description="of the pairing loss beside that of the masked tokens")
    max_tokens: int = Field(
        192,
        ge=4,
        le=1_000_000,
        description="longest input of the language model in tokens (authors: 2,048; a shorter checkpoint is extended)",
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: OwnSeed = 0

    @model_validator(mode="after")
    def _check(self) -> TextEncoderConfig:
        if self.small_corpus and (self.num_layers < 2 or self.num_heads % 4 or self.batch_size % 4):
            raise ValueError("small_corpus needs num_layers of at least 2, num_heads and batch_size multiples of 4")
        if self.init == "scratch" and self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        return self


class TextConfig(Section):
    """Text encoders by name and what of their states conditions the image model."""

    encoders: dict[Name, TextEncoderConfig] = Field(default_factory=lambda: {"biomedical": TextEncoderConfig()})
    num_tokens: int = Field(96, ge=4, le=1_000_000, description="hidden states kept (paper: 192)")
    mask_padding: bool = Field(False, description="zero the states of padding positions (authors' code: false)")
    sections: Annotated[tuple[ReportSection, ...], Field(min_length=1)] = Field(
        ("report", "findings", "impression"),
        description="what a training step may be conditioned on, drawn evenly among those that the report has",
    )
    long_reports: LongReports = Field(
        "shorten_findings",
        description="a text beyond max_tokens loses the end of its Findings, and the states kept of one beyond"
        " num_tokens include its Impression's; cut_end (authors' code): the first tokens and states of any text",
    )


class UNetConfig(Section):
    """The one U-Net (the authors' release: dim 160 / 56, mults 1-2-4-8, heads 8 / 4)."""

    dim: Width = 16
    mults: Annotated[tuple[Width, ...], Field(min_length=1, max_length=10)] = (1, 2, 4)
    num_heads: int = Field(4, ge=1, le=1024)
    num_groups: Width = 8
    init_kernel: int = Field(7, ge=1, le=63, description="edge of the first convolution, odd")
    num_bottom_blocks: int = Field(4, ge=1, le=256, description="attention blocks at the bottom (text-conditioned net)")
    mask_padding: bool = Field(
        False, description="ignore the padding of a text (needs text.mask_padding); the authors attend to it"
    )
    patch_size: int = Field(1, ge=1, le=64, description="edge of the voxel cube that the network sees as one voxel")
    sigma_data: PositiveFloat | None = Field(
        None,
        description="standard deviation of what is to be drawn: the network then predicts only what the noise hides",
    )
    add_condition: bool = Field(
        False, description="super-resolution: add the condition to the output, so that only the difference is learned"
    )
    up_order: Literal["A", "B"] = Field("A", description="A: upsample early (training scripts), B: late (inference)")

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        for width in (self.dim, *(self.dim * mult for mult in self.mults)):
            if width % self.num_groups:
                raise ValueError(f"num_groups {self.num_groups} does not divide {width} channels (dim times mults)")
        if self.dim % 2 or self.dim < 4 or not self.init_kernel % 2:
            raise ValueError("dim must be even and at least 4, init_kernel odd")
        return self


class TrainConfig(Section):
    """The one training loop."""

    num_steps: int = Field(1000, ge=1, le=1_000_000_000)
    batch_size: Count = Field(16, description="samples per optimiser step over all processes")
    micro_batch_size: Count = Field(16, description="samples per process and forward pass")
    learning_rate: PositiveFloat = 1e-4
    num_warmup_steps: int = Field(0, ge=0)
    learning_rate_decay: Literal["constant", "cosine"] = "constant"
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Share = 0.999
    ema_start_step: int = Field(0, ge=0, description="before this step the average is a plain copy")
    ema_every: PositiveInt = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, about a third more time"
    )
    compile: bool = Field(False, description="torch.compile the network; pays on a GPU")
    checkpoint_every: PositiveInt = 250
    log_every: PositiveInt = 50
    preview_every: int = Field(0, ge=0, description="a picture of samples every so many steps; 0: only at the end")
    tensorboard: bool = Field(False, description="event files too, if the package tensorboard is installed")
    text_dropout: Fraction = Field(0.1, description="share of samples that see the null text")
    max_low_res_noise: Fraction = Field(0.4, description="super-resolution: noise level of the condition, U[0, this)")
    condition_interpolation: Literal["nearest", "linear"] = Field(
        "nearest", description="super-resolution: how the condition is enlarged; the authors take nearest"
    )
    crop_size: Size3 | None = Field(None, description="super-resolution: random crop (D, H, W)")
    timestep_power: PositiveFloat = Field(
        1.0, description="t = u^this, u uniform; 1 is the paper's, below 1 trains more at high noise: text acts sooner"
    )
    augment: bool = Field(
        False, description="zoom and rotate image and masks together, each in half of the samples (authors: super_res)"
    )
    seed: OwnSeed = 0


class StageModelConfig(Section):
    """Network and training of one resolution."""

    unet: UNetConfig = UNetConfig()
    train: TrainConfig = TrainConfig()


class VariantConfig(Section):
    """One trained model of the experiment: the full model or an ablation."""

    label: LabelText = Field(description="name in tables and figures")
    channels: tuple[Literal["image", "lobe", "airway", "vessel"], ...] = Field(
        ("image", "lobe", "airway", "vessel"), description="image, and any of the others"
    )
    text_encoder: Name = "biomedical"
    super_res_from: Name | None = Field(None, description="use another variant's super-resolution net")

    @model_validator(mode="after")
    def _check(self) -> VariantConfig:
        if "image" not in self.channels:
            raise ValueError(f"channels: {list(self.channels)} has no 'image', which is what the model draws; add it")
        unique("channels", self.channels)
        return self


class SamplingConfig(Section):
    """How volumes are drawn (paper: 50 and 20 DDIM steps)."""

    solver: Literal["ddim", "dpmpp_2m"] = Field("ddim", description="dpmpp_2m: second order, for fewer steps")
    num_steps_low_res: Steps = 50
    num_steps_super_res: Steps = 20
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
    compile: bool = Field(False, description="torch.compile the networks; pays on a GPU over many volumes")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    num_shards: Shards = 2
    seed: OwnSeed = 0


class PromptPairConfig(Section):
    """A prompt, its reversal, and the measure that must tell them apart (Tables II to IV)."""

    measure: Measure
    with_finding: Sentence
    without_finding: Sentence


class FeaturesConfig(Section):
    """The feature extractor of FID and MMD: Med3D's ResNet, trained on the cohort or read from a file."""

    weights: PathText | None = Field(
        None, description="Med3D checkpoint; none: train the network on the cohort's labels"
    )
    depth: Literal[10, 50] = 10
    base_width: Width = Field(64, description="channels of the first layer (Med3D: 64)")
    num_epochs: Count = 10
    batch_size: Count = 8
    learning_rate: PositiveFloat = 1e-3
    findings: tuple[Name, ...] = Field(
        ("pleural_effusion", "lung_opacity", "cardiomegaly", "emphysema", "consolidation", "nodule"),
        min_length=1,
        description="labels that the network learns to predict, out of the labeler's",
    )
    seed: OwnSeed = 0


class AugmentationConfig(Section):
    """Table VI: a classifier trained with and without synthetic volumes."""

    findings: tuple[Name, ...] = Field(("pleural_effusion", "lung_opacity"), min_length=1)
    num_reports_per_class: Count = Field(100, description="reports drawn per finding and per label")
    num_folds: int = Field(5, ge=2, le=1000, description="folds of the cross-validation, split by patient")
    input_size: PositiveInt | None = Field(
        32,
        description="average-pool volumes by whole factors to at most this many voxels per axis; null: not at all",
    )
    num_epochs: Count = 15
    base_width: Width = 8
    batch_size: Count = 8
    learning_rate: PositiveFloat = 1e-3
    real_results: PathText | None = Field(
        None,
        description="results_dir of another cohort whose CTs, of both splits, are the real ones of Table VI (paper:"
        " RAD-ChestCT); null: the validation split of this cohort",
    )
    seed: OwnSeed = 0


class EvaluationConfig(Section):
    """Sizes of the evaluations (paper: 1,024 volumes for Table I, 32 a prompt for Tables II to IV)."""

    num_fid_samples: int = Field(1024, ge=2, le=10_000_000)
    num_per_prompt: Count = Field(32, description="volumes per prompt of Tables II to IV and VII")
    num_segmentation_subjects: Count = 32
    segmentation_guidance_scale: float = Field(
        1.0, description="Table V: guidance of its volumes; at 1 its two arms differ in the text alone"
    )
    num_bootstrap: Count = 1000
    anatomy_tool: Literal["classical", "totalsegmentator"] = Field(
        "classical", description="what finds lungs, airway, heart and effusion to be measured (paper: totalsegmentator)"
    )
    label_source: Literal["reports", "given"] = Field(
        "reports",
        description="labels of the real CTs in Table VI and for the feature extractor: parsed from the reports, or the"
        " manifest's column given_labels (CT-RATE, RAD-ChestCT); given labels are compared with the parsed ones in"
        " qc/labels.csv",
    )
    prompt_section: ReportSection = Field(
        "report", description="what of a report serves as prompt in Tables I, V and VI"
    )
    prompt_pairs: dict[Finding, PromptPairConfig]
    prompt_source: PromptSource = Field(
        "sentences",
        description="Tables II to IV and VII: the sentences of prompt_pairs alone, or (paper) beside them sentences of"
        " validation reports and their reversals",
    )
    num_report_sentences: Count = Field(
        3, description="prompt_source reports: sentences of reports per finding, each with num_per_prompt volumes"
    )
    pairs_keep_severity: bool = Field(True, description="prompt pairs out of reports: keep small, severe, ...")
    pairs_keep_side: bool = Field(True, description="prompt pairs out of reports: keep left, right, bilateral")
    features: FeaturesConfig = FeaturesConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    seed: OwnSeed = 0


class ComputeConfig(Section):
    """What a job may use; the scheduler's own words (partition, account) live in the profile."""

    num_gpus_training: int = Field(
        0, ge=0, le=1024, description="GPUs of a training job on each of its nodes, one process each"
    )
    num_nodes_training: int = Field(
        1, ge=1, le=10_000, description="nodes of a training job; more than 1: on SLURM only"
    )
    num_gpus_inference: int = Field(0, ge=0, le=1024, description="per sampling, embedding and feature job")
    num_threads_training: int = Field(
        1, ge=1, le=10_000, description="CPU threads per training job; part of bit-identity"
    )


class Config(Section):
    """The whole experiment."""

    results_dir: ResultsDir = "results"
    seed: Seed = Field(
        0,
        description="seed of all training runs, sampling and the bootstrap; cohort, phantoms and split keep theirs",
    )
    cohort: CohortConfig = CohortConfig()
    phantom: PhantomConfig = PhantomConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    masks: MasksConfig = MasksConfig()
    text: TextConfig = TextConfig()
    low_res: StageModelConfig = StageModelConfig()
    super_res: StageModelConfig = StageModelConfig()
    variants: dict[Name, VariantConfig]
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        check_config(self)
        return self


SectionType = TypeVar("SectionType", bound=Section)


def load_config(path: str | Path) -> Config:
    """Read and validate a YAML configuration; the first mistake is an InputError that names file and key."""
    return validate(Config, read_yaml(path), path)


def check_keys(paths: Iterable[str | Path]) -> None:
    """Refuse configuration files with a key that stands twice, of which Snakemake silently takes the last."""
    for path in paths:
        read_yaml(path)


def load_stage(model: type[SectionType], path: str | Path) -> SectionType:
    """Read results/config/<stage>.json into its model."""
    return validate(model, read_json(path), path)


def validate(model: type[SectionType], values: Any, source: str | Path) -> SectionType:
    """Build `model` from `values`; the first mistake is an InputError that names `source` and the key."""
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a mapping of settings, found {type(values).__name__}")
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key, remove or correct it"
        raise InputError(f"{source}: {where + ': ' if where else ''}{message}") from None


# --- what a verb reads: one model per stage file ---


class CohortStage(CohortConfig):
    """config/cohort.json: the cohort's settings, and which sections its reports are read by."""

    sections: tuple[ReportSection, ...] = ("report", "findings", "impression")


class MeasureStage(Section):
    """config/measure.json"""

    anatomy_tool: Literal["classical", "totalsegmentator"] = "classical"
    weights_dir: PathText = "weights"


class TextEncoderStage(Section):
    """config/text_<encoder>.json"""

    encoder: TextEncoderConfig
    num_tokens: PositiveInt
    mask_padding: bool
    sections: tuple[str, ...]
    long_reports: LongReports = "shorten_findings"


class ModelStage(Section):
    """config/<low_res|super_res>_<variant>.json: everything the training of one network depends on."""

    stage: Literal["low_res", "super_res"]
    channels: tuple[str, ...]
    unet: UNetConfig
    train: TrainConfig
    window_hu: tuple[float, float]
    low_res_factor: PositiveInt
    num_tokens: PositiveInt = 1
    sections: tuple[str, ...] = ()


class SamplingStage(Section):
    """config/sampling.json"""

    sampling: SamplingConfig
    preprocess: PreprocessConfig


class FeaturesStage(Section):
    """config/features.json"""

    features: FeaturesConfig
    window_hu: tuple[float, float]


class PromptsStage(Section):
    """config/prompts.json: what the prompts of all evaluations depend on."""

    num_fid_samples: PositiveInt
    num_per_prompt: PositiveInt
    num_segmentation_subjects: PositiveInt
    segmentation_guidance_scale: float
    prompt_section: ReportSection
    prompt_pairs: dict[Finding, PromptPairConfig]
    prompt_source: PromptSource = "sentences"
    num_report_sentences: PositiveInt = 3
    pairs_keep_severity: bool
    pairs_keep_side: bool
    augmentation_findings: tuple[str, ...]
    num_reports_per_class: PositiveInt
    seed: Seed


class AugmentationStage(Section):
    """config/augmentation.json"""

    augmentation: AugmentationConfig
    window_hu: tuple[float, float]


def stage_configs(config: Config) -> dict[str, Section]:
    """The content of every results/config/<name>.json."""
    config = _with_seed(config, config.seed, keep=(CohortConfig, PhantomConfig))
    stages: dict[str, Section] = {
        "cohort": CohortStage(**config.cohort.model_dump(), sections=config.text.sections),
        "phantom": config.phantom,
        "preprocess": config.preprocess,
        "masks": config.masks,
        "measure": MeasureStage(anatomy_tool=config.evaluation.anatomy_tool, weights_dir=config.masks.weights_dir),
        "sampling": SamplingStage(sampling=config.sampling, preprocess=config.preprocess),
        "features": FeaturesStage(features=config.evaluation.features, window_hu=config.preprocess.window_hu),
        "augmentation": AugmentationStage(
            augmentation=config.evaluation.augmentation, window_hu=config.preprocess.window_hu
        ),
        "evaluation": config.evaluation,
        "prompts": prompts_stage(config.evaluation),
    }
    for name, encoder in config.text.encoders.items():
        stages[f"text_{name}"] = TextEncoderStage(
            encoder=encoder,
            num_tokens=config.text.num_tokens,
            mask_padding=config.text.mask_padding,
            sections=config.text.sections,
            long_reports=config.text.long_reports,
        )
    for name, variant in config.variants.items():
        stages[f"low_res_{name}"] = _model_stage(config, "low_res", variant)
        if variant.super_res_from is None:
            stages[f"super_res_{name}"] = _model_stage(config, "super_res", variant)
    return stages


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


def prompts_stage(evaluation: EvaluationConfig) -> PromptsStage:
    """The part of the evaluation's settings that prompts depend on."""
    return PromptsStage(
        num_fid_samples=evaluation.num_fid_samples,
        num_per_prompt=evaluation.num_per_prompt,
        num_segmentation_subjects=evaluation.num_segmentation_subjects,
        segmentation_guidance_scale=evaluation.segmentation_guidance_scale,
        prompt_section=evaluation.prompt_section,
        prompt_pairs=evaluation.prompt_pairs,
        prompt_source=evaluation.prompt_source,
        num_report_sentences=evaluation.num_report_sentences,
        pairs_keep_severity=evaluation.pairs_keep_severity,
        pairs_keep_side=evaluation.pairs_keep_side,
        augmentation_findings=evaluation.augmentation.findings,
        num_reports_per_class=evaluation.augmentation.num_reports_per_class,
        seed=evaluation.seed,
    )


def _model_stage(config: Config, stage: Literal["low_res", "super_res"], variant: VariantConfig) -> ModelStage:
    model = config.low_res if stage == "low_res" else config.super_res
    text: dict[str, Any] = {"num_tokens": config.text.num_tokens, "sections": config.text.sections}
    return ModelStage(
        stage=stage,
        channels=variant.channels,
        unet=model.unet,
        train=model.train,
        window_hu=config.preprocess.window_hu,
        low_res_factor=config.preprocess.low_res_factor,
        **(text if stage == "low_res" else {}),
    )
