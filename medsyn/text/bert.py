"""The language model: BERT with a masked-language head and a linear classifier of paired sections on the [CLS] state.

Paper, Section IV-A: task (a) masked-language modelling, task (b) "a linear classifier that uses the [CLS] embedding to
predict whether the input Impression and Findings are paired". BERT itself is the one of transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from medsyn.config import TextEncoderConfig
from medsyn.errors import InputError
from medsyn.text.hub import is_local

IGNORED = -100
"""Label of what has no target: unmasked tokens, texts that are no pair."""


class ReportBert(nn.Module):
    """BERT and its two heads; `language.bert` is what becomes the text encoder."""

    def __init__(self, language: BertForMaskedLM, pairing_weight: float = 1.0) -> None:
        super().__init__()
        self.language, self.pairing_weight = language, pairing_weight
        self.pairing = nn.Linear(language.config.hidden_size, 2)
        nn.init.normal_(self.pairing.weight, std=0.02)
        nn.init.zeros_(self.pairing.bias)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor, labels: Tensor, paired: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        ids, mask, segments (0, 1), labels: (n, tokens) int64, labels IGNORED where a token is not to be predicted;
        paired: (n,) int64, 1 paired, 0 swapped, IGNORED for a text that is no pair. Gives `loss` (sum of both
        cross-entropies, that of the pairs weighted), `token_nats` (one value per predicted token), `pairing_correct`
        (one 0/1 value per pair).
        """
        output = self.language.bert(input_ids=ids, attention_mask=mask, token_type_ids=segments)
        states = output.last_hidden_state  # (n, tokens, hidden)
        predicted = labels != IGNORED
        scores = self.language.cls(states[predicted])  # (predicted tokens, vocabulary)
        token_nats = functional.cross_entropy(scores.float(), labels[predicted], reduction="none")
        pairs = paired != IGNORED
        pair_scores = self.pairing(states[:, 0]).float()[pairs]
        pair_nats = functional.cross_entropy(pair_scores, paired[pairs], reduction="sum") / pairs.sum().clamp(min=1)
        correct = (pair_scores.argmax(dim=1) == paired[pairs]).float()
        loss = token_nats.mean() + self.pairing_weight * pair_nats
        return {"loss": loss, "token_nats": token_nats, "pairing_correct": correct}


def new_language_model(config: TextEncoderConfig, vocabulary_size: int) -> BertForMaskedLM:
    """Build an untrained BERT of the configured size; weights from torch's global generator.

    BERT draws them with a deviation of 0.02 at width 768; narrower networks need wider draws to start as fast.
    """
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=vocabulary_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=config.max_tokens,
            initializer_range=0.02 * (768 / config.hidden_size) ** 0.5,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
    )
    if config.small_corpus:
        _begin_comparing(model)
    return model


def _begin_comparing(model: BertForMaskedLM) -> None:
    """Let attention begin as a comparison of the two sections, which a few hundred reports are too few to teach.

    In half of the first layer's heads keys equal queries (after the mimetic initialisation of Trockman and Kolter, ICML
    2023) and neither sees the section, so that a token attends to its like in both sections; the values tell in which.
    In the last layer a quarter of the heads look at the first section and a quarter at the second. Words and segments
    are four times larger than positions: the word dominates a state, and the first steps do not erase it.
    """
    bert, half = model.bert, model.config.hidden_size // 2
    layers: Any = bert.encoder.layer
    words: Any = bert.embeddings.word_embeddings
    sections: Any = bert.embeddings.token_type_embeddings
    compare, read = layers[0].attention.self, layers[-1].attention.self
    norm: Any = model.cls.predictions.transform.LayerNorm
    with torch.no_grad():
        words.weight *= 4
        norm.weight /= 4  # the same scores of words as before
        sections.weight *= 4
        step = sections.weight.diff(dim=0)[0]
        step = step / step.norm()
        compare.query.weight[:half] *= 6
        compare.query.weight[:half] -= torch.outer(compare.query.weight[:half] @ step, step)
        compare.key.weight[:half] = compare.query.weight[:half]
        compare.value.weight[:half] *= 3
        read.query.bias[:half] = 1
        contrast = 2 * step / read.attention_head_size**0.5
        read.key.weight[: half // 2] += contrast
        read.key.weight[half // 2 : half] -= contrast
        read.value.weight[:half] *= 3


def load_language_model(source: str | Path, max_tokens: int) -> BertForMaskedLM:
    """Load the BERT of a local folder or hub name, with positions for at least `max_tokens` tokens.

    A shorter position table keeps its rows and gets new, untrained ones, as the authors do (512 to 2,048).
    """
    try:
        local = is_local(str(source))
        loaded: BertForMaskedLM = BertForMaskedLM.from_pretrained(str(source), local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"text encoder init '{source}': no BERT checkpoint there ({reason}); give a local folder, a hub name that"
            " can be reached, or 'scratch'"
        ) from None
    if loaded.config.max_position_embeddings >= max_tokens:
        return loaded
    weights: dict[str, Any] = loaded.state_dict()
    extended = BertForMaskedLM(BertConfig(**{**loaded.config.to_dict(), "max_position_embeddings": max_tokens}))
    name = "bert.embeddings.position_embeddings.weight"
    table = extended.state_dict()[name].clone()
    table[: weights[name].shape[0]] = weights[name]
    extended.load_state_dict(weights | {name: table})
    return extended
