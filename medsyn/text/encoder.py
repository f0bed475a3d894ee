"""The frozen text encoder: texts in, last hidden states of the first tokens out.

The authors tokenise to a fixed length, let BERT attend to real tokens only, and keep the last hidden layer of the first
positions including those of the padding (as in the authors' code). With `mask_padding` the padding's states are zero
instead. A state depends on its text alone: padding is never attended to, so a text is padded no further than its own
length asks for, and neither the batch nor its other texts matter (equal within 1e-5 on one device).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertModel

from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.text.tokenizer import load_tokenizer

SETTINGS_FILE = "medsyn_text.json"
_LENGTH_STEP = 32


class TextEncoder:
    """A folder written by `pretrain-text`: model, tokenizer and how many states are kept."""

    def __init__(self, folder: str | Path, *, num_tokens: int, mask_padding: bool, max_tokens: int) -> None:
        self.num_tokens, self.mask_padding, self.max_tokens = num_tokens, mask_padding, max(max_tokens, num_tokens)
        self._tokenizer = load_tokenizer(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = BertModel.from_pretrained(str(folder), add_pooling_layer=False).eval().to(self._device)
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
        return cls(
            folder,
            num_tokens=settings["num_tokens"],
            mask_padding=settings["mask_padding"],
            max_tokens=settings["max_tokens"],
        )

    @property
    def hidden_size(self) -> int:
        """Width of a state."""
        return int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(states (n, num_tokens, hidden_size), mask (n, num_tokens), true where there is a token of the text).

        Texts longer than max_tokens are cut there.
        """
        states = np.zeros((len(texts), self.num_tokens, self.hidden_size), dtype=np.float32)
        mask = np.zeros((len(texts), self.num_tokens), dtype=bool)
        if not len(texts):
            return states, mask
        ids = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens, verbose=False)["input_ids"]
        lengths = np.asarray([self._padded_length(len(tokens)) for tokens in ids])
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                kept = min(int(length), self.num_tokens)
                states[part, :kept], mask[part, :kept] = self._forward([ids[place] for place in part], int(length))
        if self.mask_padding:
            states *= mask[..., None]
        return states, mask

    def _padded_length(self, num_tokens: int) -> int:
        """The next multiple of 32, and at least the positions whose states are kept, unless padding's are zero."""
        padded = -(-num_tokens // _LENGTH_STEP) * _LENGTH_STEP
        return min(padded if self.mask_padding else max(padded, self.num_tokens), self.max_tokens)

    def _forward(self, ids: Sequence[Sequence[int]], length: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        tokens = np.full((len(ids), length), self._tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(ids), length), dtype=np.int64)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = text
            mask[row, : len(text)] = 1
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(tokens).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            )
        states = output.last_hidden_state[:, : self.num_tokens].float().cpu().numpy()
        return states, mask[:, : self.num_tokens].astype(bool)
