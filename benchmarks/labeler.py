"""Compare the report labeler with labels set by hand: `python benchmarks/labeler.py --reports CSV [--rules YAML]`.

The table needs a text column (report_text, report or text) and one 0/1 column per finding, named as in CT-RATE; where a
label is open to judgement it is left empty. Prints per finding TP, FP, FN, TN, precision, recall and F1 over all
reports, F1 of the even and of the odd rows (so that rules written from one half can be judged on the other), F1 of a
few keywords with negation, the means over the findings that have one, the wrong labels in all, and reports/s on one
core of both. `--misses FINDING` lists the reports where label and hand disagree.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsyn.errors import InputError
from medsyn.files import read_csv
from medsyn.text.labels import RULES_FILE, Labeler, load_labeler

NUM_RUNS = 5
NAMES = {"lung_nodule": "nodule"}
# The baseline: a finding is there if a sentence names it and holds no word of denial.
NEGATION = re.compile(r"\b(no|not|without|neither|nor|cannot)\b")
KEYWORDS = {
    "pleural_effusion": "pleural effusion|pleural fluid|hydrothorax",
    "lung_opacity": "opacit|ground.?glass|density increase",
    "cardiomegaly": "cardiomegaly|heart size (is|has) increased|enlarged heart",
    "emphysema": "emphysem|bulla|bullous",
    "consolidation": "consolidat",
    "nodule": "nodul",
    "atelectasis": "atelecta",
    "pericardial_effusion": "pericardial effusion",
    "medical_material": "catheter|stent|pacemaker|suture|prosthe|tube",
    "arterial_wall_calcification": "(aort|arter).*(calcif|atheroma)|(calcif|atheroma).*(aort|arter)",
    "coronary_artery_wall_calcification": "coronary.*(calcif|atheroma)|(calcif|atheroma).*coronary",
    "hiatal_hernia": "hiatal hernia",
    "lymphadenopathy": "lymph node|lymphadenopathy",
    "pulmonary_fibrotic_sequela": "sequela|fibro",
    "mosaic_attenuation_pattern": "mosaic",
    "peribronchial_thickening": "peribronchial.*thicken",
    "bronchiectasis": "bronchiecta",
    "interlobular_septal_thickening": "septal thicken",
}


@dataclass
class Counts:
    """Of one finding: reports by hand label and found label."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def add(self, truth: int, found: int) -> None:
        """One more report."""
        name = ("tn", "fp", "fn", "tp")[2 * truth + found]
        setattr(self, name, getattr(self, name) + 1)

    def precision(self) -> float:
        """Nan where nothing was found."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else float("nan")

    def recall(self) -> float:
        """Nan where there is nothing to find."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else float("nan")

    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else float("nan")


def main() -> None:
    """Print the table, or the disagreements of one finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", required=True, type=Path, help="CSV with report_text and hand labels")
    parser.add_argument("--rules", type=Path, help="rules, YAML (default: those of the package)")
    parser.add_argument("--misses", metavar="FINDING", help="list the reports with another label than the hand's")
    parser.add_argument("--half", choices=("even", "odd"), help="with --misses: of these rows only")
    args = parser.parse_args()
    labeler = load_labeler(args.rules or RULES_FILE)
    try:
        rows = read_csv(args.reports)
        columns = hand_columns(rows, labeler, args.reports)
    except InputError as error:
        parser.error(str(error))
    if args.misses and args.misses not in columns:
        parser.error(f"--misses {args.misses}: {args.reports} has {', '.join(columns)}")
    text = next((name for name in ("report_text", "report", "text") if name in rows[0]), None)
    if text is None:
        parser.error(f"{args.reports}: no column report_text, report or text")
    texts = [row[text] for row in rows]
    found, seconds = timed(lambda: load_labeler(args.rules or RULES_FILE).label, texts)
    if args.misses:
        print_misses(rows, found, args.misses, columns[args.misses], text, args.half)
        return
    plain, plain_seconds = timed(keyword_labeler, texts)
    print_table(rows, found, plain, columns)
    print(f"\nfastest of {NUM_RUNS} on one core: {len(rows)} reports in {seconds:.2f} s", end="")
    print(f" = {len(rows) / seconds:.0f} reports/s; keywords {len(rows) / plain_seconds:.0f} reports/s")


def timed(make: Callable[[], Callable[[str], dict[str, int]]], texts: list[str]) -> tuple[list[dict[str, int]], float]:
    """Labels of all texts, and CPU seconds of the fastest run; every run has a fresh labeler, which knows no text."""
    seconds = float("inf")
    for _ in range(NUM_RUNS):
        label = make()
        start = time.process_time()
        found = [label(text) for text in texts]
        seconds = min(seconds, time.process_time() - start)
    return found, seconds


def keyword_labeler() -> Callable[[str], dict[str, int]]:
    """The baseline."""
    keywords = {finding: re.compile(words) for finding, words in KEYWORDS.items()}

    def label(text: str) -> dict[str, int]:
        stated = [part for part in re.split(r"[.\n\"]", text.lower()) if not NEGATION.search(part)]
        return {finding: int(any(words.search(part) for part in stated)) for finding, words in keywords.items()}

    return label


def hand_columns(rows: list[dict[str, str]], labeler: Labeler, path: Path) -> dict[str, str]:
    """Column of the hand label by finding."""
    columns = {column.strip().lower().replace(" ", "_"): column for column in (rows[0] if rows else {})}
    known = {NAMES.get(name, name): column for name, column in columns.items()}
    shared = {finding: known[finding] for finding in labeler.findings if finding in known}
    if not shared:
        raise InputError(f"{path}: no column is named like a finding ({', '.join(labeler.findings)})")
    return shared


def print_table(
    rows: list[dict[str, str]], found: list[dict[str, int]], plain: list[dict[str, int]], columns: dict[str, str]
) -> None:
    """One row a finding: all reports, both halves, and the keywords on all reports."""
    print(f"{'finding':34} {'TP':>4} {'FP':>4} {'FN':>4} {'TN':>4} {'precision':>9} {'recall':>7} {'F1':>6}", end="")
    print(f" {'F1 even':>8} {'F1 odd':>7} {'keywords':>8}")
    means: list[tuple[float, ...]] = []
    num_wrong = num_labels = 0
    for finding, column in columns.items():
        both = Counts(), Counts()
        baseline = Counts()
        for number, row in enumerate(rows):
            if not row[column].strip():
                continue
            both[number % 2].add(int(row[column]), found[number][finding])
            baseline.add(int(row[column]), plain[number].get(finding, 0))
        even, odd = both
        total = Counts(even.tp + odd.tp, even.fp + odd.fp, even.fn + odd.fn, even.tn + odd.tn)
        scores = total.f1(), even.f1(), odd.f1(), baseline.f1()
        means.append(scores)
        num_wrong, num_labels = num_wrong + total.fp + total.fn, num_labels + total.tp + total.tn + total.fp + total.fn
        print(f"{finding:34} {total.tp:4} {total.fp:4} {total.fn:4} {total.tn:4}", end="")
        print(f" {total.precision():9.3f} {total.recall():7.3f} {scores[0]:6.3f}", end="")
        print(f" {scores[1]:8.3f} {scores[2]:7.3f} {scores[3]:8.3f}")
    mean = [
        sum(known) / max(1, len(known)) for known in ([x for x in part if x == x] for part in zip(*means, strict=True))
    ]
    print(f"{f'mean of {len(columns)}':72} {mean[0]:6.3f} {mean[1]:8.3f} {mean[2]:7.3f} {mean[3]:8.3f}")
    print(f"{num_wrong} of {num_labels} labels are not the hand's")


def print_misses(
    rows: list[dict[str, str]], found: list[dict[str, int]], finding: str, column: str, text: str, half: str | None
) -> None:
    """Every report on which the labeler and the hand disagree."""
    for number, (row, labels) in enumerate(zip(rows, found, strict=True)):
        if row[column].strip() and labels[finding] != int(row[column]) and half in (None, ("even", "odd")[number % 2]):
            kind = "FP" if labels[finding] else "FN"
            print(f"{kind} row {number} {next(iter(row.values()))}: {row[text]}\n")


if __name__ == "__main__":
    main()
