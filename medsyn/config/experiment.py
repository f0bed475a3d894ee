"""The whole configuration: every section, and what they ask of each other."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, model_validator

from medsyn.config.checks import check_config
from medsyn.config.cohort import CohortConfig, PhantomConfig
from medsyn.config.compute import ComputeConfig
from medsyn.config.evaluation import EvaluationConfig
from medsyn.config.methods import AnyKind, MethodConfig
from medsyn.config.networks import LowResConfig, SuperResConfig
from medsyn.config.sampling import SamplingConfig
from medsyn.config.section import Name, PathText, ResultsDir, Section, Seed
from medsyn.config.study import StudyConfig
from medsyn.config.text import TextConfig
from medsyn.config.volumes import MasksConfig, PreprocessConfig


class Config(Section):
    """The whole experiment."""

    results_dir: ResultsDir = "results"
    plugins: tuple[PathText, ...] = Field(
        (),
        description="your own Python modules (a name, or the path of a .py file), imported as code: each registers"
        " methods, exhibits, mask tools or solvers",
    )
    seed: Seed = Field(
        0,
        description="seed of all training runs, sampling and the bootstrap; cohort, phantoms and split keep theirs",
    )
    cohort: CohortConfig = CohortConfig()
    phantom: PhantomConfig = PhantomConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    masks: MasksConfig = MasksConfig()
    text: TextConfig = TextConfig()
    low_res: LowResConfig = LowResConfig()
    super_res: SuperResConfig = SuperResConfig()
    methods: dict[Name, Annotated[SerializeAsAny[MethodConfig], AnyKind()]] = Field(
        description="what is compared, by name: models of this package, and other systems"
    )
    reference: Name = Field(
        "",
        description="method of kind medsyn, of Tables II to VI and of the figures; when left out, the first of methods",
    )
    compare_with: Name | None = Field(
        None, description="method whose airway volume the others must exceed in Table I; null: no test"
    )
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig
    study: StudyConfig = StudyConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_reference(cls, values: Any) -> Any:
        methods = values.get("methods") if isinstance(values, dict) else None
        if isinstance(methods, dict) and methods and "reference" not in values:
            return {**values, "reference": next(iter(methods))}
        return values

    @model_validator(mode="after")
    def _check(self) -> Config:
        check_config(self)
        return self
