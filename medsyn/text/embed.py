"""Embeddings of every report: what the image model is conditioned on while it trains.

Takes an encoder folder and the reports table, gives one safetensors file: for each section float16 `<section>` of shape
(n, num_tokens, hidden) and uint8 `<section>_mask` (n, num_tokens); metadata `report_ids` is the JSON list of the n ids.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from medsyn.config import TextEncoderStage
from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.tensors import save_tensors
from medsyn.text.corpus import read_reports
from medsyn.text.encoder import TextEncoder

IMAGE_SPLITS = ("train", "validation")


def embed_reports(encoder_folder: Path, stage: TextEncoderStage, reports_path: Path, out: Path) -> int:
    """Write the embeddings of all reports that have an image; returns their number.

    A section that a report does not have is the empty text, [CLS] [SEP]. Raises InputError when encoder and settings
    do not fit.
    """
    encoder = TextEncoder.from_folder(encoder_folder)
    for name in ("num_tokens", "mask_padding"):
        if getattr(encoder, name) != getattr(stage, name):
            raise InputError(
                f"{encoder_folder}: made with {name} {getattr(encoder, name)}, the settings say {getattr(stage, name)};"
                " run pretrain-text again"
            )
    reports = [report for report in read_reports(reports_path) if report.split in IMAGE_SPLITS]
    if not reports:
        raise InputError(f"{reports_path}: no report of split train or validation; only those are embedded")
    tensors: dict[str, torch.Tensor] = {}
    for section in track(stage.sections, what="embed", total=len(stage.sections)):
        states, mask = encoder.encode([report.text(section) for report in reports])
        tensors[section] = torch.from_numpy(states).half()
        tensors[f"{section}_mask"] = torch.from_numpy(mask).to(torch.uint8)
    record = provenance(
        stage, reports_sha256=sha256(reports_path), encoder_sha256=sha256(encoder_folder / "model.safetensors")
    )
    save_tensors(
        out,
        tensors,
        {"report_ids": json.dumps([report.report_id for report in reports]), "provenance": json.dumps(record)},
    )
    log.info("embedded %d reports: %s x %d tokens", len(reports), ", ".join(stage.sections), encoder.num_tokens)
    return len(reports)
