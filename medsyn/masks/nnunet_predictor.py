"""Replace nnU-Net's predictor in a process that segments many scans: networks are loaded once, in this process.

nnU-Net's own predictor loads them for each scan, forks a dozen processes to list the files, and starts others to read
and write, each of which imports everything again. Its sequential mode gives the same masks.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from medsyn.errors import InputError

_STATE = (
    "plans_manager", "configuration_manager", "list_of_parameters", "network", "dataset_json", "trainer_name",
    "allowed_mirroring_axes", "label_manager",
)  # fmt: skip


class Predictor(nnUNetPredictor):
    """A drop-in for nnU-Net 2.8's `nnUNetPredictor`."""

    num_threads: ClassVar[int] = 1
    """CPU threads, set back where a caller took all cores."""
    _loaded: ClassVar[dict[tuple[str, ...], dict[str, Any]]] = {}

    def initialize_from_trained_model_folder(
        self, model_training_output_dir: str, use_folds: Any, checkpoint_name: str = "checkpoint_final.pth"
    ) -> None:
        """Take the model of a folder (dataset.json, plans.json, fold_*), from the disk only the first time."""
        torch.set_num_threads(self.num_threads)
        key = (model_training_output_dir, str(use_folds), checkpoint_name)
        if key not in self._loaded:
            try:
                super().initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)
            except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
                reason = " ".join(str(error).split())[:160]
                raise InputError(
                    f"{model_training_output_dir}: not weights of nnU-Net ({reason}); copy them again"
                ) from None
            self._loaded[key] = {name: getattr(self, name) for name in _STATE}
        for name, value in self._loaded[key].items():
            setattr(self, name, value)

    def predict_from_files(self, source: str, target: str, *_: Any, **__: Any) -> None:
        """Segment the one-channel files (NAME_0000.nii.gz) of folder `source` into `target`, one after the other."""
        suffix = f"_0000{self.dataset_json['file_ending']}"
        files = sorted(Path(source).glob(f"*{suffix}"))
        self.predict_from_files_sequential(
            [[str(file)] for file in files], [str(Path(target) / file.name.removesuffix(suffix)) for file in files]
        )
