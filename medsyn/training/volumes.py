"""Training volumes of networks that know neither text nor masks: CTs of the store as cubes in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsyn.errors import InputError
from medsyn.models.channels import to_channel
from medsyn.training.data import Store, permutation


class ImageVolumes:
    """CTs of the split `train`; calling it gives batches that are pure functions of (number of the batch, slots).

    Sample `slot` of batch b is number b * batch_size + slot of a sequence that goes through a fresh permutation of the
    volumes in every epoch.
    """

    def __init__(
        self, shards: Sequence[Path], edge: int, *, window_hu: tuple[float, float], batch_size: int, seed: int
    ) -> None:
        """Open the store.

        edge: voxels R of a side; a finer grid of the store is reduced by the mean over blocks. Raises InputError for a
        grid that is not a cube of R or of a multiple.
        """
        self.store, self.edge, self.window_hu = Store(shards, "high"), edge, window_hu
        self.batch_size, self.seed = batch_size, seed
        size = self.store.size
        self.factor, rest = divmod(size[0], edge)
        if rest or len(set(size)) > 1:
            raise InputError(f"{shards[0]}: its grid is {list(size)}, expected a cube of {edge} voxels or a multiple")

    def __len__(self) -> int:
        return len(self.store)

    def __call__(self, number: int, slots: Sequence[int]) -> Tensor:
        """Return volumes [len(slots), 1, R, R, R] in [-1, 1] of batch `number`."""
        return torch.stack([self.volume(self.index(number * self.batch_size + slot)) for slot in slots])

    def index(self, number: int) -> int:
        """Return which volume sample `number` of the run is."""
        epoch, position = divmod(number, len(self))
        return int(permutation(self.seed, epoch, len(self))[position])

    def volume(self, index: int) -> Tensor:
        """Return volume `index` of the split as [1, R, R, R] in [-1, 1]."""
        image = torch.from_numpy(to_channel("image", np.asarray(self.store.image(index)), self.window_hu))[None]
        return image if self.factor == 1 else F.avg_pool3d(image, self.factor)

    def first(self, count: int) -> Tensor:
        """Return the first `count` volumes of the split, or as many as there are: [n, 1, R, R, R]."""
        return torch.stack([self.volume(index) for index in range(min(count, len(self)))])
