"""Tables of a study's answers: recognition, ranking, comparisons of pairs, agreement, groups of readers.

Nothing is dropped silently. A recognition item without an answer counts in `num_missing`, a ranking in which a volume
has no rank in `num_incomplete`; both also count items that other readers have and this one has not. Repeated items
count for intra-reader agreement alone.

Rankings are tested in two ways. Blocks of a reader and a set are the paper's: 10 readers and 4 sets make 40 blocks,
which are taken as independent though four of them are of one reader. Blocks of a reader are the mean ranks over the
sets, one block per reader; the columns with the prefix `reader_` are theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsyn.evaluate.reader_statistics import (
    Comparison,
    Friedman,
    compare_groups,
    compare_pairs,
    exact_interval,
    fleiss_kappa,
    friedman,
    mean_interval,
    rank_agreement,
    within_ranks,
)
from medsyn.layout import REAL
from medsyn.study.responses import Response, by_block, in_order

Rows = list[dict[str, Any]]
Table = tuple[list[str], Rows]
"""Columns and rows."""
STRUCTURES = ("lobes", "vessels", "airways")
GROUPS = ("junior", "senior")
TEST_COLUMNS = ("chi2", "friedman_p", "kendall_w")
VERSUS_COLUMNS = ("p_value", "p_wilcoxon", "reader_p_value", "reader_p_wilcoxon")
PAIR_COLUMNS = ("difference", "z", "p_value", "p_bonferroni", "p_wilcoxon", "p_wilcoxon_bonferroni")
LAST_ANSWERS = ("no_abnormality", "other")


@dataclass(frozen=True)
class Blocks:
    """The complete rankings of a structure.

    methods: columns, best known first by name: real, the reference, others; ranks: (n, k) with mean ranks for ties;
    given: (n, k) as the readers wrote them; readers: of each row; num_incomplete: rankings that lack a rank.
    """

    structure: str
    methods: list[str]
    ranks: NDArray[np.float64]
    given: NDArray[np.float64]
    readers: list[str]
    num_incomplete: int

    def reader_means(self) -> NDArray[np.float64]:
        """Return the mean ranks of each reader (readers, k), in the order of their names."""
        rows = np.array(self.readers)
        means = [self.ranks[rows == name].mean(0) for name in sorted(set(self.readers))]
        return np.array(means).reshape(-1, len(self.methods))


def first_showings(responses: Iterable[Response]) -> list[Response]:
    """Return the responses to items that are not repetitions."""
    return [response for response in responses if not response.repeats]


def reference_of(responses: Sequence[Response]) -> str:
    """Return the method that the others are compared with: that of the recognition items, else the first by name."""
    shown = [part.method for part in responses if part.task == "recognition" and not part.real]
    methods = in_order(part.method for part in responses if not part.real)
    return shown[0] if shown else (methods[0] if methods else REAL)


def blocks_of(responses: Sequence[Response], structure: str, reference: str) -> Blocks:
    """Return the rankings of a structure, first showings alone."""
    asked = [part for part in first_showings(responses) if part.structure == structure]
    methods = in_order((part.method for part in asked), (REAL, reference))
    table = {name: {part.method: part.rank for part in block} for name, block in by_block(asked).items()}
    items = {part.item for part in asked}
    everyone = {part.reader for part in responses}
    complete: dict[str, list[list[float]]] = {}
    for (reader, _), ranks in sorted(table.items()):
        if all(ranks.get(method) is not None for method in methods):
            complete.setdefault(reader, []).append([float(ranks[method] or 0) for method in methods])
    given = np.array([row for rows in complete.values() for row in rows]).reshape(-1, len(methods))
    readers = [reader for reader, rows in complete.items() for _ in rows]
    return Blocks(structure, methods, within_ranks(given), given, readers, len(everyone) * len(items) - len(given))


def structures_of(responses: Iterable[Response]) -> list[str]:
    """Return the structures that were ranked."""
    return in_order((part.structure for part in responses if part.structure), STRUCTURES)


def recognition_table(responses: Sequence[Response]) -> Table:
    """Return one row per CT: how many readers said what its prompt or report says, with exact 95 % bounds."""
    asked = [part for part in first_showings(responses) if part.task == "recognition"]
    everyone = {part.reader for part in responses}
    options = in_order({*(part.answer for part in asked), *(part.truth for part in asked)} - {""}, (), LAST_ANSWERS)
    items: dict[str, list[Response]] = {}
    for part in asked:
        items.setdefault(part.item, []).append(part)
    rows: Rows = []
    for parts in sorted(items.values(), key=lambda parts: (parts[0].real, options.index(parts[0].truth))):
        said = Counter(part.answer for part in parts if part.answer)
        n, correct = sum(said.values()), said[parts[0].truth]
        low, high = exact_interval(correct, n)
        rows.append(
            {
                "item": parts[0].item,
                "truth": parts[0].truth,
                "method": parts[0].method,
                "label": parts[0].label,
                "n": n,
                "num_missing": len(everyone) - n,
                "num_correct": correct,
                "correct_mean": correct / n if n else None,
                "correct_ci_low": low,
                "correct_ci_high": high,
                **{f"said_{option}": said[option] for option in options},
            }
        )
    columns = ["item", "truth", "method", "label", "n", "num_missing", "num_correct"]
    columns += ["correct_mean", "correct_ci_low", "correct_ci_high", *(f"said_{option}" for option in options)]
    return columns, rows


def confusion_table(responses: Sequence[Response]) -> Table:
    """Return what was said to CTs of each truth, generated and real ones apart, over all readers and items."""
    columns, rows = recognition_table(responses)
    said = [name for name in columns if name.startswith("said_")]
    sums: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        counts = sums.setdefault(("real" if row["method"] == REAL else "generated", row["truth"]), Counter())
        counts.update({name: row[name] for name in (*said, "num_missing")})
    table = [{"volumes": kind, "truth": truth, **counts} for (kind, truth), counts in sums.items()]
    return ["volumes", "truth", *said, "num_missing"], table


def ranking_table(responses: Sequence[Response], reference: str) -> Table:
    """Return one row per structure and method: mean rank with 95 % bounds over readers, and the tests.

    The comparisons are those with the reference.
    """
    labels = {part.method: part.label for part in responses}
    most = max((len(block) for block in by_block(responses).values()), default=0)
    places = [f"rank_{place}" for place in range(1, most + 1)]
    rows: Rows = []
    for structure in structures_of(responses):
        blocks = blocks_of(responses, structure, reference)
        means = blocks.reader_means()
        facts = _test_columns("", friedman(blocks.given)) | _test_columns("reader_", friedman(means))
        pairs, reader_pairs = compare_pairs(blocks.given), compare_pairs(means)
        for column, method in enumerate(blocks.methods):
            low, high = mean_interval(means[:, column])
            counts = Counter(blocks.given[:, column].tolist())
            rows.append(
                {"structure": structure, "method": method, "label": labels[method]}
                | {"n": len(blocks.ranks), "n_readers": len(means), "num_incomplete": blocks.num_incomplete}
                | {"rank_mean": float(blocks.ranks[:, column].mean()) if len(blocks.ranks) else None}
                | {"rank_ci_low": None if low is None else max(low, 1.0)}
                | {"rank_ci_high": None if high is None else min(high, float(len(blocks.methods)))}
                | {name: counts[float(place)] for place, name in enumerate(places, 1)}
                | facts
                | _versus(blocks.methods, column, reference, pairs, reader_pairs)
            )
    columns = ["structure", "method", "label", "n", "n_readers", "num_incomplete", "rank_mean", "rank_ci_low"]
    columns += ["rank_ci_high", *places, *TEST_COLUMNS, *(f"reader_{name}" for name in TEST_COLUMNS), *VERSUS_COLUMNS]
    return columns, rows


def _test_columns(prefix: str, test: Friedman) -> dict[str, float | None]:
    return dict(zip((f"{prefix}{name}" for name in TEST_COLUMNS), (test.chi2, test.p_value, test.w), strict=True))


def _versus(
    methods: Sequence[str],
    column: int,
    reference: str,
    pairs: Sequence[Comparison],
    reader_pairs: Sequence[Comparison],
) -> dict[str, float | None]:
    """Return the corrected p of the comparison of a method with the reference, in both kinds of blocks."""
    values: dict[str, float | None] = dict.fromkeys(VERSUS_COLUMNS)
    if reference not in methods or methods[column] == reference:
        return values
    wanted = {column, methods.index(reference)}
    for prefix, compared in (("", pairs), ("reader_", reader_pairs)):
        for pair in compared:
            if {pair.first, pair.second} == wanted:
                values[f"{prefix}p_value"] = pair.p_bonferroni
                values[f"{prefix}p_wilcoxon"] = pair.p_wilcoxon_bonferroni
    return values


def pairs_table(responses: Sequence[Response], reference: str) -> Table:
    """Return one row per structure, kind of blocks and pair of methods; first - second, negative: first is better."""
    rows: Rows = []
    for structure in structures_of(responses):
        blocks = blocks_of(responses, structure, reference)
        for kind, values in (("reader and set", blocks.given), ("reader", blocks.reader_means())):
            for pair in compare_pairs(values):
                names = {"first": blocks.methods[pair.first], "second": blocks.methods[pair.second]}
                numbers = {name: getattr(pair, name) for name in PAIR_COLUMNS}
                rows.append({"structure": structure, "blocks": kind, "n": len(values)} | names | numbers)
    return ["structure", "blocks", "n", "first", "second", *PAIR_COLUMNS], rows


def agreement_table(responses: Sequence[Response]) -> Table:
    """Return agreement between readers and of readers with themselves: statistic, value, and what it is made of."""
    asked = [part for part in first_showings(responses) if part.task == "recognition" and part.answer]
    items, answers = in_order(part.item for part in asked), in_order(part.answer for part in asked)
    counts = np.zeros((len(items), len(answers)))
    for part in asked:
        counts[items.index(part.item), answers.index(part.answer)] += 1
    rows: Rows = []
    if items:
        facts = {"task": "recognition", "structure": "", "n": len(items)}
        rows.append(facts | {"statistic": "Fleiss' kappa between readers", "value": fleiss_kappa(counts)})
    blocks = by_block(responses)
    same: dict[tuple[str, str], list[float]] = {}
    for (reader, _), again in blocks.items():
        first = blocks.get((reader, again[0].repeats))
        if not again[0].repeats or first is None:
            continue
        value = _same_answer(first, again)
        if value is not None:
            same.setdefault((again[0].task, again[0].structure), []).append(value)
    for (task, structure), shares in sorted(same.items()):
        name = "same answer again" if task == "recognition" else "Kendall's tau-b with the first ranking"
        mean = fmean(shares)
        rows.append({"task": task, "structure": structure, "statistic": name, "value": mean, "n": len(shares)})
    return ["task", "structure", "statistic", "value", "n"], rows


def _same_answer(first: Sequence[Response], again: Sequence[Response]) -> float | None:
    """Return how much a reader's second answer to an item is the first one; None where one of them is missing."""
    if first[0].task == "recognition":
        return float(first[0].answer == again[0].answer) if first[0].answer and again[0].answer else None
    before = {part.volume: part.rank for part in first}
    pairs = [(before.get(part.volume), part.rank) for part in again]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return rank_agreement(*zip(*known, strict=True)) if len(known) == len(first) else None


def groups_table(responses: Sequence[Response], reference: str) -> Table:
    """Return juniors against seniors: the share of right answers, and the reference's mean ranks, of each reader."""
    group_of = {part.reader: part.group for part in responses}
    values: dict[str, dict[str, float]] = {}
    right: dict[str, list[float]] = {}
    for part in first_showings(responses):
        if part.task == "recognition" and part.answer:
            right.setdefault(part.reader, []).append(float(part.answer == part.truth))
    values["share of right answers"] = {reader: fmean(each) for reader, each in right.items()}
    for structure in structures_of(responses):
        blocks = blocks_of(responses, structure, reference)
        if reference in blocks.methods:
            means = blocks.reader_means()[:, blocks.methods.index(reference)]
            values[f"mean rank of {reference}, {structure}"] = dict(
                zip(sorted(set(blocks.readers)), means.tolist(), strict=True)
            )
    rows: Rows = []
    for what, by_reader in values.items():
        split = {name: [v for reader, v in by_reader.items() if group_of[reader] == name] for name in GROUPS}
        row: dict[str, Any] = {"measure": what}
        for name, group in split.items():
            row |= {f"n_{name}": len(group), f"{name}_mean": fmean(group) if group else None}
        rows.append(row | {"p_mann_whitney": compare_groups(split["junior"], split["senior"])})
    return ["measure", "n_junior", "junior_mean", "n_senior", "senior_mean", "p_mann_whitney"], rows
