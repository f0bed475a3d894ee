"""The folder of a reader study: blind in every byte, balanced, never replaced; and its definition."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from study_data import METHODS, SIZE, stage, write_results

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.study.balance import balanced_orders, balanced_places, generator, williams_square
from medsyn.study.definition import check_sums, read_key, read_study, volume_file
from medsyn.study.make import make_study
from medsyn.volume import read_volume


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("run") / "results")


@pytest.fixture(scope="module")
def study(results):
    """Return the folder and the key of a study with repeated items."""
    out = results.parent / "blind"
    make_study(stage(repeats={"recognition": 2, "ranking": 3}), results, out, secret="s")
    return out, read_key(out.with_name("blind.key.json"), out)


def test_the_tasks_are_the_papers(study):
    folder, key = study
    asked = [item for item in read_study(folder).items if not item.practice and not item.repeats]
    recognition = [key.volumes[item.volumes[0]] for item in asked if item.task == "recognition"]
    assert sorted(entry.real for entry in recognition) == [False] * 5 + [True]
    assert Counter(entry.truth for entry in recognition if not entry.real) == {
        "pleural_effusion": 2, "consolidation": 1, "cardiomegaly": 1, "no_abnormality": 1
    }  # fmt: skip
    ranking = [item for item in asked if item.task == "ranking"]
    assert Counter(item.structure for item in ranking) == {"lobes": 4, "vessels": 4, "airways": 4}
    for item in ranking:
        assert {key.volumes[name].method for name in item.volumes} == {"real", *METHODS}


def test_practice_shows_nothing_that_is_asked_and_comes_first(study):
    definition = read_study(study[0])
    practice = {name for item in definition.items if item.practice for name in item.volumes}
    assert len(practice) == 5
    assert practice.isdisjoint(name for item in definition.items if not item.practice for name in item.volumes)
    for reader in definition.readers:
        assert [definition.item(slot.item).practice for slot in reader.order[:3]] == [True, True, False]


def test_all_bytes_but_the_voxels_are_the_same(study):
    """Names, header, length, compression and times: equal in all files, so that no classifier can use them."""
    folder, key = study
    contents, facts = [], set()
    for name in key.volumes:
        path = volume_file(folder, name)
        raw, status = path.read_bytes(), path.stat()
        stored = gzip.decompress(raw)
        contents.append(stored)
        facts.add((len(raw), raw[:20], stored[:352], len(stored), status.st_mode, status.st_mtime_ns))
        assert os.listxattr(path) == []
    assert len(facts) == 1
    assert len(set(contents)) == len(contents)  # and yet they are different volumes
    assert {path.stat().st_mtime for path in folder.rglob("*")} == {folder.stat().st_mtime}


def nearest_neighbour(features: np.ndarray, labels: list[str]) -> float:
    """Return the share of volumes whose nearest other volume is of the same method."""
    distances = ((features[:, None] - features[None]) ** 2).sum(-1).astype(float)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean([labels[i] == labels[int(j)] for i, j in enumerate(distances.argmin(1))]))


def file_features(path: Path, name: str, order: int) -> list[float]:
    """Return what can be known of a file without its voxels: name, length, head, times, place in the folder."""
    status = path.stat()
    head = list(path.read_bytes()[:15])
    return [*bytes.fromhex(name), status.st_size, *head, status.st_mtime, order]


def test_a_classifier_over_files_does_not_tell_methods_apart(study, results):
    folder, key = study
    names = sorted(key.volumes)
    labels = [key.volumes[name].method for name in names]
    features = np.array([file_features(volume_file(folder, name), name, k) for k, name in enumerate(names)])
    blind = nearest_neighbour((features - features.mean(0)) / (features.std(0) + 1e-9), labels)
    rng = np.random.default_rng(0)
    chance = [nearest_neighbour(features[:, :8] * 1.0, list(rng.permutation(labels))) for _ in range(500)]
    assert blind <= np.quantile(chance, 0.99)
    plain = [(path, path.stat().st_size) for path in sorted(results.glob("samples/*/reports/0/*/volume.nii.gz"))]
    methods = [path.parts[-5] for path, _ in plain]
    assert nearest_neighbour(np.array([[size] for _, size in plain]), methods) > 0.8, "sizes of the run's files do"


def test_no_byte_of_the_folder_names_a_method(study):
    folder, key = study
    words = {word.lower().encode() for word in (*METHODS, *METHODS.values(), "report_0", "phantom", "study_0")}
    words |= {entry.sample.encode() for entry in key.volumes.values() if len(entry.sample) > 3}
    for path in folder.rglob("*"):
        raw = path.read_bytes() if path.is_file() else b""
        raw = (raw + (gzip.decompress(raw) if path.suffix == ".gz" else b"")).lower()
        assert not any(word in raw + str(path.relative_to(folder)).lower().encode() for word in words), path


def test_lists_stand_in_the_order_of_random_names(study):
    definition = read_study(study[0])
    assert [item.id for item in definition.items] == sorted(item.id for item in definition.items)
    assert all(list(item.volumes) == sorted(item.volumes) for item in definition.items)


def test_nibabel_itk_and_the_package_read_the_same_volume_and_range(study):
    folder, key = study
    for name in list(key.volumes)[:4]:
        path = volume_file(folder, name)
        ours, theirs = read_volume(path), nibabel.load(path)
        assert ours.array.shape == SIZE
        np.testing.assert_array_equal(ours.array, np.asarray(theirs.dataobj).T)
        np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        np.testing.assert_allclose(theirs.get_qform(), theirs.get_sform(), atol=1e-4)
        assert nibabel.aff2axcodes(theirs.affine) == ("L", "A", "S")
        assert ours.array.min() >= -1000 and ours.array.max() <= 600


def test_the_voxels_are_those_of_the_run_within_the_range(study, results):
    folder, key = study
    name, entry = next((name, entry) for name, entry in key.volumes.items() if entry.method == "hagan")
    source = read_volume(results / "samples/hagan/reports/0" / entry.sample / "volume.nii.gz")
    np.testing.assert_array_equal(read_volume(volume_file(folder, name)).array, source.array.clip(-1000, 600))


def test_the_order_is_balanced_and_differs_between_readers(results, tmp_path):
    made = make_study(stage(readers={"reader": 8}), results, tmp_path / "b", secret="t")
    methods = {name: case.method for name, case in made.cases.items()}
    study, places = made.study, Counter()
    for reader in study.readers:
        for slot in reader.order:
            if study.item(slot.item).task == "ranking" and not study.item(slot.item).practice:
                places.update((slot.item, place, methods[name]) for place, name in enumerate(slot.volumes))
    assert set(places.values()) == {2}  # 8 readers, 4 places
    assert len({tuple(slot.item for slot in reader.order) for reader in study.readers}) == 8


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_williams_squares_balance_places_and_followers(n):
    rows = williams_square(n)
    for place in range(n):
        assert set(Counter(row[place] for row in rows).values()) == {len(rows) // n}
    followers = Counter(pair for row in rows for pair in pairwise(row))
    assert len(followers) == n * (n - 1) and len(set(followers.values())) <= 1


def test_orders_of_nothing_and_places_over_items():
    assert balanced_orders(0, 3, generator("a")) == [[], [], []]
    places = balanced_places(4, 1, 8, generator("a"))[0]
    assert all(Counter(order[place] for order in places) == dict.fromkeys(range(4), 2) for place in range(4))


def test_the_secret_and_not_the_seed_alone_decides(study, results, tmp_path):
    again = make_study(stage(repeats={"recognition": 2, "ranking": 3}), results, tmp_path / "a", secret="s")
    assert again.study == read_study(study[0])
    assert (tmp_path / "a/study.json").read_bytes() == (study[0] / "study.json").read_bytes()
    other = make_study(stage(), results, tmp_path / "b")
    assert set(other.cases).isdisjoint(again.cases)


def test_nothing_is_ever_replaced(study, results, tmp_path):
    folder, _ = study
    with pytest.raises(InputError, match="exists, and a study is never replaced"):
        make_study(stage(), results, folder)
    (tmp_path / "new.key.json").write_text("mine")
    with pytest.raises(InputError, match="exists, and a key is never replaced"):
        make_study(stage(), results, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="the key lies in the study"):
        make_study(stage(), results, tmp_path / "other", tmp_path / "other/key.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranking": {"methods": ["real", "medsyn"], "num_sets": 50}}, "ranking, real: 1. volumes that no other item"),
        (
            {"ranking": {"methods": ["real", "wgan"]}, "methods": METHODS | {"wgan": "WGAN"}},
            "no volume of 'wgan'; sample",
        ),
        ({"title": "Our HA-GAN study"}, "name 'HA-GAN', a method; reword"),
        ({"recognition": {"cases": ["cardiomegaly"] * 9}}, "recognition, medsyn with cardiomegaly: 2 volumes"),
        ({"repeats": {"ranking": 13}}, "13 is more than the 12 ranking items"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(changes, message, results, tmp_path):
    with pytest.raises(InputError, match=message):
        make_study(stage(**changes), results, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_system_takes_part_and_a_small_one_is_refused(results, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for number, path in enumerate(sorted(results.glob("samples/hagan/reports/0/*/volume.nii.gz"))):
        (theirs / f"v{number}.nii.gz").write_bytes(path.read_bytes())
    changes = {
        "folders": {"theirs": {"label": "Theirs", "path": str(theirs)}},
        "ranking": {"methods": ["real", "medsyn", "theirs"]},
        "methods": METHODS | {"theirs": "Theirs"},
        "practice": [],
    }
    made = make_study(stage(**changes), results, tmp_path / "s")
    assert {case.label for case in made.cases.values()} == {"real", "MedSyn", "Theirs"}
    image = sitk.ReadImage(str(theirs / "v0.nii.gz"))
    image.SetSpacing((5.0, 5.0, 5.0))
    for path in theirs.iterdir():
        sitk.WriteImage(image, str(path))
    with pytest.raises(InputError, match="covers 80 mm along z, expected the 292 mm"):
        make_study(stage(**changes), results, tmp_path / "t")
    assert not (tmp_path / "t").exists() and not (tmp_path / "t.key.json").exists()


def test_damage_is_found_when_a_study_is_read(results, tmp_path):
    out = tmp_path / "s"
    make_study(stage(), results, out)
    check_sums(out)
    study = json.loads((out / "study.json").read_text())
    volume = volume_file(out, read_study(out).volumes[0])
    volume.write_bytes(b"x")
    with pytest.raises(InputError, match="differs from its sum"):
        check_sums(out)
    volume.unlink()
    with pytest.raises(InputError, match="1 of its 27 volumes are missing"):
        read_study(out)
    study["readers"][0]["order"][0]["volumes"] = study["readers"][0]["order"][3]["volumes"]
    (out / "study.json").write_text(json.dumps(study))
    with pytest.raises(InputError, match="shows other volumes in item"):
        read_study(out)
    with pytest.raises(InputError, match="is the key of another study"):
        read_key(tmp_path / "s.key.json", out)


@pytest.mark.parametrize("name", ["../../etc/passwd", "0" * 15, "G" * 16, ""])
def test_a_name_that_is_not_one_of_a_volume_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="not the name of a volume"):
        volume_file(tmp_path, name)


def test_the_verb_makes_it_with_a_key_for_its_owner_alone(results, tmp_path, capsys):
    (tmp_path / "study.json").write_text(stage().model_dump_json())
    command = ["study", "make", "--config", str(tmp_path / "study.json"), "--results", str(results)]
    assert main([*command, "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s.key.json").stat().st_mode & 0o777 == 0o600
    assert main([*command, "--out", str(tmp_path / "s")]) == 2
    assert "medsyn study make: " in capsys.readouterr().err
    assert main(["study", "prompts", "--config", str(tmp_path / "study.json"), "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").read_text().count("\n") == 10
