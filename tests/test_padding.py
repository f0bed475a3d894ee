"""Padding outside the scanner's circle, double rescaling, lungs cut by the scan and air that has drifted."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from field_files import normal, save, topics
from scipy import ndimage

from medsyn.cli import main
from medsyn.ct.doubts import cut_warnings
from medsyn.ct.inspect import describe, judge
from medsyn.ct.padding import clip_padding, empty_slices, is_padded
from medsyn.ct.reading import read_scan
from medsyn.ct.scan import Scan
from medsyn.files import read_json
from medsyn.masks.lungs import segment_lungs
from medsyn.orientation import reorient
from medsyn.volume import Volume, read_volume, write_volume

FAR_BELOW = (-8192, -3024, -2048, -2000, -9999, -32768)


def outside(volume: Volume) -> np.ndarray:
    """The outside of the round field of view, (H, W)."""
    half = (volume.array.shape[1] - 1) / 2
    y, x = np.ogrid[: volume.array.shape[1], : volume.array.shape[2]]
    return np.asarray((y - half) ** 2 + (x - half) ** 2 > half**2)


def padded(volume: Volume, value: float) -> Volume:
    array = volume.array.astype(np.int32)
    array[:, outside(volume)] = value
    return volume.with_array(array)


@pytest.mark.parametrize("value", FAR_BELOW)
def test_padding_outside_the_circle_becomes_air_whatever_its_value(value: int) -> None:
    clipped, facts = clip_padding(padded(normal(), value))
    expected = np.where(outside(normal())[None], -1024, normal().array)
    np.testing.assert_array_equal(clipped.array, expected)
    assert facts == {
        "padding_percent": pytest.approx(100 * outside(normal()).mean(), abs=0.01),
        "padding_lowest_hu": value,
    }


@pytest.mark.parametrize("code", ["LPS", "SLP", "PIR"])
def test_padding_is_looked_for_in_axial_slices_of_any_file(code: str) -> None:
    clipped, _ = clip_padding(reorient(padded(normal(), -8192), code))
    assert clipped.array.min() == -1024


def test_padding_is_accepted_and_counted(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", padded(normal(), -8192))
    raw = padded(normal(), -8192).array + 8192  # as CT-RATE's first release: slope and intercept are told apart
    write_volume(tmp_path / "raw.nii.gz", normal().with_array(raw.astype(np.int16)))
    for name, options in (("a", []), ("raw", ["--rescale-slope", "1", "--rescale-intercept", "-8192"])):
        out = tmp_path / name
        verb = ["preprocess", str(tmp_path / f"{name}.nii.gz"), "--out", str(out), "--quiet", *options]
        assert main(verb) == 0
        qc = read_json(out / "qc.json")
        assert (qc["padding_percent"], qc["padding_lowest_hu"]) == (pytest.approx(23, abs=2), -8192)
        assert qc["warnings"] == []
    np.testing.assert_array_equal(read_volume(tmp_path / "a/volume.nii.gz").array.min(), -1024)


def test_padding_in_the_headers_own_scale(tmp_path: Path) -> None:
    def shift(image: object) -> None:
        image.header.set_slope_inter(1, -8192)  # type: ignore[attr-defined]

    stored = normal().with_array((padded(normal(), -8192).array + 8192).astype(np.int16))
    path = save(tmp_path / "a.nii.gz", stored)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = np.array([1.0, -8192.0], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    scan = read_scan(path)
    assert scan.facts["padding_lowest_hu"] == -8192
    assert scan.volume.array.min() == -1024


@pytest.mark.parametrize("value", [-2000, -8192])
def test_padding_smoothed_by_a_resampling_is_accepted(value: int) -> None:
    smooth = ndimage.gaussian_filter(padded(normal(), value).array.astype(np.float32), (0, 0.7, 0.7))
    volume, facts = clip_padding(normal().with_array(smooth))
    assert facts["padding_percent"] > 15
    assert judge(volume)[0] == []


def test_empty_slices_and_turned_boxes_are_padding() -> None:
    array = padded(normal(), -3024).array.copy()
    array[:3], array[-2:] = -3024, -3024
    assert is_padded(array)
    y, x = np.indices(array.shape[1:]) - 31.5
    turned = normal().array.astype(int)
    turned[:, np.abs(y * 0.94 + x * 0.34) > 28] = -2048
    assert is_padded(turned)
    holes = normal().array.copy()
    holes[20:23] = -1024
    assert empty_slices(holes) == [20, 21, 22]
    assert "empty slices" in topics(judge(normal().with_array(holes)).warnings)
    holes[:4] = -1024
    assert empty_slices(holes) == [20, 21, 22]  # empty ends are padding


@pytest.mark.parametrize("kind", ["plain", "padded", "twice 8192", "without lungs"])
def test_double_rescaling_is_told_from_padding_by_where_the_low_voxels_lie(kind: str) -> None:
    array = normal().array.astype(int) - (8192 if kind == "twice 8192" else 1024)
    if kind == "padded":
        array[:, outside(normal())] = -3072
    if kind == "without lungs":
        array[segment_lungs(normal().array, normal().spacing_mm).mask] = -994
    scan = clip_padding(normal().with_array(array))
    assert scan[1] == {"padding_percent": 0.0}
    assert judge(scan[0])[0][0].startswith("rescaled twice")


def test_lungs_cut_by_the_first_or_last_slice_are_a_warning() -> None:
    lungs = segment_lungs(normal().array, normal().spacing_mm).mask
    spacing = normal().spacing_mm
    assert cut_warnings(lungs, spacing) == []
    levels = np.flatnonzero(lungs.any((1, 2)))
    low, high = int(levels[0]) + 8, int(levels[-1]) - 3
    below, above = cut_warnings(lungs[low:], spacing), cut_warnings(lungs[:high], spacing)
    assert below[0].startswith("cut: the first (lowest) slice shows lung")
    assert above[0].startswith("cut: the last (highest) slice shows lung")
    both = cut_warnings(lungs[low:high], spacing)
    assert topics(both) == ["cut", "cut"]
    missing = int(below[0].split("about ")[1].split("%")[0])
    assert missing == pytest.approx(100 * lungs[:low].sum() / lungs.sum(), abs=8)
    part = Volume(normal().array[low:], normal().spacing_mm, normal().origin_mm)
    assert topics(describe(Scan(part))["warnings"]) == ["cut"]


def test_air_that_has_drifted_is_a_warning() -> None:
    drifted = judge(normal().with_array(normal().array + 25))  # the phantom's air lies at -1000
    assert drifted.warnings[-1] == "air: air at -975 HU, expected -1000: %LAA-950 is not comparable"
    assert topics(drifted.warnings) == ["range", "air"]  # the lowest values were those of a clipped scan
