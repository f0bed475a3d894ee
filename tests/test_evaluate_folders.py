"""`medsyn evaluate` on folders of other systems: geometry that is given, damaged files, refused volumes, warnings."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from chests import chest, write_chest

from medsyn.cli import main
from medsyn.ct.inspect import Verdict
from medsyn.errors import InputError
from medsyn.evaluate.distances import METRIC_NAMES
from medsyn.files import read_csv, sha256
from medsyn.orientation import MODEL_CODE, reorient
from medsyn.scan_warnings import ORIENTATION, RANGE, SPACING
from medsyn.stages import folders as stages_folders
from medsyn.volume import Volume, write_volume
from medsyn.volume_files import find_volumes

KINDS = ("normal", "effusion")


def block(seed: int) -> Volume:
    """(16, 16, 16) noise in HU with one voxel of bone: measured in no time, and no chest."""
    hu = np.random.default_rng(seed).normal(-800, 60, size=(16, 16, 16)).astype(np.int16)
    hu[0, 0, 0] = 700
    return Volume(hu, (18.0, 19.0, 19.0))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three small volumes each, as real and as synthetic ones."""
    for group, shift in (("real", 0), ("fake", 5)):
        for k in range(3):
            write_volume(tmp_path / group / f"{k}/volume.nii.gz", block(shift + k))
    return tmp_path / "real", tmp_path / "fake"


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms, to be read only."""
    folder = tmp_path_factory.mktemp("chests")
    for kind in KINDS:
        write_chest(folder / kind, kind)
    return folder


def evaluate(real: Path, fake: Path, *options: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status, and the rows by metric."""
    out = fake.parent / "table.csv"
    words = ["evaluate", "--real", real, "--synthetic", fake, "--out", out, "--quiet", *options]
    status = main([str(word) for word in words])
    return status, {row["metric"]: row for row in read_csv(out)} if out.exists() else {}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def header_of_too_many_voxels(path: Path) -> None:
    write_header(path, 42, np.array([30000] * 3, "<i2"))


def infinite_offset(path: Path) -> None:
    write_header(path, 108, np.array([np.inf], "<f4"))


def write_header(path: Path, offset: int, values: np.ndarray) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(gzip.compress(bytes(data)))


def a_folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone.nii.gz")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def scaled_for_a_network(path: Path) -> None:
    hu = block(1)
    write_volume(path, hu.with_array((hu.array / 1024).clip(-1, 1).astype(np.float32)))


DAMAGES = (
    truncated,
    header_of_too_many_voxels,
    infinite_offset,
    a_folder_in_its_place,
    a_link_to_nothing,
    a_pipe,
    scaled_for_a_network,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_bad_volume_costs_only_itself(
    folders: tuple[Path, Path], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the real and one of the synthetic volumes."""
    bad = [folder / "1/volume.nii.gz" for folder in folders]
    for path in bad:
        damage(path)
    status, rows = evaluate(*folders)
    assert status == 0
    for row in rows.values():
        for group in ("real", "synthetic"):
            assert (row[f"num_volumes_{group}"], row[f"num_refused_{group}"]) == ("3", "1")
            assert float(row[f"refused_fraction_{group}"]) == pytest.approx(1 / 3, abs=1e-4)
    assert (rows["lung_volume_ml"]["n_real"], rows["lung_volume_ml"]["n_synthetic"]) == ("2", "2")
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out of the evaluation" in line]
    assert [line.count(str(path)) for path, line in zip(bad, lines, strict=True)] == [1, 1]
    record = json.loads((folders[0].parent / "table.json").read_text(encoding="utf-8"))
    assert [reject["file"] for reject in record["rejects"]] == list(map(str, bad))
    assert all(record["inputs"][str(path)] is None for path in bad)
    good = folders[1] / "0/volume.nii.gz"
    assert record["inputs"][str(good)] == sha256(good)


def test_a_system_whose_failed_volumes_are_refused_is_an_error(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = folders
    truncated(fake / "0/volume.nii.gz")
    scaled_for_a_network(fake / "1/volume.nii.gz")
    status, rows = evaluate(real, fake)
    message = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and not rows and not (fake.parent / "table.json").exists()
    assert f"{fake}: 2 of 3 synthetic volumes are refused (67%), at most 10% may be; first: " in message
    assert f"{fake / '0/volume.nii.gz'}: cannot be read" in message and "--max-refused-fraction" in message
    assert evaluate(fake, real)[0] == 2, "the same holds for the real volumes"
    assert evaluate(real, fake, "--max-refused-fraction", "nan")[0] == 2
    status, rows = evaluate(real, fake, "--max-refused-fraction", 0.7)
    assert status == 0
    for row in rows.values():
        assert float(row["refused_fraction_synthetic"]) == pytest.approx(2 / 3, abs=1e-4)
        assert row["refused_fraction_real"] == "0"
    assert rows["lung_volume_ml"]["n_synthetic"] == "1"


def test_nothing_left_is_an_error_whatever_the_limit(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folders[1] / "1")
    shutil.rmtree(folders[1] / "2")
    truncated(folders[1] / "0/volume.nii.gz")
    assert evaluate(*folders, "--max-refused-fraction", 1)[0] == 2
    assert "1 of 1 synthetic volumes" in capsys.readouterr().err


def test_a_volume_that_cannot_be_brought_to_the_grid_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured, but left out of FID: its share must count."""
    real, fake = folders
    bring = stages_folders.preprocess

    def fails(volume: Volume, config: object, name: str, require_chest: bool) -> object:
        if not require_chest and name in ("0", "1"):
            raise RuntimeError("no transform")
        return bring(volume, config, name=name, require_chest=False)

    monkeypatch.setattr(stages_folders, "preprocess", fails)
    monkeypatch.setattr(stages_folders, "judge", lambda _volume: Verdict([]))
    monkeypatch.setattr(stages_folders, "load_extractor", lambda _path, _window: (None, {"name": "means"}))
    monkeypatch.setattr(
        stages_folders, "features_of", lambda _net, arrays, _window: np.array([[a.mean()] for a in arrays])
    )
    (real.parent / "weights").touch()
    options = ["--weights", real.parent / "weights"]
    assert evaluate(real, fake, *options) == (2, {})
    status, rows = evaluate(real, fake, *options, "--max-refused-fraction", 0.7)
    assert status == 0
    fid = rows["fid"]
    assert (fid["num_refused_synthetic"], fid["num_missing_synthetic"], fid["num_missing_real"]) == ("2", "2", "0")
    assert rows["lung_volume_ml"]["n_synthetic"] == "3"


def without_geometry(volume: Volume, path: Path) -> None:
    """Write the voxels in model orientation as generators do: identity affine, 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(reorient(volume).array), str(path))


def test_given_spacing_and_orientation_replace_what_the_files_lack(chests: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        without_geometry(chest(kind).volume, tmp_path / f"fake/{kind}.nii.gz")
    spacing = " ".join(map(str, chest("normal").volume.spacing_mm))
    status, rows = evaluate(chests, tmp_path / "fake", "--spacing-mm", spacing, "--orientation", MODEL_CODE)
    assert status == 0
    for name, row in rows.items():
        if name not in METRIC_NAMES:
            assert float(row["synthetic_mean"]) == pytest.approx(float(row["real_mean"]), rel=1e-4)
    record = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert record["reading"]["synthetic"]["orientation"] == MODEL_CODE
    assert record["reading"]["real"]["spacing_mm"] is None


def test_files_without_geometry_are_named_in_the_table(folders: tuple[Path, Path]) -> None:
    real, fake = folders
    without_geometry(block(3), fake / "1/volume.nii.gz")
    status, rows = evaluate(real, fake)
    assert status == 0
    for row in rows.values():
        assert row["warnings_synthetic"] == f"{ORIENTATION} (1), {SPACING} (1)" and row["warnings_real"] == ""
    assert (
        evaluate(real, fake, "--spacing-mm", "18 19 19", "--orientation", "LAS")[1]["fid"]["warnings_synthetic"] == ""
    )


def test_the_real_files_have_options_of_their_own(folders: tuple[Path, Path]) -> None:
    """Twice the spacing makes eight times the volume; the other folder keeps its own."""
    real, fake = folders
    for options, names in (
        (["--real-spacing-mm", "36 38 38", "--real-orientation", "LPS"], ("real",)),
        (["--spacing-mm", "36 38 38"], ("synthetic",)),
    ):
        status, _ = evaluate(real, fake, *options)
        assert status == 0
        hints = json.loads((real.parent / "table.json").read_text(encoding="utf-8"))["reading"]
        for group, values in hints.items():
            assert values["spacing_mm"] == ([36, 38, 38] if group in names else None)


@pytest.mark.parametrize("option", [("--spacing-mm", "1 2"), ("--orientation", "XYZ"), ("--real-spacing-mm", "0 1 1")])
def test_given_geometry_that_cannot_be_is_refused(
    folders: tuple[Path, Path], option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*folders, *option) == (2, {})
    assert capsys.readouterr().err.count("\n") == 1


def test_warnings_that_change_a_number_stand_in_the_table(chests: Path, tmp_path: Path) -> None:
    hu = chest("normal").volume
    path = tmp_path / "fake/clipped.nii.gz"
    write_volume(path, hu.with_array(np.minimum(hu.array, 200)))
    status, rows = evaluate(chests, tmp_path / "fake")
    assert status == 0
    for row in rows.values():
        assert f"{RANGE} (1)" in row["warnings_synthetic"].split(", ")
        assert row["num_warned_synthetic"] == "1"
        assert RANGE not in row["warnings_real"]
    record = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert any(line.startswith(RANGE) and "200 HU" in line for line in record["warnings"][str(path)])


def test_the_sidecar_hashes_both_files_of_a_pair(folders: tuple[Path, Path]) -> None:
    real, fake = folders
    image = sitk.ReadImage(str(fake / "0/volume.nii.gz"))
    shutil.rmtree(fake)
    fake.mkdir()
    sitk.WriteImage(image, str(fake / "0.img"))
    assert evaluate(real, fake)[0] == 0
    inputs = json.loads((fake.parent / "table.json").read_text())["inputs"]
    assert {inputs[str(fake / name)] for name in ("0.hdr", "0.img")} == {
        sha256(fake / name) for name in ("0.hdr", "0.img")
    }


def test_volumes_are_found_however_a_system_arranges_them(tmp_path: Path) -> None:
    names = ("a/one.NII.GZ", "a/b/two.mha", "a/._one.nii.gz", "notes.txt", "a/three.npz", "a/four.hdr", "a/four.img")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_volumes(tmp_path) == {
        "a/b/two": tmp_path / "a/b/two.mha",
        "a/four": tmp_path / "a/four.hdr",
        "a/one": tmp_path / "a/one.NII.GZ",
        "a/three": tmp_path / "a/three.npz",
    }
    (tmp_path / "flat.nii").touch()
    with pytest.raises(InputError, match=r"volumes in two places, .*/flat\.nii and .*; name the folder of one"):
        find_volumes(tmp_path)
    for name in ("flat/flat.nii", "flat/._flat.nii", "flat/.cache/a.nii", "flat/flat_lobes.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_volumes(tmp_path / "flat") == {"flat": tmp_path / "flat/flat.nii"}
    for name in ("own/c/volume.nii.gz", "own/c/lobes.nii.gz", "own/c/more/x.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_volumes(tmp_path / "own") == {"c": tmp_path / "own/c/volume.nii.gz"}
    (tmp_path / "own/x.nii").touch()
    with pytest.raises(InputError, match="volumes in two places"):
        find_volumes(tmp_path / "own")
    (tmp_path / "twice/d").mkdir(parents=True)
    for name in ("x.nii", "x.nii.gz"):
        (tmp_path / "twice/d" / name).touch()
    with pytest.raises(InputError, match="give every id once"):
        find_volumes(tmp_path / "twice")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no volume in it"):
        find_volumes(tmp_path / "empty")
