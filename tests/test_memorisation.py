"""Copies of training volumes: planted ones are found, also shifted, flipped and noisy; independent ones are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medsyn.cli import main
from medsyn.ct.inspect import Verdict
from medsyn.evaluate.memorisation import COLUMNS, VALIDATION, low_quantile, memorisation, read_nearest
from medsyn.evaluate.nearest import FINE, FeatureSearch, Judge, Match, VoxelSearch, reduce
from medsyn.exhibits.memorisation import release_warning, warnings
from medsyn.files import read_csv, write_csv
from medsyn.layout import Layout
from medsyn.stages import folders
from medsyn.stages import nearest as stage
from medsyn.volume import Volume, write_volume

SIZE = 64
NUM_TRAINING, NUM_VALIDATION = 24, 20


def person(seed: int) -> NDArray[np.int16]:
    """A body of soft tissue with two lungs of the person's own size and texture, (64, 64, 64) in HU."""
    generator = np.random.default_rng(seed)
    z, y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    hu = np.where((y / 0.75) ** 2 + (x / 0.9) ** 2 < 1, 40.0, -1000.0)
    for side in (-1, 1):
        a, b, c = generator.uniform(0.6, 1.4, 3)
        lung = (z / (0.75 * a)) ** 2 + (y / (0.5 * b)) ** 2 + ((x - side * 0.42) / (0.33 * c)) ** 2 < 1
        hu[lung] = -850
    texture = gaussian_filter(generator.normal(size=hu.shape), 3)
    return (hu + 60 * texture / texture.std()).astype(np.int16)


@pytest.fixture(scope="module")
def training() -> NDArray[np.int16]:
    return np.stack([person(k) for k in range(NUM_TRAINING)])


@pytest.fixture(scope="module")
def search(training: NDArray[np.int16]) -> VoxelSearch:
    return VoxelSearch(np.stack([reduce(hu) for hu in training]))


def noisy(hu: NDArray) -> NDArray:
    return hu + np.random.default_rng(1).normal(0, 50, hu.shape)


COPIES: dict[str, Callable[[NDArray], NDArray]] = {
    "copy": lambda hu: hu,
    "noisy copy": noisy,
    "shifted by two voxels, with noise": lambda hu: noisy(np.roll(hu, 2, axis=2)),
    "shifted by two voxels on every axis, with noise": lambda hu: noisy(np.roll(hu, (2, -2, 2), axis=(0, 1, 2))),
    "shifted by one voxel on every axis, with noise": lambda hu: noisy(np.roll(hu, (1, -1, 1), axis=(0, 1, 2))),
    "between the voxels of the grid": lambda hu: noisy(np.roll(hu, (1, 3), axis=(0, 1))),
    "flipped": lambda hu: hu[:, :, ::-1],
    "flipped on all axes and shifted": lambda hu: np.roll(hu[::-1, ::-1, ::-1], 2, axis=1),
}


def matches(search: VoxelSearch | FeatureSearch, values: NDArray, limit: float | None = None) -> list[Match]:
    judge = Judge(search, limit)
    return [judge.match(found) for found in search.neighbours(values)]


def unseen_isolation(search: VoxelSearch) -> float:
    """The smallest isolation of independent volumes."""
    found = matches(search, np.stack([reduce(person(1000 + k)) for k in range(NUM_VALIDATION)]))
    return min(match.isolation for match in found if match.isolation is not None)


def test_copies_stand_out_and_independent_volumes_do_not(search: VoxelSearch, training: NDArray[np.int16]) -> None:
    limit = unseen_isolation(search)
    for name, change in COPIES.items():
        match = matches(search, reduce(change(training[7]))[None])[0]
        assert match.index == 7, name
        assert match.isolation is not None
        assert match.isolation < 0.6 * limit, name
    mean = matches(search, reduce(training.mean(axis=0))[None])[0]
    assert mean.isolation is not None
    assert mean.isolation > limit, "a smooth volume is close to many and a copy of none"


def test_an_exact_copy_has_distance_0_and_a_flat_volume_distance_1(search: VoxelSearch, training: NDArray) -> None:
    same, flat = matches(search, np.stack([reduce(training[3]), reduce(np.full((SIZE,) * 3, 40))]))
    assert same.distance == pytest.approx(0, abs=1e-4)
    assert flat.distance == pytest.approx(1)


def test_reduced_volumes_are_means_of_blocks() -> None:
    hu = np.random.default_rng(0).integers(-1000, 500, (64, 48, 70)).astype(np.int16)
    small = reduce(hu)
    assert small.shape == (FINE, FINE, FINE)
    ramp = np.broadcast_to(np.arange(64)[:, None, None] * 10, (64, 64, 64))
    assert reduce(ramp)[3, 5, 9] == pytest.approx(65, abs=0.51)
    point = np.zeros((64, 64, 64))
    point[6:8, 6:8, 6:8] = 512
    assert reduce(point)[2:5, 3, 3].tolist() == [32, 64, 32]
    assert reduce(np.full((7, 8, 9), 3000)).shape == (6, 8, 8)
    assert (reduce(np.full((7, 8, 9), 3000)) == 600).all()


def test_features_known_answer() -> None:
    match = matches(FeatureSearch(np.array([[3.0, 4.0], [0.0, 10.0], [0.0, 20.0]])), np.array([[0.0, 0.0]]))[0]
    assert (match.index, match.distance) == (0, 5.0)
    assert match.isolation == pytest.approx(5 / 15)
    assert matches(FeatureSearch(np.ones((1, 2))), np.zeros((1, 2)))[0].isolation is None


def test_copies_within_the_training_set_hide_nothing(training: NDArray[np.int16]) -> None:
    """Fourteen augmented copies of a patient: a further copy still stands out from the next ten patients."""
    rolls = [(0, 0, 0), (2, 0, 0), (0, 2, 2), (2, -2, 2), (-1, 1, 0), (1, 1, 1), (0, 0, 3)]
    augmented = [np.roll(hu, roll, axis=(0, 1, 2)) for roll in rolls for hu in (training[7], training[7][:, :, ::-1])]
    search = VoxelSearch(np.stack([reduce(hu) for hu in (*training, *map(noisy, augmented))]))
    copy = reduce(noisy(np.roll(training[7], (1, 2, -1), axis=(0, 1, 2))))[None]
    unseen = np.stack([reduce(person(1000 + k)) for k in range(NUM_VALIDATION)])
    limit = low_quantile([found.distance for found in search.neighbours(unseen)])
    smallest = min(match.isolation or 1 for match in matches(search, unseen, limit))
    (hidden,), (found,) = matches(search, copy), matches(search, copy, limit)
    assert hidden.isolation is not None and found.isolation is not None
    assert hidden.isolation > 2 * found.isolation
    assert found.isolation < 0.6 * smallest


def test_the_threshold_holds_for_volumes_that_are_not_among_those_that_set_it() -> None:
    assert low_quantile(list(range(18))) is None
    assert [low_quantile(list(range(n, 0, -1))) for n in (19, 38, 39, 99)] == [1, 1, 2, 5]
    random = np.random.default_rng(0).normal(size=(4000, 31))
    below = [row[30] < (low_quantile(row[:30]) or 0) for row in random]
    assert np.mean(below) == pytest.approx(1 / 31, abs=0.01)


def rows_of(group: str, values: list[float]) -> list[dict[str, object]]:
    return [
        {"group": group, "volume": f"{group}{k}", "voxel_isolation": v, "voxel_distance": v}
        for k, v in enumerate(values)
    ]


def test_shares_known_answer() -> None:
    unseen = rows_of(VALIDATION, [0.05, *(k / 20 for k in range(2, 20))])  # the smallest of 19
    found = memorisation([*unseen, *rows_of("ours", [0.04, 0.05, 0.5, 0.6])], "ours")
    assert (found["n"], found["voxel_share"], found["voxel_threshold"]) == (4, 0.25, pytest.approx(0.05))
    assert found["voxel_share_ci_low"] == pytest.approx(0.0456, abs=1e-4)  # Wilson, 1 of 4
    assert found["voxel_share_ci_high"] == pytest.approx(0.6994, abs=1e-4)
    assert "feature_share" not in found
    few = memorisation([*unseen[:18], *rows_of("ours", [0.0])], "ours")
    assert "voxel_share" not in few
    assert "fewer than 19 validation volumes" in few["note"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, training: NDArray[np.int16]) -> Path:
    """A cohort and two methods: one that copies, shifts and flips training volumes, and one that makes its own."""
    root = tmp_path_factory.mktemp("run")
    people = {f"t{k}": hu for k, hu in enumerate(training)} | {f"v{k}": person(1000 + k) for k in range(NUM_VALIDATION)}
    for name, hu in people.items():
        write(root / "real" / name, hu)
    rows = [{"subject_id": name, "split": "train" if name[0] == "t" else "validation"} for name in people]
    write_csv(root / "cohort.csv", rows, ["subject_id", "split"])
    for k in range(4):
        write(root / f"copies/c{k}", list(COPIES.values())[k](training[k]).astype(np.int16))
        write(root / f"honest/h{k}", person(2000 + k))
    return root


def write(folder: Path, hu: NDArray) -> None:
    write_volume(folder / "volume.nii.gz", Volume(hu, (4.5, 4.9, 4.9)))


def nearest(run: Path, out: Path, *options: str) -> int:
    samples = [word for name in ("copies", "honest") for word in ("--samples", name, str(run / name))]
    words = ["nearest", "--cohort", str(run / "cohort.csv"), "--real", str(run / "real"), *samples, *options]
    return main([*words, "--out", str(out), "--quiet"])


def test_a_method_that_copies_is_found_and_told(run: Path, tmp_path: Path) -> None:
    assert nearest(run, tmp_path / "nearest.csv") == 0
    rows = {row["volume"]: row for row in read_csv(tmp_path / "nearest.csv", COLUMNS)}
    assert len(rows) == NUM_VALIDATION + 8
    assert [rows[f"c{k}"]["voxel_nearest"] for k in range(4)] == ["t0", "t1", "t2", "t3"]
    settings = tmp_path / "evaluation.json"
    settings.write_text(json.dumps({"prompt_pairs": {}}), encoding="utf-8")
    table = ["table", "memorisation", "--config", str(settings), "--file", "nearest", str(tmp_path / "nearest.csv")]
    assert main([*table, "--out", str(tmp_path / "t.csv"), "--quiet"]) == 0
    found = read_csv(tmp_path / "t.csv")
    assert [(row["method"], row["verdict"]) for row in found] == [
        ("copies", "above"),
        ("honest", "within"),
        (VALIDATION, ""),
    ]
    assert float(found[0]["voxel_share"]) == 1
    assert [line.startswith("Memorisation: 100 % of the volumes of copies") for line in warnings(found)] == [True]
    figure = ["figure", "memorisation_pairs", "--file", "nearest", str(tmp_path / "nearest.csv")]
    volumes = [word for name in ("real", "copies", "honest") for word in ("--volumes", name, str(run / name))]
    assert main([*figure, *volumes, "--out", str(tmp_path / "f.png"), "--quiet"]) == 0
    assert (tmp_path / "f.png").stat().st_size > 20_000


def test_evaluate_tells_the_numbers_of_the_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Volumes on one grid are taken as they are: `evaluate --training` and `nearest` then see the same."""
    monkeypatch.setattr(folders, "measure_volume", lambda *_, **__: None)
    monkeypatch.setattr(folders, "judge", lambda _: Verdict([]))
    monkeypatch.setattr(folders, "preprocess", lambda volume, *_, **__: SimpleNamespace(volume=volume))
    for name in (path.name for path in (run / "real").iterdir()):
        split = "train" if name[0] == "t" else "unseen"
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / name).symlink_to(run / "real" / name)
    words = ["evaluate", "--real", tmp_path / "unseen", "--synthetic", run / "copies", "--training", tmp_path / "train"]
    assert main([*map(str, words), "--out", str(tmp_path / "e.csv")]) == 0
    assert "Memorisation: 100 % of the volumes" in capsys.readouterr().err
    assert nearest(run, tmp_path / "nearest.csv") == 0
    expected = memorisation(read_nearest(tmp_path / "nearest.csv"), "copies")
    found = {row["metric"]: row for row in read_csv(tmp_path / "e.csv")}
    for name in ("share", "threshold", "close_share", "median", "validation_median"):
        value = float(found[f"memorisation_voxel_{name}"]["value"])
        assert value == pytest.approx(expected[f"voxel_{name}"], rel=1e-4, abs=1e-6), name
    pairs = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))["closest_pairs"]
    assert {(row["volume"], row["voxel_nearest"]) for row in pairs} == {(f"c{k}", f"t{k}") for k in range(4)}


def test_a_release_is_warned_of_copies_and_of_a_missing_verdict(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "results"))
    weights, table = Path(layout.run("ours")), Path(layout.table("memorisation"))
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert "has no verdict on this run" in (release_warning(weights.parent) or "")
    row = {"method": "ours", "label": "Ours", "voxel_share": 0.5, "max_share": 0.15}
    for verdict, words in (("above", "50 % of the volumes of Ours"), ("", "no verdict"), ("within", None)):
        write_csv(table, [row | {"verdict": verdict}], [*row, "verdict"])
        found = release_warning(weights)
        assert found is None if words is None else words in (found or "")
    os.utime(table, (0, 0))
    assert "has no verdict on this run" in (release_warning(weights) or ""), "older than the run"


def test_a_model_overfitted_on_four_subjects_is_found(search: VoxelSearch, training: NDArray[np.int16]) -> None:
    """Near copies: a fifth of the mean volume, noise, and shifts of one to two voxels; each subject five times."""
    random, mean = np.random.default_rng(2), training.mean(axis=0)
    made = [
        noisy(np.roll(0.8 * training[k] + 0.2 * mean, tuple(random.integers(-2, 3, 3)), axis=(0, 1, 2)))
        for k in range(4)
        for _ in range(5)
    ]
    limit = unseen_isolation(search)
    found = matches(search, np.stack([reduce(hu) for hu in made]))
    assert [match.index for match in found] == [k for k in range(4) for _ in range(5)]
    assert all(match.isolation is not None and match.isolation < limit for match in found)


def test_volumes_are_read_one_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No whole volume is alive when the next one is read."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    read = stage.read_volume

    def counted(path: Path) -> Volume:
        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        volume = read(path)
        alive.append(weakref.ref(volume))
        return volume

    monkeypatch.setattr(stage, "read_volume", counted)
    assert nearest(run, tmp_path / "nearest.csv") == 0
    assert len(alive) == NUM_TRAINING + NUM_VALIDATION + 8


def test_wrong_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "n.csv"
    assert nearest(run, out, "--samples", "training", str(run / "honest")) == 2
    assert "--samples training: is the name of a split" in capsys.readouterr().err
    write_csv(tmp_path / "cohort.csv", [{"subject_id": "t0", "split": "train"}], ["subject_id", "split"])
    assert nearest(run, out, "--cohort", str(tmp_path / "cohort.csv")) == 2
    assert "no validation volumes" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    words = ["figure", "memorisation_pairs", "--file", "nearest", str(tmp_path / "other.csv")]
    assert main([*words, "--volumes", "real", str(run / "real"), "--out", str(tmp_path / "f.png")]) == 2
    assert "other.csv" in capsys.readouterr().err
