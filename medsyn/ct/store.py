"""The training store: a shard of preprocessed volumes and masks, read whole or by crops.

high_image.zarr (int16 HU) and high_label.zarr (uint8) are zarr v3 arrays (n, D, H, W): one file a subject, in it chunks
of 32^3 voxels, each compressed and with a CRC-32C of its own, so that a crop costs the chunks that it touches and
damage does not go unnoticed. low_image.npy and low_label.npy are the same volumes at every low_res_factor-th voxel
(nearest neighbour, index 0, 4, 8, ... as the paper's x1/4): a sixty-fourth of the voxels, mapped into memory, so that
the processes of a machine share them. A label byte packs lobe + 8 airway + 16 vessel. index.csv has one row a subject:
subject_id, report_id, split and the SHA-256 of its voxels at either resolution (image, then label; little-endian, C
order).

Format: Zarr core specification 3.0, codecs sharding_indexed, blosc and crc32c. Written and read by TensorStore, needed
for the full resolution alone and imported when that is opened (docs/store.md says why not by another library).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv

AIRWAY_BIT, VESSEL_BIT, LOBE_BITS = 8, 16, 7
SUBJECT_COLUMNS = ("subject_id", "report_id", "split")
INDEX_COLUMNS = (*SUBJECT_COLUMNS, "high_sha256", "low_sha256")
CHUNK_EDGE = 32
DTYPES: dict[str, np.dtype[Any]] = {"image": np.dtype("<i2"), "label": np.dtype("u1")}


def pack_labels(lobes: NDArray, airway: NDArray, vessels: NDArray) -> NDArray[np.uint8]:
    """Return one byte per voxel: lobe 0..5 + 8 airway + 16 vessel."""
    if lobes.size and lobes.max() > 5:
        raise ValueError(f"lobe labels run from 0 to 5, found {lobes.max()}")
    packed = lobes.astype(np.uint8) + AIRWAY_BIT * (airway > 0).astype(np.uint8)
    return np.asarray(packed + VESSEL_BIT * (vessels > 0).astype(np.uint8))


def unpack_labels(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return lobes 0..5, airway 0/1 and vessels 0/1 from packed bytes."""
    airway, vessels = (packed & AIRWAY_BIT) > 0, (packed & VESSEL_BIT) > 0
    return (packed & LOBE_BITS).astype(np.uint8), airway.astype(np.uint8), vessels.astype(np.uint8)


class Chunked:
    """An array (n, D, H, W) on disk; `array[row]` or `array[row, z, y, x]` reads the chunks that it needs.

    Damaged or missing chunks are an InputError that names the subject. TensorStore reads with threads: a process that
    was forked after the array was opened must open it again or be started by spawning.
    """

    def __init__(self, path: Path, subject_ids: Sequence[str]) -> None:
        self.path, self._subject_ids = path, subject_ids
        if not path.is_dir():
            raise InputError(f"{path}: no such array; make the store first (`medsyn store`)")
        try:
            self._array = _tensorstore().open({**_location(path), "open": True}).result()
        except ValueError as error:
            raise InputError(f"{path}: not an array of the store ({_first(error)}); make this shard again") from None
        self.shape = tuple(self._array.shape)
        self.dtype = self._array.dtype.numpy_dtype
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, where: Any) -> NDArray:
        try:
            return np.asarray(self._array[where].read().result())
        except ValueError as error:
            name = self._subject_ids[where[0] if isinstance(where, tuple) else where]
            raise InputError(
                f"{self.path}: subject {name} is damaged ({_first(error)}); remove this shard and make it again"
            ) from None

    def load(self, rows: Sequence[int] | None = None) -> NDArray:
        """Return these rows, or all of them, in memory: (rows, D, H, W)."""
        chosen = range(len(self)) if rows is None else rows
        array = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        for place, row in enumerate(chosen):
            array[place] = self[row]
        return array


def read_index(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a shard's index.csv, in the order of its arrays."""
    return read_csv(folder / "index.csv", INDEX_COLUMNS)


def open_high(folder: Path) -> tuple[Chunked, Chunked]:
    """Open the images and labels (n, D, H, W) of a shard at full resolution, on disk."""
    index = read_index(folder)
    image, label = (Chunked(folder / f"high_{kind}.zarr", [row["subject_id"] for row in index]) for kind in DTYPES)
    _check_lengths(folder, index, image.shape, label.shape)
    return image, label


def read_low(folder: Path, rows: Sequence[int] | None = None) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Map the images and labels (n, d, h, w) of a shard at low resolution, read-only.

    The checksums of `rows`, or of all rows, are verified; what differs is an InputError. Other rows are not read.
    """
    index = read_index(folder)
    image, label = (_map_npy(folder / f"low_{kind}.npy") for kind in DTYPES)
    _check_lengths(folder, index, image.shape, label.shape)
    for row in range(len(index)) if rows is None else rows:
        if checksum(image[row], label[row]) != index[row]["low_sha256"]:
            raise InputError(
                f"{folder}: subject {index[row]['subject_id']} is damaged at low resolution (its checksum differs);"
                " remove this shard and make it again"
            )
    return image, label


def write_shard(
    folder: Path,
    rows: Sequence[Mapping[str, str]],
    volumes: Iterable[tuple[NDArray, NDArray]],
    size: tuple[int, int, int],
    low_res_factor: int,
) -> None:
    """Write arrays and index.csv of `rows` (SUBJECT_COLUMNS) into the existing folder `folder`.

    volumes: HU and packed labels (D, H, W) = `size` of each row, in order. A full disk is an OSError.
    """
    high = [_create(folder / f"high_{kind}.zarr", (len(rows), *size), dtype) for kind, dtype in DTYPES.items()]
    low_size = [len(range(0, edge, low_res_factor)) for edge in size]
    low = [np.empty((len(rows), *low_size), dtype) for dtype in DTYPES.values()]
    index = []
    for row, (entry, volume) in enumerate(zip(rows, volumes, strict=True)):
        for array, small, values in zip(high, low, volume, strict=True):
            with _os_errors(folder):
                array[row].write(values).result()
            small[row] = values[::low_res_factor, ::low_res_factor, ::low_res_factor]
        index.append(
            {**entry, "high_sha256": checksum(*volume), "low_sha256": checksum(*(small[row] for small in low))}
        )
    for kind, array in zip(DTYPES, low, strict=True):
        np.save(folder / f"low_{kind}.npy", array)
    write_csv(folder / "index.csv", index, INDEX_COLUMNS)


def checksum(image: NDArray, label: NDArray) -> str:
    """Return the SHA-256 of one subject's voxels."""
    digest = hashlib.sha256()
    for values, dtype in zip((image, label), DTYPES.values(), strict=True):
        digest.update(np.ascontiguousarray(values, dtype=dtype).tobytes())
    return digest.hexdigest()


def _check_lengths(folder: Path, index: Sequence[object], image: tuple[int, ...], label: tuple[int, ...]) -> None:
    if image != label or len(index) != image[0]:
        raise InputError(f"{folder}: arrays and index.csv disagree in length; remove this shard and make it again")


def _map_npy(path: Path) -> NDArray:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make the store first (`medsyn store`)") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}); remove this shard and make it again") from None


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError:
        raise InputError(
            "the full resolution of the training store is read with the package tensorstore, which is not installed;"
            " install it (pip install tensorstore), or use the environment of `make env`"
        ) from None
    return tensorstore


def _location(path: Path) -> dict[str, Any]:
    """Return the location of an array; absent chunks are errors when read, so chunks of zeros are written too."""
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    chunk = [1, *(min(CHUNK_EDGE, edge) for edge in shape[1:])]
    shard = [inner * -(-edge // inner) for inner, edge in zip(chunk, (1, *shape[1:]), strict=True)]
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    blosc = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "typesize": dtype.itemsize, "blocksize": 0}
    crc32c = {"name": "crc32c"}
    sharding = {
        "chunk_shape": chunk,
        "codecs": [little_endian, {"name": "blosc", "configuration": blosc}, crc32c],
        "index_codecs": [little_endian, crc32c],
    }
    metadata = {
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["subject", "z", "y", "x"],
    }
    with _os_errors(path):
        return _tensorstore().open({**_location(path), "metadata": metadata, "create": True}).result()


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Raise OSError for a full disk, which TensorStore reports as a ValueError that holds the system's error number."""
    try:
        yield
    except ValueError as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _first(error: Exception) -> str:
    """Return the library's message without its appendix of settings."""
    return str(error).split(" [")[0]
