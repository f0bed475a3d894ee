"""States of reports: independent of their batch, long reports shortened, and embeddings of every section."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from text_data import write_reports_csv
from text_fixtures import SECTIONS, stage

from medsyn.cli import main
from medsyn.errors import InputError
from medsyn.files import read_csv, read_json, write_csv
from medsyn.text import embed as embed_module
from medsyn.text.embed import embed_reports
from medsyn.text.encoder import TextEncoder
from medsyn.text.sections import section_text, split_sections
from medsyn.text.tokenizer import token_ids
from medsyn.training.data import Embeddings


@pytest.mark.parametrize(
    "heads", [("FINDINGS:", "IMPRESSION:"), ("Findings:", "Impression:"), ("findings:", "Conclusion:")]
)
@pytest.mark.parametrize("max_tokens", [48, 96])
def test_the_impression_of_a_long_report_reaches_the_kept_states(
    text_model: Path, heads: tuple[str, str], max_tokens: int
) -> None:
    encoder = TextEncoder(text_model, num_tokens=48, mask_padding=False, max_tokens=max_tokens)
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
    cut = TextEncoder(text_model, num_tokens=48, mask_padding=False, max_tokens=max_tokens, long_reports="cut_end")
    ids, kept = cut._input(reports[0], next(token_ids(cut._tokenizer, reports)))
    assert (len(ids), kept.tolist()) == (max_tokens, list(range(48)))
    before, after = cut.encode(reports)[0]
    np.testing.assert_array_equal(before, after)


def test_a_text_that_fits_is_encoded_as_ever_and_parts_join_to_the_text(text_model: Path) -> None:
    encoder = TextEncoder(text_model, num_tokens=48, mask_padding=False, max_tokens=96)
    for text in ("No bullae.", "", "FINDINGS: Clear. IMPRESSION: Normal.", "Impression: stable. Findings: clear."):
        ids, kept = encoder._input(text, next(token_ids(encoder._tokenizer, [text])))
        assert ids.tolist() == encoder._tokenizer(text)["input_ids"]
        assert kept.tolist() == list(range(48))
        assert "".join(part for _, part in split_sections(text)) == text
    assert [name for name, _ in split_sections("FINDINGS: Clear. IMPRESSION: Normal.")] == ["findings", "impression"]
    assert encoder.num_shortened == 0


def test_sections_that_a_report_lacks_are_null_and_a_report_with_none_is_named(
    text_model: Path, tmp_path: Path
) -> None:
    rows = [
        {"report_id": "both", "findings": "Clear.", "impression": "Normal.", "split": "train"},
        {"report_id": "first", "findings": "Clear.", "impression": "", "split": "train"},
        {"report_id": "second", "findings": " ", "impression": "Normal.", "split": "train"},
    ]
    write_csv(tmp_path / "reports.csv", rows, list(rows[0]))
    embed_reports(text_model, stage(), tmp_path / "reports.csv", tmp_path / "embeddings.json")
    texts = read_json(tmp_path / "embeddings.json")["texts"]
    assert {name: [key is None for key in keys] for name, keys in texts.items()} == {
        "both": [False, False, False],
        "first": [False, False, True],
        "second": [False, True, False],
    }
    embeddings = Embeddings(tmp_path / "embeddings.json", SECTIONS)
    assert [embeddings.num_sections(row) for row in embeddings.rows(["both", "first", "second"])] == [3, 2, 2]
    with pytest.raises(InputError, match="report first has no impression"):
        embed_reports(text_model, stage(sections=("impression",)), tmp_path / "reports.csv", tmp_path / "x.json")
    with pytest.raises(InputError, match="report first has none of the sections"):
        Embeddings(tmp_path / "embeddings.json", ("impression",)).rows(["first"])


def test_states_do_not_depend_on_the_batch(text_encoder: TextEncoder) -> None:
    samples = ["There is no pleural effusion.", "Cardiomegaly.", "There is a large left pleural effusion. " * 9, ""]
    states, mask = text_encoder.encode(samples)
    assert states.shape == (4, 48, 32)
    assert states.dtype == np.float32
    assert mask.dtype == bool
    assert mask[3].sum() == 2
    assert mask[2].all()
    for index, sample in enumerate(samples):
        alone, alone_mask = text_encoder.encode([sample])
        np.testing.assert_allclose(alone[0], states[index], atol=1e-5)
        assert (alone_mask[0] == mask[index]).all()
    reversed_states, _ = text_encoder.encode(samples[::-1], batch_size=2)
    np.testing.assert_allclose(reversed_states[::-1], states, atol=1e-5)
    assert np.abs(states[0, 40]).sum() > 0
    assert text_encoder.encode([])[0].shape == (0, 48, 32)


def test_masked_padding_is_zero_and_the_rest_is_the_same(text_model: Path) -> None:
    open_encoder = TextEncoder(text_model, num_tokens=48, mask_padding=False, max_tokens=96)
    masked = TextEncoder(text_model, num_tokens=48, mask_padding=True, max_tokens=96)
    (states, mask), (zeroed, _) = open_encoder.encode(["No bullae."]), masked.encode(["No bullae."])
    np.testing.assert_array_equal(zeroed[mask], states[mask])
    assert not zeroed[~mask].any()
    with pytest.raises(InputError, match="96 positions"):
        TextEncoder(text_model, num_tokens=200, mask_padding=False, max_tokens=96)


def test_effusion_is_linearly_decodable(text_encoder: TextEncoder, tmp_path: Path) -> None:
    specs = write_reports_csv(tmp_path / "more.csv", 600, 200, seed=9)
    rows = read_csv(tmp_path / "more.csv")
    truth = np.array([any(spec.kind == "pleural_effusion" for spec in one) for one in specs], dtype=float)
    states, mask = text_encoder.encode([row["impression"] for row in rows])
    means = (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    design = np.c_[means, np.ones(len(means))]
    fit, probe = design[:400], design[400:]
    weights = np.linalg.solve(fit.T @ fit + 0.01 * np.eye(fit.shape[1]), fit.T @ (truth[:400] * 2 - 1))
    assert (((probe @ weights) > 0) == truth[400:]).mean() > 0.85


def test_embed_writes_every_section(
    text_reports: Path, text_model: Path, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    (tmp_path / "text.json").write_text(stage().model_dump_json())
    out = tmp_path / "embeddings.json"
    arguments = ["embed", "--encoder", str(text_model), "--config", str(tmp_path / "text.json"), "--out", str(out)]
    assert main([*arguments, "--reports", str(text_reports), "--quiet"]) == 0
    rows = [row for row in read_csv(text_reports) if row["split"] != "text_only"]
    embeddings = Embeddings(out, SECTIONS)
    assert (embeddings.num_tokens, embeddings.hidden_size) == (48, 32)
    assert embeddings.rows([row["report_id"] for row in rows]) == list(range(len(rows)))
    for place, section in enumerate(SECTIONS):
        states, _ = text_encoder.encode([section_text(rows[5]["findings"], rows[5]["impression"], section)])
        np.testing.assert_allclose(embeddings.states(5, place).numpy(), states[0], atol=4e-3)
    assert {load_file(path)["states"].dtype for path in shards(out)} == {torch.float16}
    text_only = next(row["report_id"] for row in read_csv(text_reports) if row["split"] == "text_only")
    with pytest.raises(InputError, match=f"no text for report {text_only}"):
        embeddings.rows([text_only])
    with pytest.raises(InputError, match="not the text embeddings of these sections"):
        Embeddings(out, ["history"])
    assert main([*arguments, "--reports", str(text_reports), "--quiet", "--splits", "text_only"]) == 0
    assert Embeddings(out, SECTIONS).rows([text_only]) == [0]


def shards(index: Path) -> list[Path]:
    return sorted(index.with_suffix("").glob("*.safetensors"))


def test_only_a_changed_report_is_encoded_again(
    text_reports: Path, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small shards; one of them lost, as after a kill; a changed report; fewer texts."""
    rows = read_csv(text_reports)
    table, out = tmp_path / "reports.csv", tmp_path / "embeddings.json"
    write_csv(table, rows, list(rows[0]))
    encoded: list[str] = []
    original = TextEncoder.encode

    def counted(self: TextEncoder, texts: list[str], batch_size: int = 64) -> object:
        encoded.extend(texts)
        return original(self, texts, batch_size)

    def embed() -> list[str]:
        encoded.clear()
        embed_reports(text_model, stage(), table, out)
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
    (out.with_suffix("") / "notes.safetensors").write_bytes((text_model / "model.safetensors").read_bytes())
    embed_reports(text_model, stage(sections=("impression",)), table, out)
    assert sum(len(load_file(path).get("states", ())) for path in shards(out)) < len(first)
    assert (out.with_suffix("") / "notes.safetensors").exists(), "only shards may be removed"


def test_embed_refuses_other_settings(text_reports: Path, text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text(stage(num_tokens=32).model_dump_json())
    arguments = [
        "embed",
        "--encoder",
        str(text_model),
        "--config",
        str(tmp_path / "text.json"),
        "--reports",
        str(text_reports),
    ]
    assert main([*arguments, "--out", str(tmp_path / "e.json")]) == 2
    assert main([*arguments, "--out", str(tmp_path / "e.safetensors")]) == 2
