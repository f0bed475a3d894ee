"""The frozen text encoder: texts in, last hidden states of `num_tokens` positions out.

The authors tokenise to a fixed length, let BERT attend to real tokens only, and keep the last hidden layer of the first
positions including those of the padding (as in the authors' code). With `mask_padding` the padding's states are zero
instead. A text with more than `num_tokens` tokens has more states than are kept; unless `long_reports` is cut_end, the
states of its Impression are among the kept ones, whose order stays. A state depends on its text alone: padding is never
attended to, so a text is padded no further than its own length asks for, and neither the batch nor its other texts
matter (equal within 1e-5 on one device).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertModel

from medsyn.config import LongReports
from medsyn.errors import InputError
from medsyn.files import read_json, sha256
from medsyn.text.budget import shares, shorten
from medsyn.text.sections import split_sections
from medsyn.text.tokenizer import Special, TokenIds, load_tokenizer, token_ids

Positions = NDArray[np.int64]
SETTINGS_FILE = "medsyn_text.json"
MODEL_FILE = "model.safetensors"
_LENGTH_STEP = 32


class TextEncoder:
    """A folder written by `pretrain-text`: model, tokenizer and how many states are kept."""

    def __init__(
        self,
        folder: str | Path,
        *,
        num_tokens: int,
        mask_padding: bool,
        max_tokens: int,
        long_reports: LongReports = "shorten_findings",
    ) -> None:
        self.num_tokens, self.mask_padding, self.max_tokens = num_tokens, mask_padding, max(max_tokens, num_tokens)
        self.long_reports = long_reports
        self.num_shortened = 0  # texts so far that were longer than max_tokens
        self._tokenizer = load_tokenizer(folder)
        self._special = Special.of(self._tokenizer)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = BertModel.from_pretrained(str(folder), add_pooling_layer=False, dtype=torch.float32)
        self._model = model.eval().to(self._device)
        positions = self._model.config.max_position_embeddings
        if positions < self.max_tokens:
            raise InputError(
                f"{folder}: the language model has {positions} positions, num_tokens and max_tokens ask for"
                f" {self.max_tokens}; pretrain it with a larger max_tokens"
            )

    @classmethod
    def from_folder(cls, folder: str | Path) -> TextEncoder:
        """Open an encoder with the settings stored beside its weights."""
        settings = read_json(Path(folder) / SETTINGS_FILE)
        try:
            expected = settings.pop("model_sha256", None)
            known = {name: settings.pop(name) for name in ("num_tokens", "mask_padding", "max_tokens")}
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{Path(folder) / SETTINGS_FILE}: not the settings of a text encoder ({error}); run pretrain-text again"
            ) from None
        if expected is not None and sha256(Path(folder) / MODEL_FILE) != expected:
            raise InputError(
                f"{Path(folder) / MODEL_FILE}: is damaged: its SHA-256 is not that in {SETTINGS_FILE}; copy it again,"
                " or run pretrain-text again"
            )
        return cls(folder, **known, long_reports=settings.get("long_reports", "shorten_findings"))

    @property
    def hidden_size(self) -> int:
        """Width of a state."""
        return int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (states (n, num_tokens, hidden_size), mask (n, num_tokens), true where there is a token of the text).

        A text longer than max_tokens is shortened as `long_reports` says (medsyn.text.budget).
        """
        states = np.zeros((len(texts), self.num_tokens, self.hidden_size), dtype=np.float32)
        mask = np.zeros((len(texts), self.num_tokens), dtype=bool)
        if not len(texts):
            return states, mask
        inputs = [self._input(*pair) for pair in zip(texts, token_ids(self._tokenizer, texts), strict=True)]
        lengths = np.asarray([self._padded_length(len(tokens)) for tokens, _ in inputs])
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                kept = min(int(length), self.num_tokens)
                states[part, :kept], mask[part, :kept] = self._forward([inputs[place] for place in part], int(length))
        if self.mask_padding:
            states *= mask[..., None]
        return states, mask

    def _padded_length(self, num_tokens: int) -> int:
        """Return the next multiple of 32, at least the positions whose states are kept unless padding's are zero."""
        padded = -(-num_tokens // _LENGTH_STEP) * _LENGTH_STEP
        return min(padded if self.mask_padding else max(padded, self.num_tokens), self.max_tokens)

    def _input(self, text: str, ids: TokenIds) -> tuple[TokenIds, Positions]:
        """Return the input of BERT, [CLS] ... [SEP], and the positions whose states are kept."""
        first = np.arange(self.num_tokens)
        fits = len(ids) + 2 <= self.max_tokens
        self.num_shortened += not fits
        if self.long_reports == "cut_end" or len(ids) + 2 <= self.num_tokens:
            return self._with_ends([ids[: self.max_tokens - 2]]), first
        names, texts = zip(*split_sections(text), strict=True)
        impressions = [name == "impression" for name in names]
        parts = shorten(list(token_ids(self._tokenizer, texts)), impressions, self.max_tokens - 2, self._special)
        whole = self._with_ends(parts)
        if len(whole) <= self.num_tokens:
            return whole, first
        lengths = [len(part) for part in parts]
        starts = 1 + np.cumsum([0, *lengths[:-1]])
        kept = shares(lengths, impressions, self.num_tokens - 2)
        middle = [np.arange(start, start + count) for start, count in zip(starts, kept, strict=True)]
        return whole, np.concatenate([[0], *middle, [len(whole) - 1]])

    def _with_ends(self, parts: Sequence[TokenIds]) -> TokenIds:
        return np.concatenate([[self._special.cls], *parts, [self._special.sep]]).astype(np.int32)

    def _forward(
        self, inputs: Sequence[tuple[TokenIds, Positions]], length: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return states and mask at the kept positions of inputs that are padded to `length`."""
        tokens = np.full((len(inputs), length), self._special.pad, dtype=np.int64)
        mask = np.zeros((len(inputs), length), dtype=np.int64)
        for row, (ids, _) in enumerate(inputs):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(tokens).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            )
        kept = np.stack([positions[:length] for _, positions in inputs])  # (n, min(length, num_tokens))
        rows = np.arange(len(inputs))[:, None]
        states = output.last_hidden_state[torch.from_numpy(rows), torch.from_numpy(kept)].float().cpu().numpy()
        return states, mask[rows, kept].astype(bool)
