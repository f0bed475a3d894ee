"""The verbs that train, extract, classify, score and compare, on volumes of 16^3 voxels whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity import hashed

from medsyn.cli import main
from medsyn.config import (
    AugmentationConfig,
    AugmentationStage,
    EvaluationConfig,
    FeaturesConfig,
    FeaturesStage,
    PreprocessConfig,
)
from medsyn.ct.store import write_shard
from medsyn.errors import InputError
from medsyn.evaluate.classifier import Subset, pool_volumes, pooled, stratified_folds
from medsyn.evaluate.features import load_extractor, read_med3d
from medsyn.evaluate.inputs import list_volumes, read_features
from medsyn.files import read_csv, write_csv, write_json
from medsyn.models.resnet3d import ResNet3d
from medsyn.stages import features as stages_features
from medsyn.volume import Volume, write_volume

SPACING = (18.0, 19.0, 19.0)
WINDOW = (-1024.0, 600.0)


def volume(seed: int, bright: bool) -> np.ndarray:
    """(16, 16, 16) int16 lung-like noise, with a dense block if `bright`."""
    hu = np.random.default_rng(seed).normal(-800, 60, size=(16, 16, 16))
    if bright:
        hu[:, :8] += 800
    return hu.astype(np.int16)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve labelled subjects as store and folders, eight samples, the stage files."""
    subjects = [
        {"subject_id": f"s{k}", "report_id": f"r{k}", "split": "train" if k < 8 else "validation"} for k in range(12)
    ]
    arrays = np.stack([volume(k, k % 2 == 1) for k in range(12)])
    write_csv(tmp_path / "cohort.csv", subjects, ["subject_id", "report_id", "split"])
    (tmp_path / "store").mkdir()
    labels = np.zeros(arrays.shape[1:], np.uint8)
    write_shard(tmp_path / "store", subjects, ((array, labels) for array in arrays), labels.shape, 4)
    write_csv(
        tmp_path / "labels.csv",
        [{"id": f"r{k}", "dense": k % 2, "never": 0, "unasked": k % 3 % 2} for k in range(12)],
        ["id", "dense", "never", "unasked"],
    )
    for k, array in enumerate(arrays):
        write_volume(tmp_path / f"volumes/s{k}/volume.nii.gz", Volume(array, SPACING))
    prompts = []
    for k in range(8):
        sign = ("without", "with")[k % 2]
        write_volume(tmp_path / f"samples/p{k}/volume.nii.gz", Volume(volume(50 + k, k % 2 == 1), SPACING))
        prompts.append({"sample_id": f"p{k}", "prompt_type": f"dense/{sign}", "text": "x", "seed": k})
    write_csv(tmp_path / "prompts.csv", prompts, ["sample_id", "prompt_type", "text", "seed"])
    features = FeaturesConfig(depth=10, base_width=2, num_epochs=3, batch_size=4, findings=("dense", "never"))
    write_json(tmp_path / "features.json", FeaturesStage(features=features, window_hu=WINDOW).model_dump(mode="json"))
    augmentation = AugmentationConfig(num_folds=2, num_epochs=3, base_width=2, batch_size=4)
    stage = AugmentationStage(augmentation=augmentation, window_hu=WINDOW)
    write_json(tmp_path / "augmentation.json", stage.model_dump(mode="json"))
    write_json(tmp_path / "preprocess.json", PreprocessConfig(size=(16, 16, 16)).model_dump(mode="json"))
    write_json(
        tmp_path / "evaluation.json", EvaluationConfig(prompt_pairs={}, num_fid_samples=4).model_dump(mode="json")
    )
    return tmp_path


def verb(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def train(run: Path, out: Path) -> int:
    store, labels = run / "store", run / "labels.csv"
    return verb("train-features", "--config", run / "features.json", "--store", store, "--labels", labels, "--out", out)


def test_features_are_trained_and_extracted_alike_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = run / "extractor.safetensors"
    assert train(run, weights) == 0
    first = weights.read_bytes()
    assert train(run, weights) == 0
    assert weights.read_bytes() == first
    net, info = load_extractor(weights)
    assert (net.depth, net.base_width) == (10, 2)
    assert info["name"].endswith("trained on 8 volumes of the training split to predict dense")
    options = ["--weights", weights, "--config", run / "preprocess.json"]
    split = ["--cohort", run / "cohort.csv", "--split", "validation"]
    assert verb("features", *options, "--volumes", run / "volumes", *split, "--out", run / "real.npz") == 0
    assert verb("features", *options, "--volumes", run / "samples", "--out", run / "medsyn.npz") == 0
    calls, of = [], stages_features.features_of

    def stopped(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return of(*arguments)

    monkeypatch.setattr(stages_features, "features_of", stopped)
    again = ["features", *options, "--volumes", run / "samples", "--out", run / "again.npz"]
    assert verb(*again) == 1
    assert not (run / "again.npz").exists()
    assert verb(*again) == 0
    assert len(calls) == 3, "two batches: one kept, one stopped and done again"
    assert (run / "again.npz").read_bytes() == (run / "medsyn.npz").read_bytes()
    real = read_features([run / "real.npz"])
    assert sorted(real.ids) == ["s10", "s11", "s8", "s9"]
    assert real.features.shape == (4, 16)
    assert real.extractor == info["name"]
    table = ["table", "1", "--config", run / "evaluation.json", "--out", run / "table1.csv"]
    groups = ["--features", "real", run / "real.npz", "--features", "medsyn", run / "medsyn.npz"]
    assert verb(*table, *groups) == 0
    medsyn = read_csv(run / "table1.csv")[0]
    assert (medsyn["method"], medsyn["n"], medsyn["n_fid"]) == ("medsyn", "8", "4")
    assert medsyn["feature_extractor"] == info["name"]
    assert float(medsyn["fid"]) >= 0


def test_labels_that_never_vary_cannot_train(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(
        run / "labels.csv", [{"id": f"r{k}", "never": 0, "dense": 1} for k in range(12)], ["id", "never", "dense"]
    )
    assert train(run, run / "e.safetensors") == 2
    assert "no label varies" in capsys.readouterr().err
    assert not (run / "e.safetensors").exists()


def test_a_label_that_nobody_wrote_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(run / "labels.csv", [{"id": "r0", "dense": 1}], ["id", "dense"])
    assert train(run, run / "e.safetensors") == 2
    assert "no label never, which evaluation.features.findings names; it has dense" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module."])
def test_med3d_checkpoint_loads_strictly(tmp_path: Path, prefix: str) -> None:
    net = ResNet3d(10, 2)
    for rank, parameter in enumerate(net.parameters()):
        parameter.data = torch.from_numpy(hashed(parameter.numel(), rank)).float().reshape(parameter.shape)
    state = {prefix + name: value for name, value in net.state_dict().items()}
    head = {f"{prefix}conv_seg.0.weight": torch.zeros(1)}
    torch.save({"state_dict": state | head}, tmp_path / "net.pth")
    loaded = read_med3d(tmp_path / "net.pth", 10, 2)
    x = torch.from_numpy(hashed(16**3, 7)).float().reshape(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), net.eval()(x))
    state.pop(f"{prefix}bn1.weight")
    torch.save({"state_dict": state}, tmp_path / "broken.pth")
    with pytest.raises(InputError, match=r"bn1\.weight"):
        read_med3d(tmp_path / "broken.pth", 10, 2)


def test_given_weights_replace_training(run: Path) -> None:
    torch.save({"state_dict": ResNet3d(10, 2).state_dict()}, run / "net.pth")
    features = FeaturesConfig(depth=10, base_width=2, weights=str(run / "net.pth"))
    write_json(run / "features.json", FeaturesStage(features=features, window_hu=WINDOW).model_dump(mode="json"))
    assert train(run, run / "e.safetensors") == 0
    assert load_extractor(run / "e.safetensors")[1]["name"].startswith("Med3D ResNet-10, weights net.pth")


def test_classifier_learns_an_obvious_finding(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run / "dense.csv"
    arguments = ["--config", run / "augmentation.json", "--cohort", run / "cohort.csv", "--labels", run / "labels.csv"]
    arguments += ["--volumes", run / "volumes", "--prompts", run / "prompts.csv", "--samples", run / "samples"]
    arguments += ["--split", "train", "--method-label", "M", "--out", out]
    assert verb("classify", "--finding", "dense", *arguments) == 0
    rows = read_csv(out)
    assert [row["method"] for row in rows] == ["baseline"] * 2 + ["augmented with M"] * 2
    assert {row["n_synthetic"] for row in rows if row["method"] != "baseline"} == {"8"}
    assert sum(int(row["n_test"]) for row in rows) == 16
    assert "no column patient_id" in capsys.readouterr().err
    first = out.read_bytes()
    assert verb("classify", "--finding", "dense", *arguments) == 0
    assert out.read_bytes() == first
    assert verb("classify", "--finding", "absent", *arguments) == 2
    assert verb("classify", "--finding", "dense", *arguments, "--split", "all") == 0
    assert sum(int(row["n_test"]) for row in read_csv(out)) == 24, "twelve volumes of both splits, two methods"


def test_no_volume_is_tested_on_the_patient_whose_report_prompted_a_training_volume(run: Path) -> None:
    """Two scans per patient; the eight prompts are of the patients of the eight real volumes and of nobody."""
    rows = [
        {"subject_id": f"s{k}", "report_id": f"r{k}", "split": "train" if k < 8 else "validation"}
        | {"patient_id": f"p{k // 2}"}
        for k in range(12)
    ]
    write_csv(run / "cohort.csv", rows, list(rows[0]))
    prompts = [
        row | {"patient_id": f"p{k // 2}" if k < 6 else ""} for k, row in enumerate(read_csv(run / "prompts.csv"))
    ]
    write_csv(run / "prompts.csv", prompts, list(prompts[0]))
    out = run / "dense.csv"
    arguments = ["--config", run / "augmentation.json", "--cohort", run / "cohort.csv", "--labels", run / "labels.csv"]
    arguments += ["--volumes", run / "volumes", "--prompts", run / "prompts.csv", "--samples", run / "samples"]
    assert verb("classify", "--finding", "dense", *arguments, "--split", "train", "--out", out) == 0
    augmented = [row for row in read_csv(out) if row["method"] != "baseline"]
    assert [row["n_test"] for row in augmented] == ["4", "4"]
    assert sorted(row["n_synthetic"] for row in augmented) == ["4", "6"]  # p3 has no prompt
    assert not list(run.glob(".dense*")), "the scratch file stays behind"


def test_folds_are_split_by_patient() -> None:
    patients = [f"p{k // 3}" for k in range(30)]
    labels = np.array([int(k % 6 == 0) for k in range(30)])
    folds = stratified_folds(labels, 4, 0, patients)
    assert sorted(np.concatenate(folds).tolist()) == list(range(30))
    owners = [{patients[index] for index in fold} for fold in folds]
    assert sum(len(owner) for owner in owners) == 10
    single = [str(k) for k in range(30)]
    for with_patients, without in zip(
        stratified_folds(labels, 4, 0, single), stratified_folds(labels, 4, 0), strict=True
    ):
        np.testing.assert_array_equal(with_patients, without)


def test_volumes_are_kept_at_full_size_or_pooled_in_one_file(run: Path, tmp_path: Path) -> None:
    files = [run / f"volumes/s{k}/volume.nii.gz" for k in range(3)]
    whole = pool_volumes(files, None, tmp_path / "whole.npy")
    assert isinstance(whole, np.memmap)
    assert (whole.shape, whole.dtype) == ((3, 16, 16, 16), np.int16)
    np.testing.assert_array_equal(whole[1], volume(1, True))
    half = pool_volumes(files, 8, tmp_path / "half.npy")
    assert (half.shape, half.dtype) == ((3, 8, 8, 8), np.float32)
    np.testing.assert_array_equal(half[2], pooled(volume(2, False), 8))
    np.testing.assert_array_equal(Subset(whole, np.array([2, 0]))[np.array([1])], whole[:1])
    assert len(Subset(whole, np.array([2, 0]))) == 2
    write_volume(run / "other.nii.gz", Volume(volume(0, False)[:8], SPACING))
    twice = volume(0, False).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write_volume(run / "twice.nii.gz", Volume(twice, SPACING))
    for name, size in (("other", None), ("twice", 16)):  # pooled, the second one would have the shape of the others
        with pytest.raises(InputError, match="another grid"):
            pool_volumes([*files, run / f"{name}.nii.gz"], size, tmp_path / "x.npy")
    write_volume(run / "float.nii.gz", Volume(np.full((16, 16, 16), -900.7, np.float32), SPACING))
    assert pool_volumes([*files, run / "float.nii.gz"], None, tmp_path / "y.npy")[-1, 0, 0, 0] == -901


def test_folds_are_disjoint_and_stratified() -> None:
    labels = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    folds = stratified_folds(labels, 3, seed=1)
    assert sorted(np.concatenate(folds).tolist()) == list(range(10))
    assert [int(labels[fold].sum()) for fold in folds] == [1, 1, 1]
    assert len(stratified_folds(labels[:2], 5, seed=1)) == 2


def test_pooling_is_a_block_mean() -> None:
    array = np.arange(64 * 32 * 33, dtype=np.float64).reshape(64, 32, 33)
    small = pooled(array)
    assert small.shape == (32, 32, 16)
    assert small[0, 0, 0] == array[:2, :1, :2].mean()


def test_segmentation_scores(run: Path) -> None:
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[:8] = 1
    half = mask.copy()
    half[:4] = 0
    for name in ("airway", "lobes"):
        write_volume(run / f"masks/s0/{name}.nii.gz", Volume(mask, SPACING))
        write_volume(run / f"samples/p0/{name}.nii.gz", Volume(half, SPACING))
    rows = [
        {"sample_id": "p0", "prompt_type": "segmentation", "text": "A report.", "fix_image": "s0"},
        {"sample_id": "p1", "prompt_type": "segmentation", "text": "", "fix_image": "masks/s0/volume.nii.gz"},
        {"sample_id": "p9", "prompt_type": "segmentation", "text": "x", "text_mode": "none", "fix_image": "s0"},
    ]
    write_csv(run / "seg.csv", rows, ["sample_id", "prompt_type", "text", "text_mode", "fix_image"])
    out = run / "scores.csv"
    options = ["--samples", run / "samples", "--masks", run / "masks", "--out", out]
    assert verb("score-segmentation", "--prompts", run / "seg.csv", *options) == 0
    scored, without_masks, absent = read_csv(out)
    assert float(scored["airway_dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert (scored["text"], without_masks["text"], absent["text"]) == ("with", "without", "without")
    assert without_masks["airway_dice"] == "" and "airway.nii.gz" in without_masks["reason"]
    assert absent["reason"] == "no generated volume"
    (run / "samples/p0/airway.nii.gz").unlink()
    assert verb("score-segmentation", "--prompts", run / "seg.csv", *options) == 0
    without_airway = read_csv(out)[0]
    assert (without_airway["airway_dice"], without_airway["reason"]) == ("", "no p0/airway.nii.gz")
    assert float(without_airway["lobe_dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert verb("score-segmentation", "--prompts", run / "prompts.csv", *options) == 2


def test_evaluate_two_folders_without_extractor(run: Path) -> None:
    for group, shift in (("real", 0), ("fake", 5)):
        for k in range(2):
            array = volume(shift + k, False)
            array[0, 0, 0] = 700 if group == "real" else array[0, 0, 0]  # without bone it would be no CT
            write_volume(run / group / f"{k}.nii.gz", Volume(array, SPACING))
    out = run / "compared.csv"
    assert verb("evaluate", "--real", run / "real", "--synthetic", run / "fake", "--out", out, "--quiet") == 0
    rows = {row["metric"]: row for row in read_csv(out)}
    assert rows["fid"]["value"] == "" and "--weights" in rows["fid"]["note"]
    lung = rows["lung_volume_ml"]
    assert (lung["n_real"], lung["num_refused_real"], lung["not_chest_fraction_real"]) == ("2", "0", "1")
    assert (lung["n_synthetic"], lung["num_missing_synthetic"], lung["synthetic_mean"]) == ("2", "0", "0")
    assert (lung["num_found_synthetic"], lung["not_chest_fraction_synthetic"]) == ("0", "1")
    assert (run / "compared.json").exists()
    (run / "none").mkdir()
    assert verb("evaluate", "--real", run / "none", "--synthetic", run / "fake", "--out", out) == 2


def test_generated_volumes_enter_the_distances_whatever_they_show(run: Path) -> None:
    from chests import chest, write_chest

    for kind in ("normal", "emphysema"):
        write_chest(run / f"real/{kind}", kind)
        write_chest(run / f"fake/{kind}", kind)
    person = chest("normal").volume
    noise = np.random.default_rng(1).normal(-800, 60, (40, 40, 40)).astype(np.int16)
    fakes = {
        "noise": Volume(noise, (7.0, 7.0, 7.0)),
        "empty": person.with_array(np.full_like(person.array, -1024)),
        "scaled": person.with_array((person.array / 1024.0).clip(-1, 1).astype(np.float32)),
    }
    for name, fake in fakes.items():
        write_volume(run / f"fake/{name}/volume.nii.gz", fake)
    (run / "fake/broken").mkdir()
    (run / "fake/broken/volume.nii.gz").write_bytes(b"no image")
    write_volume(run / "real/noise/volume.nii.gz", fakes["noise"])
    torch.save({"state_dict": ResNet3d(10, 2).state_dict()}, run / "net.pth")
    features = FeaturesConfig(depth=10, base_width=2, weights=str(run / "net.pth"))
    write_json(run / "features.json", FeaturesStage(features=features, window_hu=WINDOW).model_dump(mode="json"))
    assert train(run, run / "e.safetensors") == 0
    folders = ["--real", run / "real", "--synthetic", run / "fake", "--weights", run / "e.safetensors"]
    folders += ["--max-refused-fraction", 0.5]
    out = run / "t.csv"
    assert verb("evaluate", *folders, "--config", run / "preprocess.json", "--out", out, "--quiet") == 0
    rows = {row["metric"]: row for row in read_csv(out)}
    fid = rows["fid"]
    assert (fid["num_volumes_synthetic"], fid["num_refused_synthetic"], fid["num_missing_synthetic"]) == ("6", "2", "2")
    assert fid["not_chest_fraction_synthetic"] == "0.5"
    assert (fid["num_volumes_real"], fid["num_missing_real"]) == ("3", "1")
    airway = rows["airway_volume_mm3"]
    assert (airway["n_synthetic"], airway["num_found_synthetic"], airway["num_missing_synthetic"]) == ("4", "2", "2")


def test_ids_must_be_unique(run: Path) -> None:
    with pytest.raises(InputError, match="give every id once"):
        list_volumes([run / "volumes", run / "volumes"])
    with pytest.raises(InputError, match="no such folder"):
        list_volumes([run / "absent"])


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({"solver": "dpmpp_2m", "null_text": "zero"}, ("Sampling (DPM-Solver++(2M))", "no text: zero states")),
        ({}, ("Sampling (solver not recorded)", "no text: not recorded which states")),
    ],
)
def test_the_report_says_how_volumes_were_sampled(tmp_path, recorded, expected):
    sampling = {"num_steps_low_res": 5, "num_steps_super_res": 2, "guidance_scale": 1.0} | recorded
    write_json(tmp_path / "config/sampling.json", {"sampling": sampling})
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in expected:
        assert text in page
