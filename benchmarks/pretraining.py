"""Pretrain a small text encoder on free-text reports: `python benchmarks/pretraining.py --reports CSV --out DIR`.

The table needs a text column (report_text or report). Findings and Impression come out of the text, every fifth report
is held out, and `medsyn pretrain-text` does the rest. Prints the held-out curve: perplexity of masked tokens beside
guessing by frequency, and the share of Findings and Impression told to be paired or swapped (0.5 is chance), with its
95 % interval for as many draws as there are held-out pairs. For comparison, what counting words in common reaches on
the same pairs. OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsyn.config import TextEncoderConfig, TextEncoderStage
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.text.corpus import REPORT_COLUMNS
from medsyn.text.examples import Texts
from medsyn.text.pretrain import CURVE_COLUMNS, pretrain, read_corpus
from medsyn.text.sections import find_sections

HELD_OUT_EVERY = 5
CONFIG = TextEncoderConfig(
    vocabulary_size=2000,
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    num_epochs=29,
    batch_size=8,
    learning_rate=1e-3,
    pairing_weight=2.0,
    small_corpus=True,
    max_tokens=384,
)


def main() -> None:
    """Write reports.csv, train, print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", required=True, type=Path, help="CSV with report_text or report")
    parser.add_argument("--out", required=True, type=Path, help="folder for reports.csv and the encoder")
    parser.add_argument("--epochs", type=int, default=CONFIG.num_epochs)
    parser.add_argument("--plain", action="store_true", help="without the setting small_corpus")
    args = parser.parse_args()
    try:
        write_reports(args.reports, args.out / "reports.csv")
        config = CONFIG.model_copy(update={"num_epochs": args.epochs, "small_corpus": not args.plain})
        stage = TextEncoderStage(encoder=config, num_tokens=192, mask_padding=False, sections=("report",))
        start, cpu_start = time.monotonic(), time.process_time()
        pretrain(stage, args.out / "reports.csv", args.out / "encoder")
    except InputError as error:
        parser.error(str(error))
    minutes, cpu_minutes = (time.monotonic() - start) / 60, (time.process_time() - cpu_start) / 60
    print("| " + " | ".join(CURVE_COLUMNS) + " |")
    rows = read_csv(args.out / "encoder" / "metrics.csv")
    for row in rows:
        print("| " + " | ".join(f"{float(row[name]):.4g}" for name in CURVE_COLUMNS) + " |")
    print(f"\n{minutes:.1f} minutes, {cpu_minutes:.1f} CPU minutes on {torch.get_num_threads()} threads")
    corpus = read_corpus(config, args.out / "reports.csv")
    num_pairs = sum(len(second) > 0 for second in corpus.held_out.seconds)
    for name, accuracy in (
        ("this encoder", float(rows[-1]["pairing_accuracy"])),
        ("words in common", words_in_common(corpus.training, corpus.held_out)),
    ):
        low, high = wilson_interval(accuracy, num_pairs)
        print(f"{name}: {accuracy:.3f} of held-out pairs, 95 % interval {low:.3f} to {high:.3f} (n = {num_pairs})")


def words_in_common(training: Texts, held_out: Texts) -> float:
    """Held-out accuracy of a threshold, chosen in training, on the share of the Impression's pieces in the Findings.

    Pieces count by their rarity, log(reports / reports with it). Every pair stands beside one swap of its Impression.
    """
    documents = np.zeros(training.special.size)
    for first, second in zip(training.firsts, training.seconds, strict=True):
        documents[np.union1d(first, second)] += 1
    rarity = np.log((len(training) + 1) / (documents + 1))

    def shares(texts: Texts) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        pairs = [index for index in range(len(texts)) if len(texts.seconds[index])]
        values, paired = [], []
        for index, other in zip(pairs, np.roll(pairs, 1), strict=True):
            for second in (texts.seconds[index], texts.seconds[other]):
                pieces = np.unique(second)
                known = np.isin(pieces, texts.firsts[index])
                values.append(rarity[pieces[known]].sum() / rarity[pieces].sum())
                paired.append(second is texts.seconds[index])
        return np.asarray(values), np.asarray(paired)

    values, paired = shares(training)
    threshold = max(np.unique(values), key=lambda value: float(((values >= value) == paired).mean()))
    values, paired = shares(held_out)
    return float(((values >= threshold) == paired).mean())


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z2 = 1.96**2 / count
    centre, half = share + z2 / 2, (z2 * share * (1 - share) + z2**2 / 4) ** 0.5
    return (centre - half) / (1 + z2), (centre + half) / (1 + z2)


def write_reports(source: Path, out: Path) -> None:
    """The table of `medsyn pretrain-text` from one with whole reports; those without any section are left out."""
    rows = read_csv(source)
    columns = list(rows[0]) if rows else []
    text = next((name for name in ("report_text", "report") if name in columns), None)
    if text is None:
        raise InputError(f"{source}: no column report_text or report; it has {', '.join(columns) or 'no rows'}")
    reports = []
    for number, row in enumerate(rows):
        sections = find_sections(row[text])
        split = "train" if number % HELD_OUT_EVERY else "validation"
        if sections.findings or sections.impression:
            reports.append((row[columns[0]], sections.findings, sections.impression, split))
    write_csv(out, [dict(zip(REPORT_COLUMNS, report, strict=True)) for report in reports], REPORT_COLUMNS)


if __name__ == "__main__":
    main()
