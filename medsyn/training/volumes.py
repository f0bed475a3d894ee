"""Training volumes of networks that know neither text nor masks: CTs of the store in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsyn.errors import InputError
from medsyn.models.channels import to_channel
from medsyn.training.data import Store, kept_in_memory, permutation


@dataclass
class _Batch:
    """A batch that the first of several threads reads while the others wait."""

    lock: Lock = field(default_factory=Lock)
    volumes: Tensor | None = None


class ImageVolumes:
    """CTs of the split `train`; calling it gives batches that are pure functions of (number of the batch, slots).

    Sample `slot` of batch b is number b * batch_size + slot of a sequence that goes through a fresh permutation of the
    volumes in every epoch. The phases of a training step that ask for the same batch share one tensor, which is kept
    until a batch of another number is asked for and must not be changed. Threads may call it at the same time.
    """

    def __init__(
        self, shards: Sequence[Path], edge: int | None, *, window_hu: tuple[float, float], batch_size: int, seed: int
    ) -> None:
        """Open the store.

        edge: voxels R of a side; a finer grid of the store is reduced by the mean over blocks. Raises InputError for a
        grid that is not a cube of R or of a multiple. None: the grid of the store, of any shape.
        """
        self.store, self.window_hu = Store(shards, "high"), window_hu
        self.batch_size, self.seed = batch_size, seed
        self._lock = Lock()
        self._number = -1
        self._batches: dict[tuple[int, ...], _Batch] = {}
        """Slots -> batch, of the number that was asked for last."""
        size = self.store.size
        self.factor, rest = (1, 0) if edge is None else divmod(size[0], edge)
        if edge is not None and (rest or len(set(size)) > 1):
            raise InputError(f"{shards[0]}: its grid is {list(size)}, expected a cube of {edge} voxels or a multiple")
        self._means = kept_in_memory(self._mean_of_blocks, len(self), 4 * math.prod(self.size))

    @property
    def size(self) -> tuple[int, int, int]:
        """Grid (D, H, W) of the volumes."""
        depth, height, width = (length // self.factor for length in self.store.size)
        return depth, height, width

    def __len__(self) -> int:
        return len(self.store)

    def __call__(self, number: int, slots: Sequence[int]) -> Tensor:
        """Return volumes [len(slots), 1, D, H, W] in [-1, 1] of batch `number`."""
        with self._lock:
            if number != self._number:
                self._number, self._batches = number, {}
            batch = self._batches.setdefault(tuple(slots), _Batch())
        with batch.lock:
            if batch.volumes is None:
                indices = [self.index(number * self.batch_size + slot) for slot in slots]
                batch.volumes = torch.stack([self.volume(index) for index in indices])
            return batch.volumes

    def index(self, number: int) -> int:
        """Return which volume sample `number` of the run is."""
        epoch, position = divmod(number, len(self))
        return int(permutation(self.seed, epoch, len(self))[position])

    def volume(self, index: int) -> Tensor:
        """Return volume `index` of the split as [1, D, H, W] in [-1, 1], which must not be changed."""
        return self._whole(index) if self.factor == 1 else self._means(index)

    def _whole(self, index: int) -> Tensor:
        return torch.from_numpy(to_channel("image", np.asarray(self.store.image(index)), self.window_hu))[None]

    def _mean_of_blocks(self, index: int) -> Tensor:
        return F.avg_pool3d(self._whole(index), self.factor)

    def first(self, count: int) -> Tensor:
        """Return the first `count` volumes of the split, or as many as there are: [n, 1, D, H, W]."""
        return torch.stack([self.volume(index) for index in range(min(count, len(self)))])
