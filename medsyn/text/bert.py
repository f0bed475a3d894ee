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
from transformers import BertConfig, BertForMaskedLM, BertModel

from medsyn.config import TextEncoderConfig
from medsyn.errors import InputError

IGNORED = -100
"""Label of what has no target: unmasked tokens, texts that are no pair."""


class ReportBert(nn.Module):
    """BERT and its two heads; `language.bert` is what becomes the text encoder."""

    def __init__(self, language: BertForMaskedLM) -> None:
        super().__init__()
        self.language = language
        self.pairing = nn.Linear(language.config.hidden_size, 2)
        nn.init.normal_(self.pairing.weight, std=0.02)
        nn.init.zeros_(self.pairing.bias)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor, labels: Tensor, paired: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        ids, mask, segments (0, 1), labels: (n, tokens) int64, labels IGNORED where a token is not to be predicted;
        paired: (n,) int64, 1 paired, 0 swapped, IGNORED for a text that is no pair. Gives `loss` (sum of both
        cross-entropies), `token_nats` (one value per predicted token), `pairing_correct` (one 0/1 value per pair).
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
        return {"loss": token_nats.mean() + pair_nats, "token_nats": token_nats, "pairing_correct": correct}


def new_language_model(config: TextEncoderConfig, vocabulary_size: int) -> BertForMaskedLM:
    """An untrained BERT of the configured size; weights from torch's global generator.

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
    if config.match_words:
        _attend_to_equal_words(model.bert)
    return model


def _attend_to_equal_words(bert: BertModel) -> None:
    """Let half of the first layer's heads begin with keys equal to queries, on states in which the word dominates.

    A token then finds its like in the other section from the first step, which a few hundred reports are too few to
    teach (after the mimetic initialisation of Trockman and Kolter, ICML 2023).
    """
    layer: Any = bert.encoder.layer[0]
    attention = layer.attention.self
    half = bert.config.hidden_size // 2
    with torch.no_grad():
        attention.query.weight[:half] *= 2
        attention.key.weight[:half] = attention.query.weight[:half]
        bert.embeddings.position_embeddings.weight *= 0.25
        bert.embeddings.token_type_embeddings.weight *= 0.25


def load_language_model(source: str | Path, max_tokens: int) -> BertForMaskedLM:
    """The BERT of a local folder or hub name, with positions for at least `max_tokens` tokens.

    A shorter position table keeps its rows and gets new, untrained ones, as the authors do (512 to 2,048).
    """
    try:
        loaded: BertForMaskedLM = BertForMaskedLM.from_pretrained(str(source))
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
