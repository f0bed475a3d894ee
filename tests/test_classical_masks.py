"""The classical airway and vessels on fine grids: a tube with a leak, and an anatomy rendered to HU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.masks.airway import follow
from medsyn.masks.labels import dice
from medsyn.masks.morphology import dilate
from medsyn.masks.vessels import segment_vessels

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from classical_masks import GOALS, LEAK_PERCENT, missed, render, score

SPACING = (1.2, 1.2, 1.2)


def tube(start: tuple[float, ...], end: tuple[float, ...], radius: float) -> NDArray[np.bool_]:
    """A straight tube with round ends, in voxels."""
    grid = np.stack(np.meshgrid(*[np.arange(60)] * 3, indexing="ij"), -1).astype(float)
    axis = np.subtract(end, start)
    along = np.clip((grid - start) @ axis / (axis @ axis), 0, 1)
    return np.asarray(np.linalg.norm(grid - start - along[..., None] * axis, axis=-1) <= radius)


def in_lung(lumen: NDArray[np.bool_], vessel: NDArray[np.bool_] | None = None) -> NDArray[np.int16]:
    """HU of a lumen in its wall and of a vessel in lung, blurred and noisy."""
    tissue = dilate(lumen, 1.3, SPACING) | (False if vessel is None else vessel)
    hu = np.where(lumen, -980.0, np.where(tissue, 40.0, -850.0))
    noise = np.random.default_rng(0).normal(0, 25, hu.shape)
    return np.asarray((ndimage.gaussian_filter(hu, 0.45) + noise).astype(np.int16))


def test_bronchi_are_followed_and_a_leak_is_not() -> None:
    trunk, healthy, torn = (
        tube((59, 30, 30), (35, 30, 30), 5.0),
        tube((35, 30, 30), (15, 30, 8), 1.8) | tube((22, 30, 16), (12, 44, 16), 1.5),
        tube((35, 30, 30), (15, 30, 50), 1.8),
    )
    hu = in_lung(trunk | healthy | torn)
    bulla = np.zeros(hu.shape, bool)
    bulla[2:22, 20:40, 42:58] = True
    hu[bulla & ~dilate(torn, 2.6, SPACING) | bulla & torn] = -1000
    hu[2:15, 29:32, 49:52] = -1000  # the torn end opens into the bulla
    found = follow(hu, trunk, SPACING)
    beyond = healthy & ~trunk
    assert (found & beyond).sum() > 0.8 * beyond.sum()
    assert (found & ~dilate(trunk | healthy | torn, 1.3, SPACING)).sum() < 0.002 * found.sum()
    assert (found & bulla & ~torn).sum() < 0.01 * bulla.sum()
    assert not follow(hu, np.zeros(hu.shape, bool), SPACING).any()


def test_vessels_on_a_fine_grid_are_not_the_airways_wall() -> None:
    lumen = tube((59, 20, 30), (0, 20, 30), 3.0)
    vessel = tube((59, 26, 30), (0, 26, 30), 2.0) | tube((30, 26, 30), (30, 52, 45), 1.0)
    wall = dilate(lumen, 1.3, SPACING)
    lung = np.ones(lumen.shape, bool)
    lung[:, :5] = False
    found = segment_vessels(in_lung(lumen, vessel), lung & ~lumen, lumen, SPACING) > 0
    assert dice(found, vessel & ~wall) > 0.98  # type: ignore[operator]
    assert not (found & wall).any()


def test_a_real_anatomy_rendered_to_hu(shared_data: Path) -> None:
    rendered = render(shared_data / "anatomy/patient3")
    rows = {str(row["structure"]): row for row in score("patient3", rendered.volume, rendered.truth)}
    for structure, goal in GOALS.items():
        assert float(str(rows[structure]["dice"])) >= goal - 0.01
    assert float(str(rows["airway"]["leak_percent"])) <= LEAK_PERCENT


def test_a_missed_goal_is_named() -> None:
    row = {"case": "p", "structure": "vessels", "dice": 0.5, "leak_percent": None, "seconds": 31.0}
    assert len(missed([row])) == 2
    assert not missed([row | {"dice": 0.99, "seconds": 1.0}])
    assert missed([row | {"structure": "airway", "dice": None, "leak_percent": 3.0, "seconds": 1.0}])
