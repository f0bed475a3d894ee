"""Many phrases as one regular expression that searches fast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_ESCAPE_SET_OR_GROUP = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(\((?!\?))", re.DOTALL)


def union(phrases: Sequence[str]) -> re.Pattern[str]:
    """Return one expression for all phrases, of whole words; "^" is the beginning of a sentence.

    A match begins with the character before the word: to jump from one to the next is the fastest that `re` can search.
    It skips alternatives by their first letter, so groups in front are written out, and letters stand once.
    """
    return _union(tuple(phrases))


@lru_cache(maxsize=1024)
def _union(phrases: tuple[str, ...]) -> re.Pattern[str]:
    anchored = all(phrase.startswith("^") for phrase in phrases)
    start = "" if anchored else "(?<=^ )"
    bodies = [start + phrase[1:] if phrase.startswith("^") else phrase for phrase in phrases]
    for body in bodies:
        re.compile(body)  # re.error names the phrase
    bodies = _by_letter([led for body in bodies for led in _led_by_words(_without_captures(body))])
    first = "^ " if anchored else r"\W"
    return re.compile(rf"{first}(?:{'|'.join(bodies)})(?!\w)" if bodies else r"(?!)")


def _without_captures(body: str) -> str:
    """Return an expression whose groups keep nothing, which is faster; brackets in escapes and sets stay."""
    return _ESCAPE_SET_OR_GROUP.sub(lambda match: "(?:" if match[1] else match[0], body)


def _led_by_words(body: str) -> list[str]:
    """Return alternatives that match what `body` does, in its order: "(?:a|b) c" is "a c" or "b c", "(?:a )?b" two."""
    result: list[str] = []
    for part in _alternatives(body):
        end = _group_end(part) if part.startswith("(?:") else 0
        if not end or part[end : end + 1] in ("*", "+", "{") or part[end : end + 2] == "??":
            result.append(part)
            continue
        optional = part[end : end + 1] == "?"
        rest = part[end + optional :]
        for inner in _alternatives(part[3 : end - 1]):
            result += _led_by_words(inner + rest)
        result += _led_by_words(rest) if optional else []
    return result


def _by_letter(bodies: Sequence[str]) -> list[str]:
    """Return alternatives that match what `bodies` do, those with one first letter in one group: "a(?:b|c)".

    The search then skips a whole group by its letter. Alternatives with different letters never match at one place, so
    their order is free. One that begins with anything else keeps its place.
    """
    result: list[str] = []
    groups: dict[str, list[str]] = {}
    for body in (*bodies, ""):
        if body[:1].isalpha() and body[1:2] not in ("?", "*", "+", "{"):
            groups.setdefault(body[0], []).append(body[1:])
            continue
        for letter, rest in groups.items():
            result.append(letter + (rest[0] if len(rest) == 1 else f"(?:{'|'.join(rest)})"))
        groups = {}
        result += [body] if body else []
    return result


def _alternatives(body: str) -> list[str]:
    """Split an expression at each "|" that is in no group."""
    parts, start, place = [], 0, 0
    while place < len(body):
        if body[place] == "|":
            parts.append(body[start:place])
            start = place + 1
        place = _group_end(body, place) if body[place] == "(" else _next(body, place)
    return [*parts, body[start:]]


def _group_end(body: str, place: int = 0) -> int:
    """Return the place behind the group that opens at `place`."""
    place += 1
    while body[place] != ")":
        place = _group_end(body, place) if body[place] == "(" else _next(body, place)
    return place + 1


def _next(body: str, place: int) -> int:
    """Return the place behind the character, escape or set of characters at `place`."""
    if body[place] == "\\":
        return place + 2
    if body[place] != "[":
        return place + 1
    place += 2 if body[place + 1] == "^" else 1
    place += body[place] == "]"
    while body[place] != "]":
        place += 2 if body[place] == "\\" else 1
    return place + 1
