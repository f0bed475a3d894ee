"""Test the networks of a trained run one by one on validation volumes, to see which one loses what.

Two tests, each on the same volumes of the validation split (`medsyn.evaluate.diagnosis` has the columns of the table):

- The error of the predicted clean volume at noise levels t, by network and channel, beside that of predictors without a
  network: the mean of at most MAX_MEAN_VOLUMES of the training split, the linear estimate by their principal
  components and the text (low resolution), the noisy input divided by sqrt(alpha_bar), and for super-resolution its
  condition, the enlarged low-resolution volume. A network that takes text is given the volume's own text, that of
  another subject, and none.
- Super-resolution of the true low-resolution volume, with the sampling settings of the run: anatomical measures of the
  image and Dice of the masks, beside those of the real volume and of the enlarged low-resolution volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsyn.config import DiagnosticsStage, ModelStage
from medsyn.config.evaluation import MAX_MEAN_VOLUMES
from medsyn.diffusion.objective import channel_errors
from medsyn.diffusion.schedule import TAU_PER_T, add_noise, alpha_bar
from medsyn.diffusion.seeds import seeded
from medsyn.errors import InputError
from medsyn.evaluate import diagnosis
from medsyn.evaluate.inputs import text_fields
from medsyn.files import read_json, sha256, write_csv, write_json
from medsyn.mask_tools import Segmenter
from medsyn.masks.labels import dice, mean_label_dice
from medsyn.methods.run import Run, open_run, run_files, sampling_with
from medsyn.models.channels import STRUCTURE_OF
from medsyn.models.linear_estimate import PrincipalComponents, linear_estimate, mean_given_text
from medsyn.models.weights import read_stage
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.stages.measures import measure_volume, open_anatomy_tool
from medsyn.text.embed import encoder_identity
from medsyn.training.data import Embeddings, Store, TrainingData, reads_high
from medsyn.training.denoiser import network_conditions
from medsyn.volume import LOBE_NAMES, Volume

TIMES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NUM_COMPONENTS = 64
_KEY_DIAGNOSE = 5  # first part of the seeds of this module, which are the same for every run
Row = dict[str, Any]
Volumes = dict[str, Volume]
"""Image and masks of one subject by file name: `volume`, `lobes`, `airway`, `vessels`."""


def diagnose(
    weights: Path, shards: Sequence[Path], embeddings: Path | None, config: DiagnosticsStage, out: Path
) -> None:
    """Write the table of both tests (`diagnosis.COLUMNS`) and its provenance, the same name with .json.

    weights: run.json or the folder that holds it; shards: of the training store; embeddings: of the reports, which a
    network that takes text needs.
    """
    run, files = open_run(weights, sampling_with(weights, None)), run_files(weights)
    _check_grid(run, shards)
    tool = open_anatomy_tool(config)
    rows: list[Row] = []
    for name, network in (("low_res", run.low_res), ("super_res", run.super_res)):
        stage = read_stage(files[name])
        texts = None if network.null_cond_emb is None else _open_texts(embeddings, files, stage)
        tested = ExaminedNetwork(network, stage, shards, texts, config)
        log.info("%s: %d of %d validation volumes", name, len(tested.chosen), len(tested.volumes.store))
        rows += tested.errors()
    whole = tested.volumes  # of super-resolution, which came last
    for index in track(tested.chosen, description="super-resolution of true volumes"):
        text = None if whole.embeddings is None else whole.text(index)[None].to(run.device)
        found = super_resolution(run, whole.clean(index), index, tool, text)
        rows += [{"subject_id": whole.store.subject_ids[index], **row} for row in found]
    write_csv(out, (text_fields(row, diagnosis.COLUMNS) for row in rows), diagnosis.COLUMNS)
    facts: dict[str, Any] = {"label": run.label, "weights": run.hashes, "channels": run.channels}
    facts |= {"device": run.device.type, "sampling": run.settings.model_dump(mode="json"), "store": whole.store.hash}
    facts["embeddings"] = None if embeddings is None else sha256(embeddings)
    write_json(out.with_suffix(".json"), provenance(config, stage="diagnose", **facts))


@dataclass
class ExaminedNetwork:
    """A network of either resolution with the volumes of the validation split that it is tested on.

    stage: settings of its training; shards: of the training store; texts: None for a network without text.
    """

    network: nn.Module
    stage: ModelStage
    shards: Sequence[Path]
    texts: Embeddings | None
    config: DiagnosticsStage

    @cached_property
    def volumes(self) -> TrainingData:
        """The whole volumes of the validation split, with their texts."""
        return self._open("validation")

    @cached_property
    def chosen(self) -> list[int]:
        """Places of the volumes in the validation split; the same for both networks and for every run."""
        order = np.random.default_rng(_KEY_DIAGNOSE).permutation(len(self.volumes.store))
        return sorted(order[: self.config.num_volumes].tolist())

    def _open(self, split: str) -> TrainingData:
        store = Store(self.shards, "high" if reads_high(self.stage) else "low", split)
        whole = self.stage.train.model_copy(update={"crop_size": None})
        return TrainingData(self.stage.model_copy(update={"train": whole}), store, self.texts)

    @cached_property
    def training(self) -> TrainingData:
        """The whole volumes of the training split, with their texts."""
        return self._open("train")

    @cached_property
    def chosen_training(self) -> list[int]:
        """Places in the training split: all, or MAX_MEAN_VOLUMES at random where there are more."""
        order = np.random.default_rng(_KEY_DIAGNOSE).permutation(len(self.training.store))
        return sorted(order[:MAX_MEAN_VOLUMES].tolist())

    @cached_property
    def mean(self) -> Tensor:
        """Mean [C, D, H, W] of the chosen training volumes."""
        total = torch.zeros(len(self.stage.channels), *self.training.size, dtype=torch.float64)
        for index in track(self.chosen_training, description=f"mean volume of {self.stage.stage}"):
            total += self.training.clean(index)
        return (total / len(self.chosen_training)).float()

    @cached_property
    def components(self) -> PrincipalComponents | None:
        """Components of the chosen training volumes; None at super-resolution and for fewer than three volumes."""
        count = len(self.chosen_training)
        if self.stage.stage == "super_res" or count < 3:
            return None
        return self.training.components_of(self.chosen_training, min(_NUM_COMPONENTS, count - 2))

    def _linear_estimate(self, noisy: Tensor, times: Tensor, index: int) -> Tensor | None:
        """Return the linear estimate of volume `index` by its own text, or None where there are no components."""
        if self.components is None:
            return None
        mean = self.mean
        if self.texts is not None:
            mean = mean_given_text(mean, self.components, self.volumes.text(index))
        return linear_estimate(noisy, alpha_bar(times), mean, self.components)[0]

    @torch.no_grad()
    def errors(self) -> list[Row]:
        """Return the rows of the first test."""
        rows: list[Row] = []
        for number, index in enumerate(track(self.chosen, description=f"errors of {self.stage.stage}")):
            other = self.chosen[(number + 1) % len(self.chosen)]
            common: Row = {"part": diagnosis.DENOISING, "network": self.stage.stage}
            common["subject_id"] = self.volumes.store.subject_ids[index]
            x0 = self.volumes.clean(index)[None]
            for t, source, prediction in self._predictions(x0, index, other):
                values = zip(self.stage.channels, channel_errors(prediction, x0)[0].tolist(), strict=True)
                rows += [{**common, "source": source, "t": t, "quantity": c, "value": v} for c, v in values]
        return rows

    def _predictions(self, x0: Tensor, index: int, other: int) -> Iterator[tuple[float, str, Tensor]]:
        """Yield time, source and predicted volume [1, C, D, H, W] of x0, the clean volume `index`, at all TIMES.

        other: the volume whose text stands for that of another subject; a single volume has none.
        """
        device = next(self.network.parameters()).device
        epsilon = torch.randn(x0.shape, generator=seeded(_KEY_DIAGNOSE, index))
        given = self._conditions(x0, index, other)
        for t in TIMES:
            times = torch.tensor([t], dtype=torch.float32)
            noisy = add_noise(x0, epsilon, times)
            for source, conditions in given.items():
                prediction = self.network(noisy.to(device), TAU_PER_T * times.to(device), **conditions)
                yield t, source, prediction.cpu()
            yield t, diagnosis.MEAN_VOLUME, self.mean[None]
            if (estimate := self._linear_estimate(noisy, times, index)) is not None:
                yield t, diagnosis.LINEAR_ESTIMATE, estimate
            yield t, diagnosis.NOISY_INPUT, noisy / alpha_bar(times).sqrt()
            if "condition" in given[diagnosis.NETWORK]:
                yield t, diagnosis.ENLARGED, given[diagnosis.NETWORK]["condition"].cpu()

    def _conditions(self, x0: Tensor, index: int, other: int) -> dict[str, dict[str, Tensor]]:
        """Return what the network is given beside noisy volume and time, by source, on the device of the network."""
        batch = {"x0": x0}
        if self.stage.stage == "super_res":
            batch |= {"condition_noise": torch.zeros_like(x0), "condition_level": torch.zeros(1)}
        if self.texts is not None:
            batch |= {"text": self.volumes.text(index)[None], "drop_text": torch.tensor([False])}
        device = next(self.network.parameters()).device
        own = {key: value.to(device) for key, value in network_conditions(batch, self.stage).items()}
        given = {diagnosis.NETWORK: own}
        if self.texts is not None:
            given[diagnosis.NO_TEXT] = own | {"drop_text": torch.tensor([True], device=device)}
            if other != index:
                given[diagnosis.OTHER_TEXT] = own | {"text": self.volumes.text(other)[None].to(device)}
        return given


def _check_grid(run: Run, shards: Sequence[Path]) -> None:
    """Raise InputError if a shard has another grid than the sampling settings of the run."""
    expected = run.settings.preprocess.model_dump(mode="json")
    for shard in shards:
        found = read_json(shard / "store.json").get("config", {})
        for name in ("size", "field_of_view_mm"):
            if found.get(name) != expected[name]:
                raise InputError(
                    f"{shard}: preprocess.{name} of this store is {found.get(name)}, expected {expected[name]} of the"
                    f" sampling settings of {run.label}; give the store of the run's training"
                )


def _open_texts(embeddings: Path | None, files: dict[str, Path], stage: ModelStage) -> Embeddings:
    """Open the embeddings of the reports; those of another language model than the run's are an InputError."""
    if embeddings is None:
        raise InputError(
            f"{files[stage.stage]}: this network takes text; give the embeddings of the reports (--embeddings)"
        )
    texts = Embeddings(embeddings, stage.sections or ("report",))
    if texts.encoder != encoder_identity(files["text_encoder"]):
        raise InputError(
            f"{embeddings}: made by another language model than the run's {files['text_encoder']}; give the embeddings"
            " of that model, or run `medsyn embed` with it"
        )
    return texts


def super_resolution(
    run: Run, x0: Tensor, seed: int, tool: Segmenter | None, text: Tensor | None = None
) -> Iterator[Row]:
    """Yield the rows of the second test for a clean volume (C, D, H, W) in [-1, 1].

    seed: of the noise; text: states (1, num_tokens, hidden) of its report, for a network that takes text.
    """
    low = run.low_resolution.reduce(x0[None])
    real = run.to_volumes(x0.numpy())
    compared = {
        diagnosis.NETWORK: run.to_volumes(run.super_resolve(low.to(run.device), [seed], text=text)[0]),
        diagnosis.ENLARGED: run.to_volumes(run.low_resolution.enlarge(low)[0].numpy()),
        diagnosis.REAL: real,
    }
    for source, volumes in compared.items():
        common: Row = {"part": diagnosis.SUPER_RESOLUTION, "network": "super_res", "source": source}
        values = _measures(volumes, tool) | ({} if source == diagnosis.REAL else _overlaps(volumes, real))
        for quantity, value in values.items():
            yield {**common, "quantity": quantity, "value": value}


def _measures(volumes: Volumes, tool: Segmenter | None) -> dict[str, float | None]:
    """Return the measures of the image, and whether their anatomy was found (1 or 0, None where that failed)."""
    measured = measure_volume(volumes["volume"], tool=tool)
    found = {f"{name}_found": None if there is None else float(there) for name, there in measured.found.items()}
    return measured.values | found


def _overlaps(volumes: Volumes, real: Volumes) -> dict[str, float | None]:
    """Return the Dice of each mask channel with the real mask, of lobes the mean over the five; None: both empty."""
    scores: dict[str, float | None] = {}
    for channel, name in STRUCTURE_OF.items():
        if name in volumes:
            first, second = volumes[name].array, real[name].array
            lobes = range(1, len(LOBE_NAMES) + 1)
            scores[f"{channel}_dice"] = (
                mean_label_dice(first, second, lobes) if name == "lobes" else dice(first > 0, second > 0)
            )
    return scores
