"""Prompt pairs out of reports: a sentence that states one finding and nothing else, and its reversal by rules.

Takes texts of reports, gives pairs whose label flips under the labeler (a pair whose label does not is left out). The
paper selects such sentences by hand ("There are large pleural effusions seen.") and reverses them ("There is no pleural
effusion."); here the rules of `pair_rules.yaml` do, which list every word that such a sentence may have. Severity and
side of the finding are kept or dropped as asked; a reversal never has a severity, and a side only where the pair keeps
it and the finding is said of that side alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medsyn.text.labels import Labeler, default_labeler

RULES_FILE = Path(__file__).with_name("pair_rules.yaml")
MAX_WORDS = 20
_SIDES = {"left": " on the left", "right": " on the right", "both": " on either side"}
_WORD_OR_MARK = re.compile(r"[a-z]+|[^a-z\s.,-]")


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in one finding. `source` names the report, or "paper"."""

    finding: str
    with_finding: str
    without_finding: str
    source: str


def paper_pairs() -> list[Pair]:
    """Return the example prompts of the paper."""
    return [Pair(pair["finding"], pair["with"], pair["without"], "paper") for pair in _rules()["paper"]]


def report_pairs(texts: Iterable[tuple[str, str]], *, keep_severity: bool = True, keep_side: bool = True) -> list[Pair]:
    """Return pairs from (name, report), each wording once, in the order of the reports."""
    labeler = default_labeler()
    pairs: dict[tuple[str, str], Pair] = {}
    for name, text in texts:
        for finding, sentences in labeler.evidence(text).items():
            for sentence in sentences:
                pair = make_pair(finding, sentence, labeler, name, keep_severity, keep_side)
                if pair is not None:
                    pairs.setdefault((finding, pair.with_finding), pair)
    return list(pairs.values())


def make_pair(
    finding: str, sentence: str, labeler: Labeler, source: str = "", keep_severity: bool = True, keep_side: bool = True
) -> Pair | None:
    """Return the pair of one lower-case sentence, or None if it says more than the finding or cannot be reversed."""
    if finding not in _rules()["denials"] or not _says_only(finding, sentence):
        return None
    sentence = sentence.strip(" .,;-")
    text = sentence if keep_severity else _drop(_rules()["severity"], sentence)
    without = reversal(finding, text, keep_side)
    text = text if keep_side else _drop(_rules()["side_phrases"], text)
    if len(text.split()) > MAX_WORDS or (not keep_side and _sides(text)):
        return None
    text = text.strip(" .,;-")
    text = text[:1].upper() + text[1:] + "."
    stated = {name for name, label in labeler.label(text).items() if label}
    alone = stated in ({finding}, {finding, "lung_opacity"})  # ground glass is an opacity as well
    if not alone or any(labeler.label(without).values()):
        return None
    return Pair(finding, text, without, source)


def _says_only(finding: str, sentence: str) -> bool:
    """Return whether a lower-case sentence has none but the words that the rules allow in a sentence of `finding`."""
    rules = _rules()
    if not _vocabulary(finding).issuperset(_WORD_OR_MARK.findall(sentence)):
        return False
    excludes = [rules["excludes"][name] for name in ("any", finding) if name in rules["excludes"]]
    needed = re.search(rules["needs"].get(finding, ""), sentence) is not None
    return needed and not any(re.search(phrase, sentence) for phrase in excludes)


@cache
def _vocabulary(finding: str) -> frozenset[str]:
    words = _rules()["words"]
    return frozenset(f"{words['filler']} {words['any']} {words[finding]}".split())


def content(sentence: str) -> frozenset[str]:
    """Return the words of a sentence without fillers: what tells whether two sentences say the same."""
    return frozenset(re.findall(r"[a-z]+", sentence.lower())) - frozenset(_rules()["words"]["filler"].split())


def reversal(finding: str, sentence: str, keep_side: bool) -> str:
    """Return the denial of `finding` in words that fit the sentence."""
    rule = _rules()["denials"][finding]
    words = next((text for phrase, text in rule.get("except", {}).items() if re.search(phrase, sentence)), rule["text"])
    sides = _sides(re.sub(_rules()["more_on_one_side"], "", sentence)) if keep_side else []
    return str(words).format(side=_SIDES[sides[0]] if len(sides) == 1 else "")


def _sides(sentence: str) -> list[str]:
    found = [side for side, phrase in _rules()["sides"].items() if re.search(rf"\b(?:{phrase})\b", sentence)]
    return ["both"] if "both" in found or {"left", "right"} <= set(found) else found


def _drop(phrases: Iterable[str], sentence: str) -> str:
    short = " ".join(re.sub(rf"\b(?:{'|'.join(phrases)})(?!\w)", " ", sentence).split())
    return re.sub(r"\b(an?) (?=[a-z])", lambda match: _article(short[match.end() :]), short).replace(" ,", ",")


def _article(rest: str) -> str:
    return "an " if rest[:1] in "aeiou" else "a "


@cache
def _rules() -> dict[str, Any]:
    rules: dict[str, Any] = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))
    return rules
