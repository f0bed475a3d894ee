"""Compare ways to decode the lobe channel: `python benchmarks/lobe_decoding.py --results results`.

Samples the volumes of Table V from a finished run, keeps their lobe channels, decodes them in several ways and prints
the mean Dice of the five lobes with the masks of the same images, without and with text, and the Dice of the lungs. The
last two columns are the mean Dice of the lobes in channels made from the masks themselves: blurred by 1 voxel, with
white noise of a standard deviation of 0.05 and 0.2 in the channel's units.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.labels import dice, mean_label_dice
from medsyn.methods.prompts import Roots, prompt_of, read_prompts
from medsyn.methods.run import open_run, sampling_with
from medsyn.methods.sampling import batches
from medsyn.models.channels import NUM_LOBES, to_channel
from medsyn.models.lobe_channel import lobe_labels
from medsyn.volume import read_volume

LOBES = range(1, NUM_LOBES + 1)
CUBE = np.ones((3, 3, 3), bool)
CROSS = ndimage.generate_binary_structure(3, 1)
MIN_VOXELS = 27
Cores = Callable[[NDArray, NDArray], list[NDArray]]


def values_of(channel: NDArray) -> NDArray:
    """The channel in units of labels, 0..5."""
    return np.clip((channel + 1) * (NUM_LOBES / 2), 0, NUM_LOBES)


def rounding(channel: NDArray) -> NDArray:
    """The nearest label of every voxel."""
    return np.round(values_of(channel)).astype(np.uint8)


def eroded(structure: NDArray) -> Cores:
    """Cores of labels 0..5: rounded labels after an erosion, lobes in pieces of 27 voxels or more."""
    return lambda value, rounded: [
        large(ndimage.binary_erosion(rounded == label, structure, border_value=1), label)
        for label in range(NUM_LOBES + 1)
    ]


def flat(value: NDArray, rounded: NDArray) -> list[NDArray]:
    """Cores of labels 0..5: voxels around which 3 x 3 x 3 values span less than 0.7 labels."""
    level = ndimage.maximum_filter(value, 3) - ndimage.minimum_filter(value, 3) < 0.7
    return [large(level & (rounded == label), label) for label in range(NUM_LOBES + 1)]


def large(core: NDArray, label: int) -> NDArray:
    """Without the pieces of a lobe's core that are smaller than 27 voxels."""
    pieces, _ = ndimage.label(core)
    return core if label == 0 else core & (np.bincount(pieces.ravel()) >= MIN_VOXELS)[pieces]


def nearest(cores: Cores) -> Callable[[NDArray], NDArray]:
    """Every voxel above 0.5 takes the lobe of the nearest core."""

    def decode(channel: NDArray) -> NDArray:
        value = values_of(channel)
        found = np.zeros(value.shape, np.uint8)
        for label, core in enumerate(cores(value, rounding(channel))):
            found[core] = label
        index = ndimage.distance_transform_edt(found == 0, return_distances=False, return_indices=True)
        return np.where(value > 0.5, found[tuple(index)], 0)

    return decode


def by_value(cores: Cores, reach: int = 2) -> Callable[[NDArray], NDArray]:
    """Every voxel takes the label nearest in value that has a core within `reach` voxels, else rounds."""

    def decode(channel: NDArray) -> NDArray:
        value = values_of(channel)
        errors = [
            np.where(ndimage.maximum_filter(core, 2 * reach + 1), np.abs(value - label), np.inf)
            for label, core in enumerate(cores(value, rounding(channel)))
        ]
        return np.where(np.isfinite(errors).any(0), np.argmin(errors, 0), rounding(channel)).astype(np.uint8)

    return decode


def prevailing(value: NDArray, rounded: NDArray) -> list[NDArray]:
    """Cores of labels 0..5: 80 % of the surrounding 5 x 5 x 5 voxels round to the label."""
    masks = [rounded == label for label in range(NUM_LOBES + 1)]
    return [
        large(mask & (ndimage.uniform_filter(mask.astype(np.float32), 5) >= 0.8), label)
        for label, mask in enumerate(masks)
    ]


def smoothed(channel: NDArray) -> NDArray:
    """The rounded Gaussian mean (1.5 voxels) over the interior of the lungs, for every voxel above 0.5."""
    value = values_of(channel)
    lung = value > 0.5
    inside = ndimage.binary_erosion(lung, CROSS).astype(np.float32)
    mean = ndimage.gaussian_filter(value * inside, 1.5) / np.maximum(ndimage.gaussian_filter(inside, 1.5), 1e-6)
    return np.where(lung, np.clip(np.round(mean), 1, NUM_LOBES), 0).astype(np.uint8)


DECODERS = {
    "rounding": rounding,
    "nearest core; core: rounded label after erosion by 6 neighbours": nearest(eroded(CROSS)),
    "nearest core; core: rounded label after erosion by 26 neighbours": nearest(eroded(CUBE)),
    "nearest core; core: flat within 0.7 labels": nearest(flat),
    "nearest value of the cores within 2 voxels; core: erosion by 6 neighbours": by_value(eroded(CROSS)),
    "nearest value of the cores within 3 voxels; core: 80 % of 5 x 5 x 5 voxels": by_value(prevailing, 3),
    "mean over the lungs' interior within 1.5 voxels, rounded": smoothed,
    "`lobe_labels`": lobe_labels,
}


def sampled(results: Path, weights: Path) -> Iterator[tuple[str, str, NDArray]]:
    """Subject, `text` or `none`, and lobe channel (D, H, W) of every volume of the set `segmentation`."""
    run = open_run(weights, sampling_with(weights, None))
    roots = Roots.below(results / "preprocessed", results / "masks")
    for batch in batches(run, list(enumerate(read_prompts(results / "prompts/segmentation.csv")))):
        volumes = run.sample_arrays([prompt_of(run, row, number, roots) for number, row in batch])
        for (_, row), volume in zip(batch, volumes, strict=True):
            yield row["fix_image"], row["text_mode"], volume[run.channels.index("lobe")]


def degraded(masks: Iterable[NDArray], noise: float) -> list[tuple[NDArray, NDArray]]:
    """Channel and mask of every label map, blurred by 1 voxel and with white noise."""
    rng = np.random.default_rng(0)
    blurred = [(ndimage.gaussian_filter(to_channel("lobe", mask, (0.0, 1.0)), 1.0), mask) for mask in masks]
    return [
        (np.clip(channel + rng.normal(0, noise, channel.shape).astype(np.float32), -1, 1), mask)
        for channel, mask in blurred
    ]


def main() -> None:
    """Print one row per decoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder of a finished run")
    args = parser.parse_args()
    samples = list(sampled(args.results, args.results / "models/medsyn"))
    masks = {path.parent.name: read_volume(path).array for path in args.results.glob("masks/*/*/lobes.nii.gz")}
    known = [masks[subject] for subject in sorted({subject for subject, _, _ in samples})]
    noisy = [degraded(known, noise) for noise in (0.05, 0.2)]
    print("| labels of the channel | lobes, without text | lobes, with text | lungs | s | noise 0.05 | noise 0.2 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, decode in DECODERS.items():
        started = time.process_time()
        found = [(mode, decode(channel), masks[subject]) for subject, mode, channel in samples]
        seconds = (time.process_time() - started) / len(samples)
        scores = [
            np.mean([mean_label_dice(a, b, LOBES) for each, a, b in found if each == mode]) for mode in ("none", "text")
        ]
        lungs = np.mean([dice(a > 0, b > 0) for _, a, b in found])
        scores += [np.mean([mean_label_dice(decode(a), b, LOBES) for a, b in pairs]) for pairs in noisy]
        scores[2:2] = [lungs, seconds]
        print(f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} |")


if __name__ == "__main__":
    main()
