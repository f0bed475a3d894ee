"""Settings of the evaluations: prompts, features, augmentation, tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from medsyn.config.section import Count, Name, OwnSeed, PathText, Section, Sentence, Width
from medsyn.config.text import ReportSection
from medsyn.config.volumes import ToolFor
from medsyn.registry import MASK_TOOLS

Finding = Literal["pleural_effusion", "emphysema", "cardiomegaly", "consolidation", "ground_glass_opacity", "nodule"]
GridFinding = Literal["pleural_effusion", "emphysema", "cardiomegaly", "consolidation", "ground_glass_opacity"]
"""Findings of `medsyn.text.grid`."""
Measure = Literal["effusion_volume_ml", "laa950_percent", "cardiothoracic_ratio"]
AnatomyTool = Annotated[str, ToolFor(MASK_TOOLS, "anatomy")]
PromptSource = Literal["sentences", "reports"]


NUM_DIAGNOSTIC_VOLUMES = 16
MAX_MEAN_VOLUMES = 400
"""Training volumes of which `medsyn diagnose` makes the mean volume at most, which bounds its time."""


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
    num_reports_per_class: Count = Field(100, description="reports chosen per finding and per label")
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


class MemorisationConfig(Section):
    """When a method counts as one that copies training volumes."""

    max_share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="share of generated volumes beyond the threshold of the exhibit `memorisation`, above which report"
        " and `medsyn generate --prompts` warn; 0.05 is the most that is expected of unseen real volumes",
    )


class PromptSettings(Section):
    """What the prompts of all evaluations depend on (paper: 1,024 for Table I, 32 per prompt for Tables II to IV)."""

    num_fid_samples: int = Field(1024, ge=2, le=10_000_000)
    num_per_prompt: Count = Field(32, description="volumes per prompt of Tables II to IV and VII")
    num_segmentation_subjects: Count = 32
    segmentation_guidance_scale: float = Field(
        1.0, description="Table V: guidance of its volumes; at 1 its two arms differ in the text alone"
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
    faithfulness: dict[GridFinding, Count] = Field(
        {
            "pleural_effusion": 10,
            "emphysema": 5,
            "cardiomegaly": 30,
            "consolidation": 6,
            "ground_glass_opacity": 6,
        },
        min_length=1,
        description="Table VIII: finding -> seeds per place that its prompts name (3 places of an effusion, 6 of an"
        " emphysema, 1 of a cardiomegaly, 5 of the others); each seed samples two volumes",
    )
    pairs_keep_severity: bool = Field(True, description="prompt pairs out of reports: keep small, severe, ...")
    pairs_keep_side: bool = Field(True, description="prompt pairs out of reports: keep left, right, bilateral")
    seed: OwnSeed = 0


class EvaluationConfig(PromptSettings):
    """Prompts, and what is made of the volumes that answer them."""

    num_bootstrap: Count = 1000
    anatomy_tool: AnatomyTool = Field(
        "classical", description="what finds lungs, airway, heart and effusion to be measured (paper: totalsegmentator)"
    )
    label_source: Literal["reports", "given"] = Field(
        "reports",
        description="labels of the real CTs in Table VI and for the feature extractor: parsed from the reports, or the"
        " manifest's column given_labels (CT-RATE, RAD-ChestCT); given labels are compared with the parsed ones in"
        " qc/labels.csv",
    )
    training_budget: Sentence | None = Field(
        None, description="what the methods of Table I were given to train, in words that its caption prints"
    )
    figure3_methods: tuple[Name, ...] | None = Field(
        None, min_length=1, description="methods of Figure 3, in this order; null: those of Table I"
    )
    faithfulness_methods: tuple[Name, ...] = Field(
        (), description="methods of Table VIII beside the reference; each samples as many volumes again"
    )
    num_diagnostic_volumes: Count = Field(
        NUM_DIAGNOSTIC_VOLUMES,
        description="validation volumes on which `medsyn diagnose` tests the networks of the reference",
    )
    num_threshold_volumes: Count = Field(
        256,
        description="Table VIII: training volumes, at most, on which it is chosen from which amount on a volume shows a"
        " finding; all validation volumes check it",
    )
    features: FeaturesConfig = FeaturesConfig()
    memorisation: MemorisationConfig = MemorisationConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
