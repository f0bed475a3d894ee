"""The model of the package: made from a run, checked at every use, and sampled from where no weights are named."""

from __future__ import annotations

import json
import shutil
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from conftest import ROOT

from medsyn.cli import main
from medsyn.config import CohortStage, PhantomConfig
from medsyn.errors import InputError
from medsyn.files import read_json, write_csv, write_json
from medsyn.methods import packaging, phantom_model
from medsyn.methods.run import assemble, open_run, run_files, sampling_with
from medsyn.models.linear_estimate import PrincipalComponents
from medsyn.models.weights import build, load, save
from medsyn.provenance import provenance
from medsyn.tensors import load_checkpoint
from medsyn.training.data import Store
from medsyn.volume import read_volume

TEXT = "There is a large left pleural effusion."


@pytest.fixture(scope="session")
def results(tmp_path_factory, text_model, text_reports) -> Path:
    """What the packaging reads of a results folder: models/run.json with its files, config/, store/, reports."""
    root = tmp_path_factory.mktemp("results")
    folder = root / "models"
    store = tiny_models.make_store(root / "store/0", ids="phantom-{:05d}")
    (root / "cohort").mkdir()
    shutil.copy(text_reports, root / "cohort/reports.csv")
    torch.manual_seed(0)
    for name in ("low_res", "super_res"):
        low = name == "low_res"
        unet = {"mean_volume": low, "num_components": 2 if low else 0}
        stage = tiny_models.stage(name, unet=unet).model_copy(update={"num_tokens": 48})
        data = {"data.store": Store([store], "low" if low else "high").hash}
        record = provenance(stage, num_volumes=4, seed=3, data=data)
        network = build(stage, 32 if low else None)
        components = PrincipalComponents(torch.rand(2, 4, 4, 4, 4) / 8, torch.ones(2), torch.full((4,), 0.1))
        network.set_statistics(torch.zeros(4, 4, 4, 4), components=components)
        save(folder / f"{name}.safetensors", network.state_dict(), stage, record)
        row = {"step": 12, "loss": 0.25, "training_hours": 1.5}
        write_csv(folder / f"{name}_metrics.csv", [row], list(row))
    write_json(root / "config/sampling.json", tiny_models.sampling_stage().model_dump(mode="json"))
    write_json(root / "config/cohort.json", CohortStage(num_shards=1).model_dump(mode="json"))
    write_json(root / "config/phantom.json", PhantomConfig(num_subjects=5, size=16, seed=9).model_dump(mode="json"))
    parts = {name: folder / f"{name}.safetensors" for name in ("low_res", "super_res")}
    sampling = root / "config/sampling.json"
    assemble(folder / "run.json", label="medsyn", text_encoder=text_model, sampling=sampling, **parts)
    return root


def package(results: Path, out: Path, models: Path | None = None) -> int:
    """Package the run in `models`, by default that of the results folder."""
    words = ["--weights", str(models or results / "models"), "--results", str(results), "--out", str(out)]
    return main(["package-model", *words])


@pytest.fixture(scope="session")
def packaged(results, tmp_path_factory) -> Path:
    """The packaged model; not to be changed."""
    out = tmp_path_factory.mktemp("packaged") / "phantom_model"
    assert package(results, out) == 0
    return out


@pytest.fixture
def model(packaged, tmp_path, monkeypatch) -> Path:
    """A copy of the packaged model in the place of the package's."""
    copy = tmp_path / "installed/phantom_model"
    shutil.copytree(packaged, copy)
    monkeypatch.setattr(phantom_model, "FOLDER", copy)
    return copy


def test_without_weights_the_model_of_the_package_is_used_and_named(model, tmp_path, capsys):
    out = tmp_path / "ct.nii.gz"
    assert main(["generate", "--text", TEXT, "--out", str(out)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("model")]
    assert said == [f"model: the phantom model of this package, trained on phantoms, not on patients ({model}/card.md)"]
    record = json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))
    assert (record["label"], record["text"]) == ("MedSyn phantom model", TEXT)
    given = ["generate", "--weights", str(model), "--text", TEXT, "--out", str(tmp_path / "given.nii.gz")]
    assert main(given) == 0
    assert "phantom model of this package" not in capsys.readouterr().err
    assert np.array_equal(read_volume(tmp_path / "given.nii.gz").array, read_volume(out).array)


def test_a_picture_that_cannot_be_written_costs_neither_volume_nor_record(model, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medsyn.methods.sampling.write_png", full)
    assert main(["generate", "--text", TEXT, "--out", str(tmp_path / "ct.nii.gz"), "--quiet"]) != 0
    assert read_volume(tmp_path / "ct.nii.gz").array.any()
    assert json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))["text"] == TEXT
    assert not (tmp_path / "ct.png").exists()


def test_a_table_of_prompts_needs_no_weights_either(model, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(f"sample_id,text,seed\na,{TEXT},1\nb,No bullae.,2\n", encoding="utf-8")
    assert main(["generate", "--prompts", str(prompts), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert {path.parent.name for path in (tmp_path / "out").glob("*/volume.nii.gz")} == {"a", "b"}


def test_rounding_to_16_bits_changes_weights_by_at_most_half_a_step_and_volumes_little(packaged, results):
    before, after = (load_checkpoint(folder / "low_res.safetensors") for folder in (results / "models", packaged))
    assert {value.dtype for name, value in after.items() if not name.startswith("data_")} == {torch.bfloat16}
    assert after["data_components"].dtype == torch.bfloat16 and after["data_mean"].dtype == torch.float32
    assert all(((after[name].float() - value).abs() <= value.abs() / 256).all() for name, value in before.items())
    network, _ = load(packaged / "low_res.safetensors")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    volumes = []
    for folder in (results / "models", packaged):
        run = open_run(folder, sampling_with(folder, None, guidance_scale=1.0))
        volumes.append(next(run.sample([tiny_prompt()]))["volume"].array.astype(float))
    difference = np.abs(volumes[0] - volumes[1])
    assert 0 < difference.mean() < 60, "HU, of a window of 1624; random weights amplify rounding"


def tiny_prompt():
    from medsyn.methods.base import Prompt

    return Prompt("a", TEXT, 0)


def test_the_card_states_what_the_files_say(packaged):
    card = (packaged / "card.md").read_text(encoding="utf-8")
    assert "It has never seen a patient" in card and "MIT" in card
    assert "16 x 16 x 16 voxels over 292 x 316 x 316 mm" in card
    assert "4 phantoms of a cohort of 5 (seed 9, 16 voxels" in card
    row = next(line for line in card.splitlines() if line.startswith("| low_res |")).split(" | ")
    tensors = load_checkpoint(packaged / "low_res.safetensors")
    numbers = sum(value.numel() for name, value in tensors.items() if not name.startswith("data_"))
    assert row[1:5] == [f"{numbers:,}", "12", "0.2500", "3"] and row[6] == "1.50 |"


def test_the_folder_is_whole_by_itself_and_is_package_data(packaged):
    names = {path.relative_to(packaged).as_posix() for path in packaged.rglob("*") if path.is_file()}
    run = json.loads((packaged / "run.json").read_text(encoding="utf-8"))
    assert {run[key] for key in ("low_res", "super_res", "sampling")} <= names and run["text_encoder"] == "text"
    listed = (packaged / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert {line.split("  ")[1] for line in listed} == names - {"SHA256SUMS"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for name in names:
        *folders, file = name.split("/")
        patterns = project["package-data"][".".join(["medsyn.phantom_model", *folders])]
        assert any(fnmatch(file, pattern) for pattern in patterns), name


def refusal(capsys, *words: str) -> str:
    """Return the one line of `generate` without weights, which must fail with status 2."""
    assert main(["generate", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def damage(kind: str, path: Path) -> None:
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])


@pytest.mark.parametrize("name", ["low_res.safetensors", "text/model.safetensors", "run.json"])
@pytest.mark.parametrize(("kind", "words"), [("missing", "no such file"), ("cut", "damaged"), ("flip", "damaged")])
def test_a_model_that_is_not_as_it_was_packaged_is_one_line(model, tmp_path, capsys, name, kind, words):
    damage(kind, model / name)
    said = refusal(capsys, "--text", TEXT, "--out", str(tmp_path / "x.nii.gz"))
    assert f"{model / name}: " in said and words in said and "install medsyn again" in said
    assert not list(tmp_path.glob("x*"))


def test_without_a_model_one_line_names_both_remedies(model, tmp_path, capsys):
    (model / "SHA256SUMS").unlink()
    assert "SHA256SUMS: no such file" in refusal(capsys, "--text", TEXT, "--out", str(tmp_path / "x.nii.gz"))
    shutil.rmtree(model)
    said = refusal(capsys, "--text", TEXT, "--out", str(tmp_path / "x.nii.gz"))
    assert f"{model}: no such folder" in said and "--weights" in said and "make phantom-model" in said


def test_the_model_that_this_repository_holds_is_whole_and_small():
    if not phantom_model.FOLDER.is_dir():
        with pytest.raises(InputError, match="make phantom-model"):
            phantom_model.phantom_model()
        return
    files = [path for path in phantom_model.phantom_model().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1e6 * packaging.MAX_MB + 10_000


def change_settings(root: Path) -> None:
    write_json(root / "config/cohort.json", CohortStage(source="manifest", num_shards=1).model_dump(mode="json"))


def change_store(root: Path) -> None:
    shutil.rmtree(root / "store")
    tiny_models.make_store(root / "store/0", ids="phantom-{:05d}", seed=1)


def change_subjects(root: Path) -> None:
    shutil.rmtree(root / "store")
    tiny_models.make_store(root / "store/0", ids="patient-{}")


def change_reports(root: Path) -> None:
    table = root / "cohort/reports.csv"
    table.write_text(table.read_text(encoding="utf-8") + "r9999,Clear lungs.,,train\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_settings, "cohort.json: source is manifest, expected phantom"),
        (change_store, "low_res.safetensors: was trained on a store with the hash"),
        (change_subjects, "store: subject patient-0 is not one of the 5 phantoms of this folder, expected ids such as"),
        (change_reports, "was trained on reports with the SHA-256"),
    ],
)
def test_a_run_of_other_data_than_the_phantoms_of_the_folder_is_not_packaged(change, words, results, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    change(folder)
    assert package(folder, tmp_path / "out", results / "models") == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("init", "org/model"), ("vocabulary", "english")])
def test_a_text_encoder_with_data_of_others_is_not_packaged(name, value, results, tmp_path, capsys):
    parts = run_files(results / "models")
    shutil.copytree(parts["text_encoder"], tmp_path / "text")
    record = read_json(tmp_path / "text/heldout.json")
    record["provenance"]["config"]["encoder"][name] = value
    write_json(tmp_path / "text/heldout.json", record)
    assemble(tmp_path / "run.json", label="medsyn", **parts | {"text_encoder": tmp_path / "text"})
    assert package(results, tmp_path / "out", tmp_path) == 2
    assert f"text: was trained with {name} {value}, expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_large_model_is_refused_and_nothing_is_left(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packaging, "MAX_MB", 0.1)
    assert package(results, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "MB as bfloat16, expected at most 0.1" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_folder(results, packaged, tmp_path):
    assert package(results, tmp_path / "again") == 0
    sums = [(folder / "SHA256SUMS").read_text(encoding="utf-8") for folder in (packaged, tmp_path / "again")]
    assert sums[0] == sums[1]
