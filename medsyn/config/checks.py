"""What sections of the configuration ask of each other: settings that would fail, or train nonsense, hours later.

Every fault is a ValueError that begins with the key. Limits of single values stand at their fields in `medsyn.config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from medsyn.config.methods import MedSynConfig
from medsyn.config.section import unique
from medsyn.layout import REAL
from medsyn.registry import METHODS

if TYPE_CHECKING:
    from medsyn.config.experiment import Config
    from medsyn.config.networks import StageModelConfig, TrainConfig

MAX_VOXELS = 1 << 30
"""Of one volume: 1,024 x 1,024 x 1,024, four times the number of the largest clinical CTs."""
NEEDED_PAIRS = ("pleural_effusion", "emphysema", "cardiomegaly")
"""Findings of Tables II to IV; the first is that of Table VII as well."""


def check_config(config: Config) -> None:
    """Raise ValueError at the first setting that does not fit another one."""
    _check_cohort(config)
    _check_text(config)
    _check_methods(config)
    _check_grids(config)
    _check_trainings(config)
    _check_evaluation(config)
    _check_study(config)


def _check_cohort(config: Config) -> None:
    cohort, phantom = config.cohort, config.phantom
    if cohort.source == "phantom":
        if cohort.num_shards > phantom.num_subjects:
            raise ValueError(
                f"cohort.num_shards: {cohort.num_shards} is more than the {phantom.num_subjects} subjects of"
                " phantom.num_subjects; expected at most one shard per subject"
            )
        if not 0 < cohort.validation_fraction < 1 or phantom.num_subjects < 2:
            raise ValueError(
                f"cohort.validation_fraction: {cohort.validation_fraction} of {phantom.num_subjects} phantoms leaves a"
                " split empty; expected training and validation subjects"
            )
    else:
        folder = Path(config.results_dir).resolve()
        for key, path in (("manifest", cohort.manifest), ("reports", cohort.reports)):
            if path is not None and folder / "cohort" in Path(path).resolve().parents:
                raise ValueError(
                    f"cohort.{key}: {path} lies in {config.results_dir}/cohort, which the workflow writes; move it"
                )


def _check_text(config: Config) -> None:
    if not config.text.encoders:
        raise ValueError("text.encoders: is empty, expected at least one text encoder")
    unique("text.sections", config.text.sections)
    processes = _num_processes(config)
    for name, encoder in config.text.encoders.items():
        if encoder.max_tokens < config.text.num_tokens:
            raise ValueError(f"text.encoders.{name}.max_tokens must be at least text.num_tokens")
        if encoder.batch_size % processes:
            raise ValueError(
                f"text.encoders.{name}.batch_size: {encoder.batch_size} is not a multiple of the {processes} processes"
                " that compute asks for"
            )
    if config.low_res.unet.num_components and config.sampling.null_text == "zero":
        raise ValueError(
            "sampling.null_text: zero is all padding, whose mean low_res.unet.num_components would read; expected"
            " learned"
        )
    readers = {"low_res": config.low_res.unet} | ({"super_res": config.super_res.unet} if config.super_res.text else {})
    for name, unet in readers.items():
        if unet.mask_padding and not config.text.mask_padding:
            raise ValueError(f"{name}.unet.mask_padding needs text.mask_padding, which marks the padding")
        if unet.mask_padding and config.sampling.null_text == "zero":
            raise ValueError(f"sampling.null_text: zero is all padding to {name}.unet.mask_padding; expected learned")


def _check_methods(config: Config) -> None:
    if not config.methods:
        raise ValueError("methods: is empty, expected at least one method")
    unique("methods.*.label", [method.label for method in config.methods.values()])
    for key, name in (("reference", config.reference), ("compare_with", config.compare_with)):
        if name is not None and name not in config.methods:
            raise ValueError(f"{key}: '{name}' is not among methods; expected one of {', '.join(config.methods)}")
    if not isinstance(config.methods[config.reference], MedSynConfig):
        own = ", ".join(name for name, entry in config.methods.items() if isinstance(entry, MedSynConfig))
        raise ValueError(
            f"reference: '{config.reference}' is not a model of this package; expected a method of kind medsyn,"
            + (f" such as {own}" if own else " and there is none; add one under methods")
        )
    for name, method in config.methods.items():
        if name == "real":
            raise ValueError("methods.real: this name is that of the real CTs in tables and folders; choose another")
        if fault := METHODS[method.kind].fault(config, name):
            raise ValueError(fault)


def _check_grids(config: Config) -> None:
    size, factor = config.preprocess.size, config.preprocess.low_res_factor
    if size[0] * size[1] * size[2] > MAX_VOXELS:
        raise ValueError(f"preprocess.size: {list(size)} is more than 2^30 voxels, expected [D, H, W] of a CT")
    if config.super_res.unet.mean_volume:
        raise ValueError("super_res.unet.mean_volume: true, expected false: it is an option of low_res; leave it out")
    if config.low_res.unet.add_condition:
        raise ValueError(
            "low_res.unet.add_condition: true, expected false: only super_res has a condition; leave it out"
        )
    _check_levels("preprocess.size", "low_res", [edge // factor for edge in size], config.low_res)
    crop = config.super_res.train.crop_size
    if config.low_res.train.crop_size is not None:
        raise ValueError("low_res.train.crop_size: only the super-resolution network trains on crops; leave it out")
    if crop is not None and any(part > whole for part, whole in zip(crop, size, strict=True)):
        raise ValueError(f"super_res.train.crop_size: {list(crop)} is larger than preprocess.size {list(size)}")
    if crop is not None and any(part % factor for part in crop):
        raise ValueError(
            f"super_res.train.crop_size: {list(crop)} must be divisible by preprocess.low_res_factor {factor}"
        )
    _check_levels("preprocess.size", "super_res", size, config.super_res)
    if crop is not None:
        _check_levels("super_res.train.crop_size", "super_res", crop, config.super_res)


def _check_levels(key: str, name: str, grid: Sequence[int], model: StageModelConfig) -> None:
    """Raise ValueError unless a network's grid is divisible by its patches, and in-plane by 2 at every level."""
    patch, levels = model.unet.patch_size, len(model.unet.mults)
    multiple = patch * 2 ** (levels - 1)
    if grid[1] % multiple or grid[2] % multiple or grid[0] % patch:
        raise ValueError(
            f"{key}: the grid {list(grid)} of {name} does not fit unet.patch_size {patch} and {levels} levels"
            f" (unet.mults): the in-plane size must be divisible by {multiple}, the depth by {patch}"
        )


def _check_trainings(config: Config) -> None:
    processes = _num_processes(config)
    for name, model in (("low_res", config.low_res), ("super_res", config.super_res)):
        if fault := training_fault(f"{name}.train", model.train, processes):
            raise ValueError(fault)


def training_fault(key: str, train: TrainConfig, processes: int) -> str | None:
    """Return that the batch cannot be shared out over the processes, or that the warm-up does not end, or None."""
    micro = 1 if train.micro_batch_size == "auto" else train.micro_batch
    if train.batch_size % (micro * processes):
        return (
            f"{key}.batch_size: {train.batch_size} is not a multiple of micro_batch_size {micro} times the {processes}"
            " processes that train; change one of them"
        )
    if train.num_warmup_steps > train.num_steps:
        return f"{key}.num_warmup_steps: {train.num_warmup_steps} is more than num_steps {train.num_steps}"
    return None


def _check_evaluation(config: Config) -> None:
    evaluation = config.evaluation
    if evaluation.label_source == "given" and config.cohort.source == "phantom":
        raise ValueError("evaluation.label_source: 'given' needs cohort.source: manifest; expected 'reports'")
    for key, methods in (
        ("figure3_methods", evaluation.figure3_methods or ()),
        ("faithfulness_methods", evaluation.faithfulness_methods),
    ):
        unique(f"evaluation.{key}", methods)
        for method in methods:
            if method not in config.methods:
                names = ", ".join(config.methods)
                raise ValueError(f"evaluation.{key}: '{method}' is not among methods; expected out of {names}")
    missing = [finding for finding in NEEDED_PAIRS if finding not in evaluation.prompt_pairs]
    if missing:
        raise ValueError(f"evaluation.prompt_pairs: {missing[0]} is missing, which Tables II to IV and VII need")
    known = _labels()
    for key, findings in (
        ("features", evaluation.features.findings),
        ("augmentation", evaluation.augmentation.findings),
    ):
        unique(f"evaluation.{key}.findings", findings)
        for finding in findings:
            if finding not in known:
                raise ValueError(
                    f"evaluation.{key}.findings: '{finding}' is not a label of `medsyn label`; expected out of"
                    f" {', '.join(known)}"
                )


def _check_study(config: Config) -> None:
    study = config.study
    for name in study.folders:
        if name == REAL or name in config.methods:
            raise ValueError(f"study.folders.{name}: is the name of a method already; choose another")
    unique(
        "study.folders.*.label",
        [*(m.label for m in config.methods.values()), *(f.label for f in study.folders.values())],
    )
    known = {**config.methods, **study.folders}
    method = study.recognition.method
    for key, names in (
        ("ranking.methods", study.ranking.methods or ()),
        ("recognition.method", [method] if method else []),
    ):
        for name in names:
            if name not in known and not (name == REAL and key == "ranking.methods"):
                raise ValueError(
                    f"study.{key}: '{name}' is neither a method nor a folder of the study; expected out of"
                    f" {', '.join([REAL, *known])}"
                )
    if method not in study.folders and (
        missing := [c for c in study.recognition.cases if c not in study.recognition.prompts]
    ):
        raise ValueError(f"study.recognition.prompts: has no text for '{missing[0]}', which cases names; add one")


def _num_processes(config: Config) -> int:
    return max(config.compute.num_gpus_training, 1) * config.compute.num_nodes_training


@cache
def _labels() -> tuple[str, ...]:
    """Return the names of the report labels, from the rules."""
    rules = Path(__file__).parents[1] / "text/label_rules.yaml"
    return tuple(yaml.safe_load(rules.read_text(encoding="utf-8"))["findings"])
