"""From token ids to training batches: section pairs, masked tokens, batches of similar length.

Every batch is a pure function of (seed, step), so a run that is killed and continued sees the same samples. An input
is "[CLS] FINDINGS: ... [SEP] IMPRESSION: ... [SEP]" with BERT's two segments; either section may come first, because
later the encoder reads single texts and a short prompt must be at home at the start. A pair that is longer than
max_tokens loses the end of its Findings (medsyn.text.budget). In task (b) of the paper's Section
IV-A a share of the Impressions is replaced by that of another patient; in task (a) a share of the tokens is to be
predicted, of which 80 % become [MASK], 10 % another token, and 10 % stay (BERT, Devlin et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsyn.text.bert import IGNORED
from medsyn.text.budget import shorten
from medsyn.text.tokenizer import Special, TokenIds

_BUCKET = 32  # batches that are sorted by length together
_HELD_OUT = 2**31  # first "epoch" of the held-out batches
_HELD_OUT_EXAMPLES = 512
DRAWN = -1  # by chance, not given
_DRAWS = 30  # of another patient's Impression: some reports have none, or the same


@dataclass(frozen=True)
class Texts:
    """Tokenised training texts: pairs of sections, or single texts where there is no second section (empty ids).

    firsts, seconds: ids per text; patients: whose text it is, for swapping. fraction settings: see TextEncoderConfig.
    """

    firsts: Sequence[TokenIds]
    seconds: Sequence[TokenIds]
    patients: Sequence[str]
    special: Special
    max_tokens: int
    mask_fraction: float
    swap_fraction: float
    seed: int

    def __len__(self) -> int:
        return len(self.firsts)

    def num_tokens(self) -> NDArray[np.int64]:
        """Return the length (n,) of every unswapped input."""
        pairs = zip(self.firsts, self.seconds, strict=True)
        lengths = [len(first) + len(second) + (3 if len(second) else 2) for first, second in pairs]
        return np.minimum(np.asarray(lengths), self.max_tokens)

    def example(self, epoch: int, index: int, other: int = DRAWN) -> tuple[TokenIds, TokenIds, int]:
        """Return (ids, labels, paired) of one input in one epoch; other: whose second section it gets, if any."""
        rng = np.random.default_rng((self.seed, epoch, index, *(() if other == DRAWN else (other,))))
        paired = IGNORED
        if not len(self.seconds[index]):
            ids = _join(shorten([self.firsts[index]], [False], self.max_tokens - 2, self.special), self.special)
        else:
            if other == DRAWN:
                other = self._other(index, rng) if rng.random() < self.swap_fraction else index
            elif other != index and not self._is_swap(index, other):
                other = self._other(index, rng)
            paired = int(other == index)
            both = [self.firsts[index], self.seconds[other]]
            parts = shorten(both, [False, True], self.max_tokens - 3, self.special)
            ids = _join(parts if rng.random() < 0.5 else parts[::-1], self.special)
        masked, labels = mask_tokens(ids, self.special, self.mask_fraction, rng)
        return masked, labels, paired

    def _other(self, index: int, rng: np.random.Generator) -> int:
        """Choose another patient whose Impression has other words; the index itself if _DRAWS draws find none."""
        candidates = rng.integers(len(self), size=_DRAWS)
        return next((int(candidate) for candidate in candidates if self._is_swap(index, candidate)), index)

    def _is_swap(self, index: int, other: int) -> bool:
        second = self.seconds[other]
        different = self.patients[other] != self.patients[index]
        return bool(different and len(second) and not np.array_equal(second, self.seconds[index]))


def mask_tokens(
    ids: TokenIds, special: Special, fraction: float, rng: np.random.Generator
) -> tuple[TokenIds, TokenIds]:
    """Return (corrupted ids, labels): `fraction` of the ordinary tokens, at least one, are to be predicted."""
    ordinary = np.flatnonzero(~np.isin(ids, (special.pad, special.cls, special.sep)))
    count = max(1, round(fraction * len(ordinary)))
    chosen = rng.permutation(ordinary)[:count]
    labels = np.full_like(ids, IGNORED)
    labels[chosen] = ids[chosen]
    masked = ids.copy()
    fate = rng.random(len(chosen))
    masked[chosen[fate < 0.8]] = special.mask
    replaced = chosen[fate >= 0.9]
    masked[replaced] = rng.integers(special.size, size=len(replaced))
    return masked, labels


class Batches:
    """Batches of similar length, every text once an epoch (the last batch is filled up from the start).

    crossed: batches of fours instead, two texts with their own second section and with the other's. What one section
    says by itself then cancels in the gradient of the pairing loss, which is most of its noise. Every text occurs
    twice in two epochs, once paired and once swapped.
    """

    def __init__(self, texts: Texts, batch_size: int, crossed: bool = False) -> None:
        self.texts, self.batch_size, self.crossed = texts, batch_size, crossed
        self.per_epoch = -(-len(texts) // batch_size)
        self._lengths = texts.num_tokens()
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def batch(self, step: int, slots: Sequence[int]) -> dict[str, Tensor]:
        """Return the samples `slots` (places in the batch) of optimiser step `step`."""
        epoch, place = divmod(step, self.per_epoch)
        chosen = self._order(epoch)[place][list(slots)]
        return collate(
            [self.texts.example(epoch, int(index), int(other)) for index, other in chosen], self.texts.special
        )

    def typical(self) -> dict[str, Tensor]:
        """Return a batch of one text, of nearly the mean length, with its own second section."""
        index = int(np.abs(self._lengths - self._lengths.mean()).argmin())
        return collate([self.texts.example(0, index, index)], self.texts.special)

    def held_out(self) -> list[dict[str, Tensor]]:
        """Return all texts in fixed draws of masks and swaps, in as many rounds as are needed, shortest first."""
        order = np.argsort(self._lengths, kind="stable")
        parts = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        rounds = range(-(-_HELD_OUT_EXAMPLES // len(order)))
        draws = [[(_HELD_OUT + number, int(index)) for index in part] for part in parts for number in rounds]
        return [collate([self.texts.example(*draw) for draw in part], self.texts.special) for part in draws]

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """Return (batches, batch_size, 2) indices of one epoch's texts, and of whose second section each gets.

        Shuffled, sorted by length within buckets, shuffled again.
        """
        rng = np.random.default_rng((self.texts.seed, epoch // 2 if self.crossed else epoch))
        order = np.resize(rng.permutation(len(self.texts)), self.per_epoch * self.batch_size)
        span = _BUCKET * self.batch_size
        for start in range(0, len(order), span):
            bucket = order[start : start + span]
            order[start : start + span] = bucket[np.argsort(self._lengths[bucket], kind="stable")]
        if not self.crossed:
            drawn = np.stack([order, np.full_like(order, DRAWN)], axis=1)
            return drawn.reshape(self.per_epoch, self.batch_size, 2)[rng.permutation(self.per_epoch)]
        a, b = order.reshape(-1, 2).T
        fours = np.stack([a, a, b, b, a, b, b, a], axis=1).reshape(2 * self.per_epoch, self.batch_size, 2)
        return fours[rng.permutation(2 * self.per_epoch)][epoch % 2 :: 2]


def collate(examples: Sequence[tuple[TokenIds, TokenIds, int]], special: Special) -> dict[str, Tensor]:
    """Pad to a common length: ids, mask, segments, labels (n, tokens) and paired (n,), all int64."""
    length = max(len(ids) for ids, _, _ in examples)
    ids = np.full((len(examples), length), special.pad, dtype=np.int64)
    labels = np.full((len(examples), length), IGNORED, dtype=np.int64)
    mask = np.zeros((len(examples), length), dtype=np.int64)
    for row, (tokens, targets, _) in enumerate(examples):
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = targets
        mask[row, : len(tokens)] = 1
    paired = np.asarray([pair for _, _, pair in examples], dtype=np.int64)
    ends = (ids == special.sep).cumsum(axis=1) - (ids == special.sep)  # separators before each token
    segments = ((ends > 0) & (mask > 0)).astype(np.int64)
    arrays = {"ids": ids, "mask": mask, "segments": segments, "labels": labels, "paired": paired}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def cut(ids: TokenIds, length: int) -> list[TokenIds]:
    """Return a long text in pieces of at most `length` tokens."""
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def _join(parts: Sequence[TokenIds], special: Special) -> TokenIds:
    """Return [CLS] a [SEP] or [CLS] a [SEP] b [SEP]."""
    pieces: list[NDArray] = [np.asarray([special.cls])]
    for part in parts:
        pieces += [part, np.asarray([special.sep])]
    return np.concatenate(pieces).astype(np.int32)
