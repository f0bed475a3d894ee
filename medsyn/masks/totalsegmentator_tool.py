"""Lobes, airway, vessels, heart and effusion with TotalSegmentator (Wasserthal et al. 2023), through its Python API.

Tasks: `total` for lobes and heart, `lung_vessels` (in release 2.18 with the classes lung_airways, lung_airways_wall,
lung_arteries, lung_veins) for airway and vessels, `pleural_pericard_effusion`; each first finds the lungs or heart with
the 3 mm model. The API takes one scan at a time. For each scan it would load its networks again, start worker
processes, take every core, download missing weights, delete old folders beside the weights and report its use;
`_prepare` and `medsyn.masks.nnunet_predictor` prevent all of that.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from medsyn.config import MasksConfig
from medsyn.device import network_device
from medsyn.errors import InputError, NothingFoundError
from medsyn.files import write_json
from medsyn.volume import LOBE_NAMES, Volume
from medsyn.weight_files import find_weights, hash_weights

FOLDER = "totalsegmentator"
"""Under the weights folder, for TotalSegmentator's models alone."""
LOBES = {
    "lung_upper_lobe_left": "left_upper",
    "lung_lower_lobe_left": "left_lower",
    "lung_upper_lobe_right": "right_upper",
    "lung_middle_lobe_right": "right_middle",
    "lung_lower_lobe_right": "right_lower",
}
CLASSES = {
    "lobes": ("total", {name: LOBE_NAMES.index(lobe) + 1 for name, lobe in LOBES.items()}),
    "heart": ("total", {"heart": 1}),
    "airway": ("lung_vessels", {"lung_airways": 1}),
    "vessels": ("lung_vessels", {"lung_arteries": 1, "lung_veins": 1}),
    "effusion": ("pleural_pericard_effusion", {"pleural_effusion": 1}),
}
"""Structure -> task, and the classes that make it with the label each gets."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class TotalSegmentator:
    """Find the structures of CLASSES with TotalSegmentator; see `medsyn.masks.tools.Segmenter`."""

    def __init__(self, config: MasksConfig, structures: Sequence[str]) -> None:
        root = Path(config.weights_dir)
        files = find_weights("totalsegmentator", structures, root)
        self.version = metadata.version("TotalSegmentator")
        self.weights_hash = hash_weights(files, root)
        self._weights = (root / FOLDER).resolve()
        self._home = tempfile.TemporaryDirectory(prefix="totalsegmentator_")
        write_json(
            Path(self._home.name) / "config.json",
            {
                "totalseg_id": "medsyn",
                "send_usage_stats": False,
                "statistics_disclaimer_shown": True,
                "prediction_counter": 0,
            },
        )

    def segment(self, volume: Volume, structures: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Return the structures of a CT in HU in model orientation, one run per task; what is absent is empty."""
        masks: dict[str, NDArray[np.uint8]] = {}
        image = to_nifti(volume)
        for task in dict.fromkeys(CLASSES[name][0] for name in structures):
            names = [name for name in structures if CLASSES[name][0] == task]
            labels = self._run(task, image, [key for name in names for key in CLASSES[name][1]])
            for name in names:
                masks[name] = _relabel(labels, task, CLASSES[name][1])
        return masks

    def _run(self, task: str, image: nibabel.Nifti1Image, classes: Sequence[str]) -> NDArray[np.uint8]:
        """Return the labels (D, H, W) of one task, in TotalSegmentator's numbers."""
        os.environ["TOTALSEG_HOME_DIR"] = self._home.name
        os.environ["TOTALSEG_WEIGHTS_PATH"] = str(self._weights)
        api = _prepare()
        chatter = io.StringIO()
        try:
            with contextlib.redirect_stdout(chatter):
                found = api.totalsegmentator(
                    image,
                    None,
                    task=task,
                    roi_subset_robust=list(classes) if task == "total" else None,
                    robust_crop=True,  # one model for every crop
                    device="gpu" if network_device().type == "cuda" else "cpu",
                    quiet=True,
                )
        except SystemExit as stop:
            if stop.code == 128 + signal.SIGTERM:  # not the library: this process was told to end
                raise
            said = " ".join(chatter.getvalue().split()) or str(stop.code)
            raise InputError(f"TotalSegmentator refused the task {task}: {said[-300:]}") from None
        if found.shape != image.shape or not np.allclose(found.affine, image.affine, atol=1e-3):
            raise ValueError(f"TotalSegmentator's task {task} gave another grid, {found.shape} for {image.shape}")
        return np.asarray(found.dataobj).astype(np.uint8).transpose(2, 1, 0)


def to_nifti(volume: Volume) -> nibabel.Nifti1Image:
    """Return the volume as nibabel's image: array (x, y, z), affine to RAS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(volume.direction).reshape(3, 3) @ np.diag(list(reversed(volume.spacing_mm)))
    affine[:3, 3] = volume.origin_mm
    return nibabel.Nifti1Image(volume.array.astype(np.float32).transpose(2, 1, 0), LPS_TO_RAS @ affine)


def _relabel(labels: NDArray[np.uint8], task: str, classes: dict[str, int]) -> NDArray[np.uint8]:
    """Return the requested classes in the project's numbers; TotalSegmentator's numbers are found by name."""
    from totalsegmentator.map_to_binary import class_map

    table = np.zeros(256, np.uint8)
    for number, name in class_map[task].items():
        table[number] = classes.get(name, 0)
    return table[labels]


def _prepare() -> Any:
    """Return TotalSegmentator's API with trainers that need no torchvision, our predictor, and downloads disabled.

    nnU-Net finds a trainer by importing its packages in order of their names, and one of them needs timm and
    torchvision; `custom_trainers` is asked first. Missing weights are found by `find_weights` before anything runs.
    """
    import totalsegmentator.python_api as api
    from totalsegmentator.config import setup_nnunet

    setup_nnunet()
    import totalsegmentator.nnunet as library
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation import nnUNetTrainerNoMirroring as plain
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs_NoMirroring as long

    from medsyn.masks.nnunet_predictor import Predictor

    for trainer in (plain.nnUNetTrainerNoMirroring, long.nnUNetTrainer_4000epochs_NoMirroring):
        library.custom_trainers[trainer.__name__] = trainer
    Predictor.num_threads = torch.get_num_threads()
    library.nnUNetPredictor = Predictor
    library.crop_to_mask = _crop
    api.download_pretrained_weights = lambda task_id: None
    return api


def _crop(image: nibabel.Nifti1Image, where: nibabel.Nifti1Image, **options: Any) -> Any:
    """Return TotalSegmentator's crop around a mask; an empty mask, for which it takes the whole scan, is an error."""
    from totalsegmentator.cropping import crop_to_mask

    if not np.asarray(where.dataobj).any():
        raise NothingFoundError(
            "TotalSegmentator's 3 mm model sees no lung (or heart) to look at; is this a chest CT in HU?"
        )
    return crop_to_mask(image, where, **options)
