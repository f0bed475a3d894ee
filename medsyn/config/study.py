"""Settings of the reader study: what readers are asked about which volumes, and where their answers lie."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from medsyn.config.section import (
    Count,
    Hounsfield,
    LabelText,
    Millimetres3,
    Name,
    OwnSeed,
    PathText,
    Section,
    Sentence,
    unique,
)
from medsyn.config.volumes import PreprocessConfig
from medsyn.header_hints import HeaderHints

StudyTask = Literal["recognition", "ranking"]
StudyStructure = Literal["lobes", "vessels", "airways"]
STUDY_PROMPTS = "study"
"""The set of prompts whose volumes the recognition items show."""
OTHER = "other"
"""The answer that stands for every finding that is not among the options."""
_OPTIONS: dict[str, str] = {
    "consolidation": "Consolidation",
    "pleural_effusion": "Pleural effusion",
    "cardiomegaly": "Cardiomegaly",
    "no_abnormality": "No abnormality",
    OTHER: "Other abnormality (please note which)",
}
_PROMPTS: dict[str, str] = {
    "consolidation": "There is a large consolidation in the right lower lobe.",
    "pleural_effusion": "There are large pleural effusions seen.",
    "cardiomegaly": "There is severe cardiomegaly.",
    "no_abnormality": "The lungs are clear. The heart size is normal. There is no pleural effusion.",
}
_QUESTIONS: dict[StudyStructure, str] = {
    "lobes": "lobes and their fissures",
    "vessels": "vessels of the lungs",
    "airways": "airways",
}
_INTRODUCTION = (
    "You will see CTs of the chest that may belong to different patients and were acquired with different devices and"
    " reconstruction methods. Some questions ask for the most prominent finding of a CT, others ask you to rank CTs."
    " There is no time limit. You can stop and go on later."
)


class WindowConfig(Section):
    """The display window with which a volume is first shown."""

    name: LabelText = "lung"
    level: Hounsfield = -600.0
    width: PositiveFloat = 1500.0


class StudyFolder(Section):
    """Volumes of a system outside of the run, in a plain folder."""

    label: LabelText = Field(description="name in tables and figures")
    path: PathText = Field(description="folder of volumes in HU (NIfTI, MetaImage, NRRD, npz)")
    real: bool = Field(False, description="the volumes are CTs of patients")
    truth: PathText | None = Field(
        None, description="CSV with the columns id and truth: the right answer per volume, for recognition items"
    )
    spacing_mm: Millimetres3 | None = Field(None, description="(z, y, x), instead of the files' own")
    orientation: str = Field("auto", description="where x, y, z run to, such as LPS, instead of what the files say")

    def hints(self) -> HeaderHints:
        """Return what the entry says of the geometry of its files."""
        return HeaderHints(spacing_mm=self.spacing_mm, orientation=self.orientation)


class RecognitionConfig(Section):
    """Items that ask which finding one CT shows. Paper: five generated CTs and a real one."""

    question: Sentence = "Which finding is the most prominent one in this CT?"
    options: dict[Name, Sentence] = Field(
        _OPTIONS, min_length=2, description="answers that are offered, and their words"
    )
    prompts: dict[Name, Sentence] = Field(_PROMPTS, description="finding -> the text that its volumes are sampled with")
    cases: tuple[Name, ...] = Field(
        ("consolidation", "pleural_effusion", "pleural_effusion", "cardiomegaly", "no_abnormality"),
        description="findings of the generated CTs, one item each",
    )
    method: Name | None = Field(None, description="method or folder of the generated CTs; null: the reference")
    num_real: int = Field(1, ge=0, le=1000, description="real CTs, each with one of the findings that cases names")

    @model_validator(mode="after")
    def _check(self) -> RecognitionConfig:
        if OTHER not in self.options and (unknown := [case for case in self.cases if case not in self.options]):
            raise ValueError(f"cases: '{unknown[0]}' is not among options, expected one of {', '.join(self.options)}")
        return self

    @property
    def counts(self) -> Counter[str]:
        """The number of generated CTs per finding."""
        return Counter(self.cases)


class RankingConfig(Section):
    """Items that ask to rank one CT of each method by how well a structure is preserved. Paper: 3 x 4 items."""

    question: Sentence = (
        "Rank the CTs by how well they preserve the {structure}. Rank 1 is the CT that looks most like a real one."
    )
    structures: tuple[StudyStructure, ...] = ("lobes", "vessels", "airways")
    methods: tuple[Name, ...] | None = Field(
        None,
        min_length=2,
        max_length=8,
        description="real, methods of the run and names of folders; null: real, the reference and the methods of the"
        " kinds hagan and medical_diffusion",
    )
    prompt_set: Name = Field("reports", description="prompts of the methods' volumes")
    num_sets: Count = Field(4, description="sets of volumes per structure")
    same_sets: bool = Field(True, description="every structure is judged on the same sets of volumes")

    @field_validator("structures", "methods")
    @classmethod
    def _check(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unique("values", value or ())
        return value

    def words(self, structure: StudyStructure) -> str:
        """Return the question about a structure."""
        return self.question.replace("{structure}", _QUESTIONS[structure])


class RepeatsConfig(Section):
    """How many items each reader is asked a second time, at the end, for intra-reader agreement (paper: none)."""

    recognition: int = Field(0, ge=0, le=1000)
    ranking: int = Field(0, ge=0, le=1000)


class StudyConfig(Section):
    """The reader study (Figures 7 and 8)."""

    title: Sentence = "Reading chest CTs"
    introduction: Sentence = Field(_INTRODUCTION, description="plain text of the first page")
    readers: dict[Literal["reader", "junior", "senior"], Count] = Field(
        {"junior": 6, "senior": 4}, min_length=1, description="number of readers per group; reader: of no group"
    )
    window: WindowConfig = WindowConfig()
    range_hu: tuple[Hounsfield, Hounsfield] = Field(
        (-1000.0, 600.0),
        description="HU beyond are clipped in all volumes, so that padding and clipping do not tell methods apart",
    )
    recognition: RecognitionConfig = RecognitionConfig()
    ranking: RankingConfig = RankingConfig()
    repeats: RepeatsConfig = RepeatsConfig()
    practice: tuple[StudyTask, ...] = Field(
        ("recognition", "ranking"), description="tasks with a practice item, which shows volumes of no other item"
    )
    folders: dict[Name, StudyFolder] = Field({}, description="other systems that take part, by name")
    seed: OwnSeed = 0
    answers: PathText | None = Field(
        None, description="CSV of the readers' answers, for Figures 7 and 8; null: automatic observers"
    )
    key: PathText | None = Field(
        None, description="key of the study; null: the answers have the columns method and truth themselves"
    )

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        low, high = self.range_hu
        if low >= high:
            raise ValueError(f"range_hu: {[low, high]}, expected [low, high] with low < high")
        unique("practice", self.practice)
        if self.key is not None and self.answers is None:
            raise ValueError("key: is given without answers; name the answers as well, or leave both out")
        return self

    @property
    def num_readers(self) -> int:
        """The number of readers of all groups."""
        return sum(self.readers.values())


class StudyStage(StudyConfig):
    """config/study.json: the study, with the methods that it shows, and the grid of its volumes.

    methods: label by name; `ranking.methods` and `recognition.method` are not None.
    """

    reference: Name
    methods: dict[Name, LabelText]
    preprocess: PreprocessConfig

    @property
    def ranked(self) -> tuple[str, ...]:
        """The names of the methods that are ranked."""
        return self.ranking.methods or ()

    @property
    def shown(self) -> str:
        """The name of the method whose volumes the recognition items show."""
        return self.recognition.method or self.reference
