"""Embeddings of reports: what the image model is conditioned on while it trains.

Takes an encoder folder and the reports table, gives an index <out>.json and shards in the folder <out>. A shard is a
safetensors file with float16 `states` (n, num_tokens, hidden); its metadata name the n texts by hash. The index has the
hashes of every report's sections. A text is encoded once, however many reports have it; the same command again, or
after a kill, encodes only what no shard has, so a changed report costs its own texts. One shard is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch

from medsyn.config import TextEncoderStage
from medsyn.errors import InputError
from medsyn.files import sha256, write_json
from medsyn.progress import log, track
from medsyn.provenance import hash_json, provenance
from medsyn.tensors import check_tensors, read_metadata, save_tensors
from medsyn.text.corpus import ReportRow, of_split, read_reports
from medsyn.text.encoder import SETTINGS_FILE, TextEncoder

IMAGE_SPLITS = ("train", "validation")
_SHARD_BYTES = 256 << 20
_SHARD_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")


def embed_reports(
    encoder_folder: Path,
    stage: TextEncoderStage,
    reports_path: Path,
    out: Path,
    splits: Sequence[str] = IMAGE_SPLITS,
) -> int:
    """Write the embeddings of all reports of `splits`, by default those with an image; returns their number.

    A section that a report does not have is null in the index. Raises InputError when encoder and settings do not fit,
    or when a report has none of the settings' sections.
    """
    if out.suffix != ".json":
        raise InputError(f"{out}: the index must end in .json; the shards go into the folder without the ending")
    encoder = TextEncoder.from_folder(encoder_folder)
    for name in ("num_tokens", "mask_padding", "long_reports"):
        if getattr(encoder, name) != getattr(stage, name):
            raise InputError(
                f"{encoder_folder}: made with {name} {getattr(encoder, name)}, the settings say {getattr(stage, name)};"
                " run pretrain-text again"
            )
    reports = of_split(read_reports(reports_path), *splits)
    if not reports:
        raise InputError(f"{reports_path}: no report of split {' or '.join(splits)}; only those are embedded")
    keys = {report.report_id: _keys(report, stage.sections, reports_path) for report in reports}
    places = {
        key: (report, section)
        for report in reports
        for key, section in zip(keys[report.report_id], stage.sections, strict=True)
        if key is not None
    }
    identity = encoder_identity(encoder_folder)
    folder = out.with_suffix("")
    shards = _usable_shards(folder, identity, places.keys())
    new = {key: places[key] for key in places.keys() - set().union(*shards.values())}
    shards |= _encode(encoder, new, folder, identity)
    index: dict[str, Any] = {"encoder": identity, "sections": list(stage.sections), "texts": keys}
    index |= {"num_tokens": encoder.num_tokens, "hidden_size": encoder.hidden_size, "shards": sorted(shards)}
    write_json(out, index | {"provenance": provenance(stage, reports_sha256=sha256(reports_path))})
    log.info("embedded %d reports: %d new texts of %d", len(reports), len(new), len(places))
    if encoder.num_shortened:
        lost = "Findings" if encoder.long_reports == "shorten_findings" else "text"
        log.warning(
            "%d of %d new texts are longer than max_tokens %d and lose the end of their %s",
            *(encoder.num_shortened, len(new), encoder.max_tokens, lost),
        )
    return len(reports)


def _keys(report: ReportRow, sections: Sequence[str], source: Path) -> list[str | None]:
    """Return the hash of every section's text, None for a section that the report does not have."""
    texts = [report.text(section) for section in sections]
    if not any(texts):
        raise InputError(
            f"{source}: report {report.report_id} has no {' or '.join(sections)} (text.sections); add it, or leave the"
            " report out"
        )
    return [text_key(text) if text else None for text in texts]


def text_key(text: str) -> str:
    """Return the hash of a text, 16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encoder_identity(folder: Path) -> str:
    """Return the hash of all that the states of a text depend on: weights, tokenizer and how many states are kept."""
    return hash_json([sha256(folder / name) for name in ("model.safetensors", "tokenizer.json", SETTINGS_FILE)])


def _usable_shards(folder: Path, identity: str, wanted: Set[str]) -> dict[str, list[str]]:
    """Return the texts' hashes in every whole shard of this encoder with a wanted one; remove other shards."""
    usable: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            metadata = read_metadata(path)
            check_tensors(path)
        except InputError as error:
            if not _SHARD_NAME.fullmatch(path.name):
                raise
            log.warning("%s; it is made again", error)
            path.unlink()
            continue
        if "keys" not in metadata:  # not a shard
            continue
        keys: list[str] = json.loads(metadata["keys"])
        if metadata["encoder"] == identity and not wanted.isdisjoint(keys):
            usable[path.name] = keys
        else:
            path.unlink()
    return usable


def _encode(
    encoder: TextEncoder, places: Mapping[str, tuple[ReportRow, str]], folder: Path, identity: str
) -> dict[str, list[str]]:
    """Write the shards of texts, given by report and section, texts of similar length together; names and hashes."""

    def text(key: str) -> str:
        report, section = places[key]
        return report.text(section)

    order = sorted(places, key=lambda key: (len(text(key)), key))
    size = max(1, _SHARD_BYTES // (2 * encoder.num_tokens * encoder.hidden_size))
    shards: dict[str, list[str]] = {}
    for start in track(range(0, len(order), size), description="embed"):
        keys = order[start : start + size]
        states, _ = encoder.encode([text(key) for key in keys])
        name = f"{text_key(identity + ''.join(keys))}.safetensors"
        metadata = {"encoder": identity, "keys": json.dumps(keys)}
        save_tensors(folder / name, {"states": torch.from_numpy(states).half()}, metadata)
        shards[name] = keys
    return shards
