"""Sections of a report, and the one way in which they become a text for the language model.

Takes the Findings and Impression columns of a cohort or reports table; gives "FINDINGS: ... IMPRESSION: ..." for the
whole report and the bare text for one section, so that a prompt such as "There is no pleural effusion." looks like an
Impression.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Section = Literal["report", "findings", "impression"]
SECTIONS: tuple[Section, ...] = get_args(Section)
_HEADER = re.compile(r"\b(findings|impression)\s*:\s*", re.IGNORECASE)


def section_text(findings: str, impression: str, section: str) -> str:
    """The text of one of `SECTIONS`; an absent section is left out of the whole report."""
    parts = {"findings": " ".join(findings.split()), "impression": " ".join(impression.split())}
    if section == "report":
        return " ".join(f"{name.upper()}: {text}" for name, text in parts.items() if text)
    if section not in parts:
        raise ValueError(f"no section '{section}', there are {', '.join(SECTIONS)}")
    return parts[section]


def split_sections(report: str) -> tuple[str, str]:
    """(findings, impression) of a text written by `section_text`; a text without headers is all findings."""
    pieces = _HEADER.split(report)
    found = {"findings": pieces[0].strip(), "impression": ""}
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        key = name.lower()
        found[key] = f"{found[key]} {text.strip()}".strip()
    return found["findings"], found["impression"]
