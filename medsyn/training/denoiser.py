"""Train one denoiser from store and text to its files: the driver behind `medsyn train`.

Writes <out>.safetensors (averaged weights, settings and provenance inside), <out stem>_metrics.csv and
<out stem>_preview.png (training volumes, noisy at t = 0.5, what the network makes of them, and samples with the same
text or condition). With train.preview_every such pictures of the averaged weights on the way are in the folder
<out stem>_previews, with train.tensorboard event files in <out stem>_tensorboard.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsyn.config import ModelStage, TrainConfig
from medsyn.diffusion.objective import denoising_loss, super_res_condition
from medsyn.diffusion.sampling import sample
from medsyn.diffusion.schedule import TAU_PER_T, add_noise
from medsyn.diffusion.solvers import DDIM
from medsyn.errors import InputError
from medsyn.files import atomic_path, write_csv
from medsyn.live_bytes import on_meta
from medsyn.models.fast.unet import FastUNet, set_activation_checkpointing
from medsyn.models.weights import build, load, save
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.scratch import claim_state, remove_state
from medsyn.training.checkpoint import flatten
from medsyn.training.cost import count_flops
from medsyn.training.data import Embeddings, Store, TrainingData
from medsyn.training.loop import train
from medsyn.training.metrics import columns_of
from medsyn.training.need import Need, TrainingShapes, count_training
from medsyn.training.task import Task

_NUM_PREVIEWS = 4
_PREVIEW_T = 0.5
_NUM_PREVIEW_STEPS = 10


def train_denoiser(stage: ModelStage, shards: Sequence[Path], embeddings: Path | None, state: Path, out: Path) -> None:
    """Train the network of `stage`; `state` holds its checkpoints and is removed when `out` is complete."""
    if stage.stage == "super_res" and embeddings is not None:
        raise InputError("--embeddings: the super-resolution network takes no text; leave the option out")
    if out.exists() and _is_whole(out):
        raise InputError(f"{out}: this network is trained; remove the file to train it again")
    claim_state(state, out)
    store = Store(shards, "high" if stage.stage == "super_res" else "low")
    texts = None if embeddings is None else Embeddings(embeddings, stage.sections)
    data = TrainingData(stage, store, texts)
    _check_grid(stage, data)
    log.info("%s: %d volumes of %s, channels %s", stage.stage, len(store), store.size, ", ".join(stage.channels))
    task = denoising_task(stage, data, out.with_name(f"{out.stem}_previews"))
    trained = train(task, stage.train, state)
    if not trained.is_main_process:
        return
    facts = {"num_volumes": len(store), "seed": stage.train.seed, "num_processes": trained.num_processes}
    record = provenance(stage, data=data.identity(), **facts)
    write_csv(out.with_name(f"{out.stem}_metrics.csv"), trained.metrics, columns_of(trained.metrics))
    save(out, trained.network.state_dict(), stage, record)
    write_preview(out.with_name(f"{out.stem}_preview.png"), trained.network, data)
    _keep_events(state / "tensorboard", out.with_name(f"{out.stem}_tensorboard"))
    remove_state(state)


def _is_whole(out: Path) -> bool:
    """Return whether a file holds a network; a damaged one, of a disk or a copy that failed, is trained again."""
    try:
        load(out)
    except InputError as error:
        log.warning("%s; it is trained again", error)
        return False
    return True


def denoising_task(stage: ModelStage, data: TrainingData, previews: Path | None = None) -> Task:
    """Return the training loop's task of one denoiser; pictures on the way go into the folder `previews`."""
    cond_dim = None if data.embeddings is None else data.embeddings.hidden_size
    settings = flatten(stage.model_dump(mode="json", exclude={"train"}))

    def network() -> FastUNet:
        return set_activation_checkpointing(build(stage, cond_dim), stage.train.activation_checkpointing)

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return batch_loss(network, batch, stage)

    def preview(network: nn.Module, step: int) -> None:
        if previews is not None:
            write_preview(previews / f"step_{step:08d}.png", network, data)

    def memory(config: TrainConfig, num_processes: int) -> Need:
        sample = data.batch(0, [0])
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
    )


def denoiser_training(
    stage: ModelStage, cond_dim: int | None, batch: Callable[[int], dict[str, Tensor]]
) -> TrainingShapes:
    """Describe the training of a denoiser for counting; batch(count) makes samples on the meta device."""

    def network() -> FastUNet:
        return set_activation_checkpointing(build(stage, cond_dim), stage.train.activation_checkpointing)

    def preview(network: nn.Module) -> object:
        return _preview_volumes(network, batch(_NUM_PREVIEWS), stage, num_steps=1)

    return TrainingShapes(network, lambda network, given: batch_loss(network, given, stage), batch, preview=preview)


def batch_loss(network: nn.Module, batch: dict[str, Tensor], stage: ModelStage) -> Tensor:
    """Return the denoising loss of a batch of TrainingData."""
    return denoising_loss(network, batch["x0"], batch["epsilon"], batch["t"], **_conditions(batch, stage))


def write_preview(path: Path, network: nn.Module, data: TrainingData) -> None:
    """Write a PNG with one row per volume: its channels in the middle coronal slice, noisy, predicted, and sampled.

    The last is a sample of a few DDIM steps from the training volume's noise and text, or low-resolution condition.
    """
    from matplotlib.image import imsave

    batch = {
        key: torch.stack([sample[key] for sample in map(data.sample, range(min(_NUM_PREVIEWS, len(data.store))))])
        for key in data.sample(0)
    }
    device = next(network.parameters()).device
    volumes = _preview_volumes(network, {key: value.to(device) for key, value in batch.items()}, data.stage)
    panels = np.stack([part.float().cpu().numpy() for part in volumes], axis=1)
    picture = np.concatenate([_row(sample) for sample in panels], axis=0)
    with atomic_path(path) as temporary:
        imsave(temporary, picture, cmap="gray", vmin=-1, vmax=1)


def _preview_volumes(
    network: nn.Module, batch: dict[str, Tensor], stage: ModelStage, num_steps: int = _NUM_PREVIEW_STEPS
) -> tuple[Tensor, ...]:
    """Return volumes [B, C, D, H, W]: clean, noisy, predicted from the noisy ones, sampled from their noise."""
    t = torch.full_like(batch["t"], _PREVIEW_T)
    if "drop_text" in batch:
        batch["drop_text"] = torch.zeros_like(batch["drop_text"])
    noisy = add_noise(batch["x0"], batch["epsilon"], t)
    conditions = _conditions(batch, stage)

    def denoiser(x: Tensor, tau: float) -> Tensor:
        return network(x, torch.full_like(t, tau), **conditions)

    with torch.no_grad():
        predicted = network(noisy, TAU_PER_T * t, **conditions)
        sampled = sample(DDIM, denoiser, batch["epsilon"], num_steps, description="preview")
    return batch["x0"], noisy, predicted, sampled


def _conditions(batch: dict[str, Tensor], stage: ModelStage) -> dict[str, Tensor]:
    if "condition_noise" in batch:
        noise, level = batch["condition_noise"], batch["condition_level"]
        interpolation = stage.train.condition_interpolation
        return {"condition": super_res_condition(batch["x0"], stage.low_res_factor, noise, level, interpolation)}
    return {key: batch[key] for key in ("text", "drop_text") if key in batch}


def _keep_events(source: Path, target: Path) -> None:
    """Copy the event files out of the state, to those of earlier training runs."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)


def _row(sample: NDArray) -> NDArray:
    """Lay (4, C, D, H, W) out as one row of coronal slices, superior up, about 96 pixels wide, with a white border."""
    size = sample.shape[3] // 2
    slices: list[Any] = [part[:, ::-1] for part in sample[:, :, :, size].reshape(-1, 1, *sample.shape[2::2])]
    factor = max(96 // sample.shape[-1], 1)
    tiles = [np.pad(np.kron(part[0], np.ones((factor, factor))), 1, constant_values=1.0) for part in slices]
    return np.concatenate(tiles, axis=1)


def _check_grid(stage: ModelStage, data: TrainingData) -> None:
    patch = stage.unet.patch_size
    multiple = patch * 2 ** (len(stage.unet.mults) - 1)
    size = data.crop or data.store.size
    if size[1] % multiple or size[2] % multiple or size[0] % patch:
        raise InputError(
            f"{stage.stage}: a grid of {size} does not fit unet.patch_size {patch} and {len(stage.unet.mults)} levels"
            f" (unet.mults): the in-plane size must be divisible by {multiple}, the depth by {patch}"
        )
