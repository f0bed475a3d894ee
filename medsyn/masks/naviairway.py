"""Segment the airway with NaviAirway (Wang et al. 2022, arXiv:2203.04294) as MedSyn does: the paper's choice.

Two networks of one architecture (`medsyn.models.airway_net`), one trained supervised and one semi-supervised, each
slide over the whole CT. The mask is the union of both at 0.5, reduced to its largest connected part and filled. Takes
HU (D, H, W) on any grid in any orientation: spacing is not used, and the training crops were flipped along every axis.
Facts are from the authors' MIT-licensed release (AntonotnaWang/NaviAirway on GitHub) and from the call in MedSyn's
(batmanlab/MedSyn), which leaves out the second pass that reconnects broken branches.

The release evaluates the windows at the far borders repeatedly (256 windows for 256^3, of which 135 differ). Here each
is evaluated once and blended as often and in the same order, so the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.errors import InputError
from medsyn.masks.morphology import components
from medsyn.memory import available_bytes, peak_bytes
from medsyn.models.airway_net import SIZE_MULTIPLE, AirwayNet
from medsyn.progress import track
from medsyn.tensors import load_checkpoint

Size = tuple[int, int, int]
Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised crops (n, d, h, w) -> probabilities of m networks (m, n, d, h, w)."""

CROP: Size = (32, 128, 128)
STRIDE: Size = (16, 64, 64)
WINDOW = (-1000.0, 600.0)
THRESHOLD = 0.5
FILES = ("checkpoint.pkl", "checkpoint_semi_supervise_learning.pkl")
"""Names of the supervised and the semi-supervised checkpoint in the authors' release."""
TOUCHING = ndimage.generate_binary_structure(3, 2)
"""18 neighbours: by a face or an edge."""
ANY_CONTACT = ndimage.generate_binary_structure(3, 3)
"""26 neighbours: by a face, an edge or a corner."""
_SHARE_OF_MEMORY = 0.7


class NaviAirway:
    """The two networks on a device; float32 throughout, without TF32."""

    def __init__(self, networks: Sequence[AirwayNet], device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.networks = [network.to(self.device).eval() for network in networks]

    @classmethod
    def load(cls, supervised: Path, semi_supervised: Path, device: str = "cpu") -> NaviAirway:
        """Load the authors' checkpoints (FILES); a missing or wrong file, or the same file twice, is an InputError."""
        networks = [load_network(path) for path in (supervised, semi_supervised)]
        first, second = (network.state_dict().values() for network in networks)
        if all(map(torch.equal, first, second)):
            raise InputError(
                f"{semi_supervised}: holds the same weights as {supervised};"
                f" give {FILES[0]} as the supervised and {FILES[1]} as the semi-supervised network"
            )
        return cls(networks, device)

    def segment(self, hu: NDArray, name: str = "volume") -> NDArray[np.uint8]:
        """Return the airway mask 0/1 of HU (D, H, W); nothing found is an empty mask.

        Another number of axes, a side below 8 voxels (the networks halve three times; such a volume is not a chest CT)
        and values that are not finite are InputErrors, which begin with `name`.
        """
        if hu.ndim != 3 or min(hu.shape) < SIZE_MULTIPLE:
            raise InputError(
                f"{name}: {hu.shape} voxels, NaviAirway expects three axes of at least {SIZE_MULTIPLE};"
                " give the whole scan, or choose another tool for the airway"
            )
        if not np.isfinite(hu).all():
            raise InputError(f"{name}: holds values that are not finite; replace them, air is -1000 HU")
        found = self.probabilities(hu) > THRESHOLD
        return largest_tree(np.logical_or.reduce(found)).astype(np.uint8)

    def probabilities(self, hu: NDArray) -> NDArray[np.float32]:
        """Return each network's probability of airway (m, D, H, W) for HU (D, H, W)."""
        crop, _ = fit_windows(hu.shape)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.inference_mode():
            batch_size = self._batch_size(crop)
            return sliding_window(normalise(hu), lambda crops: self._predict(crops, batch_size))

    def _predict(self, crops: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
        maps = np.empty((len(self.networks), *crops.shape), np.float32)
        for first in range(0, len(crops), batch_size):
            part = slice(first, first + batch_size)
            x = torch.from_numpy(crops[part, None]).to(self.device)
            for out, network in zip(maps, self.networks, strict=True):
                out[part] = network(x).softmax(1)[:, 1].cpu().numpy()
        return maps

    def _batch_size(self, crop: Size) -> int:
        """Return the windows per batch: 1 on a CPU; on a GPU what its free memory holds, by the measured peak of 1."""
        if self.device.type != "cuda":
            return 1
        network = self.networks[0]
        each = peak_bytes(lambda: network(torch.zeros(1, 1, *crop, device=self.device)), self.device)
        return max(int(_SHARE_OF_MEMORY * available_bytes(self.device) / each), 1)


def load_network(path: Path) -> AirwayNet:
    """Return the network of a checkpoint file, in evaluation mode on the CPU; an unfit file is an InputError.

    The file holds a dict with the state dict under `model_state_dict`, or the state dict alone (.safetensors too). The
    prefix `module.` that parallel training leaves is dropped. Only tensors are unpickled, never code.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; NaviAirway's checkpoints ({FILES[0]} and {FILES[1]}, 43 MB each)"
            " come from the link in checkpoint/README.md of AntonotnaWang/NaviAirway on GitHub"
        )
    content = load_checkpoint(path)
    state = content.get("model_state_dict", content)
    remedy = f"give {FILES[0]} or {FILES[1]} of the authors' release"
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict; {remedy}")
    tensors = {str(key).removeprefix("module."): value.float() for key, value in state.items()}
    with torch.device("meta"):
        network = AirwayNet()
    wanted = network.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors or key not in wanted:
            raise InputError(f"{path}: tensor {key} is {'missing' if key in wanted else 'unknown'}; {remedy}")
        if tensors[key].shape != wanted[key].shape:
            shapes = tuple(tensors[key].shape), tuple(wanted[key].shape)
            raise InputError(f"{path}: tensor {key} has shape {shapes[0]}, expected {shapes[1]}; {remedy}")
        if not bool(torch.isfinite(tensors[key]).all()):
            raise InputError(f"{path}: tensor {key} holds values that are not finite; fetch the file again")
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def normalise(values: NDArray) -> NDArray[np.float32]:
    """Clip to WINDOW, subtract the minimum, then 99th percentile to 255 (unless it is 0); the maximum may be higher."""
    out = np.array(values, np.float32)
    np.clip(out, *WINDOW, out=out)
    out -= out.min()
    high = float(np.percentile(out, 99))
    if high > 0:
        out *= np.float32(255 / high)
    return out


def sliding_window(
    volume: NDArray[np.float32], predict: Predict, crop: Size = CROP, stride: Size = STRIDE
) -> NDArray[np.float32]:
    """Return maps (m, D, H, W) of `predict` over all windows of a normalised `volume`; each crop is normalised again.

    The windows of one z are predicted together, each once, however often the order of the release comes back to it.
    """
    crop, stride = fit_windows(volume.shape, crop, stride)
    zs, ys, xs = (window_starts(*axis) for axis in zip(volume.shape, crop, stride, strict=True))
    order = [(y, x) for y in ys for x in xs]
    number = {start: i for i, start in enumerate(dict.fromkeys(order))}
    maps = blended = np.empty(0, np.float32)
    for step, z in enumerate(track(zs, description="NaviAirway")):
        if step == 0 or z != zs[step - 1]:
            maps = predict(np.stack([normalise(volume[_window((z, y, x), crop)]) for y, x in number]))
        if step == 0:
            blended = np.full((len(maps), *volume.shape), np.nan, np.float32)
        for y, x in order:
            blend(blended[:, *_window((z, y, x), crop)], maps[:, number[y, x]])
    return blended


def fit_windows(shape: Sequence[int], crop: Size = CROP, stride: Size = STRIDE) -> tuple[Size, Size]:
    """Return crop and stride for a volume: a crop side that is too long is halved until it fits, as its stride."""
    sides, steps = list(crop), list(stride)
    for axis, length in enumerate(shape):
        while sides[axis] > length:
            sides[axis] = steps[axis] = sides[axis] // 2
    return (sides[0], sides[1], sides[2]), (steps[0], steps[1], steps[2])


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return the starts along an axis: every `stride` up to `length`, moved back to fit, so the last ones repeat."""
    return [min(start, length - crop) for start in range(0, length, stride)]


def blend(blended: NDArray[np.float32], new: NDArray[np.float32]) -> None:
    """Put `new` into `blended`, in place: as it is where nothing (NaN) was, else the mean of both.

    So the last windows over a voxel weigh 1/2, 1/4, ...: not the mean of all.
    """
    np.copyto(blended, np.where(np.isnan(blended), new, (blended + new) / 2))


def largest_tree(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest 18-connected part with its cavities filled; an empty mask stays empty.

    Filled is all but the largest 26-connected part of the background. The release clusters supervoxels of a watershed
    instead, which gave the same voxels on 30 of 30 random noisy trees, and fails on an empty mask.
    """
    labels, sizes = components(mask, TOUCHING)
    if not sizes.any():
        return np.zeros(mask.shape, bool)
    tree = labels == sizes.argmax()
    labels, sizes = components(~tree, ANY_CONTACT)
    return labels != sizes.argmax() if sizes.any() else tree


def _window(start: Size, crop: Size) -> tuple[slice, ...]:
    return tuple(slice(first, first + side) for first, side in zip(start, crop, strict=True))
