"""Real data in: adapters for public layouts, series of a DICOM folder, npz arrays, raw values, registration to the
atlas, air.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from chests import chest, write_chest, write_dicom

from medsyn.cli import main
from medsyn.cohort import build_cohort, load_cohort
from medsyn.cohort.layouts import MANIFEST_COLUMNS, from_csv
from medsyn.config import CohortConfig, PreprocessConfig
from medsyn.ct import preprocess as preprocessing
from medsyn.ct.air import air_is_off, calibrate_air, measure_air
from medsyn.ct.atlas import load_atlas, phantom_atlas
from medsyn.ct.dicom import choose_series, series_faults
from medsyn.ct.inspect import inspect
from medsyn.ct.preprocess import preprocess
from medsyn.ct.reading import read_ct, rescale_once
from medsyn.ct.register import affine_of, register
from medsyn.errors import InputError
from medsyn.files import read_csv, read_json, write_csv
from medsyn.header_hints import HeaderHints, parse_hints
from medsyn.orientation import reorient
from medsyn.phantom.plan import PLAN_GRID, make_plan
from medsyn.volume import Volume, centred_origin_mm, from_sitk, to_sitk, write_volume

ATLAS = PreprocessConfig(alignment="atlas")


def plan_lungs(seed: int) -> np.ndarray:
    """Lung mask (64, 64, 64) of another phantom than the atlas's, about 5 mm."""
    return np.asarray(make_plan((91, seed), ()).labels > 0)


def cropped(volume: Volume) -> Volume:
    """The same without the first two columns, so that it does not lie on the model's grid."""
    return Volume(volume.array[:, :, 2:], volume.spacing_mm, volume.origin_mm)


def test_reading_columns_are_parsed_and_checked() -> None:
    assert parse_hints({}) == HeaderHints()
    row = {"series": "thorax", "spacing_mm": "1.5 0.7,0.7", "orientation": "rps", "rescale_intercept": "-1024"}
    assert parse_hints(row) == HeaderHints("thorax", (1.5, 0.7, 0.7), "RPS", None, -1024.0)
    for bad in ({"spacing_mm": "1 2"}, {"spacing_mm": "1 2 0"}, {"orientation": "LLS"}, {"rescale_slope": "x"}):
        with pytest.raises(InputError, match="p7"):
            parse_hints(bad, "p7")


def test_raw_values_are_rescaled_and_hu_never_twice() -> None:
    hu = chest("normal").volume.array
    for raw, slope, intercept in (
        (hu + 1024, 1.0, -1024.0),
        (hu + 8192, 1.0, -8192.0),
        ((hu + 1024) * 2, 0.5, -1024.0),
    ):
        back, applied = rescale_once(raw, slope, intercept)
        assert applied
        np.testing.assert_allclose(back, hu, atol=0.5)
        again, applied = rescale_once(back, slope, intercept)
        assert not applied
        assert again is back
    soft = np.full((20, 20, 20), 40)
    assert not rescale_once(soft, 1.0, -1024.0)[1]


@pytest.fixture
def ct_rate(tmp_path: Path) -> Path:
    """A miniature of CT-RATE: one patient with two scans (two reconstructions of one), raw and HU; one held out."""
    hu = cropped(chest("normal").volume)
    for name, raw in (("train_1_a_1", True), ("train_1_a_2", False), ("train_1_b_1", False), ("valid_1_a_1", True)):
        patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        folder = tmp_path / "dataset" / patient / scan
        folder.mkdir(parents=True, exist_ok=True)
        # the raw release carries no true spacing either: the table does
        array = hu.array + 1024 if raw else hu.array
        write_volume(folder / f"{name}.nii.gz", Volume(array, (1.0, 1.0, 1.0)) if raw else hu)
    names = [f"{name}.nii.gz" for name in ("train_1_a_1", "train_1_a_2", "train_1_b_1", "valid_1_a_1")]
    texts = [{"VolumeName": n, "Findings_EN": f"Findings of {n[:9]}.", "Impressions_EN": "Normal."} for n in names]
    write_csv(tmp_path / "train_reports.csv", texts, ("VolumeName", "Findings_EN", "Impressions_EN"))
    z, y, x = hu.spacing_mm
    fact = {"RescaleSlope": "1.0", "RescaleIntercept": "-1024.0", "XYSpacing": f"[{x}, {y}]", "ZSpacing": str(z)}
    write_csv(tmp_path / "metadata.csv", [{"VolumeName": n} | fact for n in names], ("VolumeName", *fact))
    marks = [{"VolumeName": n, "Emphysema": "1", "Nodule": "0"} for n in names[:1]]
    write_csv(tmp_path / "labels.csv", marks, ("VolumeName", "Emphysema", "Nodule"))
    return tmp_path


def test_ct_rate_layout(ct_rate: Path) -> None:
    out = ct_rate / "cohort.csv"
    verb = ["manifest", "--layout", "ct-rate", "--images", str(ct_rate / "dataset"), "--out", str(out), "--quiet"]
    verb += ["--reports", str(ct_rate / "train_reports.csv"), "--metadata", str(ct_rate / "metadata.csv")]
    verb += ["--reconstructions", "all"]
    assert main([*verb, "--labels", str(ct_rate / "labels.csv")]) == 0
    rows = {row["subject_id"]: row for row in read_csv(out, MANIFEST_COLUMNS)}
    assert list(rows) == ["train_1_a_1", "train_1_a_2", "train_1_b_1", "valid_1_a_1"]
    assert {rows[n]["patient_id"] for n in list(rows)[:3]} == {"train_1"}
    assert rows["valid_1_a_1"]["patient_id"] == "valid_1"
    assert rows["train_1_a_1"]["report_id"] == rows["train_1_a_2"]["report_id"] != rows["train_1_b_1"]["report_id"]
    assert [row["split"] for row in rows.values()] == ["train", "train", "train", "validation"]
    assert rows["train_1_a_1"]["labels"] == "Emphysema"
    cohort = build_cohort([out], None, CohortConfig())
    assert cohort.rejects == []
    # the raw and the converted reconstruction come out the same, each rescaled at most once
    volumes = [read_ct(s.image, parse_hints(s.hints)) for s in cohort.subjects[:2]]
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    assert volumes[0].spacing_mm == pytest.approx(volumes[1].spacing_mm, rel=1e-5)


def test_a_table_of_ct_rate_in_another_ones_place_is_refused(ct_rate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = ["manifest", "ct-rate", str(ct_rate), "--out", str(ct_rate / "m.csv")]
    assert main([*verb, "--metadata", str(ct_rate / "labels.csv")]) == 2
    assert "labels.csv: missing column RescaleSlope" in capsys.readouterr().err
    assert main([*verb, "--reports", str(ct_rate / "metadata.csv")]) == 2
    assert "metadata.csv: missing column Findings_EN" in capsys.readouterr().err
    assert not (ct_rate / "m.csv").exists()


def test_a_cohort_with_reading_columns_reads_back_and_preprocesses(ct_rate: Path) -> None:
    verb = ["manifest", "ct-rate", str(ct_rate), "--reconstructions", "all", "--out", str(ct_rate / "m.csv")]
    assert main([*verb, "--quiet"]) == 0
    assert main(["cohort", "--manifest", str(ct_rate / "m.csv"), "--out", str(ct_rate / "c"), "--quiet"]) == 0
    subjects = load_cohort(ct_rate / "c/cohort.csv")
    assert subjects == build_cohort([ct_rate / "m.csv"], None, CohortConfig()).subjects
    assert subjects[0].hints["rescale_intercept"] == "-1024.0"
    verb = ["preprocess", "--cohort", str(ct_rate / "c/cohort.csv"), "--shard", "0", "--out", str(ct_rate / "p")]
    assert main([*verb, "--quiet"]) == 0
    results = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(ct_rate.glob("p/*/volume.nii.gz"))]
    assert len(results) >= 2
    np.testing.assert_array_equal(results[0], results[1])


def test_csv_layout_renames_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Scan,File,Findings,MRN\ns1,a.nii.gz,Clear.,p9\n")
    columns = {"subject_id": "Scan", "image": "File", "findings": "Findings", "patient_id": "MRN"}
    rows = from_csv(tmp_path / "t.csv", columns).rows
    assert rows[0]["image"] == str(tmp_path / "a.nii.gz")
    assert (rows[0]["subject_id"], rows[0]["patient_id"], rows[0]["findings"]) == ("s1", "p9", "Clear.")
    (tmp_path / "m.csv").write_text("subject_id,image,findings,Lobes\ns1,a.nii.gz,Clear.,l.nii.gz\ns2,,Clear.,\n")
    rows = from_csv(tmp_path / "m.csv", {"lobes": "Lobes"}, "/scans").rows
    assert [(row["image"], row["lobes"], row["airway"]) for row in rows] == [
        ("/scans/a.nii.gz", "/scans/l.nii.gz", ""),
        ("", "", ""),  # no image named: the cohort rejects it
    ]
    with pytest.raises(InputError, match="missing column Nr"):
        from_csv(tmp_path / "t.csv", {"subject_id": "Nr"})
    verb = ["manifest", "--layout", "csv", "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv")]
    assert main([*verb, "--columns", "nothing"]) == 2


@pytest.mark.parametrize(
    ("tags", "modality"),
    [
        ({"0008|0060": "MR"}, "MR"),
        ({"0008|0060": "pt"}, "PT"),
        ({"0008|0060": "", "0008|0016": "1.2.840.10008.5.1.4.1.1.4"}, "MR"),
    ],
)
def test_dicom_of_another_modality_is_refused(
    tmp_path: Path, tags: dict[str, str], modality: str, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = chest("normal").volume
    write_dicom(tmp_path / "scan", volume, "9", tags=tags)
    facts = inspect(tmp_path / "scan")
    assert facts["verdict"] == "rejected"
    assert f"modality {modality}, expected CT" in facts["reasons"][0]
    assert main(["preprocess", str(tmp_path / "scan"), "--out", str(tmp_path / "p"), "--quiet"]) == 2
    assert f"modality {modality}" in capsys.readouterr().err
    write_dicom(tmp_path / "scan", volume, "2")  # a CT beside it is read instead
    assert inspect(tmp_path / "scan")["verdict"] == "ok"
    facts = inspect(tmp_path / "scan", HeaderHints(series="1.2.826.0.1.3680043.2.1125.9"))
    assert f"modality {modality}, expected CT" in facts["reasons"][0]


@pytest.mark.parametrize("turn", ["as it is", "head first", "face down", "both"])
def test_npz_orientation_comes_from_the_anatomy(tmp_path: Path, turn: str) -> None:
    volume = cropped(chest("normal").volume)
    array = volume.array  # z to the head, y to the front, x to the left
    if turn in ("head first", "both"):
        array = array[::-1]
    if turn in ("face down", "both"):
        array = array[:, ::-1]
    np.savez_compressed(tmp_path / "trn1.npz", ct=array)
    hints = HeaderHints(spacing_mm=volume.spacing_mm)
    np.testing.assert_array_equal(reorient(read_ct(tmp_path / "trn1.npz", hints)).array, volume.array)


def test_npz_is_segmented_and_measured(tmp_path: Path) -> None:
    volume = cropped(chest("normal").volume)
    np.savez_compressed(tmp_path / "a.npz", ct=volume.array[::-1])
    spacing = ["--spacing-mm", " ".join(map(str, volume.spacing_mm)), "--quiet"]
    masks = tmp_path / "masks"
    assert main(["segment", str(tmp_path / "a.npz"), "--out", str(masks), *spacing]) == 0
    for options in ([], ["--masks", str(masks)]):
        assert main(["measure", str(tmp_path / "a.npz"), "--out", str(tmp_path / "m.json"), *spacing, *options]) == 0
        assert 3000 < read_json(tmp_path / "m.json")["lung_volume_ml"] < 7000


def test_npz_without_spacing_or_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=np.zeros((4, 4, 4)))
    assert "no spacing" in inspect(tmp_path / "a.npz")["reasons"][0]
    np.savez(tmp_path / "b.npz", ct=np.zeros((4, 4)))
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    for name, words in (("b", "one 3-D array"), ("c", "cannot be read")):
        assert words in inspect(tmp_path / f"{name}.npz", HeaderHints(spacing_mm=(1, 1, 1)))["reasons"][0]


@pytest.fixture(scope="module")
def many_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder: thin soft chest (2), thin sharp chest (3), long abdomen (4), short localizer (5), capture (6)."""
    folder = tmp_path_factory.mktemp("dicom")
    base = chest("normal").volume
    small = Volume(base.array[:, 10:40, 10:40], base.spacing_mm, base.origin_mm)
    fewer = Volume(small.array[:40], small.spacing_mm, small.origin_mm)
    chest_tags = {"0008|103e": "Thorax soft", "0018|1210": "B30f", "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL"}
    write_dicom(folder, fewer, "2", tags=chest_tags)
    write_dicom(folder, fewer, "3", tags=chest_tags | {"0008|103e": "Thorax hard", "0018|1210": "B70f"})
    write_dicom(folder, small, "4", tags=chest_tags | {"0008|103e": "Abdomen"})
    write_dicom(folder, fewer, "5", tags=chest_tags | {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"})
    write_dicom(folder, small, "6", tags=chest_tags | {"0008|0008": "DERIVED\\SECONDARY\\REFORMATTED"})
    return folder


def test_the_axial_soft_chest_series_is_chosen(many_series: Path) -> None:
    assert choose_series(many_series).description == "Thorax soft"
    assert choose_series(many_series, "Thorax hard").kernel == "B70f"
    uid = "1.2.826.0.1.3680043.2.1125.4"
    assert choose_series(many_series, uid).description == "Abdomen"
    assert len(read_ct(many_series, HeaderHints(series="Abdomen")).array) == 64
    with pytest.raises(InputError, match=r"no series 'Head'.*Thorax soft, 40 slices"):
        choose_series(many_series, "Head")
    with pytest.raises(InputError, match="3 series 'Thorax soft'"):
        choose_series(many_series, "Thorax soft")


def test_tilted_doubled_and_gapped_series_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = chest("normal").volume
    small = Volume(base.array[:30, 20:40, 20:40], base.spacing_mm, base.origin_mm)
    write_dicom(tmp_path / "tilt", small, "2", shear_mm=1.2)
    assert series_faults(choose_series(tmp_path / "tilt"))[0].startswith("gantry tilt")
    write_dicom(tmp_path / "tag", small, "2", tags={"0018|1120": "12"})
    assert series_faults(choose_series(tmp_path / "tag"))[0].startswith("gantry tilt")
    write_dicom(tmp_path / "gap", small, "2", skip=(12, 13))
    for verb in ("preprocess", "segment", "measure"):
        assert main([verb, str(tmp_path / "gap"), "--out", str(tmp_path / "o"), "--quiet"]) == 2
        error = capfd.readouterr().err.strip()
        assert "missing slices: 1 gaps" in error
        assert "\n" not in error
        assert not (tmp_path / "o").exists()


def test_sagittal_slices_and_oblique_grids_are_not_axial() -> None:
    from medsyn.ct.inspect import judge

    base = chest("normal").volume
    sagittal = Volume(base.array, (2.0, 2.0, 6.0), base.origin_mm)
    assert "not axial" in judge(sagittal)[0][0]
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, 0.7, 0.0)
    direction = np.array(turn.GetMatrix()).reshape(3, 3) @ np.diag([1.0, -1.0, 1.0])
    assert (
        "turned by 40 degrees" in judge(Volume(base.array, base.spacing_mm, direction=tuple(direction.ravel())))[0][0]
    )


def test_a_given_orientation_replaces_the_header(tmp_path: Path) -> None:
    volume = cropped(chest("normal").volume)
    path = tmp_path / "lost.nii.gz"  # written feet first, the header says nothing of it
    write_volume(path, Volume(volume.array[::-1], volume.spacing_mm))
    assert inspect(path)["reasons"][0].startswith("upside down")
    hints = parse_hints({"orientation": "LAI"})
    assert inspect(path, hints)["verdict"] == "ok"
    np.testing.assert_array_equal(reorient(read_ct(path, hints)).array, volume.array)


def test_a_header_that_takes_the_feet_for_the_head_is_found_out() -> None:
    from medsyn.ct.inspect import judge

    base = chest("normal").volume
    assert judge(base)[0] == []
    assert judge(base.with_array(base.array[::-1]))[0][0].startswith("upside down")
    assert judge(base.with_array(base.array[:, ::-1]))[0][0].startswith("front and back exchanged")
    below = Volume(base.array[:36], base.spacing_mm, base.origin_mm)  # cut below the carina: no trachea at either end
    assert judge(below)[0] == []


def test_air_is_measured_beside_padding_and_calibrated() -> None:
    hu = chest("normal").volume.array.copy()
    assert measure_air(hu) == pytest.approx(-1000, abs=3)
    drifted = np.rint(hu * 0.97).astype(np.int16)
    drifted[:, :10, :] = -1024
    drifted[:, -4:, :] = -1024
    drifted[:, :, :6] = -1024
    air = measure_air(drifted)
    assert air == pytest.approx(-970, abs=4)
    fixed, facts = calibrate_air(drifted)
    assert measure_air(fixed[:, 10:-4, 6:]) == pytest.approx(-1000, abs=4)
    assert facts["air_factor"] == pytest.approx(1000 / 970, abs=0.005)
    assert fixed[drifted == 0].tolist() == [0.0] * int((drifted == 0).sum())
    result = preprocess(chest("normal").volume, PreprocessConfig(calibrate_air=True))
    assert result.qc["air_hu"] == pytest.approx(-1000, abs=3)
    soft = np.full((20, 20, 20), 40.0)
    assert calibrate_air(soft) == (soft, {"air_hu": None, "air_factor": 1.0})
    assert air_is_off(hu) is None
    assert air_is_off(drifted) is None
    assert air_is_off(hu * 0.7) == pytest.approx(-700, abs=3)
    # a field of view inside the body: lung at its border is no proof of another scale
    assert air_is_off(hu[:, 16:48, 10:54]) is None


def test_atlas_is_a_pair_of_lungs_at_the_origin(tmp_path: Path) -> None:
    atlas = load_atlas(None)
    assert 2500 < atlas.array.sum() * atlas.voxel_mm3 / 1000 < 6000
    z, y, x = (np.flatnonzero(atlas.array.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    corners = np.array(
        [physical_point(atlas, (a[0], b[0], c[0])) for a, b, c in ((z, y, x), (z[::-1], y[::-1], x[::-1]))]
    )
    np.testing.assert_allclose(corners.mean(0), 0, atol=1e-6)
    assert main(["atlas", "--out", str(tmp_path / "a.nii.gz"), "--quiet"]) == 0
    np.testing.assert_array_equal(load_atlas(str(tmp_path / "a.nii.gz")).array, atlas.array)
    write_volume(tmp_path / "empty.nii.gz", atlas.with_array(np.zeros_like(atlas.array)))
    with pytest.raises(InputError, match="not a lung atlas"):
        load_atlas(str(tmp_path / "empty.nii.gz"))


def test_the_atlas_in_its_file_is_the_phantoms_mean() -> None:
    """Up to some voxels at the edge: another processor may round the phantoms' distances otherwise."""
    made, stored = phantom_atlas(), load_atlas(None)
    assert made.array.shape == stored.array.shape
    assert np.mean(made.array != stored.array) < 1e-4
    assert stored.spacing_mm == made.spacing_mm
    np.testing.assert_allclose(stored.origin_mm, made.origin_mm, atol=2.5)


def test_what_the_grid_does_not_see_of_a_fine_scan_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = cropped(chest("normal").volume)
    z, y, x = source.spacing_mm
    wide = np.pad(source.array, ((0, 0), (12, 0), (20, 6)), constant_values=-1000)
    origin = (source.origin_mm[0] - 20 * x, source.origin_mm[1] + 12 * y, source.origin_mm[2])
    fine = from_sitk(sitk.Expand(to_sitk(Volume(wide, (z, y, x), origin)), (3, 3, 1), sitk.sitkLinear))
    plain, seen = (preprocess(volume, PreprocessConfig()) for volume in (source, fine))
    # lungs of a fine scan are found on blocks of 2.5 mm at most
    assert seen.qc["lung_volume_ml"] == pytest.approx(plain.qc["lung_volume_ml"], rel=0.02)
    assert seen.transform.TransformPoint((0, 0, 0)) == pytest.approx(plain.transform.TransformPoint((0, 0, 0)), abs=3)
    crop, sizes = preprocessing._cropped, []

    def whole(model: Volume, transform: sitk.Transform, config: PreprocessConfig) -> Volume:
        sizes.append((crop(model, transform, config).array.size, model.array.size))
        return model

    monkeypatch.setattr(preprocessing, "_cropped", whole)
    uncropped = preprocess(fine, PreprocessConfig())
    assert sizes[0][0] < 0.85 * sizes[0][1]
    assert np.abs(seen.volume.array.astype(int) - uncropped.volume.array).max() <= 1


def physical_point(volume: Volume, index: tuple[int, int, int]) -> np.ndarray:
    matrix = np.array(volume.direction).reshape(3, 3)
    return np.array(volume.origin_mm) + matrix @ (np.array(index[::-1]) * np.array(volume.spacing_mm[::-1]))


def test_registration_recovers_a_known_affine_map() -> None:
    """The atlas itself, seen by a scanner that stretches and moves it: the transform found is that map."""
    atlas = load_atlas(None)
    scale, shift = np.array([0.9, 1.1, 0.95]), np.array([20.0, -35.0, 110.0])
    spacing = tuple(s * f for s, f in zip(atlas.spacing_mm, scale[::-1], strict=True))
    origin = tuple(np.array(atlas.origin_mm) * scale + shift)
    scan = Volume(atlas.array, spacing, origin)  # type: ignore[arg-type]
    found = register(atlas.array > 0, scan, atlas, shift + 8.0)
    matrix, offset = affine_of(found.transform)
    assert found.faults == []
    assert found.dice > 0.97 > found.dice_before
    assert np.abs(matrix - np.diag(scale)).max() < 0.03
    assert np.abs(offset - shift).max() < 2.0
    again = register(atlas.array > 0, scan, atlas, shift + 8.0)
    assert again.transform.GetParameters() == found.transform.GetParameters()


@pytest.mark.parametrize("seed", range(3))
def test_lungs_that_a_scan_cuts_are_not_stretched_to_fill_the_atlas(seed: int) -> None:
    atlas, lungs = load_atlas(None), plan_lungs(seed)
    spacing = PLAN_GRID.spacing
    x, y, z = centred_origin_mm(PLAN_GRID.size, spacing)
    whole = register(lungs, Volume(lungs, spacing, (x, y, z)), atlas, np.zeros(3))
    first = int(np.flatnonzero(lungs.any((1, 2)))[0]) + 10  # about 45 mm of the bases are missing
    part = Volume(lungs[first:], spacing, (x, y, z + first * spacing[0]))
    cut = register(lungs[first:], part, atlas, np.array([0.0, 0.0, 22.0]))  # the middle of what is left
    assert whole.dice > 0.9
    assert cut.dice > 0.9
    a, b = affine_of(whole.transform)[0], affine_of(cut.transform)[0]
    assert abs(a[2, 2] - b[2, 2]) < 0.1 * a[2, 2]


def test_an_optimiser_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ITK ERROR\nall points lie outside")

    monkeypatch.setattr(sitk.ImageRegistrationMethod, "Execute", fail)
    source = cropped(chest("normal").volume)
    result = preprocess(source, ATLAS)
    assert result.qc["alignment_used"] == "lung_centre"
    assert result.qc["registration_faults"][0] == "the optimiser stopped (all points lie outside)"


def test_preprocess_to_the_atlas_and_its_fallback(tmp_path: Path) -> None:
    source = cropped(chest("normal").volume)
    result = preprocess(source, ATLAS)
    assert result.qc["alignment_used"] == "atlas"
    assert result.qc["atlas_dice"] > max(0.85, result.qc["atlas_dice_centred"])
    assert result.qc["registration_faults"] == []
    # the written transform is the one that made the volume
    matrix, _ = affine_of(result.transform)
    assert result.qc["model_to_scanner_matrix"] == pytest.approx(matrix.ravel().tolist(), abs=1e-6)
    flipped = preprocess(reorient(source, "RPI"), ATLAS)
    assert np.abs(flipped.volume.array.astype(int) - result.volume.array).max() <= 2
    plate = np.zeros((20, 80, 80), np.uint8)
    plate[8:12, 5:75, 5:75] = 1
    write_volume(tmp_path / "plate.nii.gz", Volume(plate, (4.0, 4.0, 4.0)))
    back = preprocess(source, PreprocessConfig(alignment="atlas", atlas=str(tmp_path / "plate.nii.gz")))
    assert back.qc["alignment_used"] == "lung_centre"
    assert "overlap with the atlas" in back.qc["registration_faults"][0]
    np.testing.assert_array_equal(back.volume.array, preprocess(source, PreprocessConfig()).volume.array)


def test_truth_follows_the_affine_transform_in_mask_quality(tmp_path: Path) -> None:
    path = write_chest(tmp_path / "in/p")
    write_csv(
        tmp_path / "in/m.csv",
        [
            {
                "subject_id": "p",
                "image": "p/volume.nii.gz",
                "findings": "Clear.",
                "impression": "",
                "truth": "p/truth.json",
            }
        ],
        ("subject_id", "image", "findings", "impression", "truth"),
    )
    assert path.exists()
    (tmp_path / "atlas.json").write_text('{"alignment": "atlas"}')
    (tmp_path / "one.json").write_text('{"num_shards": 1}')
    cohort, config = str(tmp_path / "c/cohort.csv"), ["--config", str(tmp_path / "atlas.json")]
    out = {name: ["--out", str(tmp_path / name), "--quiet"] for name in ("c", "v", "m", "q.csv")}
    manifest = ["--manifest", str(tmp_path / "in/m.csv"), "--config", str(tmp_path / "one.json")]
    assert main(["cohort", *manifest, *out["c"]]) == 0
    assert main(["preprocess", "--cohort", cohort, "--shard", "0", *config, *out["v"]]) == 0
    assert main(["segment", "--volumes", str(tmp_path / "v"), *out["m"]]) == 0
    assert main(["mask-qc", "--masks", str(tmp_path / "m"), "--cohort", cohort, *out["q.csv"]]) == 0
    assert read_json(tmp_path / "v/p/qc.json")["alignment_used"] == "atlas"
    assert float(read_csv(tmp_path / "q.csv")[0]["lung"]) > 0.9
