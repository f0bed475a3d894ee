"""Extract features of a shard's volumes for FID and MMD: behind the verb `features`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.evaluate.features import batched, features_of, load_extractor
from medsyn.files import atomic_path, sha256
from medsyn.progress import track
from medsyn.provenance import provenance
from medsyn.stages.shards import identity_of, open_shard
from medsyn.volume import read_volume

BATCH_SIZE = 4  # volumes at a time
_PART = "features.npy"


def extract(
    weights: Path, files: Mapping[str, Path], window_hu: tuple[float, float], out: Path, state: Path | None = None
) -> None:
    """Write ids, features (n, F) float32 and the extractor's description of volumes in HU as .npz.

    All volumes must have one shape (D, H, W); the window is that of the preprocessing and must be the extractor's.
    state: where finished batches lie until the end (`open_shard`).
    """
    net, info = load_extractor(weights, window_hu)
    batches = list(batched(files.values(), BATCH_SIZE))
    parts = [np.empty((0, net.num_features), dtype=np.float32)]
    shape: Sequence[int] = ()
    with open_shard(out, state, provenance(stage="features", weights=sha256(weights))) as shard:
        for number, paths in enumerate(track(batches, description="features", total=len(batches))):

            def work(target: Path, paths: Sequence[Path] = paths, shape: Sequence[int] = shape) -> list[int]:
                volumes = list(_read_equal(paths, shape))
                np.save(target / _PART, features_of(net, volumes, window_hu, BATCH_SIZE))
                return list(volumes[0].shape)

            name, identity = f"batch_{number:06d}", identity_of(*paths)
            shape = (shard.recall(name, identity) or shard.make(name, identity, work)).result
            parts.append(np.load(shard.folder / name / _PART))
        with atomic_path(out) as temporary, temporary.open("wb") as handle:
            ids, extractor = np.array(list(files), dtype=np.str_), np.array(info["name"])
            np.savez(handle, ids=ids, features=np.concatenate(parts), extractor=extractor)


def _read_equal(files: Sequence[Path], shape: Sequence[int]) -> Iterator[NDArray]:
    """Read volumes (D, H, W) of `shape`, or of the first one's if it is empty; another shape is an InputError."""
    wanted = tuple(shape)
    for path in files:
        array = read_volume(path).array
        wanted = wanted or array.shape
        if array.shape != wanted:
            raise InputError(f"{path}: {array.shape} voxels, the volumes before have {wanted}; preprocess them")
        yield array
