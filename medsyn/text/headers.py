"""Section headers of radiology reports, and the section that what follows each belongs to."""

from __future__ import annotations

import re

_DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}(?:[ \t,]+(?:at )?\d{1,2}:\d{2}(?::\d{2})?(?:[ \t]*[ap]\.?m\b\.?)?)?"
# "ADDENDUM #2 (final)", "Addendum by Dr. Smith, 03/04/2021 10:30 AM", "Start of addendum"
_ADDENDUM = (
    r"(?:(?:start|begin(?:ning)?) of )?addend(?:ums?|a)\b"
    r"(?:[ \t]+(?:begins|report|note|to (?:the )?(?:original )?report))?"
    r"(?:[ \t]*(?:#|no\.?|number)?[ \t]*\d{1,2}\b(?![./-]))?(?:[ \t]*[(\[][^()\[\]\n]{1,40}[)\]])?"
    rf"(?:[ \t,-]*(?:{_DATE}|(?:by|dated?|from|on) (?:dr\.|\b\w\.|[^:.\n]){{1,40}}(?:{_DATE})?(?=[ \t]*:)))?"
)
HEADERS = {
    "findings": "findings?|description|(?:original |final )?report|observations?|end of addend(?:um|a)",
    "impression": "(?:final |overall |radiolog(?:ical|ic) )?(?:impressions?|conclusions?)|opinion|results?|summary",
    "addendum": _ADDENDUM,
    "rejected": "(?:clinical |patient )?(?:history|information|indications?|data)|indications?|reason for exam"
    "|(?:examination|exam|study)(?: type| date)?|technique|procedure|protocol|comparisons?|recommendations?|dose"
    "|(?:electronically )?(?:signed|dictated|transcribed|verified|approved)(?: by)?|radiologist|attending"
    "|end of report",
}
"""Expressions of the headers by what begins there; what is rejected is neither Findings nor Impression."""
HEADER = "|".join(HEADERS.values())
# A header begins a line or a sentence; those of `section_text` stand anywhere. In capitals it needs no colon.
HEADER_LINE = re.compile(
    r"(?:^|(?<=[.!?]\s)|(?<=\n)|(?<=\s)(?=(?-i:FINDINGS|IMPRESSION|ADDENDUM):)"
    r"|(?<=[.!?][\"”]\s)(?=addend))[ \t]*"
    rf"(?P<name>(?:{HEADER})(?=[ \t]*(?::|-{{1,2}}[ \t]|\n))"
    r"|(?-i:FINDINGS|IMPRESSION|CONCLUSION|ADDENDUM)(?=[ \t]+(?-i:[A-Z](?:[a-z]| [a-z]))))"
    r"[ \t]*(?::|-{1,2}[ \t])?[ \t]*",
    re.IGNORECASE,
)


def section_of(header: str) -> str:
    """Return the key of `HEADERS` that a header belongs to."""
    name = " ".join(header.casefold().split())
    if "addend" in name:
        return "findings" if name.startswith("end of") else "addendum"
    return next(key for key, names in HEADERS.items() if re.fullmatch(names, name, re.IGNORECASE))
