"""Train a task to its files: what `medsyn train` leaves behind, whatever the networks are.

Writes <out>.safetensors, then <out stem>_metrics.csv and <out stem>_preview.png. Pictures on the way go into the folder
<out stem>_previews, event files into <out stem>_tensorboard, where the settings ask for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsyn.config import TrainConfig
from medsyn.errors import InputError
from medsyn.files import atomic_path, write_csv
from medsyn.progress import log
from medsyn.scratch import claim_state, remove_state
from medsyn.training.loop import TrainingResult, train
from medsyn.training.metrics import columns_of
from medsyn.training.task import Networks, PhasedTask, Task


def claim_training(out: Path, state: Path, read: Callable[[Path], Any]) -> None:
    """Make `state` the folder for the checkpoints of `out`.

    Raises InputError where `out` is a trained network: one that `read` opens. A damaged file is trained again.
    """
    if out.exists():
        try:
            read(out)
        except InputError as error:
            log.warning("%s; it is trained again", error)
        else:
            raise InputError(f"{out}: this network is trained; remove the file to train it again")
    claim_state(state, out)


def train_to_files(
    task: Task | PhasedTask,
    config: TrainConfig,
    state: Path,
    out: Path,
    *,
    write: Callable[[TrainingResult], None],
    preview: Callable[[Networks, Path], None],
) -> None:
    """Train, or continue from the checkpoints in `state`, and write the files in the main process.

    write: writes `out`; preview(networks, path): draws a picture. `state` is removed at the end.
    """
    trained = train(task, config, state)
    if not trained.is_main_process:
        return
    write_csv(out.with_name(f"{out.stem}_metrics.csv"), trained.metrics, columns_of(trained.metrics))
    write(trained)
    with torch.no_grad():
        preview(trained.networks, out.with_name(f"{out.stem}_preview.png"))
    events = state / "tensorboard"
    if events.is_dir():  # beside those of earlier training runs
        shutil.copytree(events, out.with_name(f"{out.stem}_tensorboard"), dirs_exist_ok=True)
    remove_state(state)


def previews_of(out: Path, step: int) -> Path:
    """Return the picture that a training run of `out` draws after a step."""
    return out.with_name(f"{out.stem}_previews") / f"step_{step:08d}.png"


def write_pictures(path: Path, rows: Sequence[Tensor]) -> None:
    """Write a PNG of volumes [B, 1, D, H, W] in [-1, 1]: for each row of `rows` its axial, then its coronal slices.

    The slices are the middle ones, superior and anterior up. Rows may have different numbers of volumes.
    """
    pictures = []
    for volumes in rows:
        cubes = volumes[:, 0].float().cpu().numpy()
        middle = [length // 2 for length in cubes.shape[1:]]
        pictures.append(tiles([cube[middle[0], ::-1] for cube in cubes]))
        pictures.append(tiles([cube[::-1, middle[1]] for cube in cubes]))
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=1.0) for part in pictures]
    write_picture(path, np.concatenate(padded))


def tiles(slices: Sequence[NDArray]) -> NDArray:
    """Lay slices (H, W) in [-1, 1] side by side, each about 96 pixels wide with a white border."""
    factor = max(96 // slices[0].shape[-1], 1)
    enlarged = [np.kron(part, np.ones((factor, factor), np.float32)) for part in slices]
    return np.concatenate([np.pad(part, 1, constant_values=1.0) for part in enlarged], axis=1)


def write_picture(path: Path, picture: NDArray) -> None:
    """Write a picture (H, W) in [-1, 1] as a grey PNG."""
    from matplotlib.image import imsave

    with atomic_path(path) as temporary:
        imsave(temporary, picture, cmap="gray", vmin=-1, vmax=1)
