"""Batches of the text encoder's pretraining: masking, swapped sections, order, and reports that are too long."""

from pathlib import Path

import numpy as np
import pytest
import torch
from text_fixtures import TINY

from medsyn.config import TextEncoderConfig
from medsyn.text.bert import IGNORED, new_language_model
from medsyn.text.budget import shares, shorten
from medsyn.text.examples import Batches, Texts, mask_tokens
from medsyn.text.pretrain import read_corpus
from medsyn.text.tokenizer import Special

SPECIAL = Special(pad=0, cls=1, sep=2, mask=3, size=100)


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


def test_a_crossed_batch_holds_pairs_and_their_swaps(text_reports: Path) -> None:
    """Fours of two texts; in two epochs every text once with its own second section, once with another's."""
    texts = read_corpus(TINY, text_reports).training
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
