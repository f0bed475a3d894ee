"""Pretraining of the text encoder: its folder, the same bytes again, kills, two processes, bad reports."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from text_fixtures import TINY, stage

from medsyn.cli import main
from medsyn.files import read_csv, read_json, sha256, write_csv
from medsyn.text import pretrain as pretrain_module
from medsyn.text.bert import IGNORED
from medsyn.text.examples import Batches
from medsyn.text.pretrain import pretrain, read_corpus
from medsyn.text.tokenizer import token_ids, train_tokenizer


def test_vocabulary_is_reproducible_and_knows_whole_words() -> None:
    corpus = ["There is a large pleural effusion.", "No cardiomegaly.", "Pleural effusion on the left."] * 5
    first, second = train_tokenizer(corpus, 200), train_tokenizer(corpus, 200)
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("pleural EFFUSION.") == ["pleural", "effusion", "."]
    assert [len(ids) for ids in token_ids(first, ["pleural effusion", ""])] == [2, 0]


def test_pretraining_writes_the_folder(text_model: Path) -> None:
    names = {path.name for path in text_model.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "metrics.csv",
        "heldout.json",
        "medsyn_text.json",
    } <= names
    curve = read_csv(text_model / "metrics.csv")
    assert [row["epoch"] for row in curve] == ["1", "2"]
    assert float(curve[1]["mlm_perplexity"]) < float(curve[0]["mlm_perplexity"])
    held_out = read_json(text_model / "heldout.json")
    assert held_out["num_reports"] == {"training": 136, "held_out": 24}
    assert 0 <= held_out["held_out"]["pairing_accuracy"] <= 1
    assert [path.name for path in text_model.parent.iterdir()] == ["model"]


def test_same_run_same_bytes_and_a_killed_run_ends_equal(
    text_reports: Path, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "_CHECKPOINT_EVERY", 4)
        original = Batches.batch

        def killed(self: Batches, step: int, slots: range) -> dict[str, torch.Tensor]:
            if step == 13:
                raise KeyboardInterrupt
            return original(self, step, slots)

        patch.setattr(Batches, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(stage(), text_reports, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    pretrain(stage(), text_reports, tmp_path / "model")
    for name in ("model.safetensors", "tokenizer.json", "pairing_head.safetensors", "medsyn_text.json"):
        assert sha256(tmp_path / "model" / name) == sha256(text_model / name), name
    operations = [read_csv(folder / "metrics.csv")[-1]["training_eflop"] for folder in (tmp_path / "model", text_model)]
    assert operations[0] == operations[1]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_curve_says_what_pretraining_cost(text_reports: Path, text_model: Path, tmp_path: Path) -> None:
    """Six operations per multiply-add: two forward, four backward."""
    first, last = read_csv(text_model / "metrics.csv")
    assert float(last["training_eflop"]) == pytest.approx(2 * float(first["training_eflop"]))
    assert float(last["training_hours"]) > float(first["training_hours"]) > 0
    corpus = read_corpus(TINY, text_reports)
    num_texts = TINY.batch_size * Batches(corpus.training, TINY.batch_size).per_epoch
    tokens = corpus.training.num_tokens().mean()
    width, vocabulary = TINY.hidden_size, corpus.special.size
    multiply_adds = tokens * (12 * width**2 + 2 * tokens * width)  # of the layer: linear maps and attention
    multiply_adds += TINY.mask_fraction * tokens * (width**2 + width * vocabulary)  # of the head, masked tokens only
    assert float(first["training_eflop"]) == pytest.approx(6e-18 * num_texts * multiply_adds, rel=0.1)


def test_two_processes_train_one_encoder(text_reports: Path, text_model: Path, tmp_path: Path) -> None:
    """The epochs are runs of the loop one after the other, in one process group."""
    (tmp_path / "text.json").write_text(stage().model_dump_json())
    arguments = ["pretrain-text", "--config", str(tmp_path / "text.json"), "--reports", str(text_reports)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medsyn"]
    subprocess.run([*launcher, *arguments, "--out", str(tmp_path / "model"), "--quiet"], check=True, timeout=600)
    curves = [read_csv(folder / "metrics.csv") for folder in (text_model, tmp_path / "model")]
    alone, together = ([float(row["mlm_perplexity"]) for row in curve] for curve in curves)
    assert together == pytest.approx(alone, rel=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.json"]


def test_a_report_with_one_section_is_no_pair(tmp_path: Path) -> None:
    """An absent Impression would tell that nothing was swapped."""
    row = {"impression": "", "split": "train"}
    rows = [{"report_id": f"r{i}", "findings": f"Clear lungs {i}.", **row} for i in range(6)]
    rows[0]["impression"], rows[1]["impression"], rows[2]["split"] = "Normal.", "Effusion.", "validation"
    write_csv(tmp_path / "reports.csv", rows, list(rows[0]))
    corpus = read_corpus(TINY, tmp_path / "reports.csv")
    seen = [[corpus.training.example(epoch, index)[2] for epoch in range(40)] for index in range(5)]
    assert all(set(seen[index]) == {0, 1} for index in (0, 1))
    assert all(set(seen[index]) == {IGNORED} for index in (2, 3, 4))
    short = stage(TINY.model_copy(update={"num_epochs": 1}))
    assert pretrain(short, tmp_path / "reports.csv", tmp_path / "out")["pairing_accuracy"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("report_id,findings,split\na,b,train\n", "missing column impression"),
        ("report_id,findings,impression,split\na,,,train\n", "report a is empty"),
        ("report_id,findings,impression,split\na,b,c,test\n", "split 'test'"),
        ("report_id,findings,impression,split\na,b,c,train\na,b,c,train\n", "listed twice"),
        ("report_id,findings,impression,split\na,b,c,train\n", "no report of split validation"),
        ("report_id,findings,impression,split\n", "no reports"),
    ],
)
def test_bad_reports_are_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports.csv").write_text(content)
    (tmp_path / "text.json").write_text(stage().model_dump_json())
    arguments = ["pretrain-text", "--config", str(tmp_path / "text.json"), "--reports", str(tmp_path / "reports.csv")]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "model").exists()


def test_pretraining_leaves_out_reports_of_held_out_patients_and_texts(tmp_path: Path) -> None:
    rows = [
        {"report_id": "v", "patient_id": "p1", "findings": "Effusion.", "impression": "One.", "split": "validation"},
        {"report_id": "a", "patient_id": "p1", "findings": "Other a.", "impression": "Two.", "split": "text_only"},
        {"report_id": "b", "patient_id": "p2", "findings": "EFFUSION", "impression": "one", "split": "text_only"},
        {"report_id": "c", "patient_id": "p3", "findings": "Other c.", "impression": "Three.", "split": "text_only"},
        {"report_id": "d", "patient_id": "p1", "findings": "Other d.", "impression": "Four.", "split": "train"},
    ]
    write_csv(tmp_path / "reports.csv", rows, list(rows[0]))
    assert list(read_corpus(TINY, tmp_path / "reports.csv").training.patients) == ["p3"]
