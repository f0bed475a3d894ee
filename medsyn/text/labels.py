"""Findings of a report as 0/1 labels, by rules in the manner of SARLE: sentences, synonyms, negation scope.

Takes the text of a report, gives one label per finding. The rules are data (`label_rules.yaml`), each with an example
that the tests run. The paper parses its reports with SARLE for Table VI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.text.sections import section_text

RULES_FILE = Path(__file__).with_name("label_rules.yaml")
_SENTENCE = re.compile(r"(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s+[a-z]|\s*$)|[!?;\n\"•·“”]|\b(?:findings|impression) ?:")
_SCOPES = ("breaks", "denied_before", "denied_after", "history")
_RULE_KEYS = {"phrase", "example", "label"}


@dataclass(frozen=True)
class Example:
    """A sentence of the rules file and the label that it must get."""

    finding: str
    text: str
    label: int


@dataclass(frozen=True)
class _Finding:
    present: re.Pattern[str]
    ignored: re.Pattern[str] | None
    includes: tuple[str, ...]


class Labeler:
    """Rules, compiled. `findings` are the names of the labels in the order of the rules file."""

    def __init__(self, rules: Mapping[str, Any], source: str | Path = "rules") -> None:
        self.examples = _examples(rules, source)
        try:
            self._scopes = {name: _union([rule["phrase"] for rule in rules[name]]) for name in _SCOPES}
            self._findings = {
                name: _Finding(
                    _union([rule["phrase"] for rule in body["present"]]),
                    _union([rule["phrase"] for rule in body["ignored"]]) if body.get("ignored") else None,
                    tuple(body.get("includes", ())),
                )
                for name, body in rules["findings"].items()
            }
        except re.error as error:
            raise InputError(f"{source}: '{error.pattern!r}' is no regular expression ({error.msg})") from None
        self.findings = tuple(self._findings)
        self._mention = re.compile("|".join(finding.present.pattern for finding in self._findings.values()))
        for name, finding in self._findings.items():
            for other in finding.includes:
                if other not in self._findings:
                    raise InputError(f"{source}: {name} includes '{other}', which is not among the findings")

    def label(self, text: str) -> dict[str, int]:
        """1 for every finding that the report says is there or suspects, else 0."""
        sentences = _SENTENCE.split(text.lower())
        mentioned = [part for part in sentences if self._mention.search(part)]
        kept = [part for part in mentioned if not self._scopes["history"].search(part)]
        labels = {
            name: int(any(self._affirms(finding, part) for part in kept)) for name, finding in self._findings.items()
        }
        for name, finding in self._findings.items():
            if any(labels[other] for other in finding.includes):
                labels[name] = 1
        return labels

    def _affirms(self, finding: _Finding, sentence: str) -> bool:
        if not finding.present.search(sentence):
            return False
        if finding.ignored is not None:
            sentence = finding.ignored.sub(" ", sentence)
        edges = [
            0,
            *(edge for match in self._scopes["breaks"].finditer(sentence) for edge in match.span()),
            len(sentence),
        ]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            clause = sentence[start:end]
            for match in finding.present.finditer(clause):
                before = self._scopes["denied_before"].search(clause, 0, match.end())
                if not before and not self._scopes["denied_after"].search(clause, match.start()):
                    return True
        return False


@cache
def default_labeler() -> Labeler:
    """The labeler with the rules that come with the package."""
    return load_labeler(RULES_FILE)


def load_labeler(path: str | Path) -> Labeler:
    """A labeler with the rules of a YAML file; a broken file is an InputError."""
    try:
        rules = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({error})") from None
    missing = [name for name in (*_SCOPES, "findings") if not isinstance(rules, dict) or name not in rules]
    if missing:
        raise InputError(
            f"{path}: no section {', '.join(missing)}; see {RULES_FILE.name} of the package for the layout"
        )
    return Labeler(rules, path)


def label_table(path: str | Path, labeler: Labeler) -> list[dict[str, Any]]:
    """Rows of id and labels for a CSV with `id` or `report_id`, and `report` or `findings`/`impression`."""
    rows = read_csv(path)
    columns = set(rows[0]) if rows else set()
    key = next((name for name in ("id", "report_id") if name in columns), None)
    if not rows:
        raise InputError(f"{path}: no reports in it")
    if key is None or not columns & {"report", "findings", "impression"}:
        raise InputError(
            f"{path}: missing column {'id' if key is None else 'report'}; give id or report_id, and report or"
            f" findings/impression; it has {', '.join(rows[0])}"
        )
    labelled: list[dict[str, Any]] = []
    for row in rows:
        sections = section_text(row.get("findings", ""), row.get("impression", ""), "report")
        text = row.get("report", "").strip() or sections
        if not text:
            raise InputError(f"{path}: report {row[key]} is empty; give it a text or leave the row out")
        labelled.append({"id": row[key], **labeler.label(text)})
    return labelled


def _union(phrases: Sequence[str]) -> re.Pattern[str]:
    """One expression for all phrases, from the beginning to the end of words."""
    return re.compile("|".join(rf"(?<!\w)(?:{phrase})(?!\w)" for phrase in phrases) or r"(?!)")


def _examples(rules: Mapping[str, Any], source: str | Path) -> tuple[Example, ...]:
    examples: list[Example] = []
    groups = [(None, rule) for name in _SCOPES for rule in rules[name]]
    for name, body in rules["findings"].items():
        groups += [(name, rule) for kind in ("ignored", "present") for rule in body.get(kind) or ()]
    for finding, rule in groups:
        missing = _RULE_KEYS - set(rule)
        if missing or (finding is None and "finding" not in rule):
            raise InputError(f"{source}: a rule needs phrase, example and label, found {rule}")
        examples.append(Example(finding or rule["finding"], rule["example"], int(rule["label"])))
    return tuple(examples)
