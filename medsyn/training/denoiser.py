"""Train one denoiser from store and text to its files: the driver behind `medsyn train`.

The files are those of `medsyn.training.driver`: the weights are averaged, with settings and provenance inside. A
picture shows training volumes, noisy at t = 0.5, what the network makes of them, and samples with the same text or
condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medsyn.config import DenoiserTrainConfig, ModelStage, TrainConfig
from medsyn.diffusion.objective import LowResolution, denoising_loss, super_res_condition
from medsyn.diffusion.sampling import sample
from medsyn.diffusion.schedule import TAU_PER_T, add_noise
from medsyn.diffusion.solvers import DDIM
from medsyn.errors import InputError
from medsyn.live_bytes import on_meta
from medsyn.models.fast.unet import FastUNet
from medsyn.models.weights import build, load, save
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.training.checkpoint import flatten
from medsyn.training.cost import count_flops
from medsyn.training.data import Embeddings, Store, TrainingData, reads_high
from medsyn.training.driver import claim_training, previews_of, tiles, train_to_files, write_picture
from medsyn.training.loop import TrainingResult
from medsyn.training.need import Need, TrainingShapes, count_training
from medsyn.training.task import Networks, Task

_NUM_PREVIEWS = 4
_PREVIEW_T = 0.5
_NUM_PREVIEW_STEPS = 10


def train_denoiser(stage: ModelStage, shards: Sequence[Path], embeddings: Path | None, state: Path, out: Path) -> None:
    """Train the network of `stage`; `state` holds its checkpoints and is removed when `out` is complete."""
    if embeddings is not None and not stage.sections:
        raise InputError("--embeddings: this network takes no text (its sections are empty); leave the option out")
    claim_training(out, state, load)
    store = Store(shards, "high" if reads_high(stage) else "low")
    texts = None if embeddings is None else Embeddings(embeddings, stage.sections)
    data = TrainingData(stage, store, texts)
    _check_grid(stage, data)
    log.info("%s: %d volumes of %s, channels %s", stage.stage, len(store), data.size, ", ".join(stage.channels))

    def write(trained: TrainingResult) -> None:
        facts = {"num_volumes": len(store), "seed": stage.train.seed, **trained.facts()}
        save(out, trained.network.state_dict(), stage, provenance(stage, data=data.identity(), **facts))

    def preview(networks: Networks, path: Path) -> None:
        write_preview(path, networks[""], data)

    train_to_files(denoising_task(stage, data, out), stage.train, state, out, write=write, preview=preview)


def denoising_task(stage: ModelStage, data: TrainingData, out: Path | None = None) -> Task:
    """Return the training loop's task of one denoiser; pictures on the way go beside `out`, if it is given."""
    cond_dim = None if data.embeddings is None else data.embeddings.hidden_size
    settings = flatten(stage.model_dump(mode="json", exclude={"train"}))
    data.loss_weights(torch.tensor(0.5))  # reads the statistics before threads ask for them

    def network() -> FastUNet:
        built = build(stage, cond_dim)
        if stage.unet.mean_volume:
            built.set_statistics(mean=data.mean)
        if stage.unet.sigma_share is not None:
            built.set_statistics(deviations=data.deviations)
        if stage.unet.num_components:
            built.set_statistics(components=data.components)
            if built.null_cond_emb is not None:  # no text begins as the mean text
                built.null_cond_emb.data[:] = data.mean_text_state
        # Every process has the same statistics: they need not be sent at every step.
        statistics = [name for name, _ in built.named_buffers() if name.startswith("data_")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(built, statistics)
        return built

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return batch_loss(network, batch, stage)

    def preview(network: nn.Module, step: int) -> None:
        if out is not None:
            write_preview(previews_of(out, step), network, data)

    def memory(config: TrainConfig, num_processes: int) -> Need:
        sample = data.batch(0, [0])
        if isinstance(config, DenoiserTrainConfig) and config.crop_size is not None:
            depth, height, width = config.crop_size
            sample = {k: x[..., :depth, :height, :width] if x.ndim == 5 else x for k, x in sample.items()}
        counted = denoiser_training(stage, cond_dim, lambda count: on_meta(sample, count))
        return count_training(counted, config, num_processes=num_processes)

    return Task(
        name=stage.stage,
        build=network,
        batch=data.batch,
        loss=loss,
        identity={**settings, **data.identity()},
        preview=preview,
        flops=lambda: count_flops(lambda: build(stage, cond_dim), loss, data.batch(0, [0])),
        memory=memory,
        smaller=smaller_crops(stage, data.size) if data.high else (),
    )


def smaller_crops(stage: ModelStage, size: Sequence[int]) -> list[dict[str, Any]]:
    """List settings with crops that the network accepts, smaller in the plane than `size` (D, H, W), largest first."""
    depth, height, width = size
    multiple = math.lcm(stage.unet.patch_size * 2 ** (len(stage.unet.mults) - 1), stage.low_res_factor)
    sides = reversed(range(2 * multiple, max(height, width), multiple))
    return [{"crop_size": [depth, min(side, height), min(side, width)]} for side in sides]


def denoiser_training(
    stage: ModelStage, cond_dim: int | None, batch: Callable[[int], dict[str, Tensor]]
) -> TrainingShapes:
    """Describe the training of a denoiser for counting; batch(count) makes samples on the meta device."""

    def network() -> FastUNet:
        built = build(stage, cond_dim)
        built.reserve_statistics(batch(1)["x0"].shape[2:])
        return built

    def preview(network: nn.Module) -> object:
        return _preview_volumes(network, batch(_NUM_PREVIEWS), stage, num_steps=1)

    return TrainingShapes(network, lambda network, given: batch_loss(network, given, stage), batch, preview=preview)


def batch_loss(network: nn.Module, batch: dict[str, Tensor], stage: ModelStage) -> Tensor:
    """Return the denoising loss of a batch of TrainingData."""
    conditions = network_conditions(batch, stage)
    return denoising_loss(
        network, batch["x0"], batch["epsilon"], batch["t"], weights=batch.get("weights"), **conditions
    )


def write_preview(path: Path, network: nn.Module, data: TrainingData) -> None:
    """Write a PNG with one row per volume: its channels in the middle coronal slice, noisy, predicted, and sampled.

    The last is a sample of a few DDIM steps from the training volume's noise and text, or low-resolution condition.
    """
    batch = {
        key: torch.stack([sample[key] for sample in map(data.sample, range(min(_NUM_PREVIEWS, len(data.store))))])
        for key in data.sample(0)
    }
    device = next(network.parameters()).device
    volumes = _preview_volumes(network, {key: value.to(device) for key, value in batch.items()}, data.stage)
    panels = np.stack([part.float().cpu().numpy() for part in volumes], axis=1)
    write_picture(path, np.concatenate([_row(sample) for sample in panels], axis=0))


def _preview_volumes(
    network: nn.Module, batch: dict[str, Tensor], stage: ModelStage, num_steps: int = _NUM_PREVIEW_STEPS
) -> tuple[Tensor, ...]:
    """Return volumes [B, C, D, H, W]: clean, noisy, predicted from the noisy ones, sampled from their noise."""
    t = torch.full_like(batch["t"], _PREVIEW_T)
    if "drop_text" in batch:
        batch["drop_text"] = torch.zeros_like(batch["drop_text"])
    noisy = add_noise(batch["x0"], batch["epsilon"], t)
    conditions = network_conditions(batch, stage)

    def denoiser(x: Tensor, tau: float) -> Tensor:
        return network(x, torch.full_like(t, tau), **conditions)

    with torch.no_grad():
        predicted = network(noisy, TAU_PER_T * t, **conditions)
        sampled = sample(DDIM, denoiser, batch["epsilon"], num_steps, description="preview")
    return batch["x0"], noisy, predicted, sampled


def network_conditions(batch: dict[str, Tensor], stage: ModelStage) -> dict[str, Tensor]:
    """Return the arguments of a network beside the noisy volume and the time, made from a batch of TrainingData.

    They are text and drop_text of a network that takes text, and the condition of super-resolution.
    """
    given: dict[str, Tensor] = {key: batch[key] for key in ("text", "drop_text") if key in batch}
    if "condition_noise" in batch:
        noise, level = batch["condition_noise"], batch["condition_level"]
        given["condition"] = super_res_condition(batch["x0"], LowResolution.of(stage), noise, level)
    return given


def _row(sample: NDArray) -> NDArray:
    """Lay (4, C, D, H, W) out as one row of middle coronal slices, superior up."""
    middle = sample.shape[3] // 2
    return tiles([part[::-1] for part in sample[:, :, :, middle].reshape(-1, *sample.shape[2::2])])


def _check_grid(stage: ModelStage, data: TrainingData) -> None:
    patch = stage.unet.patch_size
    multiple = patch * 2 ** (len(stage.unet.mults) - 1)
    size = data.size
    if size[1] % multiple or size[2] % multiple or size[0] % patch:
        raise InputError(
            f"{stage.stage}: a grid of {size} does not fit unet.patch_size {patch} and {len(stage.unet.mults)} levels"
            f" (unet.mults): the in-plane size must be divisible by {multiple}, the depth by {patch}"
        )
