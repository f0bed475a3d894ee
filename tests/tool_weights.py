"""Weights in the tools' own file formats whose label is a known function of HU, and a chest of plateaus to run them on.

Both kinds of network carry the voxel's value unchanged to the last layer and choose there between lines a_k x + b_k
whose upper envelope changes label at given HU. So a mask can be checked voxel by voxel, except where interpolation
between plateaus invents values that are in none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.volume import STRUCTURES, Volume, from_sitk

Intervals = Sequence[tuple[int, float]]
"""(label, upper HU), rising; the last has no upper end."""

CENTRE_MM = np.array([13.0, -40.0, 70.0])
AIRWAY_HU, LEFT_LOWER_HU, LEFT_UPPER_HU, RIGHT_LOWER_HU, RIGHT_MIDDLE_HU, RIGHT_UPPER_HU = (
    *(-1000.0, -930.0, -870.0, -830.0, -750.0),
    -550.0,
)
DENSE_HU, TISSUE_HU, ARTERY_HU, VEIN_HU, BONE_HU = -200.0, 0.0, 80.0, 220.0, 400.0
LOBE_HU = {1: LEFT_UPPER_HU, 2: LEFT_LOWER_HU, 3: RIGHT_UPPER_HU, 4: RIGHT_MIDDLE_HU, 5: RIGHT_LOWER_HU}
ALL_TOTAL = dict.fromkeys(STRUCTURES, "totalsegmentator")
OBLIQUE = {"code": "RSA", "degrees": (4.0, -3.0, 12.0)}
"""Axes permuted and flipped, grid turned against the patient."""


def plateau_lobes(x: NDArray, y: NDArray, z: NDArray) -> NDArray[np.uint8]:
    """Lobe labels at LPS millimetres from the chest's centre; the patient's right is at negative x."""
    labels = np.zeros(x.shape, np.uint8)
    lungs = (np.abs(x) > 9) & (np.abs(x) < 40) & (np.abs(y) < 28) & (np.abs(z) < 36)
    labels[lungs & (x < 0)] = np.select([z < -4, z < 14], [5, 4], 3)[lungs & (x < 0)]
    labels[lungs & (x > 0)] = np.where(z < 2, 2, 1)[lungs & (x > 0)]
    return labels


def plateau_hu(x: NDArray, y: NDArray, z: NDArray) -> NDArray[np.int16]:
    """HU there: lobes, in the right lower one a consolidation, in the upper ones a vessel each, a trachea, a spine."""
    lobes = plateau_lobes(x, y, z)
    hu = np.full(x.shape, TISSUE_HU)
    for label, value in LOBE_HU.items():
        hu[lobes == label] = value
    hu[(lobes == 5) & (x < -27) & (y > 5) & (z < -18)] = DENSE_HU
    for value, centre, half in (
        (AIRWAY_HU, (0, 0, 20), (6, 6, 22)),
        (ARTERY_HU, (-20, 8, 30), (6, 6, 12)),
        (VEIN_HU, (24, -8, 28), (6, 6, 14)),
        (BONE_HU, (0, 32, 0), (6, 5, 40)),
    ):
        apart = [np.abs(at - middle) < reach for at, middle, reach in zip((x, y, z), centre, half, strict=True)]
        hu[np.all(apart, 0)] = value
    return hu.astype(np.int16)


def plateau_chest(
    spacing_mm: tuple[float, float, float], code: str = "LAS", degrees: tuple[float, float, float] = (0, 0, 0)
) -> Volume:
    """The chest on a grid of `spacing_mm` (z, y, x) turned by `degrees` about x, y, z; axes as `code` says."""
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.radians(degrees).tolist())
    direction = np.array(turn.GetMatrix()).reshape(3, 3)
    size = [int(extent / step) for extent, step in zip((100, 84, 92), reversed(spacing_mm), strict=True)]
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing_mm[::-1])
    image.SetDirection(direction.ravel().tolist())
    half = (np.array(size) - 1) / 2 * np.array(spacing_mm[::-1])
    image.SetOrigin((CENTRE_MM - direction @ half).tolist())
    volume = from_sitk(sitk.DICOMOrient(image, code))
    return volume.with_array(plateau_hu(*from_centre_mm(volume)))


def from_centre_mm(volume: Volume) -> NDArray[np.float64]:
    """LPS millimetres (3, D, H, W) of every voxel from the chest's centre."""
    z, y, x = np.meshgrid(*(np.arange(count) for count in volume.array.shape), indexing="ij")
    steps = np.stack([x, y, z]) * np.array(volume.spacing_mm[::-1]).reshape(3, 1, 1, 1)
    moved = np.array(volume.origin_mm) - CENTRE_MM
    return np.einsum("ij,j...->i...", np.array(volume.direction).reshape(3, 3), steps) + moved.reshape(3, 1, 1, 1)


def inside_plateaus(volume: Volume, reach_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Voxels around which, within `reach_mm` (along z, y, x of the array), all have the same HU."""
    size = [2 * int(np.ceil(reach / step)) + 1 for reach, step in zip(reach_mm, volume.spacing_mm, strict=True)]
    low, high = (f(volume.array, size=size, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    return np.asarray(low == high)


def expected(volume: Volume, structure: str) -> NDArray[np.uint8]:
    """Return what the tests' weights see in the chest of plateaus."""
    hu = volume.array
    if structure == "lobes":
        return np.where(np.isin(hu, list(LOBE_HU.values())), plateau_lobes(*from_centre_mm(volume)), 0)
    values = {"airway": [AIRWAY_HU], "vessels": [ARTERY_HU, VEIN_HU]}[structure]
    return np.isin(hu, values).astype(np.uint8)


def lines(intervals: Intervals, num_classes: int, to_input: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slopes and intercepts (num_classes) in x = to_input[0] HU + to_input[1] that meet at the intervals' ends."""
    slope, intercept = torch.zeros(num_classes), torch.full((num_classes,), -1e3)
    height = 0.0
    for rank, (label, _) in enumerate(intervals):
        if rank:
            height -= 20.0 * (to_input[0] * intervals[rank - 1][1] + to_input[1])
        slope[label], intercept[label] = 20.0 * rank, height
    return slope, intercept


def write_lungmask(path: Path, num_classes: int, intervals: Intervals) -> None:
    """A state dict as lungmask's release holds it; its input is (HU + 1024) / 1624."""
    from lungmask.resunet import UNet

    net = UNet(n_classes=num_classes, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
    state = net.state_dict()
    for name, tensor in state.items():
        if "residual" not in name and (name.endswith("bias") or tensor.dim() == 4):
            tensor.zero_()
    for name, channel in (
        ("down_path.0.block.0", 0),
        ("down_path.0.block.3", 0),
        ("up_path.3.conv_block.block.0", 64),  # the first of the skipped channels, behind 64 from below
        ("up_path.3.conv_block.block.3", 0),
    ):
        state[f"{name}.weight"][0, channel, 1, 1] = 1.0
    slope, intercept = lines(intervals, num_classes, (1 / 1624, 1024 / 1624))
    state["last.weight"][:, 0, 0, 0], state["last.bias"][:] = slope, intercept
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


WIDTH = 2
_ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [WIDTH, WIDTH],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": None,
        "norm_op_kwargs": None,
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


def write_nnunet(
    folder: Path,
    trainer: str,
    labels: dict[int, str],
    spacing_mm: tuple[float, float, float],
    intervals: Intervals,
    patch: int = 64,
) -> None:
    """A trained nnU-Net model as TotalSegmentator's releases hold it; its input is HU / 1000."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    model = folder / f"{trainer}__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: number for number, name in labels.items()},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    plans = _plans(folder.name, spacing_mm, patch)
    for name, content in (("dataset", dataset), ("plans", plans)):
        (model / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    num_classes = len(labels) + 1
    net = get_network_from_plans(
        _ARCHITECTURE["network_class_name"],
        _ARCHITECTURE["arch_kwargs"],
        _ARCHITECTURE["_kw_requires_import"],
        1,
        num_classes,
        deep_supervision=False,
    )
    state = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    for name, tensor in state.items():  # the same tensors stand under several names
        if "encoder.stages.0.0.convs.0." in name:
            if tensor.dim() == 5:
                tensor[0, 0, 1, 1, 1] = 1.0
            else:
                tensor[0] = 2.0  # x + 2 is positive, where LeakyReLU changes nothing
        elif name.startswith("decoder.stages.0.convs.0.") and tensor.dim() == 5:
            tensor[0, WIDTH, 1, 1, 1] = 1.0
    slope, intercept = lines(intervals, num_classes, (1 / 1000, 2.0))
    state["decoder.seg_layers.0.weight"][:, 0, 0, 0, 0], state["decoder.seg_layers.0.bias"][:] = slope, intercept
    checkpoint = {
        "network_weights": state,
        "trainer_name": trainer,
        "init_args": {"configuration": "3d_fullres", "plans": plans, "fold": 0, "dataset_json": dataset},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, model / "fold_0/checkpoint_final.pth")


def _plans(name: str, spacing_mm: tuple[float, float, float], patch: int) -> dict[str, object]:
    resampling = "resample_data_or_seg_to_shape"
    image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    values = {"max": 1024.0, "mean": 0.0, "median": 0.0, "min": -1024.0, "std": 1000.0}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch] * 3,
        "median_image_size_in_voxels": [100.0] * 3,
        "spacing": list(spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": image,
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": image | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": image | {"order": 1},
        "architecture": _ARCHITECTURE,
        "batch_dice": True,
    }
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing_mm),
        "original_median_shape_after_transp": [100] * 3,
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": values | {"percentile_00_5": -1024.0, "percentile_99_5": 1024.0}
        },
        "configurations": {"3d_fullres": configuration},
    }
