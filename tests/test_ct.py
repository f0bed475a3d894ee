"""Reading, inspection, preprocessing and the training store: geometry by hand, bad input, both forms of the verbs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from chests import chest, write_chest, write_dicom, write_manifest

from medsyn.cli import main
from medsyn.config import PreprocessConfig
from medsyn.ct.dicom import choose_series, series_faults
from medsyn.ct.inspect import inspect, value_faults
from medsyn.ct.preprocess import model_grid, preprocess
from medsyn.ct.reading import read_ct
from medsyn.ct.store import open_high, pack_labels, read_index, read_low, unpack_labels
from medsyn.errors import InputError
from medsyn.files import read_csv, read_json, sha256, write_json
from medsyn.orientation import orientation_code, reorient
from medsyn.volume import STRUCTURES, Volume, from_sitk, read_volume, to_sitk, write_volume

CONFIG = PreprocessConfig()


def shifted(volume: Volume, mm: float) -> Volume:
    return Volume(volume.array, volume.spacing_mm, tuple(o + mm for o in volume.origin_mm), volume.direction)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_formats_keep_geometry(tmp_path: Path, suffix: str) -> None:
    volume = chest("normal").volume
    write_volume(tmp_path / f"a{suffix}", volume)
    read = read_ct(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read.array, volume.array)
    assert np.allclose(read.spacing_mm, volume.spacing_mm)
    assert np.allclose(read.origin_mm, volume.origin_mm, atol=1e-3)
    assert orientation_code(read) == orientation_code(volume) == "LAS"


def test_dicom_takes_the_longest_series_and_names_gaps(tmp_path: Path) -> None:
    volume = chest("normal").volume
    small = Volume(volume.array[:, 10:54, 8:56], volume.spacing_mm, volume.origin_mm)
    write_dicom(tmp_path / "d", small, "7")
    write_dicom(tmp_path / "d", Volume(small.array[:5], small.spacing_mm, small.origin_mm), "3")
    assert len(choose_series(tmp_path / "d").files) == 64
    read = reorient(read_ct(tmp_path / "d"))
    np.testing.assert_array_equal(read.array, small.array)
    assert np.allclose(read.spacing_mm, small.spacing_mm, atol=1e-3)
    assert series_faults(choose_series(tmp_path / "d")) == []
    write_dicom(tmp_path / "gap", small, "7", skip=(30, 31))
    assert "missing slices: 1 gaps" in series_faults(choose_series(tmp_path / "gap"))[0]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no DICOM series"):
        read_ct(tmp_path / "none")


def test_value_faults() -> None:
    hu = chest("normal").volume.array
    assert value_faults(hu) == []
    assert "NaN" in value_faults(np.where(hu > 500, np.nan, hu))[0]
    assert "constant" in value_faults(np.zeros((4, 4, 4)))[0]
    assert "range of a network" in value_faults((hu.clip(-1024, 600) + 1024) / 1624)[0]
    assert "8-bit" in value_faults(((hu.clip(-1024, 600) + 1024) / 1624 * 255).astype(np.uint8))[0]
    assert "intercept" in value_faults(hu.clip(-1024) + 1024)[0]
    assert "rescaled twice" in value_faults(hu - 1024)[0]
    padded = hu.copy()
    padded[:, :8] = -2000
    padded[:, -8:] = -3024
    assert value_faults(padded) == []


def bad_file(folder: Path, kind: str) -> Path:
    """A file of one kind of fault."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = chest("normal").volume
    path = folder / f"{kind}.nii.gz"
    array = volume.array.astype(np.float32)
    if kind == "truncated":
        write_volume(path, volume)
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "scaled":
        write_volume(path, volume.with_array((array.clip(-1024, 600) + 212) / 812))
    elif kind == "constant":
        write_volume(path, volume.with_array(np.full_like(array, -1000)))
    elif kind == "nan":
        array[10, 10, 10] = np.nan
        write_volume(path, volume.with_array(array))
    elif kind == "four_d":
        sitk.WriteImage(sitk.JoinSeries([to_sitk(volume), to_sitk(volume)]), str(path))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(gzip.compress(b"not an image"))
    elif kind == "no_chest":
        write_volume(path, volume.with_array(np.where(array < -300, np.where(array < -950, array, 30), array)))
    return path


KINDS = {
    "truncated": "",
    "scaled": "not HU",
    "constant": "constant",
    "nan": "NaN",
    "four_d": "4-D",
    "empty": "cannot be read",
    "text": "cannot be read",
    "no_chest": "not a chest",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = bad_file(tmp_path / "in", kind)
    assert main(["preprocess", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0, error
    assert path.name in error
    assert KINDS[kind] in error
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_inspect_gives_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_chest(tmp_path / "a")
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "ok"
    assert facts["reasons"] == []
    assert facts["size"] == [64, 64, 64]
    assert facts["spacing_mm"] == pytest.approx([4.9375, 4.9375, 4.5625])
    assert facts["orientation"] == "LAS"
    assert inspect(bad_file(tmp_path, "scaled"))["verdict"] == "rejected"
    assert main(["inspect", str(bad_file(tmp_path, "truncated"))]) == 0
    assert "verdict: rejected" in capsys.readouterr().out
    flat = Volume(np.zeros((1, 64, 64), np.int16), (5.0, 5.0, 5.0))
    write_volume(tmp_path / "flat.nii", flat)
    assert inspect(tmp_path / "flat.nii")["verdict"] == "rejected"


def test_a_volume_on_the_grid_comes_through_bit_for_bit() -> None:
    volume = chest("normal").volume
    result = preprocess(shifted(volume, 37.0), CONFIG)
    np.testing.assert_array_equal(result.volume.array, volume.array)
    spacing, origin = model_grid(CONFIG)
    assert result.volume.spacing_mm == spacing
    assert result.volume.origin_mm == pytest.approx(origin)
    assert result.qc["already_on_grid"]
    assert result.transform.TransformPoint((0.0, 0.0, 0.0)) == pytest.approx((37.0, 37.0, 37.0), abs=1e-6)
    again = preprocess(result.volume, CONFIG)
    np.testing.assert_array_equal(again.volume.array, result.volume.array)


def test_a_point_of_the_grid_is_the_scanners_point() -> None:
    """A bright cube at a known scanner position lands where the inverse of the transform says."""
    base = chest("normal").volume
    fine = from_sitk(sitk.Expand(to_sitk(base), (2, 2, 1), sitk.sitkLinear))
    array = fine.array.copy()
    array[30:34, 60:66, 30:36] = 3000
    centre = sitk.Image(to_sitk(fine)).TransformContinuousIndexToPhysicalPoint((32.5, 62.5, 31.5))
    result = preprocess(shifted(fine.with_array(array), 50.0), CONFIG)
    point = result.transform.GetInverse().TransformPoint([c + 50.0 for c in centre])
    x, y, z = to_sitk(result.volume).TransformPhysicalPointToContinuousIndex(point)
    z_peak, y_peak, x_peak = np.array(np.nonzero(result.volume.array > 1500)).mean(1)
    assert (x_peak, y_peak, z_peak) == pytest.approx((x, y, z), abs=0.6)
    assert result.volume.array.dtype == np.int16
    assert not result.qc["already_on_grid"]
    assert result.qc["lung_fraction_in_grid"] > 0.99


def test_interpolation_is_what_the_settings_say() -> None:
    """On a source whose voxels lie half-way between those of the grid: the mean of neighbours, or one of them."""
    base = chest("normal").volume
    source = Volume(base.array[:, :, :-1], base.spacing_mm, base.origin_mm)
    found = {
        kind: preprocess(source, PreprocessConfig(alignment="none", interpolation=kind)).volume.array[:, :, 1:-1]
        for kind in ("nearest", "linear", "cubic")
    }
    before, after = (source.array[:, :, k : k + 62].astype(float) for k in (0, 1))
    assert np.abs(found["linear"] - np.maximum((before + after) / 2, -1024)).max() <= 1
    assert ((found["nearest"] == before) | (found["nearest"] == after)).all()
    assert 0 < np.abs(found["cubic"] - found["linear"].astype(float)).mean() < 40


def test_flipped_and_oblique_copies_give_the_same_result() -> None:
    base = chest("normal").volume
    source = Volume(base.array[:60, :, 2:], base.spacing_mm, base.origin_mm)
    plain = preprocess(source, CONFIG).volume.array.astype(float)
    flipped = preprocess(reorient(source, "RPI"), CONFIG).volume.array.astype(float)
    assert np.abs(flipped - plain).max() <= 1
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, 0.0, 0.08)
    matrix = np.array(turn.GetMatrix()).reshape(3, 3)
    grid = sitk.Image(96, 96, 80, sitk.sitkInt16)
    grid.SetSpacing((4.2, 4.2, 4.2))
    direction = matrix @ np.diag([1.0, -1.0, 1.0])
    grid.SetDirection(direction.ravel().tolist())
    middle = direction @ (np.array([95, 95, 79]) / 2 * 4.2)
    grid.SetOrigin((-middle).tolist())
    oblique = from_sitk(sitk.Resample(to_sitk(source), grid, sitk.Transform(), sitk.sitkLinear, -1024.0))
    result = preprocess(oblique, CONFIG)
    shift = np.array(result.qc["model_to_scanner_translation_mm"])
    straight = np.array(preprocess(source, CONFIG).qc["model_to_scanner_translation_mm"])
    assert np.abs(shift - straight).max() < 6.0
    lungs, same = result.volume.array < -500, plain < -500
    middle_part = (slice(8, -8), slice(12, -12), slice(8, -8))
    overlap = (lungs & same)[middle_part].sum() * 2 / (lungs[middle_part].sum() + same[middle_part].sum())
    assert overlap > 0.9


def test_given_masks_travel_with_the_ct(tmp_path: Path) -> None:
    subject = chest("normal")
    turned = reorient(subject.volume, "RPI")
    lobes = reorient(subject.volume.with_array(subject.masks["lobes"]), "RPI")
    for mask in (lobes, reorient(lobes, "LPS")):  # as the CT lies, and as another tool may write it
        result = preprocess(turned, CONFIG, {"lobes": mask})
        np.testing.assert_array_equal(result.given["lobes"].array, subject.masks["lobes"])
    mirrored = Volume(lobes.array, lobes.spacing_mm, lobes.origin_mm)  # its header lost the CT's directions
    small = Volume(np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0))
    for mask in (mirrored, shifted(lobes, 20.0), small):
        with pytest.raises(InputError, match="volume: mask lobes: its grid is not the CT's"):
            preprocess(turned, CONFIG, {"lobes": mask})


def test_packed_labels_round_trip() -> None:
    rng = np.random.default_rng(0)
    lobes, airway, vessels = (rng.integers(0, n, (4, 5, 6)).astype(np.uint8) for n in (6, 2, 2))
    packed = pack_labels(lobes, airway, vessels)
    assert packed.dtype == np.uint8
    assert packed[0, 0, 0] == lobes[0, 0, 0] + 8 * airway[0, 0, 0] + 16 * vessels[0, 0, 0]
    for before, after in zip((lobes, airway, vessels), unpack_labels(packed), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohort, preprocessed, masks, store of three good subjects (one with given lobes) and two bad ones."""
    root = tmp_path_factory.mktemp("shard")
    rows = []
    for name, kind in (("a", "normal"), ("b", "effusion"), ("c", "cardiomegaly")):
        write_chest(root / name, kind)
        rows.append({"subject_id": name, "image": f"{name}/volume.nii.gz", "truth": f"{name}/truth.json"})
    rows[2] |= {"lobes": "c/lobes.nii.gz", "split": "validation"}
    for kind in ("truncated", "scaled"):
        bad_file(root, kind)
        rows.insert(1, {"subject_id": kind, "image": f"{kind}.nii.gz"})
    manifest = write_manifest(root / "m.csv", rows)
    write_json(root / "cohort.json", {"num_shards": 1, "validation_fraction": 0.0})
    write_json(root / "preprocess.json", {"max_reject_fraction": 0.5})
    cohort = str(root / "cohort/cohort.csv")
    config = ["--config", str(root / "preprocess.json"), "--quiet"]
    store_out = ["--out", str(root / "store/0"), *config]
    verbs = [
        ["cohort", "--manifest", str(manifest), "--config", str(root / "cohort.json"), "--out", str(root / "cohort")],
        ["preprocess", "--cohort", cohort, "--shard", "0", "--out", str(root / "pre/0"), *config],
        ["segment", "--volumes", str(root / "pre/0"), "--out", str(root / "masks/0"), "--quiet"],
        ["store", "--volumes", str(root / "pre/0"), "--masks", str(root / "masks/0"), "--cohort", cohort, *store_out],
        ["mask-qc", "--masks", str(root / "masks/0"), "--cohort", cohort, "--out", str(root / "qc.csv")],
    ]
    assert [main(verb) for verb in verbs] == [0] * 5
    return root


def test_bad_subjects_are_listed_and_the_rest_goes_on(shard: Path) -> None:
    rows = {row["subject_id"]: row for row in read_csv(shard / "pre/0/index.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "ok", "b": "ok", "c": "ok", "truncated": "rejected", "scaled": "rejected",
    }  # fmt: skip
    assert "not HU" in rows["scaled"]["reason"]
    assert not (shard / "pre/0/scaled").exists()
    for name in ("volume.nii.gz", "transform.tfm", "qc.json", "preview.png"):
        assert (shard / "pre/0/a" / name).stat().st_size > 0
    assert (shard / "pre/0/contact_sheet.png").exists()
    assert [row["subject_id"] for row in read_csv(shard / "masks/0/index.csv")] == ["a", "b", "c"]


def test_too_many_bad_subjects_stop_the_shard(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = str(shard / "cohort/cohort.csv")
    assert main(["preprocess", "--cohort", cohort, "--shard", "0", "--out", str(tmp_path / "p"), "--quiet"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 of 5 subjects are rejected" in error
    assert len(read_csv(tmp_path / "p.rejects.csv")) == 2
    assert not (tmp_path / "p").exists()
    command = ["preprocess", "--cohort", cohort, "--shard", "0", "--out", str(tmp_path / "p"), "--quiet", "--config"]
    write_json(tmp_path / "atlas.json", {"alignment": "atlas", "atlas": "none.nii.gz"})
    assert main([*command, str(tmp_path / "atlas.json")]) == 2
    assert capsys.readouterr().err.strip() == "medsyn preprocess: none.nii.gz: no such file"  # before the first scan
    assert main([*command, str(shard / "preprocess.json")]) == 0
    assert not (tmp_path / "p.rejects.csv").exists()


def test_store_holds_volumes_labels_and_their_quarter(shard: Path) -> None:
    store = shard / "store/0"
    high = [array.load() for array in open_high(store)]
    low = read_low(store)
    assert high[0].dtype == low[0].dtype == np.int16
    assert high[1].dtype == low[1].dtype == np.uint8
    assert high[0].shape == (3, 64, 64, 64)
    assert low[1].shape == (3, 16, 16, 16)
    rows = read_index(store)
    assert [row["subject_id"] for row in rows] == ["a", "b", "c"]
    assert {row["split"] for row in rows} == {"train", "validation"}
    np.testing.assert_array_equal(high[0][1], chest("effusion").volume.array.clip(-1024))
    for full, quarter in zip(high, low, strict=True):
        np.testing.assert_array_equal(quarter, full[:, ::4, ::4, ::4])
    for found, name in zip(unpack_labels(high[1][0]), STRUCTURES, strict=True):
        np.testing.assert_array_equal(found, read_volume(shard / f"masks/0/a/{name}.nii.gz").array)


def test_given_masks_replace_the_tools(shard: Path) -> None:
    np.testing.assert_array_equal(
        read_volume(shard / "masks/0/c/lobes.nii.gz").array, chest("cardiomegaly").masks["lobes"]
    )
    record = read_json(shard / "masks/0/c/segment.json")["structures"]
    assert record["lobes"]["tool"] == "given"
    assert record["airway"]["tool"] == "classical"
    scores = {row["subject_id"]: row for row in read_csv(shard / "qc.csv")}
    assert list(scores) == ["a", "b", "c", "mean"]
    assert float(scores["c"]["lobes_mean"]) == 1.0
    assert 0.8 < float(scores["a"]["lobes_mean"]) < 1.0
    assert float(scores["mean"]["lung"]) == pytest.approx(
        np.mean([float(scores[name]["lung"]) for name in "abc"]), abs=1e-4
    )


def test_the_same_command_twice_gives_the_same_bytes(shard: Path, tmp_path: Path) -> None:
    config = ["--config", str(shard / "preprocess.json"), "--quiet"]
    cohort = str(shard / "cohort/cohort.csv")
    assert main(["preprocess", "--cohort", cohort, "--shard", "0", "--out", str(tmp_path / "0"), *config]) == 0
    files = [path for path in (shard / "pre/0").rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        assert sha256(path) == sha256(tmp_path / "0" / path.relative_to(shard / "pre/0")), path.name


def test_single_form_keeps_other_files(tmp_path: Path) -> None:
    path = write_chest(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert main(["preprocess", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "mine.txt", "volume.nii.gz", "transform.tfm", "qc.json", "preview.png",
    }  # fmt: skip
    assert main(["preprocess", "--out", str(tmp_path / "out")]) == 2


def test_real_files(shared_data: Path) -> None:
    facts = inspect(shared_data / "ct/chest_real_5mm.nii.gz")
    assert facts["verdict"] == "ok"
    abdomen = inspect(shared_data / "ct/abdomen_not_a_chest_3mm.nii.gz")
    assert abdomen["verdict"] == "rejected"
    assert "not a chest" in abdomen["reasons"][0]
    series = inspect(shared_data / "ct/dicom_series_20_slices_upper_abdomen")
    assert series["size"] == [512, 512, 20]
    assert series["verdict"] == "rejected"
    assert "too small" in series["reasons"][0]


def test_real_chest_on_the_grid(shared_data: Path) -> None:
    source = read_ct(shared_data / "ct/chest_real_5mm.nii.gz")
    result = preprocess(source, CONFIG)
    assert result.volume.array.shape == (64, 64, 64)
    assert result.qc["lung_fraction_in_grid"] == 1.0
    assert result.qc["lungs_cut_by_scan"] == {"inferior": True, "superior": False}
    twice = Volume(source.array.astype(np.int32) - 1024, source.spacing_mm, source.origin_mm, source.direction)
    with pytest.raises(InputError, match="rescaled twice"):
        preprocess(twice, CONFIG)


def test_what_is_no_chest_is_centred_on_the_grid_if_none_is_required() -> None:
    array = np.full((40, 40, 40), -1000, np.int16)
    array[10:30, 10:30, 10:30] = 300
    volume = Volume(array, (5.0, 5.0, 5.0), (300.0, -70.0, 1000.0))
    config = PreprocessConfig(size=(32, 32, 32), field_of_view_mm=(320.0, 320.0, 320.0), alignment="atlas")
    with pytest.raises(InputError, match="rejected, not a chest"):
        preprocess(volume, config)
    result = preprocess(volume, config, require_chest=False)
    assert result.volume.array.shape == (32, 32, 32)
    inside = np.argwhere(result.volume.array > 0)
    np.testing.assert_allclose(inside.mean(0), 15.5, atol=0.01)
    assert result.qc["alignment_used"] == "none"
    assert "not a chest" in result.qc["warnings"][0]
