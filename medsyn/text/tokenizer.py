"""WordPiece vocabularies: trained on a corpus, reproducibly, and the conversion of texts to token ids.

BERT's tokenizer (lower case, white space and punctuation, WordPiece), trained with the tokenizers library. The library
numbers the pieces "##x" of single characters in the order of a hash map, so two trainings would differ; naming those
pieces beforehand fixes their numbers and with them the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer
from transformers.utils import logging

from medsyn.errors import InputError
from medsyn.text.hub import is_local

logging.set_verbosity_error()  # every module that opens a language model opens a tokenizer
logging.disable_progress_bar()
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHUNK = 1000
TokenIds = NDArray[np.int32]


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens, the size of the vocabulary, and the ids that tell where a sentence ends.

    ends: full stop, exclamation and question mark; digits: tokens that begin with a digit.
    """

    pad: int
    cls: int
    sep: int
    mask: int
    size: int
    ends: frozenset[int] = frozenset()
    digits: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any) -> Special:
        """Return the ids that `tokenizer` uses."""
        pad, _, start, separator, mask = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        vocabulary = tokenizer.get_vocab()
        ends = frozenset(vocabulary[mark] for mark in ".!?" if mark in vocabulary)
        digits = frozenset(number for piece, number in vocabulary.items() if piece.lstrip("#")[:1].isdigit())
        return cls(pad, start, separator, mask, len(tokenizer), ends, digits)


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> BertTokenizer:
    """Learn a BERT tokenizer of at most `vocabulary_size` pieces from `texts`; equal texts give equal pieces."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = {character for text in texts for character in trained.normalizer.normalize_str(text)}
    pieces = [f"##{character}" for character in sorted(characters) if not character.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=[*SPECIAL_TOKENS, *pieces], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=trained.get_vocab(with_added_tokens=True), do_lower_case=True)


def load_tokenizer(source: str | Path) -> BertTokenizer:
    """Load the tokenizer of a local folder or hub name; InputError if there is none."""
    try:
        return BertTokenizer.from_pretrained(str(source), local_files_only=is_local(str(source)))
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no BERT tokenizer there ({_first_line(error)})") from None


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Iterator[TokenIds]:
    """Return the ids of each text without special tokens, of any length."""
    for start in range(0, len(texts), _CHUNK):
        batch = list(texts[start : start + _CHUNK])
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            yield np.asarray(ids, dtype=np.int32)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
