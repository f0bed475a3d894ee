"""Findings of a report as 0/1 labels, by rules in the manner of SARLE: sentences, synonyms, negation scope.

Takes the text of a report, gives one label per finding. The rules are data (`label_rules.yaml`), each with an example
that the tests run. The paper parses its reports with SARLE for Table VI.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medsyn.csv_reading import read_table
from medsyn.errors import InputError
from medsyn.progress import log
from medsyn.text.phrases import union
from medsyn.text.plain import plain_text
from medsyn.text.sections import find_sections, section_text
from medsyn.yaml_file import read_yaml

RULES_FILE = Path(__file__).with_name("label_rules.yaml")
# A full stop ends a sentence unless it is a decimal point or stands behind the number of an item ("1. Nodule"). What
# says the same of the other side stays with its sentence ("No effusion on the left; on the right there is one").
_AMOUNT = "(?:trace|tiny|small|mild|minimal|moderate|large|yes|present)"
_OTHER_SIDE = (
    rf"\s?(?:(?:on the )?(?:left|right|lt|rt|l|r)(?: side)?(?: ?[-:=])? {_AMOUNT}\s*(?:[.;,\n]|$)"
    rf"|{_AMOUNT} (?:on|in) the (?:left|right))"
)
_THE_OTHER = r"one (?:on|in|is)\b|(?:on|in) the (?:left|right)[^.;]{0,25} one\b"
# A full stop behind these ends no sentence: "Nodule seg. 3 no longer seen".
_ABBREVIATED = "".join(
    rf"(?<!\b{word}\.)"
    for word in ("approx", "ca", "dr", "incl", "max", "pericard", "pl", "resp", "seg", "segm", "susp", "vs")
)
_DENIAL = r"\s?(?:no?|none|nil|neg|nad|absent|excluded|(?:not|none|neither)(?: \w+){1,2})\b\s*(?:[.,;]|$)"
_SENTENCE = re.compile(
    r"[!?;:\n\"•·“”.](?:(?<![.:;?])|(?<=findings:)|(?<=impression:)"
    rf"|(?<=;)(?![^.;]{{0,40}}\bone\b|{_OTHER_SIDE})|(?<=\?)(?!:|{_DENIAL})"
    rf"|(?<!\d\.){_ABBREVIATED}(?<=\.)(?=\s(?!{_THE_OTHER})|$)|(?<=\d\.)(?=\s+[a-z]|\s*$)|(?<=[a-z]{{3}}\.)(?=[a-z]{{2}}))"
)
# Questions of the one who asks for the examination: the whole line is one sentence.
_QUESTIONS = re.compile(
    r"\b(?:clin(?:ical)?\.?(?: \w+)?|info|ind(?:ications?)?|questions?|query|requests?|history|hx|[cr]/o|pc"
    r"|reason for [\w ]{2,20}?) ?:"
    r"(?:[^.\n]|\.(?=\s*\?))*?(?=(?:findings|report|chest|lungs) ?:|\?\s+[a-z/ ]{3,25}:|\.(?!\s*\?)|\n|$)"
)
_STOPS = re.compile(r"[?;]|\.(?=\s*\?)")
# "?effusion. Report: ..."
_QUESTION_BEFORE = re.compile(
    r"^[^.\n:]{0,200}\?[^.\n:]{0,200}[.\n]\s*(?=(?:findings|report|results?|comment|answer|opinion|conclusion) ?:)"
)
# Fields of a template on one line: "Pleural effusion: no Nodules: yes".
_FIELDS = re.compile(r"(?<=:)( ?(?:no|none|nil|absent|yes|present|normal|clear))[ \t]+(?=(?:[a-z]+ ){0,3}[a-z]+ ?:)")
_ITEM = re.compile(r"(?:^|\s)\d\)(?=\s)")  # "1) No embolism 2) Effusion"
_WRAPPED = re.compile(r"[ \t]*\r?\n[ \t]*(?=[a-z])")
_SCOPES = ("breaks", "asides", "denied_before", "denied_after", "history")
_OPTIONAL_SCOPES = ("echoes",)
_FEW_WORDS = 15
_ENGLISH = frozenset(
    (
        *("the", "of", "is", "are", "and", "no", "not", "was", "were", "with", "there", "this", "both", "right"),
        *("left", "lung", "lungs", "normal", "seen", "observed", "detected", "heart"),
    )
)
_RULE_KEYS = {"phrase", "example", "label"}
_CACHED_SENTENCES = 50_000
_LONGEST_SENTENCE = 2_000
_SHORTEST_PHRASE = 3


@dataclass(frozen=True)
class Example:
    """A sentence of the rules file and the label that it must get."""

    finding: str
    text: str
    label: int


@dataclass(frozen=True)
class _Phrases:
    """Phrases that share their conditions on the rest of the sentence."""

    phrase: re.Pattern[str]
    needs: re.Pattern[str] | None
    excludes: re.Pattern[str] | None

    def applies(self, sentence: str) -> bool:
        if self.needs is not None and not self.needs.search(sentence):
            return False
        return self.excludes is None or not self.excludes.search(sentence)


@dataclass(frozen=True)
class _Finding:
    words: tuple[str, ...]
    present: tuple[_Phrases, ...]
    ignored: re.Pattern[str] | None
    includes: tuple[str, ...]


class Labeler:
    """Rules, compiled. `findings` are the names of the labels in the order of the rules file."""

    def __init__(self, rules: Mapping[str, Any], source: str | Path = "rules") -> None:
        self.examples = _examples(rules, source)
        try:
            self._scopes = {name: union([rule["phrase"] for rule in body]) for name, body in _scopes(rules)}
            history = [rule["phrase"] for rule in rules["history"]]
            self._opening = union([phrase for phrase in history if phrase.startswith("^")])  # looked for once
            self._history = union([phrase for phrase in history if not phrase.startswith("^")])
            self._findings = {name: _compile(name, body, source) for name, body in rules["findings"].items()}
        except re.error as error:
            raise InputError(
                f"{source}: {error.pattern!r} is not a regular expression ({error.msg}); correct it"
            ) from None
        self.findings = tuple(self._findings)
        self._words = tuple((word, name) for name, finding in self._findings.items() for word in finding.words)
        self._includes = [(name, finding.includes) for name, finding in self._findings.items() if finding.includes]
        self._known: dict[str, tuple[str, ...]] = {}
        for name, finding in self._findings.items():
            for other in finding.includes:
                if other not in self._findings:
                    raise InputError(f"{source}: {name} includes '{other}', which is not among the findings")

    def label(self, text: str) -> dict[str, int]:
        """Return 1 for every finding that the report says is there or suspects, else 0."""
        stated = {name for _, names in self._statements(text) for name in names}
        return {name: int(name in stated) for name in self.findings}

    def evidence(self, text: str) -> dict[str, list[str]]:
        """Return the sentences (lower case) that state each finding of the report."""
        found: dict[str, list[str]] = {}
        for sentence, names in self._statements(text):
            for name in names:
                found.setdefault(name, []).append(sentence.strip())
        return found

    def looks_english(self, text: str) -> bool:
        """Whether the rules can read a text: enough common English words, or a word of a finding if it is short."""
        words = re.findall(r"[^\W\d_]+", text[:_LONGEST_SENTENCE].lower())
        if len(words) < _FEW_WORDS:
            return any(word in text.lower() for word, _ in self._words) or any(word in _ENGLISH for word in words)
        return sum(word in _ENGLISH for word in words) >= len(words) / _FEW_WORDS

    def _statements(self, text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield every sentence with the findings that it states; sentences recur, so their findings are cached."""
        if len(self._known) > _CACHED_SENTENCES:
            self._known.clear()
        pieces = sentences(text)
        new = [sentence for sentence in pieces if sentence not in self._known]
        together = "\n".join(new)  # most words are in no sentence of a report
        words = [(word, name) for word, name in self._words if word in together]
        for sentence in new:
            named = [name for word, name in words if word in sentence]
            self._known[sentence] = self._stated_in(sentence, dict.fromkeys(named)) if named else ()
        for sentence in pieces:
            yield sentence, self._known[sentence]

    def _stated_in(self, sentence: str, named: Iterable[str]) -> tuple[str, ...]:
        """Return those findings that one sentence states, out of those that it may name."""
        text = _blank(self._scopes["asides"], sentence)
        free = self._free(text)
        echo = self._scopes["echoes"].search(text) if free != [(0, len(text))] else None
        if echo is not None:  # "No effusion on the left; on the right there is one."
            free.append((0, echo.start()))
        stated = {name for name in named if free and _affirmed(self._findings[name], text, free)}
        if not stated or self._opening.match(sentence) or self._history.search(sentence):
            return ()
        return (*stated, *(name for name, others in self._includes if not stated.isdisjoint(others)))

    def _free(self, text: str) -> list[tuple[int, int]]:
        """Return the parts of a sentence that nothing denies: up to a denial, and behind one that looks back."""
        breaks = [edge for match in self._scopes["breaks"].finditer(text) for edge in match.span()]
        edges = [0, *breaks, len(text)]
        free: list[tuple[int, int]] = []
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            before = self._scopes["denied_before"].search(text, start, end)
            stop = before.start() if before else end
            if stop - start >= _SHORTEST_PHRASE:
                for after in self._scopes["denied_after"].finditer(text, start, end):
                    start = after.end()
            if stop - start >= _SHORTEST_PHRASE:
                free.append((start, stop))
        return free


def sentences(text: str) -> list[str]:
    """Split a text into lower-case sentences behind a space; longer ones are cut, so that time grows linearly."""
    if "\n" in text:
        text = _WRAPPED.sub(" ", text)
    text = text.lower()
    if ":" in text:
        text = _FIELDS.sub(r"\1. ", text)
        if "?" in text:
            text = _QUESTION_BEFORE.sub("", text)
            text = _QUESTIONS.sub(lambda match: _STOPS.sub(",", match.group()), text)
    if "1)" in text and "2)" in text:
        text = _ITEM.sub(". ", text)
    pieces = [" " + piece for part in _SENTENCE.split(text) if (piece := part.strip())]
    if len(max(pieces, key=len, default="")) <= _LONGEST_SENTENCE:
        return pieces
    return [
        piece[start : start + _LONGEST_SENTENCE]
        for piece in pieces
        for start in range(0, len(piece), _LONGEST_SENTENCE)
    ]


def _affirmed(finding: _Finding, text: str, free: Sequence[tuple[int, int]]) -> bool:
    """Whether a phrase of the finding lies within one of the parts that are not denied."""
    groups = [group for group in finding.present if any(group.phrase.search(text, *part) for part in free)]
    if not groups:
        return False
    if finding.ignored is None or finding.ignored.search(text) is None:
        return any(group.applies(text) for group in groups)
    text = _blank(finding.ignored, text)
    return any(group.applies(text) and any(group.phrase.search(text, *part) for part in free) for group in groups)


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """Return `text` with every match turned into spaces, so that positions stay."""
    if pattern.search(text) is None:
        return text
    return pattern.sub(lambda match: " " * len(match.group()), text)


def _compile(name: str, body: Mapping[str, Any], source: str | Path) -> _Finding:
    if not body.get("words") or not all(isinstance(word, str) for word in body["words"]):
        raise InputError(f"{source}: {name} has no list of words; list those of which its phrases have at least one")
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for rule in body["present"]:
        groups.setdefault((rule.get("with"), rule.get("without")), []).append(rule["phrase"])
    present = tuple(
        _Phrases(union(group), union([needs]) if needs else None, union([excludes]) if excludes else None)
        for (needs, excludes), group in groups.items()
    )
    ignored = union([rule["phrase"] for rule in body["ignored"]]) if body.get("ignored") else None
    return _Finding(tuple(body["words"]), present, ignored, tuple(body.get("includes", ())))


@cache
def default_labeler() -> Labeler:
    """Return the labeler with the rules that come with the package."""
    return load_labeler(RULES_FILE)


def load_labeler(path: str | Path) -> Labeler:
    """Return a labeler with the rules of a YAML file; a broken file is an InputError."""
    rules = read_yaml(path)
    missing = [name for name in (*_SCOPES, "findings") if not isinstance(rules, dict) or name not in rules]
    if missing:
        raise InputError(
            f"{path}: no section {', '.join(missing)}; see {RULES_FILE.name} of the package for the layout"
        )
    try:
        return Labeler(rules, path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not laid out as {RULES_FILE.name} of the package ({type(error).__name__}: {error}); correct it"
        ) from None


def label_table(path: str | Path, labeler: Labeler) -> list[dict[str, Any]]:
    """Return rows of id and labels for a CSV with `id` or `report_id`, and `report` or `findings`/`impression`.

    Empty reports and rows that cannot be read are left out, reports in another language labelled 0, with a warning.
    """
    table = read_table(path)
    rows, columns = table.rows, set(table.columns)
    key = next((name for name in ("id", "report_id") if name in columns), None)
    if not rows:
        raise InputError(f"{path}: {table.faults[0].reason if table.faults else 'no reports in it'}")
    if key is None or not columns & {"report", "findings", "impression"}:
        raise InputError(
            f"{path}: missing column {'id' if key is None else 'report'}; give id or report_id, and report or"
            f" findings/impression; it has {', '.join(table.columns)}"
        )
    labelled: list[dict[str, Any]] = []
    empty: list[str] = []
    foreign: list[str] = []
    counts: Counter[str] = Counter()
    for row in rows:
        text = plain_text(row.get("report", ""))
        if text:
            sections = find_sections(text)
            counts.update(sections.counts)
            counts.update(findings=bool(sections.findings), impression=bool(sections.impression))
            text = "\n\n".join(part for part in (sections.findings, sections.impression) if part)
        else:
            findings, impression = (plain_text(row.get(name, "")) for name in ("findings", "impression"))
            text = section_text(findings, impression, "report")
        if not text:
            empty.append(row[key])
            continue
        if not labeler.looks_english(text):
            foreign.append(row[key])
        labelled.append({"id": row[key], **labeler.label(text)})
    if counts:
        log.info("%s: sections found and left out: %s", path, ", ".join(f"{n} {name}" for name, n in counts.items()))
    if not labelled:
        raise InputError(f"{path}: all {len(rows)} reports are empty; give them findings or an impression")
    if table.faults:
        left_out = table.faults[0].reason + (f", and {len(table.faults) - 1} more" if len(table.faults) > 1 else "")
        log.warning("%s: %d rows cannot be read and get no labels: %s", path, len(table.faults), left_out)
    _warn(path, empty, len(rows), "are empty and get no labels; give them findings or an impression")
    _warn(path, foreign, len(rows), "have no English that the rules know and are labelled 0; translate them")
    return labelled


def _warn(path: str | Path, names: Sequence[str], total: int, what: str) -> None:
    """Log one line for all reports with the same fault."""
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        log.warning("%s: %d of %d reports (%s) %s", path, len(names), total, shown, what)


def _scopes(rules: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Return the rules that hold for all findings, by section; a file of rules may lack those added later."""
    return [*((name, rules[name]) for name in _SCOPES), *((name, rules.get(name) or ()) for name in _OPTIONAL_SCOPES)]


def _examples(rules: Mapping[str, Any], source: str | Path) -> tuple[Example, ...]:
    examples: list[Example] = []
    groups = [(None, rule) for _, body in _scopes(rules) for rule in body]
    for name, body in rules["findings"].items():
        groups += [(name, rule) for kind in ("ignored", "present") for rule in body.get(kind) or ()]
    for finding, rule in groups:
        missing = _RULE_KEYS - set(rule)
        if missing or (finding is None and "finding" not in rule):
            raise InputError(f"{source}: a rule needs phrase, example and label, found {rule}")
        examples.append(Example(finding or rule["finding"], rule["example"], int(rule["label"])))
    return tuple(examples)
