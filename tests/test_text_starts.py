"""What the text encoder can start from: published checkpoints, an own one, general English."""

import json
from pathlib import Path

import pytest
import torch
from text_fixtures import TINY, stage
from transformers import BertConfig, BertForMaskedLM

from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.text import pretrain as pretrain_module
from medsyn.text.bert import load_language_model
from medsyn.text.encoder import TextEncoder
from medsyn.text.english import english_documents
from medsyn.text.pretrain import pretrain
from medsyn.text.tokenizer import load_tokenizer


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
def test_published_checkpoints_load_whole(layout: str, text_reports: Path, tmp_path: Path) -> None:
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
    pretrain(stage(from_published), text_reports, tmp_path / "model")
    assert TextEncoder.from_folder(tmp_path / "model").encode(["no effusion"])[0].shape == (1, 48, 16)


def test_general_english_has_no_radiology() -> None:
    documents = english_documents(50_000)
    assert 40_000 < sum(map(len, documents)) <= 50_000
    assert english_documents(50_000) == documents
    assert "effusion" not in " ".join(documents)


def test_a_checkpoint_and_general_english_as_a_start(
    text_reports: Path, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_module, "english_documents", lambda: english_documents(50_000))
    from_checkpoint = TINY.model_copy(update={"init": str(text_model), "num_epochs": 1, "max_tokens": 120})
    result = pretrain(stage(from_checkpoint), text_reports, tmp_path / "continued")
    before = read_json(text_model / "heldout.json")["held_out"]["mlm_perplexity"]
    assert result["mlm_perplexity"] < before
    english = TINY.model_copy(update={"vocabulary": "english", "num_english_steps": 2, "num_epochs": 1})
    pretrain(stage(english), text_reports, tmp_path / "generic")
    generic = TextEncoder.from_folder(tmp_path / "generic")
    assert generic.encode(["There is cardiomegaly."])[1].sum() > 8
    assert "english_sha256" in read_json(tmp_path / "generic" / "heldout.json")["provenance"]
