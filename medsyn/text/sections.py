"""Sections of a report, and the one way in which they become a text for the language model.

Takes the Findings and Impression columns of a cohort or reports table; gives "FINDINGS: ... IMPRESSION: ..." for the
whole report and the bare text for one section, so that a prompt such as "There is no pleural effusion." looks like an
Impression. Out of free text, `find_sections` takes Findings and Impression with or without headers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from medsyn.text.headers import HEADER_LINE, HEADERS, section_of
from medsyn.text.plain import is_placeholder, plain_text

Section = Literal["report", "findings", "impression"]
SECTIONS: tuple[Section, ...] = get_args(Section)
_NUM_TELLING_WORDS = 25
_WORD = re.compile(r"\w+")
# What stands behind every header that HEADER_LINE finds, or is one: most texts have none, and this is found faster.
_MAY_HAVE_HEADERS = re.compile(r"[:\n]|-[ \t]|FINDINGS|IMPRESSION|CONCLUSION|ADDENDUM")


def section_text(findings: str, impression: str, section: str) -> str:
    """Return the text of one of `SECTIONS`; an absent section is left out of the whole report."""
    parts = {"findings": " ".join(findings.split()), "impression": " ".join(impression.split())}
    if section == "report":
        return " ".join(f"{name.upper()}: {text}" for name, text in parts.items() if text)
    if section not in parts:
        raise ValueError(f"no section '{section}', there are {', '.join(SECTIONS)}")
    return parts[section]


# ___ and [**Name**] as in MIMIC, XXXX as in Open-i, [DATE], <NAME>.
_DEIDENTIFIED = re.compile(r"\[\*\*[^\]\n]{0,80}\*\*\]|_{2,}|\bX{3,}\b|[\[<][A-Z][A-Z _-]{1,30}\d*[\]>]")
_NOISE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]+|(?m:^[ \t]*[-=*#~]{3,}[ \t]*$)|(?im:^[ \t]*page \d+(?: of \d+)?[ \t]*$)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|[\n\"“”]")
_QUOTES = re.compile(r'"|[“”]')
_BULLETS = re.compile("[•●▪]")


@dataclass(frozen=True)
class Sections:
    """Findings and Impression of one free-text report, "" where absent; items of the text are lines.

    `counts`: headers, quotes and bullets (an Impression behind quotation marks or bullets), rejected (sections of
    another kind), deidentified (tokens left out), noise (control characters, rules, page numbers).
    """

    findings: str
    impression: str
    counts: Counter[str] = field(default_factory=Counter)


def find_sections(report: str) -> Sections:
    """Split a free-text report by headers; else the Impression is what follows the first quotation mark.

    The reports of CT-RATE have no headers: every item of their Impression begins with a quotation mark, or with a
    bullet behind a text of whole sentences. A text with none of these is all Findings. Mark-up is removed, an addendum
    ends the Impression.
    """
    text = plain_text(report.replace("\r\n", "\n").replace("\r", "\n"))
    text, noise = _NOISE.subn(" ", text)
    text, deidentified = _DEIDENTIFIED.subn(" ", text)
    counts = Counter({"noise": noise, "deidentified": deidentified})
    parts: dict[str, list[str]] = {name: [] for name in HEADERS}
    headers = list(HEADER_LINE.finditer(text))
    names = [section_of(header["name"]) for header in headers]
    if "findings" in names or "impression" in names:
        parts["findings"].append(text[: headers[0].start()])
        ends = [header.start() for header in headers[1:]] + [len(text)]
        counts["headers"] = len(headers)
        for name, header, end in zip(names, headers, ends, strict=True):
            parts[name].append(text[header.end() : end])
    else:
        text = _without_headed(text, headers, parts["addendum"])
        findings, *items = _QUOTES.split(text)
        if items and not findings.strip() and len(items) > 1:  # the whole text stands in quotation marks
            findings, *items = items
        counts["quotes"] = int(any(item.strip() for item in items))
        before, *bullets = _BULLETS.split(findings)
        if not counts["quotes"] and bullets and _SENTENCE_END.search(before):
            findings, items = before, bullets
            counts["bullets"] = 1
        parts["findings"], parts["impression"] = [findings], items
    counts["rejected"] = names.count("rejected")
    findings, impression = _lines(parts["findings"]), _lines(parts["impression"] + parts["addendum"])
    return Sections(findings, impression, +counts)


def _without_headed(text: str, headers: Sequence[re.Match[str]], addenda: list[str]) -> str:
    """Return a text that has neither Findings nor Impression as headers without what other headers begin.

    An addendum runs to the next header and goes to `addenda`; of a section of another kind ("Technique: ...") the
    sentence or line goes.
    """
    end = len(text)
    for header in reversed(headers):
        sentence_end = _SENTENCE_END.search(text, header.end())
        stop = sentence_end.start() if sentence_end else len(text)
        if section_of(header["name"]) == "addendum":
            stop = end
            addenda.insert(0, text[header.end() : stop])
        text, end = text[: header.start()] + text[stop:], header.start()
    return text


def split_sections(text: str, first: str = "findings") -> list[tuple[str, str]]:
    """Return the parts of a text that headers begin, as (findings, impression or rejected; the part with its header).

    The parts joined are the text. What stands before the first header counts as section `first`, an addendum as
    Impression.
    """
    headers = list(HEADER_LINE.finditer(text))
    starts = [0, *(header.start() for header in headers), len(text)]
    names = [first, *map(_part_of, headers)]
    parts = [text[start:end] for start, end in pairwise(starts)]
    return [(name, part) for name, part in zip(names, parts, strict=True) if part]


def _part_of(header: re.Match[str]) -> str:
    """Return findings, impression or rejected: the part that a header begins. An addendum counts as Impression."""
    return section_of(header["name"]).replace("addendum", "impression")


def text_fingerprints(findings: str, impression: str) -> set[str]:
    """Return what makes two reports the same text: the words of the whole report and of every long section.

    Case, punctuation, white space, headings, sections other than Findings and Impression, and which of the two columns
    holds them do not count. A section of fewer than 25 words ("No acute disease.") is said of many patients, so it
    counts as part of the whole report only.
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": [], "rejected": []}
    for column, text in (("findings", findings), ("impression", impression)):
        if not text:
            continue
        headers = list(HEADER_LINE.finditer(text)) if _MAY_HAVE_HEADERS.search(text) else []
        folded = text.casefold() if text.isascii() else None  # of other texts the length may change
        starts = [0, *(header.end() for header in headers)]
        ends = [*(header.start() for header in headers), len(text)]
        for name, start, end in zip([column, *map(_part_of, headers)], starts, ends, strict=True):
            parts[name] += _WORD.findall(folded[start:end] if folded is not None else text[start:end].casefold())
    whole = parts["findings"] + parts["impression"] or parts["rejected"]
    long = [parts[name] for name in ("findings", "impression") if len(parts[name]) >= _NUM_TELLING_WORDS]
    return {" ".join(words) for words in (whole, *long) if words}


def _lines(parts: list[str]) -> str:
    items = (" ".join(item.replace('"', " ").split()) for part in parts for item in part.split("\n\n"))
    text = "\n".join(item for item in items if item.strip(" .,;"))
    return "" if is_placeholder(text) else text
