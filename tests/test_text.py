"""The text encoder: batches, pretraining (reproducible, resumable), states free of their batch, embeddings."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from text_data import write_reports_csv
from transformers import BertConfig, BertForMaskedLM

from medsyn.cli import main
from medsyn.config import TextEncoderConfig, TextEncoderStage
from medsyn.errors import InputError
from medsyn.files import read_csv, read_json, sha256, write_csv
from medsyn.text import embed as embed_module
from medsyn.text import pretrain as pretrain_module
from medsyn.text.bert import IGNORED, load_language_model, new_language_model
from medsyn.text.budget import shares, shorten
from medsyn.text.embed import embed_reports
from medsyn.text.encoder import TextEncoder
from medsyn.text.english import english_documents
from medsyn.text.examples import Batches, Texts, mask_tokens
from medsyn.text.pretrain import pretrain, read_corpus
from medsyn.text.sections import section_text, split_sections
from medsyn.text.tokenizer import Special, load_tokenizer, token_ids, train_tokenizer
from medsyn.training.data import Embeddings

TINY = TextEncoderConfig(
    vocabulary_size=300, hidden_size=32, num_layers=1, num_heads=2, num_epochs=2, batch_size=16, max_tokens=96
)
SECTIONS = ("report", "findings", "impression")
SPECIAL = Special(pad=0, cls=1, sep=2, mask=3, size=100)


def stage(encoder: TextEncoderConfig = TINY, **settings: object) -> TextEncoderStage:
    return TextEncoderStage(
        **{"encoder": encoder, "num_tokens": 48, "mask_padding": False, "sections": SECTIONS} | settings
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reports") / "reports.csv"
    write_reports_csv(path, 160, 24)
    return path


@pytest.fixture(scope="module")
def model(reports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "model"
    pretrain(stage(), reports, folder)
    return folder


@pytest.fixture
def encoder(model: Path) -> Iterator[TextEncoder]:
    yield TextEncoder.from_folder(model)


def texts(count: int = 40, max_tokens: int = 64, swap_fraction: float = 0.5) -> Texts:
    rng = np.random.default_rng(0)
    firsts = [np.full(rng.integers(3, 40), 10 + index, dtype=np.int32) for index in range(count)]
    seconds = [np.full(rng.integers(3, 20), 10 + index, dtype=np.int32) for index in range(count)]
    patients = [str(index) for index in range(count)]
    return Texts(firsts, seconds, patients, SPECIAL, max_tokens, 0.15, swap_fraction, 0)


def test_masking_follows_80_10_10() -> None:
    rng = np.random.default_rng(0)
    ids = np.full(40_000, 50, dtype=np.int32)
    ids[0], ids[-1] = SPECIAL.cls, SPECIAL.sep
    masked, labels = mask_tokens(ids, SPECIAL, 0.15, rng)
    chosen = labels != IGNORED
    assert chosen.sum() == round(0.15 * 39_998)
    assert not chosen[[0, -1]].any()
    assert (masked[~chosen] == ids[~chosen]).all()
    assert (masked[chosen] == SPECIAL.mask).mean() == pytest.approx(0.8, abs=0.02)
    assert (masked[chosen] == 50).mean() == pytest.approx(0.1, abs=0.02)


def test_a_swapped_impression_is_another_patients() -> None:
    data = texts(swap_fraction=0.5)
    seen = {0: 0, 1: 0}
    for index in range(len(data)):
        for epoch in range(20):
            masked, labels, paired = data.example(epoch, index)
            ids = np.where(labels == IGNORED, masked, labels)
            words = set(ids[ids >= 10].tolist())
            assert (words == {10 + index}) == bool(paired)
            assert 10 + index in words
            seen[paired] += 1
    assert seen[0] == pytest.approx(400, abs=60)


def test_one_epoch_has_every_text_and_short_batches_stay_short() -> None:
    batches = Batches(texts(swap_fraction=0.0), 8)
    firsts = []
    for step in range(batches.per_epoch):
        batch = batches.batch(step, range(8))
        ids = torch.where(batch["labels"] == IGNORED, batch["ids"], batch["labels"])
        firsts += [int(row[row >= 10][0]) for row in ids]
        assert bool((batch["segments"] <= batch["mask"]).all())
        assert batch["segments"].any(dim=1).all()
    assert sorted(firsts) == list(range(10, 50))


def test_a_batch_is_a_function_of_the_step() -> None:
    one, two = Batches(texts(), 8), Batches(texts(), 8)
    two.batch(3, range(8))
    for name, tensor in one.batch(7, range(8)).items():
        assert torch.equal(tensor, two.batch(7, range(8))[name])
    halves = [one.batch(7, range(4))["paired"], one.batch(7, range(4, 8))["paired"]]
    assert torch.equal(torch.cat(halves), one.batch(7, range(8))["paired"])


def test_long_pairs_keep_both_sections() -> None:
    long = [np.full(200, word, dtype=np.int32) for word in (20, 30)]
    for first, second, expected in (
        (long[0], long[1], (30, 31)),
        (long[0], long[1][:5], (56, 5)),
        (long[0][:4], long[1], (4, 57)),
    ):
        ids, labels, _ = Texts([first], [second], ["a"], SPECIAL, 64, 0.15, 0.0, 0).example(0, 0)
        whole = np.where(labels == IGNORED, ids, labels)
        assert len(whole) == 64
        counts = ((whole == 20).sum(), (whole == 30).sum())
        assert sum(counts) == 61
        assert abs(counts[0] - expected[0]) <= 1


@pytest.mark.parametrize(
    ("lengths", "impression", "room", "expected"),
    [
        ([10, 5], [False, True], 20, [10, 5]),
        ([100, 15], [False, True], 20, [5, 15]),
        ([15, 100], [True, False], 20, [15, 5]),
        ([30, 15, 40], [False, True, False], 50, [30, 15, 5]),
        ([100, 100], [False, True], 20, [10, 10]),
        ([3, 100], [False, True], 20, [3, 17]),
        ([100], [False], 20, [20]),
        ([100], [True], 20, [20]),
    ],
)
def test_findings_are_shortened_before_the_impression(
    lengths: list[int], impression: list[bool], room: int, expected: list[int]
) -> None:
    assert shares(lengths, impression, room) == expected


def test_shortened_findings_end_with_a_sentence_but_not_in_a_number() -> None:
    special = Special(0, 1, 2, 3, 100, ends=frozenset({50}), digits=frozenset({60, 61}))
    words = np.full(30, 10, dtype=np.int32)
    words[[9, 15]] = 50  # full stops
    words[[14, 16]] = 60, 61  # around the second one: a decimal point
    assert [len(part) for part in shorten([words], [False], 18, special)] == [10]
    assert [len(part) for part in shorten([words], [False], 8, special)] == [8]
    assert len(shorten([words], [False], 40, special)[0]) == 30


def test_a_pair_in_pretraining_keeps_its_impression() -> None:
    findings, impression = np.full(200, 20, dtype=np.int32), np.full(40, 30, dtype=np.int32)
    texts = Texts([findings], [impression], ["a"], SPECIAL, 64, 0.15, 0.0, 0)
    for epoch in range(4):  # either section comes first
        ids, labels, _ = texts.example(epoch, 0)
        whole = np.where(labels == IGNORED, ids, labels)
        assert [(whole == 20).sum(), (whole == 30).sum()] == [21, 40]


@pytest.mark.parametrize(
    "heads", [("FINDINGS:", "IMPRESSION:"), ("Findings:", "Impression:"), ("findings:", "Conclusion:")]
)
@pytest.mark.parametrize("max_tokens", [48, 96])
def test_the_impression_of_a_long_report_reaches_the_kept_states(
    model: Path, heads: tuple[str, str], max_tokens: int
) -> None:
    encoder = TextEncoder(model, num_tokens=48, mask_padding=False, max_tokens=max_tokens)
    body = "Both lungs are clear. " * 60
    impression = ["There is a large left pleural effusion.", "There is no pleural effusion."]
    reports = [f"{heads[0]} {body}{heads[1]} {text}" for text in impression]
    states, mask = encoder.encode(reports)
    assert mask.sum(axis=1).min() > 36
    assert np.abs(states[0] - states[1]).max() > 0.1
    ids, kept = encoder._input(reports[0], next(token_ids(encoder._tokenizer, reports)))
    assert len(ids) <= max_tokens
    words = encoder._tokenizer.convert_ids_to_tokens([int(ids[place]) for place in kept if place < len(ids)])
    assert words[0] == "[CLS]"
    assert words[-1] == "[SEP]"
    assert "left pleural effusion ." in " ".join(words)
    cut = TextEncoder(model, num_tokens=48, mask_padding=False, max_tokens=max_tokens, long_reports="cut_end")
    ids, kept = cut._input(reports[0], next(token_ids(cut._tokenizer, reports)))
    assert (len(ids), kept.tolist()) == (max_tokens, list(range(48)))
    before, after = cut.encode(reports)[0]
    np.testing.assert_array_equal(before, after)


def test_a_text_that_fits_is_encoded_as_ever_and_parts_join_to_the_text(model: Path) -> None:
    encoder = TextEncoder(model, num_tokens=48, mask_padding=False, max_tokens=96)
    for text in ("No bullae.", "", "FINDINGS: Clear. IMPRESSION: Normal.", "Impression: stable. Findings: clear."):
        ids, kept = encoder._input(text, next(token_ids(encoder._tokenizer, [text])))
        assert ids.tolist() == encoder._tokenizer(text)["input_ids"]
        assert kept.tolist() == list(range(48))
        assert "".join(part for _, part in split_sections(text)) == text
    assert [name for name, _ in split_sections("FINDINGS: Clear. IMPRESSION: Normal.")] == ["findings", "impression"]
    assert encoder.num_shortened == 0


def test_sections_that_a_report_lacks_are_null_and_a_report_with_none_is_named(model: Path, tmp_path: Path) -> None:
    rows = [
        {"report_id": "both", "findings": "Clear.", "impression": "Normal.", "split": "train"},
        {"report_id": "first", "findings": "Clear.", "impression": "", "split": "train"},
        {"report_id": "second", "findings": " ", "impression": "Normal.", "split": "train"},
    ]
    write_csv(tmp_path / "reports.csv", rows, list(rows[0]))
    embed_reports(model, stage(), tmp_path / "reports.csv", tmp_path / "embeddings.json")
    texts = read_json(tmp_path / "embeddings.json")["texts"]
    assert {name: [key is None for key in keys] for name, keys in texts.items()} == {
        "both": [False, False, False],
        "first": [False, False, True],
        "second": [False, True, False],
    }
    embeddings = Embeddings(tmp_path / "embeddings.json", SECTIONS)
    assert [embeddings.num_sections(row) for row in embeddings.rows(["both", "first", "second"])] == [3, 2, 2]
    with pytest.raises(InputError, match="report first has no impression"):
        embed_reports(model, stage(sections=("impression",)), tmp_path / "reports.csv", tmp_path / "x.json")
    with pytest.raises(InputError, match="report first has none of the sections"):
        Embeddings(tmp_path / "embeddings.json", ("impression",)).rows(["first"])


def test_vocabulary_is_reproducible_and_knows_whole_words() -> None:
    corpus = ["There is a large pleural effusion.", "No cardiomegaly.", "Pleural effusion on the left."] * 5
    first, second = train_tokenizer(corpus, 200), train_tokenizer(corpus, 200)
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("pleural EFFUSION.") == ["pleural", "effusion", "."]
    assert [len(ids) for ids in token_ids(first, ["pleural effusion", ""])] == [2, 0]


def test_pretraining_writes_the_folder(model: Path) -> None:
    names = {path.name for path in model.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "metrics.csv",
        "heldout.json",
        "medsyn_text.json",
    } <= names
    curve = read_csv(model / "metrics.csv")
    assert [row["epoch"] for row in curve] == ["1", "2"]
    assert float(curve[1]["mlm_perplexity"]) < float(curve[0]["mlm_perplexity"])
    held_out = read_json(model / "heldout.json")
    assert held_out["num_reports"] == {"training": 136, "held_out": 24}
    assert 0 <= held_out["held_out"]["pairing_accuracy"] <= 1
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_same_run_same_bytes_and_a_killed_run_ends_equal(
    reports: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            pretrain(stage(), reports, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    pretrain(stage(), reports, tmp_path / "model")
    for name in ("model.safetensors", "tokenizer.json", "pairing_head.safetensors", "medsyn_text.json"):
        assert sha256(tmp_path / "model" / name) == sha256(model / name), name
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_processes_train_one_encoder(reports: Path, model: Path, tmp_path: Path) -> None:
    """The epochs are runs of the loop one after the other, in one process group."""
    (tmp_path / "text.json").write_text(stage().model_dump_json())
    arguments = ["pretrain-text", "--config", str(tmp_path / "text.json"), "--reports", str(reports)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medsyn"]
    subprocess.run([*launcher, *arguments, "--out", str(tmp_path / "model"), "--quiet"], check=True, timeout=600)
    curves = [read_csv(folder / "metrics.csv") for folder in (model, tmp_path / "model")]
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


def test_a_small_corpus_begins_with_a_comparison() -> None:
    """Of the second "40" to its like in the first section; of [CLS] to either section, by the last layer's heads."""

    def attention(small_corpus: bool) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        settings = {"hidden_size": 128, "num_heads": 4, "num_layers": 2, "small_corpus": small_corpus}
        bert = new_language_model(TINY.model_copy(update=settings), 300).bert.eval()
        bert.set_attn_implementation("eager")
        ids = torch.tensor([[2, *range(20, 50), 3, 40, 60, 3]])
        segments = (torch.arange(35) > 31).long()[None]
        first, last = bert(ids, token_type_ids=segments, output_attentions=True).attentions
        return first[0, :2, 32], last[0, :2, 0, 32:].sum(dim=-1)

    (matched, second), (plain, _) = attention(True), attention(False)
    assert (matched[:, 21] > 0.25).all()
    assert (matched[:, 21] + matched[:, 32] > 0.9).all()
    assert (plain[:, 21] < 0.1).all()
    assert second[0] > 0.2 > 3 / 35 > second[1]


def test_a_crossed_batch_holds_pairs_and_their_swaps(reports: Path) -> None:
    """Fours of two texts; in two epochs every text once with its own second section, once with another's."""
    texts = read_corpus(TINY, reports).training
    batches = Batches(texts, 8, crossed=True)
    steps = range(2 * batches.per_epoch)
    orders = np.concatenate([batches._draw_order(epoch).reshape(-1, 2) for epoch in (0, 1)])
    own = orders[orders[:, 0] == orders[:, 1], 0]
    assert len(orders) == 2 * len(own) == len(steps) * 8
    assert set(own) == set(range(len(texts)))
    assert sorted(own) == sorted(orders[orders[:, 0] != orders[:, 1], 0])
    for four in orders.reshape(-1, 4, 2):
        assert (four[:, 0] == four[[0, 1, 0, 1], 0]).all() and (four[:, 1] == four[[0, 1, 1, 0], 0]).all()
    paired = torch.cat([batches.batch(step, range(8))["paired"] for step in steps])
    assert 0.45 < (paired[paired != IGNORED] == 1).float().mean() < 0.55
    again = Batches(texts, 8, crossed=True).batch(3, range(8))
    for name, value in batches.batch(3, range(8)).items():
        assert torch.equal(value, again[name])


@pytest.mark.parametrize("change", [{"num_layers": 1}, {"num_heads": 2}, {"batch_size": 6}])
def test_a_small_corpus_needs_layers_heads_and_fours(change: dict[str, int]) -> None:
    settings = {"small_corpus": True, "num_layers": 2, "num_heads": 4, "batch_size": 8}
    TextEncoderConfig(**settings)
    with pytest.raises(ValueError, match="small_corpus needs"):
        TextEncoderConfig(**(settings | change))


def test_states_do_not_depend_on_the_batch(encoder: TextEncoder) -> None:
    samples = ["There is no pleural effusion.", "Cardiomegaly.", "There is a large left pleural effusion. " * 9, ""]
    states, mask = encoder.encode(samples)
    assert states.shape == (4, 48, 32)
    assert states.dtype == np.float32
    assert mask.dtype == bool
    assert mask[3].sum() == 2
    assert mask[2].all()
    for index, sample in enumerate(samples):
        alone, alone_mask = encoder.encode([sample])
        np.testing.assert_allclose(alone[0], states[index], atol=1e-5)
        assert (alone_mask[0] == mask[index]).all()
    reversed_states, _ = encoder.encode(samples[::-1], batch_size=2)
    np.testing.assert_allclose(reversed_states[::-1], states, atol=1e-5)
    assert np.abs(states[0, 40]).sum() > 0
    assert encoder.encode([])[0].shape == (0, 48, 32)


def test_masked_padding_is_zero_and_the_rest_is_the_same(model: Path) -> None:
    open_encoder = TextEncoder(model, num_tokens=48, mask_padding=False, max_tokens=96)
    masked = TextEncoder(model, num_tokens=48, mask_padding=True, max_tokens=96)
    (states, mask), (zeroed, _) = open_encoder.encode(["No bullae."]), masked.encode(["No bullae."])
    np.testing.assert_array_equal(zeroed[mask], states[mask])
    assert not zeroed[~mask].any()
    with pytest.raises(InputError, match="96 positions"):
        TextEncoder(model, num_tokens=200, mask_padding=False, max_tokens=96)


def test_effusion_is_linearly_decodable(encoder: TextEncoder, tmp_path: Path) -> None:
    specs = write_reports_csv(tmp_path / "more.csv", 600, 200, seed=9)
    rows = read_csv(tmp_path / "more.csv")
    truth = np.array([any(spec.kind == "pleural_effusion" for spec in one) for one in specs], dtype=float)
    states, mask = encoder.encode([row["impression"] for row in rows])
    means = (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    design = np.c_[means, np.ones(len(means))]
    fit, probe = design[:400], design[400:]
    weights = np.linalg.solve(fit.T @ fit + 0.01 * np.eye(fit.shape[1]), fit.T @ (truth[:400] * 2 - 1))
    assert (((probe @ weights) > 0) == truth[400:]).mean() > 0.85


def test_positions_are_extended_and_the_first_rows_kept(tmp_path: Path) -> None:
    small = BertForMaskedLM(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
        )
    )
    small.save_pretrained(tmp_path)
    extended = load_language_model(tmp_path, 20)
    table = extended.bert.embeddings.position_embeddings.weight
    assert table.shape == (20, 16)
    assert torch.equal(table[:8], small.bert.embeddings.position_embeddings.weight)
    ids = torch.arange(1, 7)[None]
    torch.testing.assert_close(extended.eval()(ids).logits, small.eval()(ids).logits)
    assert extended(torch.ones(1, 20, dtype=torch.long)).logits.shape == (1, 20, 50)
    with pytest.raises(InputError, match="absent: no such folder"):
        load_language_model(tmp_path / "absent", 20)


def write_published(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> None:
    """A checkpoint as Microsoft publishes CXR-BERT: own model type and tokenizer class, vocab.txt, a pickle."""
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    words = [*names.values(), "there", "is", "no", "effusion", ".", "##s", "lung"]
    code = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
    own = {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "auto_map": code, "projection_size": 4}
    tokenizer = {"tokenizer_class": "CXRBertTokenizer", "do_lower_case": True, "model_max_length": 512, **names}
    tokenizer["auto_map"] = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    for name, content in (
        ("config.json", config | own),
        ("tokenizer_config.json", tokenizer),
        ("special_tokens_map.json", names),
    ):
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("layout", ["cxr-bert", "bert-base"])
def test_published_checkpoints_load_whole(layout: str, reports: Path, tmp_path: Path) -> None:
    """CXR-BERT has a projection head and stored position ids beside BERT; BERT's own files have old names and ties."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small = BertForMaskedLM(BertConfig(vocab_size=12, max_position_embeddings=16, **sizes))
    tensors = {name: value.clone() for name, value in small.state_dict().items()}
    if layout == "cxr-bert":
        extra = {"cls_projection_head.dense_to_hidden.weight": torch.zeros(4, 16)}
        stored = tensors | extra | {"bert.embeddings.position_ids": torch.arange(16)[None]}
    else:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        stored = {"cls.seq_relationship.weight": torch.zeros(2, 16)}
        for name, value in tensors.items():
            for new, before in old.items():
                name = name.replace(new, before)
            if "decoder" not in name:
                stored[name] = value
    write_published(tmp_path / "published", stored, small.config.to_dict())
    loaded = load_language_model(tmp_path / "published", 40).state_dict()
    position = "bert.embeddings.position_embeddings.weight"
    for name, value in tensors.items():
        assert torch.equal(loaded[name][: len(value)], value), name
    assert loaded[position].shape == (40, 16)
    tokenizer = load_tokenizer(tmp_path / "published")
    assert tokenizer("There is NO effusions.")["input_ids"] == [2, 5, 6, 7, 8, 10, 9, 3]
    from_published = TINY.model_copy(update={"init": str(tmp_path / "published"), "num_epochs": 1, "max_tokens": 64})
    pretrain(stage(from_published), reports, tmp_path / "model")
    assert TextEncoder.from_folder(tmp_path / "model").encode(["no effusion"])[0].shape == (1, 48, 16)


def test_general_english_has_no_radiology() -> None:
    documents = english_documents(50_000)
    assert 40_000 < sum(map(len, documents)) <= 50_000
    assert english_documents(50_000) == documents
    assert "effusion" not in " ".join(documents)


def test_a_checkpoint_and_general_english_as_a_start(
    reports: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_module, "english_documents", lambda: english_documents(50_000))
    from_checkpoint = TINY.model_copy(update={"init": str(model), "num_epochs": 1, "max_tokens": 120})
    result = pretrain(stage(from_checkpoint), reports, tmp_path / "continued")
    before = read_json(model / "heldout.json")["held_out"]["mlm_perplexity"]
    assert result["mlm_perplexity"] < before
    english = TINY.model_copy(update={"vocabulary": "english", "num_english_steps": 2, "num_epochs": 1})
    pretrain(stage(english), reports, tmp_path / "generic")
    generic = TextEncoder.from_folder(tmp_path / "generic")
    assert generic.encode(["There is cardiomegaly."])[1].sum() > 8
    assert "english_sha256" in read_json(tmp_path / "generic" / "heldout.json")["provenance"]


def test_embed_writes_every_section(reports: Path, model: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text(stage().model_dump_json())
    out = tmp_path / "embeddings.json"
    arguments = ["embed", "--encoder", str(model), "--config", str(tmp_path / "text.json"), "--out", str(out)]
    assert main([*arguments, "--reports", str(reports), "--quiet"]) == 0
    rows = [row for row in read_csv(reports) if row["split"] != "text_only"]
    embeddings = Embeddings(out, SECTIONS)
    assert (embeddings.num_tokens, embeddings.hidden_size) == (48, 32)
    assert embeddings.rows([row["report_id"] for row in rows]) == list(range(len(rows)))
    for place, section in enumerate(SECTIONS):
        states, _ = encoder.encode([section_text(rows[5]["findings"], rows[5]["impression"], section)])
        np.testing.assert_allclose(embeddings.states(5, place).numpy(), states[0], atol=4e-3)
    assert {load_file(path)["states"].dtype for path in shards(out)} == {torch.float16}
    text_only = next(row["report_id"] for row in read_csv(reports) if row["split"] == "text_only")
    with pytest.raises(InputError, match=f"no text for report {text_only}"):
        embeddings.rows([text_only])
    with pytest.raises(InputError, match="not the text embeddings of these sections"):
        Embeddings(out, ["history"])
    assert main([*arguments, "--reports", str(reports), "--quiet", "--splits", "text_only"]) == 0
    assert Embeddings(out, SECTIONS).rows([text_only]) == [0]


def shards(index: Path) -> list[Path]:
    return sorted(index.with_suffix("").glob("*.safetensors"))


def test_only_a_changed_report_is_encoded_again(
    reports: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small shards; one of them lost, as after a kill; a changed report; fewer texts."""
    rows = read_csv(reports)
    table, out = tmp_path / "reports.csv", tmp_path / "embeddings.json"
    write_csv(table, rows, list(rows[0]))
    encoded: list[str] = []
    original = TextEncoder.encode

    def counted(self: TextEncoder, texts: list[str], batch_size: int = 64) -> object:
        encoded.extend(texts)
        return original(self, texts, batch_size)

    def embed() -> list[str]:
        encoded.clear()
        embed_reports(model, stage(), table, out)
        return sorted(encoded)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    monkeypatch.setattr(embed_module, "_SHARD_BYTES", 20 * 48 * 32 * 2)
    first = embed()
    assert len(first) == len(set(first)) > 100
    assert len(shards(out)) == -(-len(first) // 20)
    before = Embeddings(out, SECTIONS)
    assert embed() == []
    shards(out)[0].unlink()
    out.unlink()
    assert 0 < len(embed()) <= 20
    number, changed = next((i, row) for i, row in enumerate(rows) if row["split"] == "train")
    changed["impression"] = "There is a new finding."
    write_csv(table, rows, list(rows[0]))
    texts = [section_text(changed["findings"], changed["impression"], name) for name in ("report", "impression")]
    assert embed() == sorted(texts)
    after = Embeddings(out, SECTIONS)
    other = next(row["report_id"] for row in rows[number + 1 :] if row["split"] == "train")
    (place,) = after.rows([other])
    for section in range(3):
        torch.testing.assert_close(after.states(place, section), before.states(place, section), atol=1e-3, rtol=0)
    assert after.hash != before.hash
    (out.with_suffix("") / "notes.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    embed_reports(model, stage(sections=("impression",)), table, out)
    assert sum(len(load_file(path).get("states", ())) for path in shards(out)) < len(first)
    assert (out.with_suffix("") / "notes.safetensors").exists(), "only shards may be removed"


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


def test_embed_refuses_other_settings(reports: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text(stage(num_tokens=32).model_dump_json())
    arguments = ["embed", "--encoder", str(model), "--config", str(tmp_path / "text.json"), "--reports", str(reports)]
    assert main([*arguments, "--out", str(tmp_path / "e.json")]) == 2
    assert main([*arguments, "--out", str(tmp_path / "e.safetensors")]) == 2


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
