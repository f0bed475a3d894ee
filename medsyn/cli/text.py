"""Verbs of the reports: pretrain-text, embed, label, prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs, one_folder
from medsyn.text import SPLITS

PROMPT_SETS = (
    *("reports", "pairs", "effusion_pairs", "report_pairs", "augmentation", "segmentation", "controlled"),
    "faithfulness",
)


def add_verbs(verbs: Verbs) -> None:
    """Add pretrain-text, embed, label, label-qc and prompts."""
    _add_pretrain(verbs)
    _add_embed(verbs)
    _add_label(verbs)
    _add_prompts(verbs)


def _add_pretrain(verbs: Verbs) -> None:
    parser = verbs.add(
        "pretrain-text",
        _pretrain,
        summary="Train a text encoder on reports: masked tokens and findings/impression pairing. The same command"
        " continues a killed run.",
        example="medsyn pretrain-text --config results/config/text_biomedical.json --reports results/cohort/reports.csv"
        " --out results/text/biomedical/model",
        outputs=one_folder,
    )
    parser.add_argument("--config", required=True, type=Path, help="results/config/text_<encoder>.json")
    parser.add_argument("--reports", required=True, type=Path, help="CSV: report_id, findings, impression, split")
    parser.add_argument("--out", required=True, type=Path, help="folder: model, tokenizer, metrics.csv, heldout.json")
    parser.add_argument("--state", type=Path, help="folder for checkpoints (default: hidden, beside --out)")


def _add_embed(verbs: Verbs) -> None:
    parser = verbs.add(
        "embed",
        _embed,
        summary="Write the token states of reports (float16, tokens x hidden); what is there is not made again.",
        example="medsyn embed --encoder results/text/biomedical/model --config results/config/text_biomedical.json"
        " --reports results/cohort/reports.csv --out results/text/biomedical/embeddings.json",
    )
    parser.add_argument("--encoder", required=True, type=Path, help="folder written by pretrain-text")
    parser.add_argument("--config", required=True, type=Path, help="results/config/text_<encoder>.json")
    parser.add_argument("--reports", required=True, type=Path, help="CSV: report_id, findings, impression, split")
    parser.add_argument("--out", required=True, type=Path, help="index, .json; shards in the folder of the same name")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="whose reports (default: those with images)")


def _add_label(verbs: Verbs) -> None:
    parser = verbs.add(
        "label",
        _label,
        summary="Parse reports into one 0/1 column per finding, by rules.",
        example="medsyn label reports.csv --out labels.csv",
    )
    parser.add_argument("reports", type=Path, help="CSV: id or report_id, and report or findings/impression")
    parser.add_argument("--out", required=True, type=Path, help="CSV: id and the labels")
    parser.add_argument("--config", type=Path, help="rules, YAML (default: those of the package)")

    parser = verbs.add(
        "label-qc",
        _label_qc,
        summary="Compare labels parsed from reports with labels that came with the data set, per finding.",
        example="medsyn label-qc results/labels.csv --given results/cohort/given_labels.csv"
        " --out results/qc/labels.csv",
    )
    parser.add_argument("labels", type=Path, help="CSV of `medsyn label`")
    parser.add_argument("--given", required=True, type=Path, help="CSV: id and one 0/1 column per finding")
    parser.add_argument("--out", required=True, type=Path, help="CSV: counts, precision, recall and F1 per finding")


def _add_prompts(verbs: Verbs) -> None:
    parser = verbs.add(
        "prompts",
        _prompts,
        summary="Write the prompts of one evaluation as a table that `generate --prompts` reads.",
        example="medsyn prompts --set pairs --cohort results/cohort/cohort.csv --reports results/cohort/reports.csv"
        " --config results/config/prompts.json --out results/prompts/pairs.csv",
    )
    parser.add_argument("--set", required=True, choices=PROMPT_SETS, dest="prompt_set", help="which evaluation")
    parser.add_argument("--cohort", required=True, type=Path, help="cohort.csv")
    parser.add_argument("--reports", required=True, type=Path, help="reports.csv")
    parser.add_argument("--config", required=True, type=Path, help="results/config/prompts.json")
    parser.add_argument("--masks", type=Path, nargs="+", help="segmented shards: others are never fixed")
    parser.add_argument("--out", required=True, type=Path, help="CSV")


def _pretrain(args: argparse.Namespace) -> None:
    from medsyn.config import TextEncoderStage, load_stage
    from medsyn.text.pretrain import pretrain

    pretrain(load_stage(TextEncoderStage, args.config), args.reports, args.out, args.state)


def _embed(args: argparse.Namespace) -> None:
    from medsyn.config import TextEncoderStage, load_stage
    from medsyn.text.embed import IMAGE_SPLITS, embed_reports

    splits = args.splits or IMAGE_SPLITS
    embed_reports(args.encoder, load_stage(TextEncoderStage, args.config), args.reports, args.out, splits)


def _label(args: argparse.Namespace) -> None:
    from medsyn.files import write_csv
    from medsyn.progress import log
    from medsyn.text.labels import default_labeler, label_table, load_labeler

    labeler = default_labeler() if args.config is None else load_labeler(args.config)
    rows = label_table(args.reports, labeler)
    write_csv(args.out, rows, ("id", *labeler.findings))
    log.info("labelled %d reports: %s", len(rows), args.out)


def _label_qc(args: argparse.Namespace) -> None:
    from medsyn.evaluate.label_agreement import COLUMNS, compare_labels
    from medsyn.files import write_csv

    write_csv(args.out, compare_labels(args.labels, args.given), COLUMNS)


def _prompts(args: argparse.Namespace) -> None:
    from medsyn.config import PromptsStage, load_stage
    from medsyn.progress import log
    from medsyn.stages.shards import accepted_ids
    from medsyn.text.prompts import write_prompts

    config = load_stage(PromptsStage, args.config)
    segmented = {name for folder in args.masks for name in accepted_ids(folder)} if args.masks else None
    count = write_prompts(args.prompt_set, args.cohort, args.reports, config, args.out, segmented)
    log.info("wrote %d prompts: %s", count, args.out)
