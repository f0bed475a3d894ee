"""Alignment does not depend on what fills a pleural cavity: fluid, consolidation, bowel, or a lost lung's space."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from medsyn.config import MasksConfig, PreprocessConfig
from medsyn.ct.atlas import load_atlas
from medsyn.ct.cavities import _thick
from medsyn.ct.inspect import judge
from medsyn.ct.preprocess import Preprocessed, preprocess
from medsyn.errors import InputError
from medsyn.masks.segment import segment
from medsyn.phantom.extremes import Extreme, ExtremeSubject, render_extreme
from medsyn.phantom.findings import FindingSpec
from medsyn.volume import Volume, from_sitk, to_sitk

SEED = 90
CONDITIONS = {
    "white-out": [Extreme("fluid", "right")],
    "white-out that pushes the mediastinum": [Extreme("fluid", "left", shift_mm=-25)],
    "fluid on both sides": [Extreme("fluid", "right", 0.7), Extreme("fluid", "left", 0.7)],
    "consolidated lung": [Extreme("consolidation", "left")],
    "pneumonectomy": [Extreme("pneumonectomy", "right", shift_mm=35, raised_mm=40)],
    "hernia": [Extreme("hernia", "left", 0.8, shift_mm=-15)],
}


@pytest.fixture(scope="module")
def white_out() -> ExtremeSubject:
    return render_extreme(SEED, 1, extremes=CONDITIONS["white-out"])


def registered(subject: ExtremeSubject) -> tuple[Preprocessed, float]:
    """The result of preprocessing to the atlas, and the overlap of the true cavities with it."""
    truth = {"lobes": subject.volume.with_array(subject.cavities)}
    result = preprocess(subject.volume, PreprocessConfig(alignment="atlas"), truth)
    given = result.given["lobes"]
    atlas = sitk.Resample(to_sitk(load_atlas(None)), to_sitk(given), sitk.Transform(), sitk.sitkNearestNeighbor)
    expected, found = from_sitk(atlas).array > 0, given.array > 0
    return result, 2 * float((expected & found).sum()) / float(expected.sum() + found.sum())


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_filled_cavity_is_registered(name: str) -> None:
    result, overlap = registered(render_extreme(SEED, 2, extremes=CONDITIONS[name]))
    assert result.qc["alignment_used"] == "atlas", result.qc["registration_faults"]
    assert overlap > 0.86
    assert max(result.qc["filled_cavity_ml"].values()) > 200


def test_a_large_effusion_is_registered_like_the_same_chest_without_it() -> None:
    healthy = registered(render_extreme(SEED, 3))
    fluid = registered(render_extreme(SEED, 3, specs=[FindingSpec("pleural_effusion", 1.0, 1200, "right", "")]))
    assert healthy[0].qc["alignment_used"] == fluid[0].qc["alignment_used"] == "atlas"
    assert fluid[1] > healthy[1] - 0.05
    assert sum(healthy[0].qc["filled_cavity_ml"].values()) < 60


def test_the_centre_is_that_of_the_cavities(white_out: ExtremeSubject) -> None:
    volume = white_out.volume
    scan = Volume(volume.array[1:], volume.spacing_mm, volume.origin_mm, volume.direction)  # not on the model's grid
    result = preprocess(scan, PreprocessConfig(alignment="lung_centre"))
    columns = np.flatnonzero((white_out.cavities > 0).any((0, 1)))
    middle = volume.origin_mm[0] + volume.spacing_mm[2] * float(columns[0] + columns[-1]) / 2
    assert result.qc["model_to_scanner_translation_mm"][0] == pytest.approx(middle, abs=12)


def test_one_aerated_lung_has_the_lobes_of_its_side(white_out: ExtremeSubject) -> None:
    masks = segment(white_out.volume, MasksConfig())
    assert set(np.unique(masks.labels["lobes"].array)) == {0, 1, 2}


def test_half_a_chest_is_not_a_chest_with_one_lung() -> None:
    whole = render_extreme(SEED, 4).volume
    half = whole.array.copy()
    half[:, :, : int(0.45 * half.shape[2])] = -1000  # cut beside the midline: one lung, and air where the other was
    reasons, *_ = judge(whole.with_array(half))
    assert reasons and "not a chest: one lung only found" in reasons[0]
    with pytest.raises(InputError, match="one lung only found"):
        preprocess(whole.with_array(half), PreprocessConfig(alignment="atlas"), name="half")


def test_a_body_without_ribs_is_not_a_chest_with_one_lung(white_out: ExtremeSubject) -> None:
    assert judge(white_out.volume)[0] == []
    array = white_out.volume.array.copy()
    columns = np.arange(array.shape[2])
    beside = np.abs(columns - columns.mean()) * white_out.volume.spacing_mm[2] > 40  # the spine and the sternum stay
    array[:, :, beside] = np.minimum(array[:, :, beside], 60)
    reasons, *_ = judge(white_out.volume.with_array(array))
    assert len(reasons) == 1
    assert "ml of ribs, less than" in reasons[0]


def test_a_small_piece_counts_where_fluid_is_recognised_or_it_was_found_before() -> None:
    """Between KNOWN_ML and MINIMUM_ML a piece with fluid is a cavity; without fluid it may be a large heart."""
    fluid = np.zeros((20, 20, 20), bool)
    piece = np.zeros_like(fluid)
    piece[4:14, 4:14, 4:14] = True  # 125 ml of cubes of 5 mm
    assert not _thick(piece, fluid, (5.0, 5.0, 5.0)).any()
    fluid[6, 6, 6] = True
    assert _thick(piece, fluid, (5.0, 5.0, 5.0)).sum() > 0.8 * piece.sum()
    piece[:, :, 7:] = False  # 15 mm thick: the difference between people
    assert not _thick(piece, fluid, (5.0, 5.0, 5.0)).any()
