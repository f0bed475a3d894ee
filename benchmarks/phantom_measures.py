"""Errors of the package's own measuring code on phantoms, whose truth is known: the second table of docs/phantom.md.

    python benchmarks/phantom_measures.py [--size 64] [--count 30] [--seed 9]

Prints the mean absolute error of every measure, the mean overlap (Dice) of every mask, the mean overlap with the atlas
after registration, and the subjects that are refused or whose registration fails.
"""

from __future__ import annotations

import argparse

import numpy as np

from medsyn.config import MasksConfig
from medsyn.ct.atlas import load_atlas
from medsyn.ct.inspect import judge
from medsyn.ct.register import register
from medsyn.evaluate.measures import measure
from medsyn.masks.labels import dice
from medsyn.masks.segment import segment
from medsyn.phantom.subject import render_subject


def main() -> None:
    """Measure each phantom and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=9)
    args = parser.parse_args()
    rows = [errors(args.seed, index, args.size) for index in range(args.count)]
    print(f"{args.count} phantoms of seed {args.seed} at {args.size}^3")
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        spread = f"{np.nanmin(values):9.3f} to {np.nanmax(values):9.3f}"
        print(f"{name:24s} mean {np.nanmean(values):9.3f}   {spread}   n {np.isfinite(values).sum()}")


def errors(seed: int, index: int, size: int) -> dict[str, float]:
    """Return the absolute errors of the measures of one phantom, the overlaps of its masks, and its faults (0 or 1)."""
    subject = render_subject(seed, index, size)
    truth, volume = subject.truth, subject.volume
    masks = segment(volume, MasksConfig()).labels
    found = measure(volume).values
    overlap = {name: dice(masks[name].array > 0, subject.masks[name] > 0) for name in ("lobes", "airway", "vessels")}
    each = [dice(masks["lobes"].array == label, subject.masks["lobes"] == label) or 0.0 for label in range(1, 6)]
    reasons, chest, _ = judge(volume)
    row = {
        "effusion, ml": abs((found["effusion_volume_ml"] or 0.0) - truth["effusion_volume_ml"]),
        "%LAA-950": _difference(found["laa950_percent"], truth["laa950_percent"]),
        "cardiothoracic ratio": _difference(found["cardiothoracic_ratio"], truth["cardiothoracic_ratio"]),
        "lung, ml": abs((found["lung_volume_ml"] or 0.0) - truth["volumes_ml"]["lung"]),
        "airway, ml": abs((found["airway_volume_mm3"] or 0.0) / 1000 - truth["volumes_ml"]["airway"]),
    }
    row |= {f"Dice of {name}": value or 0.0 for name, value in overlap.items()}
    row |= {"Dice per lobe": float(np.mean(each)), "refused": float(bool(reasons))}
    registered = None
    if chest is not None and not reasons:
        cavities = chest.cavities.label > 0
        middle = [(index.min() + index.max()) / 2 for index in np.nonzero(cavities)]
        offset = np.array(chest.volume.direction).reshape(3, 3) @ (middle * np.array(chest.volume.spacing_mm))[::-1]
        registered = register(cavities, chest.volume, load_atlas(None), np.array(chest.volume.origin_mm) + offset)
    row["Dice with the atlas"] = np.nan if registered is None else registered.dice
    row["registration failed"] = float(registered is None or bool(registered.faults))
    return row


def _difference(value: float | None, truth: float) -> float:
    return np.nan if value is None else abs(value - truth)


if __name__ == "__main__":
    main()
