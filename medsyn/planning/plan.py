"""Settings of a configuration that fit a GPU: micro batch, activation checkpointing, precision, sampling batch.

A training run keeps its batch size: a smaller micro batch means more accumulation. The optimisation stays the same up
to rounding, except where networks normalise over a micro batch (docs/baselines.md). Preferred in this order:
no activation checkpointing (it costs about a third more time), the largest micro batch, the configured precision;
float32 gives way to bfloat16 only where nothing else fits. Sampling is counted as configured, whole
unless `sampling.tile` is a number; no slabs are proposed, because `tile: auto` chooses them when it samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from medsyn.config import Config, ModelStage, TextEncoderConfig, TrainConfig
from medsyn.errors import InputError
from medsyn.evaluate.classifier import pooling_factors
from medsyn.methods.base import CountedTraining, Kind
from medsyn.planning.networks import (
    classifier_training,
    denoiser,
    features_of,
    sampling_of,
    text_training,
    training_of,
)
from medsyn.planning.sampling import count_inference, count_sampling
from medsyn.progress import log
from medsyn.registry import METHODS
from medsyn.stages.features import BATCH_SIZE
from medsyn.training.cost import GIB
from medsyn.training.fitting import Option, Search, Settings, choose, in_words, micro_batches
from medsyn.training.need import Need, count_training

_SAMPLING_BATCHES = (1, 2, 4, 8)  # beyond, the host's memory (0.8 GB a volume at 256^3) is the limit


@dataclass(frozen=True)
class Row:
    """One line of the plan: a job, where its settings stand (section), as configured, and as proposed.

    proposed is None where no setting fits; smallest is then the least need that was counted.
    """

    name: str
    section: tuple[str, ...]
    configured: Option
    proposed: Option | None
    smallest: Option

    def fits(self, gpu_bytes: int) -> bool:
        """Whether the configured settings fit."""
        return self.configured.need.total <= gpu_bytes


def plan(config: Config, gpu_bytes: int) -> list[Row]:
    """Plan every GPU job of a configuration for a GPU of `gpu_bytes`."""
    processes = max(config.compute.num_gpus_training, 1) * config.compute.num_nodes_training
    for model in (config.low_res, config.super_res):
        micro_batches(model.train, processes)  # a batch that cannot be shared out is told before anything is counted
    rows = [
        _text(f"text encoder {name}", encoder, processes, gpu_bytes) for name, encoder in config.text.encoders.items()
    ]
    rows += [_training(config, kind, processes, gpu_bytes) for kind in ("low_res", "super_res")]
    for name, entry in config.methods.items():
        rows += _method(config, name, METHODS[entry.kind], processes, gpu_bytes)
    return [*rows, _sampling(config, gpu_bytes), _features(config, gpu_bytes), _classifier(config, gpu_bytes)]


def _training(config: Config, kind: str, processes: int, gpu_bytes: int) -> Row:
    stage = denoiser(config, kind)

    def need(train: TrainConfig, num_processes: int) -> Need:
        changed: ModelStage = stage.model_copy(update={"train": train})
        return count_training(training_of(config, changed), train, num_processes=num_processes)

    counted = CountedTraining(stage.train, (kind, "train"), need, checkpointing=True)
    return _counted_training(f"{kind} training", counted, processes, gpu_bytes)


def _method(config: Config, name: str, kind: Kind, processes: int, gpu_bytes: int) -> Iterator[Row]:
    """Plan the networks of a method that its kind can count, each on the GPUs of one node that it states, or on all."""
    networks, offered = kind.networks(config, name), max(config.compute.num_gpus_training, 1)
    for network, counted in kind.counted_trainings(config, name).items():
        wanted = networks[network].num_gpus
        taken = processes if wanted is None else min(wanted, offered)
        yield _counted_training(f"{name} {network} training", counted, taken, gpu_bytes)


def _counted_training(name: str, counted: CountedTraining, processes: int, gpu_bytes: int) -> Row:
    train = counted.train
    search = Search(lambda settings: counted.need(train.model_copy(update=settings), processes), gpu_bytes)
    sizes = [size for size in micro_batches(train, processes) if size >= counted.least_micro_batch]
    forms: list[Settings] = [{}]
    if counted.checkpointing:
        forms = [{"activation_checkpointing": on} for on in (False, True)]
    found = None
    for precision in _precisions(train.precision):
        for form in forms:
            found = found or search.largest("micro_batch_size", sizes, {**form, "precision": precision})
    now = choose(search, train, sizes, precision=train.precision).settings  # what `auto` would take
    configured = {key: now[key] for key in (*forms[0], "precision", "micro_batch_size")}
    return _row(search, name, counted.section, configured, found)


def _text(name: str, encoder: TextEncoderConfig, processes: int, gpu_bytes: int) -> Row:
    micro = max(1, encoder.batch_size // processes)
    shapes = text_training(encoder)

    def count(settings: Settings) -> Need:
        train = TrainConfig(batch_size=encoder.batch_size, micro_batch_size=micro, **settings)
        return count_training(shapes, train, num_processes=processes)

    search = Search(count, gpu_bytes)
    options = (search.option({"precision": precision}) for precision in _precisions(encoder.precision))
    found = next((option for option in options if option.need.total <= gpu_bytes), None)
    section = ("text", "encoders", name.split()[-1])
    return _row(search, name, section, {"precision": encoder.precision}, found)


def _sampling(config: Config, gpu_bytes: int) -> Row:
    sampling, networks = config.sampling, sampling_of(config)

    def count(settings: Settings) -> Need:
        changed = sampling.model_copy(update=settings)
        stages = count_sampling(networks, changed, settings["batch_size"])
        return max(stages, key=lambda need: need.total)

    search = Search(count, gpu_bytes)
    found = None
    for precision in _precisions(sampling.precision):
        found = found or search.largest("batch_size", _SAMPLING_BATCHES, {"precision": precision})
    size = sampling.batch_size if isinstance(sampling.batch_size, int) else 1  # auto takes what there is
    return _row(search, "sampling", ("sampling",), {"precision": sampling.precision, "batch_size": size}, found)


def _features(config: Config, gpu_bytes: int) -> Row:
    build, batch = features_of(config.evaluation.features, config.preprocess.size, BATCH_SIZE)
    search = Search(lambda _: count_inference(build, batch), gpu_bytes)
    only = search.option({})
    return _row(search, "features", (), {}, only if only.need.total <= gpu_bytes else None)


def _classifier(config: Config, gpu_bytes: int) -> Row:
    """Plan Table VI's classifier: the batch stays, a smaller input is proposed where needed."""
    augmentation, shape = config.evaluation.augmentation, config.preprocess.size
    largest = max(shape) if augmentation.input_size is None else min(augmentation.input_size, max(shape))
    train = TrainConfig(batch_size=augmentation.batch_size, micro_batch_size=augmentation.batch_size)

    def count(settings: Settings) -> Need:
        factors = pooling_factors(shape, settings["input_size"] or largest)
        size = tuple(length // factor for length, factor in zip(shape, factors, strict=True))
        return count_training(classifier_training(augmentation, size), train)

    search = Search(count, gpu_bytes)
    sizes = [augmentation.input_size, *(largest // factor for factor in (2, 4, 8) if largest >= 16 * factor)]
    options = (search.option({"input_size": size}) for size in sizes)
    found = next((option for option in options if option.need.total <= gpu_bytes), None)
    section = ("evaluation", "augmentation")
    return _row(search, "classifier", section, {"input_size": augmentation.input_size}, found)


def _row(search: Search, name: str, section: tuple[str, ...], configured: Settings, proposed: Option | None) -> Row:
    """Count the configured settings as well, and return the line of the plan."""
    log.info("counted %s", name)
    return Row(name, section, search.option(configured), proposed, search.smallest)


def _precisions(configured: str) -> Iterator[str]:
    yield configured
    if configured == "fp32":
        yield "bf16"


def check(rows: Sequence[Row], gpu_bytes: int) -> None:
    """Raise InputError that names the smallest need of every job that no setting fits."""
    short = [
        f"{row.name} needs at least {row.smallest.need.total / GIB:.1f} GiB ({in_words(row.smallest.settings)})"
        for row in rows
        if row.proposed is None
    ]
    if short:
        raise InputError(
            f"--gpu-memory {gpu_bytes / GIB:g}: no setting fits: {'; '.join(short)}; take a GPU with more memory or a"
            " smaller network"
        )


def table(rows: Sequence[Row], gpu_bytes: int) -> list[str]:
    """Format the plan as lines: per job what is configured, whether it fits, and the proposal part by part."""
    lines = []
    for row in rows:
        now = row.configured
        verdict = "fits" if row.fits(gpu_bytes) else "does NOT fit"
        lines.append(f"{row.name}: {in_words(now.settings)}: {now.need.in_words()}: {verdict}")
        if row.proposed is not None and row.proposed != now:
            lines.append(f"  proposed: {in_words(row.proposed.settings)}: {row.proposed.need.in_words()}")
    return lines


def yaml_lines(rows: Sequence[Row]) -> str:
    """Format the proposed settings as they stand in a configuration."""
    tree: dict[str, Any] = {}
    for row in rows:
        if row.proposed is not None and row.section:
            place = tree
            for name in row.section:
                place = place.setdefault(name, {})
            place.update(row.proposed.settings)
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def as_json(rows: Sequence[Row], gpu_bytes: int) -> dict[str, Any]:
    """Return the plan for programs: bytes by part."""
    return {
        "gpu_memory_bytes": gpu_bytes,
        "jobs": [
            {
                "name": row.name,
                "section": ".".join(row.section) or None,
                "fits": row.fits(gpu_bytes),
                "configured": _option(row.configured),
                "proposed": None if row.proposed is None else _option(row.proposed),
            }
            for row in rows
        ],
    }


def _option(option: Option) -> dict[str, Any]:
    need = option.need
    return {
        "settings": option.settings,
        "counted_bytes": dict(need.parts),
        "allowance_bytes": need.allowance,
        "total_bytes": need.total,
    }
