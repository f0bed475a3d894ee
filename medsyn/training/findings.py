"""Training of a classifier of findings on CT volumes: the feature extractor of Table I and the classifiers of Table VI.

Both are a ResNetClassifier that learns by weighted cross-entropy, as a Task of the one training loop. The learning
rate rises linearly over the first fifth of the steps and then falls to zero along a cosine. No average of the weights
is kept. Every epoch goes through the volumes in a new order, and leaves out those that do not fill a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.models.resnet3d import channels_last, to_unit
from medsyn.provenance import hash_json
from medsyn.training.loop import NO_EFFECT, TrainingResult, train
from medsyn.training.task import Task

CHECKPOINT_EVERY = 100


class Rows(Protocol):
    """Volumes (n, D, H, W) in HU, read as they are asked for: an array, or several stores in a row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> NDArray: ...


def num_batches(count: int, batch_size: int) -> int:
    """Return how many whole batches are in `count` samples, at least one."""
    return max(1, count // batch_size)


def train_classifier(
    build: Callable[[], nn.Module],
    volumes: Rows,
    labels: Tensor,
    *,
    window_hu: tuple[float, float],
    config: TrainConfig,
    name: str,
    identity: Mapping[str, Any],
    state: Path,
) -> TrainingResult:
    """Train the network (B, 1, D, H, W) -> (B, L) that `build` makes, or continue from the checkpoints in `state`.

    volumes: (n, D, H, W) in HU; labels: (n, L) of 0 and 1; config: see `classifier_config`; identity: what tells this
    network and its data from others (JSON). The checkpoints lie in a subfolder of `state` that is named after settings
    and identity, so that a changed training starts again. On a CPU with a fixed number of threads two runs are
    identical.
    """
    num_positive = labels.sum(dim=0)
    weight = ((len(labels) - num_positive) / num_positive.clamp(min=1)).clamp(max=20)
    order = epoch_orders(len(labels), config)
    per_epoch = num_batches(len(labels), config.batch_size)

    def batch(step: int, slots: Sequence[int]) -> dict[str, Tensor]:
        epoch, number = divmod(step, per_epoch)
        index = order[epoch][[number * config.batch_size + slot for slot in slots]]
        return {"hu": torch.from_numpy(np.asarray(volumes[index.numpy()], np.float32)), "labels": labels[index]}

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = network(network_input(batch["hu"], window_hu))
        return nn.functional.binary_cross_entropy_with_logits(
            logits, batch["labels"], pos_weight=weight.to(logits.device)
        )

    facts = {"window_hu": window_hu, **identity}
    task = Task(name, lambda: channels_last(build()), batch, loss, facts, averaged=False)
    return train(task, config, state / hash_json([facts, config.model_dump(mode="json", exclude=set(NO_EFFECT))]))


def classifier_config(
    num_steps: int, *, batch_size: int, learning_rate: float, seed: int, log_every: int
) -> TrainConfig:
    """Return the settings of the training loop that all classifiers of findings share."""
    return TrainConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=learning_rate,
        num_warmup_steps=max(1, num_steps // 5),
        learning_rate_decay="cosine",
        weight_decay=1e-4,
        max_grad_norm=5.0,
        checkpoint_every=CHECKPOINT_EVERY,
        log_every=log_every,
        seed=seed,
    )


def epoch_orders(count: int, config: TrainConfig) -> list[Tensor]:
    """Return a permutation of `count` volumes for every epoch of a run, drawn one after the other from its seed."""
    generator = torch.Generator().manual_seed(config.seed)
    num_epochs = -(-config.num_steps // num_batches(count, config.batch_size))
    return [torch.randperm(count, generator=generator) for _ in range(num_epochs)]


def network_input(hu: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """Turn (B, D, H, W) in HU into (B, 1, D, H, W) in [-1, 1], with the channel axis last in memory."""
    return to_unit(hu[:, None], window_hu).to(memory_format=torch.channels_last_3d)


def scores_of(
    model: nn.Module, volumes: Rows, window_hu: tuple[float, float], batch_size: int = 8
) -> NDArray[np.float32]:
    """Return logits (n, L) of volumes (n, D, H, W) in HU, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    rows = []
    with torch.no_grad():
        for start in range(0, len(volumes), batch_size):
            hu = torch.from_numpy(np.asarray(volumes[start : start + batch_size], np.float32)).to(device)
            rows.append(model(network_input(hu, window_hu)).float().cpu().numpy())
    return np.concatenate(rows)
