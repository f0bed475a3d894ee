"""Data of Medical Diffusion's two networks: volumes with a slice each, and latents that are encoded once per volume.

The VQ-GAN is frozen while the denoiser trains, so its latents are kept in files of the state folder instead of being
computed in every step. A volume is encoded alone, in float32, so its latents do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from medsyn.diffusion.seeds import seeded
from medsyn.errors import InputError
from medsyn.progress import log, track
from medsyn.tensors import check_tensors, save_tensors
from medsyn.training.processes import wait_for_all
from medsyn.training.volumes import ImageVolumes

_KEY_SLICES, _KEY_LATENTS = 3, 4  # first parts of the seeds of this module, apart from those of other trainings


def flipped(volume: Tensor) -> Tensor:
    """Return a volume [..., W] with left and right exchanged."""
    return volume.flip(-1)


class VolumesWithSlices:
    """Batches of the VQ-GAN: `volume` [B, 1, D, H, W] in [-1, 1], and `slice` [B], an axial slice of each.

    Calling it with (number of the batch, slots) is a pure function. flip: exchange left and right in half of them.
    """

    def __init__(self, volumes: ImageVolumes, *, flip: bool) -> None:
        self.volumes, self.flip = volumes, flip

    def __call__(self, number: int, slots: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the samples `slots` of batch `number`."""
        volumes = self.volumes(number, slots)
        first = number * self.volumes.batch_size
        drawn = [self._numbers(first + slot, volumes.shape[2]) for slot in slots]
        if self.flip:
            pairs = zip(volumes, drawn, strict=True)
            volumes = torch.stack([flipped(volume) if flip else volume for volume, (flip, _) in pairs])
        return {"volume": volumes, "slice": torch.tensor([index for _, index in drawn])}

    def _numbers(self, number: int, depth: int) -> tuple[bool, int]:
        """Return whether sample `number` of the run is flipped, and which of its slices is taken."""
        generator = seeded(_KEY_SLICES, self.volumes.seed, number)
        flip = torch.rand((), generator=generator).item() < 0.5
        return flip, int(torch.randint(depth, (), generator=generator))


class CachedLatents:
    """Latents of every training volume: files <index>.safetensors of a folder, each [1 or 2, C, d, h, w] in float32.

    flip: hold those of the volume with left and right exchanged too.
    """

    def __init__(self, folder: Path, count: int, *, flip: bool) -> None:
        self.folder, self.count, self.flip = folder, count, flip

    def __len__(self) -> int:
        return self.count

    def complete(
        self, encode: Callable[[Tensor], Tensor], volume: Callable[[int], Tensor], accelerator: Accelerator
    ) -> None:
        """Make the files that are missing or damaged; each process makes its share and waits for the others.

        encode: volume [1, 1, D, H, W] on the device -> latents [1, C, d, h, w]; volume(index) -> [1, D, H, W].
        """
        share = range(accelerator.process_index, self.count, accelerator.num_processes)
        missing = [index for index in share if not self._is_whole(index)]
        if missing:
            log.info("encoding %d of %d volumes into %s", len(missing), len(share), self.folder)
        for index in track(missing, description="encoding volumes"):
            x = volume(index)[None]
            versions = [x, flipped(x)] if self.flip else [x]
            with torch.no_grad():
                latents = torch.cat([encode(version.to(accelerator.device)).float().cpu() for version in versions])
            if not latents.isfinite().all():
                raise InputError(
                    f"{self._path(index)}: latents of training volume {index} are not finite; train the VQ-GAN again"
                )
            save_tensors(self._path(index), {"latents": latents}, {})
        wait_for_all(accelerator)

    def __call__(self, index: int, *, flip: bool = False) -> Tensor:
        """Return the latents [C, d, h, w] of training volume `index`."""
        with safe_open(self._path(index), framework="pt") as handle:
            latents: Tensor = handle.get_slice("latents")[int(flip)]
        return latents

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    def _is_whole(self, index: int) -> bool:
        try:
            check_tensors(self._path(index))
        except InputError:
            return False
        return True


class LatentBatches:
    """Batches of the denoiser: `latents` and `noise` [B, C, d, h, w], and `step` [B], uniform in 0..num_steps - 1.

    Calling it with (optimiser step, slots) is a pure function; volumes come in the order of `volumes`.
    """

    def __init__(self, latents: CachedLatents, volumes: ImageVolumes, num_steps: int) -> None:
        self.latents, self.volumes, self.num_steps = latents, volumes, num_steps

    def __call__(self, step: int, slots: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the samples `slots` of optimiser step `step`."""
        samples = [self._sample(step * self.volumes.batch_size + slot) for slot in slots]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, number: int) -> dict[str, Tensor]:
        generator = seeded(_KEY_LATENTS, self.volumes.seed, number)
        flip = torch.rand((), generator=generator).item() < 0.5
        step = torch.randint(self.num_steps, (), generator=generator)
        latents = self.latents(self.volumes.index(number), flip=flip and self.latents.flip)
        return {"latents": latents, "noise": torch.randn(latents.shape, generator=generator), "step": step}
