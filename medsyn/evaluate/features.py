"""The feature extractor of FID and MMD (Table I): read from a Med3D checkpoint, or trained on the cohort.

MedicalNet's weights may not be shipped, so the embedded experiment trains the same architecture to predict the finding
labels of the training split. What made the features is stored with the weights, travels with every feature file and
stands in Table I, because FIDs of different extractors cannot be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from medsyn.config import FeaturesConfig, FeaturesStage
from medsyn.ct.store import Chunked, open_high, read_index
from medsyn.device import network_device
from medsyn.errors import InputError
from medsyn.evaluate.inputs import labels_of, read_labels
from medsyn.evaluate.statistics import area_under_roc
from medsyn.files import sha256
from medsyn.models.resnet3d import BLOCKS_PER_LAYER, ResNet3d, ResNetClassifier, to_unit
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.tensors import check_tensors, load_checkpoint, save_tensors

Network = TypeVar("Network", bound=nn.Module)


class Rows(Protocol):
    """Volumes (n, D, H, W) in HU, read as they are asked for: an array, or several stores in a row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> NDArray: ...


def make_extractor(stage: FeaturesStage, stores: Sequence[str | Path], labels: str | Path, out: str | Path) -> None:
    """Write the extractor as safetensors: converted if `features.weights` names a checkpoint, trained otherwise."""
    config = stage.features
    if config.weights is not None:
        net = read_med3d(config.weights, config.depth, config.base_width)
        facts: dict[str, Any] = {"source": Path(config.weights).name, "sha256": sha256(config.weights)}
        description = f"Med3D ResNet-{config.depth}, weights {facts['source']} (sha256 {facts['sha256'][:12]})"
    else:
        net, facts = _train(stage, [Path(store) for store in stores], Path(labels))
        description = (
            f"Med3D ResNet-{config.depth} architecture, base width {config.base_width}, trained on"
            f" {facts['num_volumes']} volumes of the training split to predict {', '.join(facts['labels'])}"
        )
    metadata = {
        "extractor": json.dumps(
            {"depth": config.depth, "base_width": config.base_width, "window_hu": stage.window_hu, "name": description}
        ),
        "provenance": json.dumps(provenance(stage, **facts), sort_keys=True),
    }
    save_tensors(out, net.state_dict(), metadata)
    log.info("features: %s", description)


def load_extractor(path: str | Path, window_hu: tuple[float, float] | None = None) -> tuple[ResNet3d, dict[str, Any]]:
    """The network in evaluation mode, and its description: depth, base_width, window_hu, name.

    With `window_hu`, an extractor that was made for another window is an InputError.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
        check_tensors(path)
        info = json.loads(metadata["extractor"])
        net = ResNet3d(info["depth"], info["base_width"])
        net.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (KeyError, SafetensorError, RuntimeError, json.JSONDecodeError):
        raise InputError(
            f"{path}: no feature extractor of this program; write one with `medsyn train-features`"
            " (its setting features.weights converts a Med3D checkpoint)"
        ) from None
    if window_hu is not None and tuple(info["window_hu"]) != tuple(window_hu):
        raise InputError(f"{path}: was made for the window {info['window_hu']} HU, not {list(window_hu)}; set it so")
    return net.eval(), info


def read_med3d(path: str | Path, depth: int | None = None, base_width: int | None = None) -> ResNet3d:
    """Strictly load a MedicalNet checkpoint (.pth with `state_dict`, prefix `module.`, or .safetensors).

    Without `depth` and `base_width` they are read from its tensors.
    """
    content = load_checkpoint(path)
    wrapped = content.get("state_dict", content)
    if not isinstance(wrapped, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in wrapped.values()):
        raise InputError(
            f"{path}: is no Med3D checkpoint: expected tensors by name; give the file that Med3D published"
        )
    names = {str(name).removeprefix("module."): tensor for name, tensor in wrapped.items()}
    trunk = {name: tensor for name, tensor in names.items() if not name.startswith("conv_seg.")}
    if depth is None:
        blocks = tuple(len({n.split(".")[1] for n in trunk if n.startswith(f"layer{k}.")}) for k in range(1, 5))
        depth = next((known for known, wanted in BLOCKS_PER_LAYER.items() if wanted == blocks), 50)
    if base_width is None:
        first = trunk.get("conv1.weight", torch.empty(64))
        base_width = len(first) if first.ndim else 64
    net = ResNet3d(depth, base_width)
    try:
        net.load_state_dict(trunk)
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = (lines[1:] or lines)[0].strip()[:160]
        raise InputError(f"{path}: is no Med3D ResNet-{depth} of width {base_width}: {reason}") from None
    return net.eval()


def features_of(
    net: ResNet3d, volumes: Iterable[NDArray], window_hu: tuple[float, float], batch_size: int = 4
) -> NDArray[np.float32]:
    """Features (n, F) of volumes (D, H, W) in HU that all have one shape, on the accelerator if there is one."""
    device = network_device()
    net = _channels_last(net.to(device)).eval()
    rows = [np.empty((0, net.num_features), dtype=np.float32)]
    with torch.no_grad():
        for batch in batched(volumes, batch_size):
            rows.append(net(_batch(np.stack(batch), window_hu, device)).float().cpu().numpy())
    return np.concatenate(rows)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def num_batches(count: int, batch_size: int) -> int:
    """Whole batches in `count` samples, at least one."""
    return max(1, count // batch_size)


def fit(
    model: nn.Module,
    volumes: Rows,
    labels: Tensor,
    *,
    window_hu: tuple[float, float],
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    what: str,
) -> float:
    """Train `model` (B, 1, D, H, W) -> (B, L) with weighted cross-entropy; the mean loss of the last epoch.

    volumes: (n, D, H, W) in HU, may be a memory map; labels: (n, L) 0/1. AdamW with a linear warm-up and cosine decay;
    the order of the volumes comes from `seed`, so on a CPU with a fixed number of threads two runs are identical.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    num_positive = labels.sum(dim=0)
    weight = ((len(labels) - num_positive) / num_positive.clamp(min=1)).clamp(max=20).to(device)
    steps_per_epoch = num_batches(len(labels), batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    num_warmup = max(1, num_steps // 5)

    def rate(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    _channels_last(model).train()
    losses: list[float] = []
    for number in track(range(num_steps), description=what):
        step = number % steps_per_epoch
        if step == 0:
            order = torch.randperm(len(labels), generator=generator)
        index = order[step * batch_size : (step + 1) * batch_size]
        logits = model(_batch(volumes[index.numpy()], window_hu, device))
        target = labels[index].to(device)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    model.eval()
    return float(np.mean(losses[-steps_per_epoch:]))


def scores_of(
    model: nn.Module, volumes: Rows, window_hu: tuple[float, float], batch_size: int = 8
) -> NDArray[np.float32]:
    """Logits (n, L) of volumes (n, D, H, W) in HU, in evaluation mode."""
    device = next(model.parameters()).device
    _channels_last(model).eval()
    rows = []
    with torch.no_grad():
        for start in range(0, len(volumes), batch_size):
            batch = _batch(volumes[start : start + batch_size], window_hu, device)
            rows.append(model(batch).float().cpu().numpy())
    return np.concatenate(rows)


def new_network(config: FeaturesConfig, num_labels: int) -> ResNetClassifier:
    """A classifier with initial weights that depend on `config.seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ResNetClassifier(ResNet3d(config.depth, config.base_width), num_labels)


class _Stores:
    """Rows of several stores' high-resolution images, addressed as one array (n, D, H, W) in HU."""

    def __init__(self, parts: Sequence[Chunked], where: Sequence[tuple[int, int]]) -> None:
        self._parts, self._where = parts, where

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> NDArray:
        chosen = range(*index.indices(len(self._where))) if isinstance(index, slice) else index
        return np.stack([self._parts[self._where[i][0]][self._where[i][1]] for i in chosen])


def _batch(volumes: NDArray, window_hu: tuple[float, float], device: torch.device) -> Tensor:
    """(B, D, H, W) in HU -> (B, 1, D, H, W) in [-1, 1] on `device`, channel axis last in memory."""
    batch = to_unit(torch.from_numpy(np.asarray(volumes, dtype=np.float32))[:, None].to(device), window_hu)
    return batch.to(memory_format=torch.channels_last_3d)


def _channels_last(model: Network) -> Network:
    """The same function a third faster on a CPU: convolution weights with the channel axis last in memory."""
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def _train(stage: FeaturesStage, stores: Sequence[Path], labels: Path) -> tuple[ResNet3d, dict[str, Any]]:
    config = stage.features
    known_names, by_id = read_labels(labels)
    names = config.findings
    unknown = [name for name in names if name not in known_names]
    if unknown:
        raise InputError(
            f"{labels}: no label {unknown[0]}, which evaluation.features.findings names;"
            f" it has {', '.join(known_names)}"
        )
    if not stores:
        raise InputError("--store: give the training store, or set evaluation.features.weights to a checkpoint")
    parts = [open_high(store)[0] for store in stores]
    chosen: dict[str, list[tuple[int, int]]] = {"train": [], "validation": []}
    targets: dict[str, list[list[int]]] = {"train": [], "validation": []}
    for number, store in enumerate(stores):
        for row_number, row in enumerate(read_index(store)):
            known = labels_of(row, by_id)
            if known is not None and row["split"] in chosen:
                chosen[row["split"]].append((number, row_number))
                targets[row["split"]].append([known[name] for name in names])
    matrix = np.array(targets["train"], dtype=np.float32).reshape(-1, len(names))
    usable = [i for i in range(len(names)) if 0 < matrix[:, i].sum() < len(matrix)]
    if not usable:
        raise InputError(
            f"{labels}: no label varies over the {len(matrix)} labelled training volumes; the feature extractor needs"
            " at least one such label, or set evaluation.features.weights to a Med3D checkpoint"
        )
    model = new_network(config, len(usable)).to(network_device())
    loss = fit(
        model,
        _Stores(parts, chosen["train"]),
        torch.from_numpy(matrix[:, usable]),
        window_hu=stage.window_hu,
        num_steps=config.num_epochs * num_batches(len(matrix), config.batch_size),
        batch_size=min(config.batch_size, len(matrix)),
        learning_rate=config.learning_rate,
        seed=config.seed,
        what="train-features",
    )
    facts: dict[str, Any] = {"num_volumes": len(matrix), "labels": [names[i] for i in usable], "final_loss": loss}
    if chosen["validation"]:
        held_out = np.array(targets["validation"])[:, usable]
        scores = scores_of(model, _Stores(parts, chosen["validation"]), stage.window_hu)
        facts["validation_auroc"] = {
            names[i]: area_under_roc(scores[:, k], held_out[:, k]) for k, i in enumerate(usable)
        }
        log.info("features: AUROC on the validation split %s", facts["validation_auroc"])
    return model.trunk.cpu().eval(), facts
