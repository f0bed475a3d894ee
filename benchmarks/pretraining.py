"""Pretrain a small text encoder on free-text reports: `python benchmarks/pretraining.py --reports CSV --out DIR`.

The table needs a text column (report_text or report). Findings and Impression come out of the text, every fifth report
is held out, and `medsyn pretrain-text` does the rest. Prints the held-out curve: perplexity of masked tokens beside
guessing by frequency, and the share of Findings and Impression told to be paired or swapped (0.5 is chance).
OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from medsyn.config import TextEncoderConfig, TextEncoderStage
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.text.corpus import REPORT_COLUMNS
from medsyn.text.pretrain import CURVE_COLUMNS, pretrain
from medsyn.text.sections import find_sections

HELD_OUT_EVERY = 5
CONFIG = TextEncoderConfig(
    vocabulary_size=2000,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_epochs=30,
    batch_size=8,
    learning_rate=1e-3,
    dropout=0.1,
    match_words=True,
    max_tokens=256,
)


def main() -> None:
    """Write reports.csv, train, print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", required=True, type=Path, help="CSV with report_text or report")
    parser.add_argument("--out", required=True, type=Path, help="folder for reports.csv and the encoder")
    parser.add_argument("--epochs", type=int, default=CONFIG.num_epochs)
    parser.add_argument("--plain-init", action="store_true", help="without the setting match_words")
    args = parser.parse_args()
    try:
        write_reports(args.reports, args.out / "reports.csv")
        config = CONFIG.model_copy(update={"num_epochs": args.epochs, "match_words": not args.plain_init})
        stage = TextEncoderStage(encoder=config, num_tokens=192, mask_padding=False, sections=("report",))
        start = time.monotonic()
        pretrain(stage, args.out / "reports.csv", args.out / "encoder")
    except InputError as error:
        parser.error(str(error))
    minutes = (time.monotonic() - start) / 60
    print("| " + " | ".join(CURVE_COLUMNS) + " |")
    for row in read_csv(args.out / "encoder" / "metrics.csv"):
        print("| " + " | ".join(f"{float(row[name]):.4g}" for name in CURVE_COLUMNS) + " |")
    print(f"\n{minutes:.1f} minutes on {torch.get_num_threads()} threads")


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
