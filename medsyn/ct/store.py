"""The training store: a shard of preprocessed volumes and masks as plain arrays that can be memory-mapped.

`high_image.npy` int16 HU (n, D, H, W) and `high_label.npy` uint8 of the same shape, `low_*.npy` the same volumes at
every `low_res_factor`-th voxel (nearest neighbour, index 0, 4, 8, ... as the paper's x1/4), `index.csv` with
subject_id, report_id, split per row. A label byte packs lobe + 8 airway + 16 vessel.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medsyn.cohort import Subject
from medsyn.config import PreprocessConfig
from medsyn.errors import InputError
from medsyn.files import write_csv, write_json
from medsyn.provenance import provenance
from medsyn.volume import STRUCTURES, read_volume

AIRWAY_BIT, VESSEL_BIT, LOBE_BITS = 8, 16, 7
INDEX_COLUMNS = ("subject_id", "report_id", "split")


def pack_labels(lobes: NDArray, airway: NDArray, vessels: NDArray) -> NDArray[np.uint8]:
    """One byte per voxel: lobe 0..5 + 8 airway + 16 vessel."""
    if lobes.size and lobes.max() > 5:
        raise ValueError(f"lobe labels run from 0 to 5, found {lobes.max()}")
    packed = lobes.astype(np.uint8) + AIRWAY_BIT * (airway > 0).astype(np.uint8)
    return np.asarray(packed + VESSEL_BIT * (vessels > 0).astype(np.uint8))


def unpack_labels(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Lobes 0..5, airway 0/1 and vessels 0/1 from packed bytes."""
    airway, vessels = (packed & AIRWAY_BIT) > 0, (packed & VESSEL_BIT) > 0
    return (packed & LOBE_BITS).astype(np.uint8), airway.astype(np.uint8), vessels.astype(np.uint8)


def read_subject(volume: Path, masks: Path, size: tuple[int, int, int]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and packed labels of one subject on the model grid; another grid or label is an InputError."""
    image = read_volume(volume).array
    labels = [read_volume(masks / f"{name}.nii.gz").array for name in STRUCTURES]
    for path, array in (
        (volume, image),
        *((masks / f"{n}.nii.gz", a) for n, a in zip(STRUCTURES, labels, strict=True)),
    ):
        if array.shape != tuple(size):
            raise InputError(f"{path}: grid {array.shape} is not the model's {tuple(size)}; preprocess it again")
    if labels[0].max() > 5:
        raise InputError(
            f"{masks / 'lobes.nii.gz'}: label {labels[0].max()}, lobes are labelled 0 to 5; correct the mask"
        )
    return image.astype(np.int16), pack_labels(*labels)


def write_store(subjects: list[Subject], volumes: Path, masks: Path, folder: Path, config: PreprocessConfig) -> None:
    """Write the arrays and index.csv of `subjects`, in their order, into the existing folder `folder`."""
    count, step = len(subjects), config.low_res_factor
    low = tuple(edge // step for edge in config.size)
    shapes = {"high": tuple(config.size), "low": low}
    with ExitStack() as files:
        arrays = {
            f"{level}_{kind}": _start_array(files, folder / f"{level}_{kind}.npy", dtype, (count, *shape))
            for level, shape in shapes.items()
            for kind, dtype in (("image", np.dtype(np.int16)), ("label", np.dtype(np.uint8)))
        }
        for subject in subjects:
            name = subject.subject_id
            image, label = read_subject(volumes / name / "volume.nii.gz", masks / name, config.size)
            for kind, array in (("image", image), ("label", label)):
                arrays[f"high_{kind}"].write(array.tobytes())
                arrays[f"low_{kind}"].write(array[::step, ::step, ::step].tobytes())
    write_csv(
        folder / "index.csv",
        ({"subject_id": s.subject_id, "report_id": s.report_id, "split": s.split} for s in subjects),
        INDEX_COLUMNS,
    )
    write_json(folder / "store.json", provenance(config, subjects=count))


def _start_array(files: ExitStack, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> BinaryIO:
    """A .npy file whose rows are to be written in order (a full disk is an OSError; with a memory map it is SIGBUS)."""
    handle = files.enter_context(path.open("wb"))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)
    return handle
