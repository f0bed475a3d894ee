"""What a text loses that is too long for the language model: the end of its Findings, not its Impression.

Takes token ids of the parts of a report and the number of tokens that there is room for, gives how many tokens of every
part stay. Pretraining, embedding and sampling all use it.
"""

from __future__ import annotations

from collections.abc import Sequence

from medsyn.text.tokenizer import Special, TokenIds


def shares(lengths: Sequence[int], is_impression: Sequence[bool], room: int) -> list[int]:
    """Return how many first tokens of every part are kept, `room` in all.

    The Impression stays whole and the other parts share what is left, the first of them first. An Impression that alone
    fills the room leaves them half of it.
    """
    if sum(lengths) <= room:
        return list(lengths)
    others = sum(length for length, chosen in zip(lengths, is_impression, strict=True) if not chosen)
    impression = sum(lengths) - others
    if impression >= room and others:
        impression = room - min(others, room // 2)
    left = {True: min(impression, room), False: room - min(impression, room)}
    kept = []
    for length, chosen in zip(lengths, is_impression, strict=True):
        kept.append(min(length, left[chosen]))
        left[chosen] -= kept[-1]
    return kept


def shorten(parts: Sequence[TokenIds], is_impression: Sequence[bool], room: int, special: Special) -> list[TokenIds]:
    """Return the parts with `room` tokens at most in all; a part that is cut ends with a sentence if it can."""
    kept = shares([len(part) for part in parts], is_impression, room)
    return [
        part if count == len(part) else part[: _whole(part, count, special)]
        for part, count in zip(parts, kept, strict=True)
    ]


def _whole(part: TokenIds, count: int, special: Special) -> int:
    """Return the last sentence end in the second half of `count` tokens as a length, or `count` if there is none.

    A full stop beside a digit is a decimal point or belongs to the number of an item.
    """
    for end in range(count, count // 2, -1):
        if part[end - 1] not in special.ends:
            continue
        around = [int(token) for token in (*part[max(0, end - 2) : end - 1], *part[end : end + 1])]
        if special.digits.isdisjoint(around):
            return end
    return count
