"""Broken and odd files, ids, masks and checkpoints: one clear line each, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_models
import torch
from chests import chest, write_chest, write_manifest

from medsyn.cli import main
from medsyn.cohort import build_cohort
from medsyn.config import CohortConfig, MasksConfig, PreprocessConfig
from medsyn.errors import InputError
from medsyn.evaluate.features import read_med3d
from medsyn.evaluate.inputs import read_features
from medsyn.exhibits.figure4 import figure4
from medsyn.exhibits.panels import write_figure
from medsyn.exhibits.table6 import table6
from medsyn.files import read_csv, read_json, write_csv, write_json
from medsyn.masks.labels import as_labels
from medsyn.masks.segment import segment
from medsyn.methods.prompts import Roots
from medsyn.methods.run import open_run, sampling_with
from medsyn.methods.sampling import sample_shard
from medsyn.models.medsyn_checkpoint import import_medsyn
from medsyn.names import sample_fault, subject_fault
from medsyn.report.files import find_files
from medsyn.report.page import write_report
from medsyn.stages.shards import open_shard
from medsyn.stages.volumes import preprocess_one
from medsyn.tensors import load_checkpoint
from medsyn.text import hub
from medsyn.training.checkpoint import newest_checkpoint as resume
from medsyn.volume import Volume, read_volume, write_volume

# --- masks that a user gives ---


@pytest.mark.parametrize("structure", ["lobes", "airway"])
def test_scaled_storage_loses_no_label(structure):
    labels = np.arange(6 if structure == "lobes" else 2).reshape(1, 1, -1)
    for kind in ("f4", "f8"):
        for factor in (0.999999, 1.000001):
            found = as_labels((labels * factor).astype(kind), structure, "mask")
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, labels)


def test_255_stands_for_1_where_there_is_one_structure():
    mask = np.array([[[0, 255]]], np.uint8)
    np.testing.assert_array_equal(as_labels(mask, "airway", "mask"), mask // 255)
    with pytest.raises(InputError, match="labels run from 0 to 255, expected 0 to 5"):
        as_labels(mask, "lobes", "mask")


@pytest.mark.parametrize(
    ("values", "structure", "words"),
    [
        ([0, 2.5], "lobes", "holds the value 2.5, expected whole numbers"),
        ([0, 1.002], "airway", "holds the value 1.002"),
        ([0, float("nan")], "lobes", "holds the value nan"),
        ([0, float("inf")], "lobes", "holds the value inf"),
        ([0, 6], "lobes", "labels run from 0 to 6, expected 0 to 5"),
        ([0, 256], "lobes", "labels run from 0 to 256"),
        ([0, 257], "airway", "labels run from 0 to 257, expected 0 to 1"),
        ([0, 1 << 40], "airway", "labels run"),
        ([-1, 1], "airway", "labels run from -1 to 1"),
        ([0, 0], "vessels", "is empty"),
    ],
)
def test_a_mask_with_other_values_is_refused(values, structure, words):
    array = np.array([[values]])
    with pytest.raises(InputError, match=f"a mask: ({words})"):
        as_labels(array, structure, "a mask", may_be_empty=False)


def test_scaled_masks_travel_with_the_ct_and_are_measured(tmp_path):
    scan = write_chest(tmp_path / "ct")
    whole = read_volume(tmp_path / "ct/lobes.nii.gz")
    (tmp_path / "scaled").mkdir()
    for name in ("lobes", "airway"):
        image = nib.load(tmp_path / f"ct/{name}.nii.gz")
        scaled = np.asarray(image.dataobj) * 0.999999
        nib.save(nib.Nifti1Image(scaled.astype(np.float32), image.affine), tmp_path / f"scaled/{name}.nii.gz")
    masks = {name: tmp_path / f"scaled/{name}.nii.gz" for name in ("lobes", "airway")}
    config = PreprocessConfig(size=(64, 64, 64), alignment="none")
    preprocess_one(scan, tmp_path / "out", config, masks)
    given = read_volume(tmp_path / "out/given_lobes.nii.gz").array
    assert sorted(np.unique(given)) == [0, 1, 2, 3, 4, 5]
    volume = read_volume(scan)
    found = segment(volume, MasksConfig(), {"lobes": volume.with_array((whole.array * 0.999999).astype(np.float32))})
    np.testing.assert_array_equal(found.labels["lobes"].array, whole.array)
    values = []
    for folder in ("ct", "scaled"):
        assert (
            main(["measure", str(scan), "--masks", str(tmp_path / folder), "--out", str(tmp_path / f"{folder}.json")])
            == 0
        )
        values.append(read_json(tmp_path / f"{folder}.json")["lung_volume_ml"])
    assert values[0] == values[1] > 1000


# --- ids and paths ---

BAD_IDS = [
    "",
    "..",
    ".",
    "a/b",
    "x" * 101,
    "x" * 300,
    "index.csv",
    "INDEX.csv",
    "contact_sheet.png",
    "a\nb",
    ".hidden",
    "a\\b",
]


@pytest.mark.parametrize("name", BAD_IDS)
def test_ids_that_name_no_folder_are_refused(name):
    assert subject_fault(name)
    assert sample_fault(name)
    assert len(subject_fault(name)) < 200


@pytest.mark.parametrize("name", ["a", "p001_scan1", "x" * 100, "index", "a.nii.gz", "train_1_a_1"])
def test_usual_ids_are_accepted(name):
    assert subject_fault(name) is None
    assert sample_fault(name) is None
    assert sample_fault("ünïcode with space") is None


def test_a_bad_row_of_a_manifest_costs_only_itself(tmp_path, monkeypatch):
    (tmp_path / "a.nii").touch()
    rows = [{"subject_id": name, "image": "a.nii"} for name in ("good", *BAD_IDS[4:9])]
    rows += [{"subject_id": "long", "image": "x" * 256}, {"subject_id": "deep", "image": "y/" * 3000}]
    rows += [{"subject_id": "secret", "image": "closed/a.nii"}, {"subject_id": "nul", "image": "a\x01.nii"}]
    exists = Path.exists

    def look(path: Path) -> bool:
        if "closed" in path.parts:  # root may look everywhere
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", look)
    cohort = build_cohort([write_manifest(tmp_path / "m.csv", rows)], None, CohortConfig(num_shards=1))
    assert [subject.subject_id for subject in cohort.subjects] == ["good"]
    reasons = {row["subject_id"]: row["reason"] for row in cohort.rejects}
    assert "too long" in reasons["long"]
    assert "too long" in reasons["deep"]
    assert "Permission denied" in reasons["secret"]
    assert "has 101 characters, expected at most 100" in reasons["x" * 101]
    assert "name of a file" in reasons["index.csv"]


def test_a_sample_id_that_leads_elsewhere_deletes_nothing(tmp_path, monkeypatch):
    tiny_models.install_text_encoder(monkeypatch)
    run_folder = tiny_models.make_run(tmp_path / "run")
    precious = tmp_path / "work/precious/thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.touch()
    ids = ["../../precious", "..", ".", "index.csv", "x" * 300, str(precious.parent), "good"]
    write_csv(tmp_path / "p.csv", [{"sample_id": i, "text": "", "seed": 1} for i in ids], ["sample_id", "text", "seed"])
    run = open_run(run_folder, sampling_with(run_folder, None))
    state = tmp_path / "work/state"
    sample_shard(run, tmp_path / "p.csv", "0/1", Roots(), tmp_path / "out", state)
    status = {row["sample_id"]: row["status"] for row in read_csv(tmp_path / "out/index.csv")}
    assert [name for name, said in status.items() if said == "ok"] == ["good"]
    assert precious.exists()


def test_a_rejected_name_is_never_a_path(tmp_path):
    (tmp_path / "precious").mkdir()
    with open_shard(tmp_path / "out", tmp_path / "state", {}) as shard:
        for name in ("..", "../../precious", str(tmp_path / "precious")):
            shard.reject(name, None, "odd")
        assert shard.folder.is_dir()
        assert (tmp_path / "precious").is_dir()
        shard.publish(tmp_path / "out")


# --- labels and prompts ---


def test_a_prompt_with_dollar_signs_is_plain_text_in_a_figure(tmp_path):
    volume = chest("normal").volume
    path = tmp_path / "s.nii.gz"
    write_volume(path, Volume(volume.array, volume.spacing_mm, volume.origin_mm))
    rows = [
        {"sample_id": "s", "prompt_type": "pleural_effusion/with", "text": "Effusion of $x_{y$ ml."},
        {"sample_id": "t", "prompt_type": "pleural_effusion/without", "text": r"No $\frac{1$ effusion."},
    ]
    write_csv(tmp_path / "p.csv", rows, ["sample_id", "prompt_type", "text"])
    samples = {"s": path, "t": path}
    figure = figure4({"r": path}, samples, {"pleural_effusion": ["r"]}, [tmp_path / "p.csv"], False)
    write_figure(tmp_path / "f.png", figure)
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_the_report_shows_mark_up_as_text(tmp_path):
    """Reports, labels, file names, names of models and settings come from others: none of them is HTML."""
    hostile = "<script>alert(1)</script>"
    run = tmp_path / "run"
    rows = [{"subject_id": "a", "image": f"{hostile.replace('/', '_')}.nii.gz", "findings": hostile}]
    rows += [{"subject_id": "b", "image": "b/volume.nii.gz", "findings": hostile}]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    write_chest(tmp_path / "b")
    write_json(tmp_path / "one.json", {"num_shards": 1, "validation_fraction": 0.0, "max_reject_fraction": 1.0})
    command = ["cohort", "--manifest", str(manifest), "--config", str(tmp_path / "one.json"), "--quiet"]
    assert main([*command, "--out", str(run / "cohort")]) == 0
    write_csv(run / "labels.csv", [{"id": "b", hostile: 1}], ["id", hostile])
    write_json(run / "config/export.json", {"prompt": hostile})
    (run / f"models/{hostile.replace('/', '_')}").mkdir(parents=True)
    metrics = "\n".join(["step,loss", "1,1.0", "2,0.5", ""])
    (run / f"models/{hostile.replace('/', '_')}/low_res_metrics.csv").write_text(metrics)
    (run / f"text/{hostile.replace('/', '_')}/model").mkdir(parents=True)
    table = {"finding": hostile, "prompt": hostile, "accuracy_mean": "0.5"}
    write_csv(run / "eval/table6.csv", [table], list(table))
    index = {"subject_id": "b", "status": "ok", "reason": "", "warnings": f"range: {hostile}"}
    write_csv(run / "preprocessed/0/index.csv", [index], list(index))
    write_report(find_files(run), tmp_path / "report.html", phantom=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8").lower()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_a_label_is_shown_by_the_table_alone(tmp_path):
    rows = [
        {"method": method, "finding": "nodule", "fold": 0, "accuracy": 0.5, "f1": 0.5, "n_test": 4, "n_synthetic": n}
        for method, n in (("baseline", 0), ("augmented with medsyn", 2), ("augmented with other", 2))
    ]
    write_csv(tmp_path / "s.csv", rows, list(rows[0]))
    _, table = table6([tmp_path / "s.csv"], {"medsyn": "My {x} $model$"})
    assert [row["method"] for row in table] == ["baseline", "augmented with My {x} $model$", "augmented with other"]


# --- damaged and odd files ---


def damaged_npz(kind: str, path: Path) -> None:
    ids, features = np.array(["a", "b"]), np.zeros((2, 3), np.float32)
    np.savez_compressed(path, ids=ids, features=features, extractor=np.array("x"))
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[60] ^= 255
        path.write_bytes(content)
    elif kind == "truncated":
        path.write_bytes(content[:-40])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        odd = {
            "missing": {"ids": ids},
            "pickled": {"ids": ids, "features": np.array([object()]), "extractor": np.array("x")},
            "rows": {"ids": ids, "features": features[:1], "extractor": np.array("x")},
            "flat": {"ids": ids, "features": features[0], "extractor": np.array("x")},
            "nan": {"ids": ids, "features": features * np.nan, "extractor": np.array("x")},
            "text": {"ids": ids, "features": np.array(["p", "q"]), "extractor": np.array("x")},
            "scalar": {"ids": np.array("a"), "features": features, "extractor": np.array("x")},
        }[kind]
        np.savez(path, **odd)


KINDS = ["flipped", "truncated", "empty", "folder", "missing", "pickled", "rows", "flat", "nan", "text", "scalar"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_feature_file_is_one_line(tmp_path, kind):
    path = tmp_path / "f.npz"
    damaged_npz(kind, path)
    with pytest.raises(InputError, match=r"f\.npz: no feature file \(.*\); write it with `medsyn features`"):
        read_features([path])


class Code:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


ODD_CHECKPOINTS = {
    "code": Code(),
    "list": [1, 2],
    "text": "hello",
    "empty": {},
    "numbers": {"a": 1, "b": [2]},
    "scalar": {"conv1.weight": torch.tensor(1.0)},
    "nested": {"state_dict": {"state_dict": {"x": torch.zeros(2)}}},
    "wrapped list": {"state_dict": [1]},
    "flat": {"init_conv.weight": torch.zeros(3)},
    "int keys": {1: torch.zeros(2)},
}


@pytest.mark.parametrize("name", ODD_CHECKPOINTS)
def test_an_odd_checkpoint_is_one_line_and_no_code(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    torch.save(ODD_CHECKPOINTS[name], "net.pt")
    for read in (read_med3d, lambda path: import_medsyn(Path(path), "low_res", Path("out.safetensors"))):
        with pytest.raises(InputError, match=r"net\.pt"):
            read("net.pt")
    assert sorted(os.listdir()) == ["net.pt"]  # noqa: PTH208


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", pickle.dumps(Code()), b"\x00" * 100, b"{}"])
def test_bytes_that_are_no_checkpoint_are_one_line_and_no_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("net.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"net\.pt: cannot be read as tensors"):
        load_checkpoint("net.pt")
    assert not Path("pwned").exists()


def test_odd_checkpoints_of_a_training_run_are_ignored(tmp_path):
    for name, facts in (("step_00000002", []), ("step_00000003", {"step": 3}), ("step_x", {})):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "facts.json", facts)
        from safetensors.torch import save_file

        save_file({"network/a": torch.zeros(1)}, tmp_path / name / "tensors.safetensors")
    with pytest.raises(InputError, match="none of its checkpoints can be read"):
        resume(tmp_path, {})


@pytest.mark.parametrize(
    "record",
    [
        *([], 1, "run", None, {}, {"label": 1}, {"low_res": 5}, {"low_res": ""}, {"low_res": "absent.safetensors"}),
        *({"super_res": None}, {"text_encoder": {}}, {"sampling": []}, {"sampling": {"sampling": 3}}),
        {"low_res": "a\0"},
    ],
)
def test_an_odd_run_is_one_line(tmp_path, record):
    folder = tiny_models.make_run(tmp_path)
    whole = read_json(folder / "run.json")
    write_json(folder / "run.json", whole | record if isinstance(record, dict) and record else record)
    with pytest.raises(InputError) as error:
        open_run(folder, sampling_with(folder, None))
    assert "\n" not in str(error.value)
    assert "run.json" in str(error.value) or "absent.safetensors" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 10_000, "nul", "[1,]"])
def test_text_that_is_no_json_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_hub_name_without_network_is_told_at_once(monkeypatch):
    asked = []
    with pytest.raises(InputError, match="no such folder, and not the name"):
        hub.is_local("/no/such/folder at all")

    def unreachable(self: object, name: str, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    begun = time.monotonic()
    for name in ("nobody/nothing", "bert-base-uncased"):
        with pytest.raises(InputError, match=f"{name}: no such folder, and the hub .* name resolution"):
            hub.is_local(name)
    assert asked == [10, 10]
    assert time.monotonic() - begun < 5
    assert hub.is_local.__wrapped__(str(Path(__file__).parent))


def test_json_is_shown_in_one_line(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"label": "x\ny"}))
    with pytest.raises(InputError) as error:
        sampling_with(tmp_path, None)
    assert "\n" not in str(error.value)


def test_a_checkpoint_whose_download_was_stopped_is_not_local(monkeypatch):
    cached = {"config.json", "vocab.txt"}
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, name: f"/cache/{name}" if name in cached else None)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: None)
    assert not hub.is_local.__wrapped__("someone/bert")
    cached.add("pytorch_model.bin")
    assert hub.is_local.__wrapped__("someone/bert")
