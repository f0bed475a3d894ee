"""Training data of the denoisers: store shards and text embeddings; every batch is a function of (step, slots).

`medsyn.ct.store` is the format of a shard. Only rows of one split, `train` by default, are read. Low resolution is
mapped, so that the processes of a machine share one copy. Full resolution is held in memory when it is small; else each
crop is read from disk. Means of it (`low_res.reduction: mean`) are kept as they are made, when they are small.
Sample `slot` of step `s` is number k = s * batch_size + slot of a sequence that goes through a fresh permutation of the
volumes in every epoch; its noise, time, text section, text drop and crop come from a generator seeded by (seed, k).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from medsyn.config import ModelStage
from medsyn.config.networks import MAX_COMPONENTS
from medsyn.ct.store import Chunked, open_high, read_index, read_low, unpack_labels
from medsyn.diffusion.objective import LowResolution
from medsyn.diffusion.schedule import alpha_bar
from medsyn.diffusion.seeds import seeded
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.models.channels import to_channel
from medsyn.models.linear_estimate import PrincipalComponents, error_share, principal_components
from medsyn.models.text_features import mean_state, text_features, token_kinds
from medsyn.provenance import hash_json
from medsyn.tensors import check_tensors, read_metadata
from medsyn.training.augment import NUM_UNIFORM, Sampling, random_affine

_IN_MEMORY_BYTES = 2 << 30
_VOXEL_BYTES = 3  # HU and label
_MOST_CROPS = 64  # of super-resolution volumes whose deviations are measured
_LEAST_DEVIATION = 1e-3
_KEY_SAMPLE, _KEY_KINDS = 1, 6  # first parts of the seeds of this module, apart from those of sampling


class Store:
    """Volumes of one split over several shard folders.

    resolution is "low" or "high"; split is "train" or "validation". `volume(i)` gives HU (D, H, W) int16 and packed
    labels (D, H, W) uint8.
    """

    def __init__(self, shards: Sequence[Path], resolution: str, split: str = "train") -> None:
        self.subject_ids: list[str] = []
        self.report_ids: list[str] = []
        self._rows: list[tuple[int, int]] = []
        self._arrays: list[tuple[NDArray | Chunked, NDArray | Chunked]] = []
        digest = hashlib.sha256()
        for number, shard in enumerate(shards):
            index = read_index(shard)
            rows = [row for row, entry in enumerate(index) if entry["split"] == split]
            image, label = open_high(shard) if resolution == "high" else read_low(shard, rows)
            digest.update(json.dumps([index, image.shape], sort_keys=True).encode())
            self._arrays.append((image, label))
            self.subject_ids += [index[row]["subject_id"] for row in rows]
            self.report_ids += [index[row]["report_id"] for row in rows]
            self._rows += [(number, row) for row in rows]
        if not self._rows:
            raise InputError(f"{shards[0] if shards else 'store'}: no volume of the split '{split}'")
        if len({image.shape[1:] for image, _ in self._arrays}) != 1:
            raise InputError(f"{shards[0]}: the shards have different grids; make the store again with one config")
        if resolution == "high" and len(self) * math.prod(self.size) * _VOXEL_BYTES < _IN_MEMORY_BYTES:
            self._load()
        self.hash = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size(self) -> tuple[int, int, int]:
        """Grid (D, H, W)."""
        depth, height, width = self._arrays[0][0].shape[1:]
        return depth, height, width

    def _load(self) -> None:
        """Replace the arrays on disk by the rows of the split in memory."""
        rows: list[list[int]] = [[] for _ in self._arrays]
        for place, (shard, row) in enumerate(self._rows):
            self._rows[place] = (shard, len(rows[shard]))
            rows[shard].append(row)
        self._arrays = [
            (_in_memory(image, chosen), _in_memory(label, chosen))
            for (image, label), chosen in zip(self._arrays, rows, strict=True)
        ]

    def volume(self, i: int, window: tuple[slice, slice, slice] | None = None) -> tuple[NDArray, NDArray]:
        """Return HU and packed labels of volume i of the split, or of a crop of it."""
        shard, row = self._rows[i]
        image, label = self._arrays[shard]
        where = (row, *window) if window else (row,)
        return image[where], label[where]

    def image(self, i: int) -> NDArray:
        """Return HU (D, H, W) int16 of volume i of the split."""
        shard, row = self._rows[i]
        return self._arrays[shard][0][row]


class Embeddings:
    """Frozen text states of every report, looked up by report id: what `medsyn embed` wrote (medsyn.text.embed).

    A state is read from its shard when it is asked for, so the shards need not fit in memory.
    """

    def __init__(self, path: Path, sections: Sequence[str]) -> None:
        index = read_json(path)
        try:
            columns = [index["sections"].index(section) for section in sections]
            found = ([keys[column] for column in columns] for keys in index["texts"].values())
            self._keys = [[key for key in keys if key is not None] for keys in found]  # absent sections are null
            self._row = {report_id: row for row, report_id in enumerate(index["texts"])}
            self.num_tokens: int = index["num_tokens"]
            self.hidden_size: int = index["hidden_size"]
            self.encoder: str = index["encoder"]
            self.hash = hash_json([index["encoder"], sections, index["texts"]])
            self._places = {
                key: (shard, row)
                for shard in [path.with_suffix("") / name for name in index["shards"]]
                for row, key in enumerate(json.loads(read_metadata(shard)["keys"]))
            }
            for name in index["shards"]:
                check_tensors(path.with_suffix("") / name)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not the text embeddings of these sections ({error}); run `medsyn embed`"
            ) from None
        self._open: dict[Path, Any] = {}
        self.path = path

    def rows(self, report_ids: Sequence[str]) -> list[int]:
        """Return the row of each report; an unknown one is an InputError."""
        missing = [name for name in report_ids if name not in self._row]
        if missing:
            raise InputError(
                f"{self.path}: no text for report {missing[0]} ({len(missing)} missing); run `medsyn embed`"
            )
        without = [name for name in report_ids if not self._keys[self._row[name]]]
        if without:
            raise InputError(
                f"{self.path}: report {without[0]} has none of the sections to train on; name one that it has in"
                " text.sections"
            )
        return [self._row[name] for name in report_ids]

    def num_sections(self, row: int) -> int:
        """Return how many of the sections the report has."""
        return len(self._keys[row])

    def states(self, row: int, section: int) -> Tensor:
        """Return the states (num_tokens, hidden), float32, of one of the report's sections, from 0."""
        shard, place = self._places[self._keys[row][section]]
        if shard not in self._open:
            self._open[shard] = safe_open(shard, framework="pt").get_slice("states")
        states: Tensor = self._open[shard][place].float()
        return states


class TrainingData:
    """Batches of one stage: x0 and epsilon [B, C, D, H, W] and t [B].

    With embeddings: text [B, num_tokens, hidden] and drop_text [B]; without them the network is unconditional.
    Super-resolution: condition_noise [B, C, D, H, W] and condition_level [B].
    """

    def __init__(self, stage: ModelStage, store: Store, embeddings: Embeddings | None) -> None:
        self.stage, self.store, self.embeddings = stage, store, embeddings
        self.high = stage.stage == "super_res"
        if embeddings is not None:
            self.rows = embeddings.rows(store.report_ids)
            if embeddings.num_tokens != stage.num_tokens:
                raise InputError(
                    f"{embeddings.path}: {embeddings.num_tokens} tokens a text, text.num_tokens is {stage.num_tokens};"
                    " run `medsyn embed` again"
                )
        crop = stage.train.crop_size if self.high else None
        if crop and any(c > s or c % stage.low_res_factor for c, s in zip(crop, store.size, strict=True)):
            raise InputError(
                f"train.crop_size {list(crop)}: must be divisible by {stage.low_res_factor} and fit in {store.size}"
            )
        self.crop = crop
        self.low_resolution = LowResolution.of(stage)
        self._reduced = reads_high(stage) and not self.high
        voxels = len(stage.channels) * math.prod(self.size)
        self._means = kept_in_memory(self._mean_of_cubes, len(store), 4 * voxels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Grid (D, H, W) of x0."""
        if self._reduced:
            depth, height, width = (edge // self.stage.low_res_factor for edge in self.store.size)
            return depth, height, width
        return self.crop or self.store.size

    def batch(self, step: int, slots: Sequence[int]) -> dict[str, Tensor]:
        """Return the samples `slots` of 0-based optimiser step `step`, stacked."""
        samples = [self.sample(step * self.stage.train.batch_size + slot) for slot in slots]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def sample(self, number: int) -> dict[str, Tensor]:
        """Sample `number` of the whole run."""
        train = self.stage.train
        epoch, position = divmod(number, len(self.store))
        index = int(permutation(train.seed, epoch, len(self.store))[position])
        generator = seeded(_KEY_SAMPLE, train.seed, number)
        uniform = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        affine = None
        if train.augment:
            affine = random_affine(torch.rand(NUM_UNIFORM, generator=generator, dtype=torch.float64).tolist())
        x0 = self.clean(index, uniform[:3], affine)
        sample = {
            "x0": x0,
            "epsilon": torch.randn(x0.shape, generator=generator),
            "t": torch.tensor(uniform[4] ** train.timestep_power, dtype=torch.float32),
        }
        weights = self.loss_weights(sample["t"])
        if weights is not None:
            sample["weights"] = weights
        if self.high:
            sample["condition_noise"] = torch.randn(x0.shape, generator=generator)
            sample["condition_level"] = torch.tensor(uniform[5] * train.max_low_res_noise, dtype=torch.float32)
        if self.embeddings is not None:
            sample["text"] = self.text(index, uniform[6])
            sample["drop_text"] = torch.tensor(uniform[7] < train.text_dropout)
        return sample

    def clean(self, index: int, where: Sequence[float] = (0.5, 0.5, 0.5), affine: Tensor | None = None) -> Tensor:
        """Return the clean volume (C, D, H, W) in [-1, 1] of volume `index` of the store, which must not be changed.

        `where` in [0, 1) places the crop, `affine` is a map of medsyn.training.augment.
        """
        if self._reduced and affine is None:
            return self._means(index)
        size = self.store.size
        crop = self.crop or size
        starts = [int(u * (s - c + 1)) for u, s, c in zip(where, size, crop, strict=True)]
        if affine is not None:
            sampling = Sampling(affine, size, starts, crop)
            volume = sampling.apply(self._channels(index, sampling.window))
        else:
            window = tuple(slice(a, a + c) for a, c in zip(starts, crop, strict=True)) if self.crop else None
            volume = self._channels(index, window)
        return self.low_resolution.reduce(volume) if self._reduced else volume

    def _mean_of_cubes(self, index: int) -> Tensor:
        return self.low_resolution.reduce(self._channels(index, None))

    @cached_property
    def mean(self) -> Tensor:
        """Mean [C, D, H, W] of the whole volumes of the split."""
        total = torch.zeros(len(self.stage.channels), *self.size, dtype=torch.float64)
        for index in range(len(self.store)):
            total += self.clean(index)
        return (total / len(self.store)).float()

    @cached_property
    def components(self) -> PrincipalComponents:
        """Principal components of the whole volumes of the split, of at most MAX_COMPONENTS + 2 evenly chosen ones."""
        wanted, chosen = self.stage.unet.num_components, self._sample_of_volumes()
        count = len(chosen)
        found = self.components_of(chosen, min(wanted, count - 2)) if count > 2 else None
        most = 0 if found is None else len(found.vectors)
        if found is None or wanted > most:
            raise InputError(
                f"{self.stage.stage}.unet.num_components: {wanted}, expected at most {most}, which these {count}"
                " training volumes allow; lower it"
            )
        return found

    @cached_property
    def mean_text_state(self) -> Tensor:
        """Mean state [hidden] of the texts of at most MAX_COMPONENTS + 2 evenly chosen volumes."""
        return torch.stack([mean_state(self._sections(i)).mean(dim=0) for i in self._sample_of_volumes()]).mean(dim=0)

    def components_of(self, indices: Sequence[int], num_components: int) -> PrincipalComponents:
        """Return the principal components of some volumes, given their texts where there are embeddings."""
        volumes = torch.empty(len(indices), len(self.stage.channels), *self.size)
        for place, index in enumerate(indices):
            volumes[place] = self.clean(index)
        volumes -= volumes.mean(dim=0)
        if self.embeddings is None:
            return principal_components(volumes, num_components)
        texts, kinds = [self._sections(index) for index in indices], None
        if count := self.stage.unet.num_text_kinds:
            tokens = torch.cat([text[text.any(dim=-1)] for text in texts])
            kinds = token_kinds(tokens, count, seeded(_KEY_KINDS, self.stage.train.seed))
        features = torch.stack([text_features(text, kinds).mean(dim=0) for text in texts])
        return replace(principal_components(volumes, num_components, features), kinds=kinds)

    def _sample_of_volumes(self) -> list[int]:
        count = min(len(self.store), MAX_COMPONENTS + 2)
        return [index * len(self.store) // count for index in range(count)]

    def _sections(self, index: int) -> Tensor:
        """Return the states (sections, num_tokens, hidden) of all sections of volume `index`'s report."""
        assert self.embeddings is not None
        row = self.rows[index]
        return torch.stack([self.embeddings.states(row, k) for k in range(self.embeddings.num_sections(row))])

    @cached_property
    def deviations(self) -> Tensor:
        """Root mean square [C] of the difference of x0 from what is known without the network, 0.001 or more.

        Known is the mean training volume with `unet.mean_volume`, the enlarged low resolution with
        `unet.add_condition`, else 0. At super-resolution the central crops of the first 64 volumes are read.
        """
        count = min(len(self.store), _MOST_CROPS) if self.high else len(self.store)
        squares = torch.zeros(len(self.stage.channels), dtype=torch.float64)
        for index in range(count):
            x0 = self.clean(index)
            squares += (x0 - self._known(x0)).double().square().mean(dim=(1, 2, 3))
        return (squares / count).sqrt().clamp(min=_LEAST_DEVIATION).float()

    def _known(self, x0: Tensor) -> Tensor | float:
        if self.stage.unet.add_condition:
            return self.low_resolution.enlarge(self.low_resolution.reduce(x0)[None])[0]
        return self.mean if self.stage.unet.mean_volume else 0.0

    @cached_property
    def channel_weights(self) -> Tensor | None:
        """Weights [C] of the channels' squared errors, with mean 1; None if all are the same."""
        power = self.stage.train.balance_channels
        if power == 0:
            return None
        weights = self.deviations ** (-2 * power)
        return weights / weights.mean()

    def loss_weights(self, t: Tensor) -> Tensor | None:
        """Return the weights [C] of the channels' squared errors at time t; None: all are 1."""
        weights = self.channel_weights
        if not self.stage.train.balance_noise:
            return weights
        share = self._error_share(alpha_bar(t)[None])[0].square()
        return 1 / share if weights is None else weights / share

    def _error_share(self, signal: Tensor) -> Tensor:
        """Return the expected error [B, C] of the network's linear estimate, as a share of the deviation."""
        unet = self.stage.unet
        if unet.num_components:
            return error_share(signal, self.components)
        sigma = unet.sigma_data if unet.sigma_share is None else unet.sigma_share * self.deviations
        assert sigma is not None
        noise = (1 - signal)[:, None]
        return (noise / (signal[:, None] * sigma**2 + noise)).sqrt().expand(-1, len(self.stage.channels))

    def text(self, index: int, where: float = 0.0) -> Tensor:
        """Return the states (num_tokens, hidden) of a section of volume `index`'s report.

        `where` in [0, 1) chooses among the sections that the report has.
        """
        assert self.embeddings is not None
        row = self.rows[index]
        return self.embeddings.states(row, int(where * self.embeddings.num_sections(row)))

    def _channels(self, index: int, window: tuple[slice, ...] | None) -> Tensor:
        image, label = self.store.volume(index, window)  # type: ignore[arg-type]
        return torch.from_numpy(to_channels(self.stage.channels, image, label, self.stage.window_hu))

    def identity(self) -> dict[str, Any]:
        """Return hashes of the data, for the identity of a run."""
        text = None if self.embeddings is None else self.embeddings.hash
        return {"data.store": self.store.hash, "data.embeddings": text}


def reads_high(stage: ModelStage) -> bool:
    """Return whether a network trains on the full resolution of the store, or on means of its voxels."""
    return stage.stage == "super_res" or stage.low_res_reduction == "mean"


def kept_in_memory(make: Callable[[int], Tensor], count: int, num_bytes: int) -> Callable[[int], Tensor]:
    """Return `make`, whose tensors of `num_bytes` are made once and kept if all `count` of them are small.

    They must not be changed.
    """
    return lru_cache(maxsize=None)(make) if count * num_bytes < _IN_MEMORY_BYTES else make


def to_channels(channels: Sequence[str], image_hu: NDArray, packed: NDArray, window_hu: tuple[float, float]) -> NDArray:
    """Return HU and packed labels (D, H, W) of the store as float32 (C, D, H, W) in the order of `channels`."""
    lobes, airway, vessels = unpack_labels(packed)
    values = {"image": image_hu, "lobe": lobes, "airway": airway, "vessel": vessels}
    return np.stack([to_channel(name, values[name], window_hu) for name in channels])


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> NDArray:
    """Return the order in which an epoch goes through `count` volumes, (count,)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _in_memory(array: NDArray | Chunked, rows: Sequence[int]) -> NDArray:
    return array.load(rows) if isinstance(array, Chunked) else array[rows]
