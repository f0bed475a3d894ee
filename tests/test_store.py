"""The training store: crops equal the arrays, damage is found and named, subjects go back to NIfTI."""

from __future__ import annotations

import errno
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_store

from medsyn.cli import main
from medsyn.cohort import Subject
from medsyn.config import PreprocessConfig
from medsyn.ct.preprocess import model_grid
from medsyn.ct.store import CHUNK_EDGE, open_high, read_index, read_low, write_shard
from medsyn.errors import InputError
from medsyn.files import sha256, write_csv
from medsyn.stages.store import store_shard
from medsyn.training.data import Store
from medsyn.volume import STRUCTURES, Volume, read_volume, write_volume

SIZE = (40, 72, 36)  # no multiple of a chunk's edge along any axis
CONFIG = PreprocessConfig(size=SIZE)
SUBJECTS = [Subject(name, f"{name}.nii", "", "Clear.", "train", name, f"r{name}") for name in "ab"]


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and packed labels of SIZE; half of the volume is empty, as in a real one."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-1024, 600, SIZE).astype(np.int16)
    label = (rng.integers(0, 6, SIZE) + 8 * rng.integers(0, 4, SIZE)).astype(np.uint8)
    image[:, 36:], label[:, 36:] = -1024, 0
    return image, label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard of two subjects, s0 and s1."""
    rows = [{"subject_id": f"s{k}", "report_id": f"r{k}", "split": "train"} for k in range(2)]
    shard = tmp_path / "store"
    shard.mkdir()
    write_shard(shard, rows, map(arrays, range(2)), SIZE, 4)
    return shard


def test_crops_equal_the_arrays_wherever_chunks_end(folder: Path) -> None:
    stored = open_high(folder)
    assert max(SIZE) > CHUNK_EDGE
    for row in range(2):
        for array, truth in zip(stored, arrays(row), strict=True):
            assert array.dtype == truth.dtype and array.shape == (2, *SIZE)
            np.testing.assert_array_equal(array[row], truth)
            window = (slice(7, 40), slice(30, 65), slice(0, 33))
            np.testing.assert_array_equal(array[(row, *window)], truth[window])


def test_training_reads_the_same_crop_from_disk_and_from_memory(tmp_path: Path, monkeypatch) -> None:
    shards = [make_store(tmp_path / "0", size=SIZE)]
    in_memory = Store(shards, "high")
    monkeypatch.setattr("medsyn.training.data._IN_MEMORY_BYTES", 0)
    on_disk = Store(shards, "high")
    assert on_disk.hash == in_memory.hash and on_disk.size == SIZE
    window = (slice(1, 9), slice(60, 68), slice(28, 36))
    for a, b in zip(on_disk.volume(2, window), in_memory.volume(2, window), strict=True):
        assert a.flags.writeable and a.shape == (8, 8, 8)
        np.testing.assert_array_equal(a, b)


def test_low_resolution_needs_no_array_library(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert len(Store([folder], "low")) == 2
    with pytest.raises(InputError, match="pip install tensorstore"):
        Store([folder], "high")


def test_training_maps_the_low_resolution_and_keeps_the_training_rows_alone(tmp_path: Path, monkeypatch) -> None:
    rows = [
        {"subject_id": f"s{k}", "report_id": f"r{k}", "split": "train" if k % 2 else "validation"} for k in range(4)
    ]
    write_shard(tmp_path, rows, map(arrays, range(4)), SIZE, 4)
    low = tmp_path / "low_image.npy"
    content = bytearray(low.read_bytes())
    content[-4 * low.stat().st_size // 5] ^= 1  # of s0, which training does not read
    low.write_bytes(content)
    for resolution in ("low", "high"):
        store = Store([tmp_path], resolution)
        assert store.subject_ids == ["s1", "s3"]
        held = [array for pair in store._arrays for array in pair]
        if resolution == "low":
            mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
            assert all(str(tmp_path / f"low_{kind}.npy") in mapped for kind in ("image", "label"))
            assert not any(array.flags.owndata for array in held)
        else:
            assert [len(array) for array in held] == [2, 2]
        for place, seed in enumerate((1, 3)):
            step = 4 if resolution == "low" else 1
            for found, truth in zip(store.volume(place), arrays(seed), strict=True):
                np.testing.assert_array_equal(found, truth[::step, ::step, ::step])
    with pytest.raises(InputError, match="subject s0 is damaged"):
        read_low(tmp_path)


@pytest.mark.parametrize("fault", ["one bit", "truncated", "gone"])
def test_damage_is_one_error_that_names_the_subject(folder: Path, fault: str) -> None:
    file = folder / "high_image.zarr/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[:-1000] if fault == "truncated" else content)
    if fault == "gone":
        file.unlink()
    image, _ = open_high(folder)
    np.testing.assert_array_equal(image[0], arrays(0)[0])
    with pytest.raises(InputError, match="subject s1 is damaged"):
        image[1]
    with pytest.raises(InputError, match="subject s1 is damaged"):
        Store([folder], "high")


def test_damage_at_low_resolution_names_the_subject(folder: Path) -> None:
    file = folder / "low_label.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="subject s1 is damaged at low resolution"):
        read_low(folder)
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"low_label.npy: damaged"):
        read_low(folder)


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_shard(tmp_path, [{"subject_id": "s0", "report_id": "r0", "split": "train"}], [arrays(0)], SIZE, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG


def prepared(root: Path, subjects: list[Subject] = SUBJECTS) -> list[Path]:
    """Folders of preprocessed volumes and of masks of `subjects`."""
    spacing, origin = model_grid(CONFIG)
    for k, subject in enumerate(subjects):
        image, label = arrays(k)
        write_volume(root / "pre" / subject.subject_id / "volume.nii.gz", Volume(image, spacing, origin))
        for name, values in zip(STRUCTURES, (label & 7, (label & 8) // 8, (label & 16) // 16), strict=True):
            write_volume(root / "masks" / subject.subject_id / f"{name}.nii.gz", Volume(values, spacing, origin))
    for name in ("pre", "masks"):
        write_csv(root / name / "index.csv", ({"subject_id": s.subject_id} for s in subjects), ["subject_id"])
    return [root / "pre", root / "masks"]


def test_export_gives_back_the_files_that_went_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = prepared(tmp_path)
    store_shard(*folders, SUBJECTS, tmp_path / "store/0", CONFIG)
    command = ["export", "b", "--store", str(tmp_path / "store/0"), "--quiet", "--out"]
    assert main([*command, str(tmp_path / "b")]) == 0
    files = {"volume": folders[0] / "b/volume.nii.gz"} | {name: folders[1] / f"b/{name}.nii.gz" for name in STRUCTURES}
    for name, path in files.items():
        before, after = read_volume(path), read_volume(tmp_path / f"b/{name}.nii.gz")
        np.testing.assert_array_equal(after.array, before.array)
        assert after.array.dtype == before.array.dtype
        assert (after.spacing_mm, after.direction) == (before.spacing_mm, before.direction)
        assert after.origin_mm == pytest.approx(before.origin_mm, abs=1e-4)
    assert main(["export", "c", *command[2:], str(tmp_path / "c")]) == 2
    assert "c: no such subject" in capsys.readouterr().err
    index = tmp_path / "store/0/index.csv"
    row = read_index(index.parent)[1]
    index.write_text(index.read_text().replace(row["high_sha256"], "0" * 64))
    assert main([*command, str(tmp_path / "c")]) == 2
    assert "subject b is damaged (its checksum differs" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = prepared(tmp_path)
    for k in "01":
        store_shard(*folders, SUBJECTS, tmp_path / k, CONFIG)
    files = [path for path in (tmp_path / "0").rglob("*") if path.is_file()]
    assert len(files) == 2 * 3 + 4
    for path in files:
        assert sha256(path) == sha256(tmp_path / "1" / path.relative_to(tmp_path / "0")), path.name


def test_a_shard_without_subjects_and_one_on_another_grid(tmp_path: Path) -> None:
    folders = prepared(tmp_path)
    with pytest.raises(InputError, match=r"volume\.nii\.gz: its grid .* is not the model's"):
        store_shard(*folders, SUBJECTS, tmp_path / "other", PreprocessConfig(size=(40, 72, 40)))
    path = folders[1] / "a/airway.nii.gz"
    mask = read_volume(path)
    write_volume(path, Volume(mask.array, mask.spacing_mm, (0.0, 0.0, 0.0), mask.direction))
    with pytest.raises(InputError, match=r"airway\.nii\.gz: its grid"):
        store_shard(*folders, SUBJECTS, tmp_path / "other", CONFIG)
    assert not (tmp_path / "other").exists()
    store_shard(*prepared(tmp_path / "empty", []), [], tmp_path / "none", CONFIG)
    assert open_high(tmp_path / "none")[0].shape == (0, *SIZE)
    with pytest.raises(InputError, match="no volume of the split"):
        Store([tmp_path / "none"], "low")
