"""The feature extractor of FID and MMD (Table I): read from a Med3D checkpoint, or trained on the cohort.

MedicalNet's weights may not be shipped, so the embedded experiment trains the same architecture to predict the finding
labels of the training split. What made the features is stored with the weights, travels with every feature file and
stands in Table I, because FIDs of different extractors cannot be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from medsyn.config import FeaturesStage
from medsyn.ct.store import Chunked, open_high, read_index
from medsyn.device import network_device
from medsyn.errors import InputError
from medsyn.evaluate.inputs import labels_of, read_labels
from medsyn.evaluate.statistics import area_under_roc
from medsyn.files import sha256
from medsyn.models.resnet3d import BLOCKS_PER_LAYER, ResNet3d, ResNetClassifier, channels_last, finding_classifier
from medsyn.progress import log
from medsyn.provenance import hash_json, provenance
from medsyn.scratch import claim_state, remove_state
from medsyn.tensors import check_tensors, load_checkpoint, save_tensors
from medsyn.training.findings import classifier_config, network_input, num_batches, scores_of, train_classifier


def make_extractor(
    stage: FeaturesStage, stores: Sequence[Path], labels: Path, out: Path, state: Path | None = None
) -> None:
    """Write the extractor as safetensors: converted if `features.weights` names a checkpoint, trained otherwise.

    state: where the checkpoints of the training lie until the end, by default a hidden folder beside `out`. The same
    command continues a stopped training; one with other settings or data starts again.
    """
    config = stage.features
    if config.weights is not None:
        net = read_med3d(config.weights, config.depth, config.base_width)
        facts: dict[str, Any] = {"source": Path(config.weights).name, "sha256": sha256(config.weights)}
        description = f"Med3D ResNet-{config.depth}, weights {facts['source']} (sha256 {facts['sha256'][:12]})"
    else:
        state = claim_state(state or out.with_name(f".{out.name}.state"), out)
        net, facts = _train(stage, stores, labels, state)
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
    if state is not None:
        remove_state(state)
    log.info("features: %s", description)


def load_extractor(path: str | Path, window_hu: tuple[float, float] | None = None) -> tuple[ResNet3d, dict[str, Any]]:
    """Return the network in evaluation mode, and its description: depth, base_width, window_hu, name.

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
            f"{path}: not a feature extractor of this program; write one with `medsyn train-features`"
            " (its setting features.weights converts a Med3D checkpoint)"
        ) from None
    if window_hu is not None and tuple(info["window_hu"]) != tuple(window_hu):
        raise InputError(f"{path}: was made for the window {info['window_hu']} HU, not {list(window_hu)}; set it so")
    return net.eval(), info


def read_med3d(path: str | Path, depth: int | None = None, base_width: int | None = None) -> ResNet3d:
    """Load a MedicalNet checkpoint (.pth with `state_dict`, prefix `module.`, or .safetensors).

    Without `depth` and `base_width` they are read from its tensors.
    """
    content = load_checkpoint(path)
    wrapped = content.get("state_dict", content)
    if not isinstance(wrapped, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in wrapped.values()):
        raise InputError(
            f"{path}: is not a Med3D checkpoint: expected tensors by name; give the file that Med3D published"
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
        raise InputError(f"{path}: is not a Med3D ResNet-{depth} of width {base_width}: {reason}") from None
    return net.eval()


def features_of(
    net: ResNet3d, volumes: Iterable[NDArray], window_hu: tuple[float, float], batch_size: int = 4
) -> NDArray[np.float32]:
    """Return features (n, F) of volumes (D, H, W) in HU that all have one shape, on the accelerator if there is one."""
    device = network_device()
    net = channels_last(net.to(device)).eval()
    rows = [np.empty((0, net.num_features), dtype=np.float32)]
    with torch.no_grad():
        for batch in batched(volumes, batch_size):
            hu = torch.from_numpy(np.stack(batch).astype(np.float32)).to(device)
            rows.append(net(network_input(hu, window_hu)).float().cpu().numpy())
    return np.concatenate(rows)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


class _Stores:
    """Images of several stores as one array (n, D, H, W) in HU, and the labels (n, L) of the volumes."""

    def __init__(self, parts: Sequence[Chunked], where: Sequence[tuple[int, int]], labels: Sequence[list[int]]) -> None:
        self._parts, self.where, self.labels = parts, where, np.array(labels, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: Any) -> NDArray:
        chosen = range(*index.indices(len(self.where))) if isinstance(index, slice) else index
        return np.stack([self._parts[self.where[i][0]][self.where[i][1]] for i in chosen])


def _train(stage: FeaturesStage, stores: Sequence[Path], labels: Path, state: Path) -> tuple[ResNet3d, dict[str, Any]]:
    """Train the extractor; return it and what is known of its training. `state` holds its checkpoints."""
    config = stage.features
    training, validation, data = _labelled(stores, labels, config.findings)
    varies = (training.labels.min(axis=0) < training.labels.max(axis=0)) if len(training) else []
    usable = [i for i, differs in enumerate(varies) if differs]
    if not usable:
        raise InputError(
            f"{labels}: no label varies over the {len(training)} labelled training volumes; the feature extractor needs"
            " at least one such label, or set evaluation.features.weights to a Med3D checkpoint"
        )
    per_epoch = num_batches(len(training), config.batch_size)
    settings = classifier_config(
        config.num_epochs * per_epoch,
        batch_size=min(config.batch_size, len(training)),
        learning_rate=config.learning_rate,
        seed=config.seed,
        log_every=per_epoch,
    )
    result = train_classifier(
        lambda: finding_classifier(config.depth, config.base_width, len(usable)),
        training,
        torch.from_numpy(training.labels[:, usable]),
        window_hu=stage.window_hu,
        config=settings,
        name="train-features",
        identity={"features": config.model_dump(mode="json"), "data": data},
        state=state,
    )
    model, names = cast(ResNetClassifier, result.network), [config.findings[i] for i in usable]
    facts: dict[str, Any] = {"num_volumes": len(training), "labels": names, "final_loss": result.metrics[-1]["loss"]}
    if len(validation):
        scores = scores_of(model, validation, stage.window_hu)
        facts["validation_auroc"] = {
            name: area_under_roc(scores[:, k], validation.labels[:, i])
            for k, (name, i) in enumerate(zip(names, usable, strict=True))
        }
        log.info("features: AUROC on the validation split %s", facts["validation_auroc"])
    return model.trunk.cpu().eval(), facts


def _labelled(stores: Sequence[Path], labels: Path, names: Sequence[str]) -> tuple[_Stores, _Stores, str]:
    """Return the labelled volumes of the training and of the validation split, and a hash of stores and labels."""
    known_names, by_id = read_labels(labels)
    unknown = [name for name in names if name not in known_names]
    if unknown:
        raise InputError(
            f"{labels}: no label {unknown[0]}, which evaluation.features.findings names;"
            f" it has {', '.join(known_names)}"
        )
    if not stores:
        raise InputError("--store: give the training store, or set evaluation.features.weights to a checkpoint")
    parts, indices = [open_high(store)[0] for store in stores], [read_index(store) for store in stores]
    chosen: dict[str, list[tuple[int, int]]] = {"train": [], "validation": []}
    targets: dict[str, list[list[int]]] = {"train": [], "validation": []}
    for number, index in enumerate(indices):
        for row_number, row in enumerate(index):
            known = labels_of(row, by_id)
            if known is not None and row["split"] in chosen:
                chosen[row["split"]].append((number, row_number))
                targets[row["split"]].append([known[name] for name in names])
    training, validation = (_Stores(parts, chosen[split], targets[split]) for split in ("train", "validation"))
    return training, validation, hash_json([indices, [part.shape for part in parts], targets])
