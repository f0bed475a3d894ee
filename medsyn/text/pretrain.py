"""Pretraining of the text encoder on reports (paper, Section IV-A): masked tokens and paired sections.

Takes the reports table, gives a folder in the format of transformers with its tokenizer, the curves on held-out reports
and the settings that the encoder needs. It is trained by the project's one loop (`medsyn.training.loop`), not by the
Trainer of transformers: the loop brings AdamW, warm-up, mixed precision, several processes and exact resume, and every
batch here is a pure function of (seed, step), so a second loop would only repeat it. The rate is constant after the
warm-up and the weights are averaged (EMA), so that a run can stop at the end of every epoch to look at the held-out
reports, and goes on as if it had not stopped.

Where it starts: a BERT checkpoint, or from scratch with a vocabulary trained on the reports (`vocabulary: reports`), or
with vocabulary and first masked-language steps on general English (`vocabulary: english`), the ablation of Section V-G.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from medsyn.config import TextEncoderConfig, TextEncoderStage, TrainConfig
from medsyn.errors import InputError
from medsyn.files import atomic_dir, read_json, sha256, write_csv, write_json
from medsyn.outputs import check_folder
from medsyn.progress import log
from medsyn.provenance import hash_json, provenance
from medsyn.scratch import claim_state, remove_state, remove_states
from medsyn.tensors import save_tensors, told_as_os_error
from medsyn.text.bert import IGNORED, ReportBert, load_language_model, new_language_model
from medsyn.text.corpus import ReportRow, of_split, read_reports, without_leaks
from medsyn.text.encoder import MODEL_FILE, SETTINGS_FILE
from medsyn.text.english import english_documents
from medsyn.text.examples import Batches, Texts, cut
from medsyn.text.sections import SECTIONS
from medsyn.text.tokenizer import Special, TokenIds, load_tokenizer, token_ids, train_tokenizer
from medsyn.training.cost import count_flops
from medsyn.training.loop import train
from medsyn.training.processes import to_device
from medsyn.training.task import Task

COST_COLUMNS = ("training_eflop", "training_hours")
CURVE_COLUMNS = (
    *("epoch", "step", "train_loss", "mlm_perplexity", "unigram_perplexity", "pairing_accuracy"),
    *COST_COLUMNS,
)
"""The cost (`medsyn.training.metrics`) includes steps on general English, but not the training of a checkpoint of
others.
"""
_EMA_DECAY = 0.98
_CHECKPOINT_EVERY = 500


@dataclass(frozen=True)
class Start:
    """Where the training on reports starts: what builds the language model, and what that has cost (COST_COLUMNS)."""

    build: Callable[[], BertForMaskedLM]
    cost: Mapping[str, float | None] = field(default_factory=lambda: dict.fromkeys(COST_COLUMNS, 0.0))


@dataclass(frozen=True)
class Corpus:
    """Tokenised reports: what is trained on, what is held out."""

    tokenizer: Any
    special: Special
    training: Texts
    held_out: Texts
    hashes: dict[str, str]


def pretrain(stage: TextEncoderStage, reports_path: str | Path, out: Path, state: Path | None = None) -> dict[str, Any]:
    """Train the encoder on train and text_only reports and write the folder `out`.

    Returns the held-out measures, in the main process of several. state: where checkpoints live until the end; by
    default a hidden folder beside `out` whose name depends on settings and reports, so that the same command continues
    a killed run and a changed one starts anew.
    """
    config = stage.encoder
    corpus = read_corpus(config, reports_path)
    identity = {"text": config.model_dump(mode="json"), **corpus.hashes}
    check_folder(out)
    state = claim_state(state or out.parent / f".{out.name}.{hash_json(identity)}", out)
    start = _starting_point(config, corpus, state, identity)
    batches = Batches(corpus.training, config.batch_size, crossed=config.small_corpus)
    task = _task("pretrain-text", lambda: ReportBert(start.build(), config.pairing_weight), batches, config, identity)
    unigram = unigram_perplexity(corpus)
    curve = state / "curve.json"
    rows: list[dict[str, Any]] = read_json(curve) if curve.exists() else []
    for epoch in range(len(rows) + 1, config.num_epochs + 1):
        trained = train(task, _train_config(config, batches.per_epoch, epoch * batches.per_epoch), state / "reports")
        if not trained.is_main_process:
            continue
        last = trained.metrics[-1]
        row = {"epoch": epoch, "step": epoch * batches.per_epoch, "train_loss": last["loss"]} | _sum(last, start.cost)
        row |= evaluate(trained.network, Batches(corpus.held_out, config.batch_size).held_out())
        rows.append(row | {"unigram_perplexity": unigram})
        log.info("epoch %d of %d: held-out %s", epoch, config.num_epochs, _in_words(rows[-1]))
        if epoch < config.num_epochs:
            write_json(curve, rows)
        else:
            _write(out, stage, corpus, trained.network, rows)
            remove_state(state)
            remove_states(out)
    return rows[-1] if rows else {}


def read_corpus(config: TextEncoderConfig, reports_path: str | Path) -> Corpus:
    """Read the reports and tokenise them, training the tokenizer if need be; InputError if a split is missing."""
    reports = read_reports(reports_path)
    given, held_out = of_split(reports, "train", "text_only"), of_split(reports, "validation")
    training = without_leaks(given, held_out)
    if len(training) < len(given):
        leaks = len(given) - len(training)
        log.warning("%s: %d reports of validation patients are left out of the pretraining", reports_path, leaks)
    for rows, what in ((training, "train or text_only"), (held_out, "validation")):
        if not rows:
            raise InputError(f"{reports_path}: no report of split {what}; the text encoder needs both")
    hashes = {"reports_sha256": hash_reports(reports)}
    if config.init != "scratch":
        tokenizer = load_tokenizer(config.init)
    elif config.vocabulary == "english":
        hashes["english_sha256"] = _sha256(english_documents())
        tokenizer = train_tokenizer(english_documents(), config.vocabulary_size)
    else:
        tokenizer = train_tokenizer([report.text("report") for report in training], config.vocabulary_size)
    special = Special.of(tokenizer)
    pairs = [_pairs(rows, tokenizer, special, config) for rows in (training, held_out)]
    return Corpus(tokenizer, special, pairs[0], pairs[1], hashes)


def evaluate(network: nn.Module, batches: Sequence[dict[str, Tensor]]) -> dict[str, float | None]:
    """Return the perplexity over the masked tokens and the share of pairs told right (None without any pair)."""
    network.eval()
    device = next(network.parameters()).device
    nats: list[Tensor] = []
    correct: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            result = network(**to_device(batch, device))
            nats.append(result["token_nats"].cpu())
            correct.append(result["pairing_correct"].cpu())
    return {
        "mlm_perplexity": math.exp(float(torch.cat(nats).double().mean())),
        "pairing_accuracy": float(torch.cat(correct).mean()) if sum(map(len, correct)) else None,
    }


def _in_words(row: dict[str, Any]) -> str:
    pairing = "no pairs" if row["pairing_accuracy"] is None else f"pairing accuracy {row['pairing_accuracy']:.3f}"
    return f"perplexity {row['mlm_perplexity']:.2f} (unigram {row['unigram_perplexity']:.1f}), {pairing}"


def unigram_perplexity(corpus: Corpus) -> float:
    """Return the perplexity on the same held-out tokens of guessing by frequency alone (training counts plus one)."""
    counts = np.ones(corpus.special.size)
    for sections in (corpus.training.firsts, corpus.training.seconds):
        for ids in sections:
            np.add.at(counts, ids, 1)
    nats = -np.log(counts / counts.sum())
    labels = [batch["labels"].numpy() for batch in Batches(corpus.held_out, 64).held_out()]
    return math.exp(float(np.concatenate([nats[part[part != IGNORED]] for part in labels]).mean()))


def _pairs(rows: Sequence[ReportRow], tokenizer: Any, special: Special, config: TextEncoderConfig) -> Texts:
    """Return Findings and Impression of every report; one with a single section serves the first task alone."""
    whole = [[f"{name.upper()}: {row.text(name)}" for name in SECTIONS[1:] if row.text(name)] for row in rows]
    firsts = list(token_ids(tokenizer, [sections[0] for sections in whole]))
    seconds = list(token_ids(tokenizer, [sections[1] if len(sections) > 1 else "" for sections in whole]))
    return _texts(firsts, seconds, [row.patient for row in rows], special, config)


def _texts(
    firsts: Sequence[TokenIds],
    seconds: Sequence[TokenIds],
    patients: Sequence[str],
    special: Special,
    config: TextEncoderConfig,
) -> Texts:
    return Texts(
        firsts,
        seconds,
        patients,
        special,
        config.max_tokens,
        config.mask_fraction,
        config.swap_fraction,
        config.seed,
    )


def _starting_point(config: TextEncoderConfig, corpus: Corpus, state: Path, identity: dict[str, Any]) -> Start:
    """Return the language model that is fine-tuned on the reports, after steps on general English if there are any."""
    if config.init != "scratch":
        return Start(lambda: load_language_model(config.init, config.max_tokens))
    if config.vocabulary == "reports" or config.num_english_steps == 0:
        return Start(lambda: new_language_model(config, corpus.special.size))
    documents = token_ids(corpus.tokenizer, english_documents())
    pieces = [piece for ids in documents for piece in cut(ids, config.max_tokens - 2)]
    texts = _texts(pieces, [np.empty(0, dtype=np.int32)] * len(pieces), [""] * len(pieces), corpus.special, config)
    batches = Batches(texts, config.batch_size)
    name = "pretrain-text: general English"
    task = _task(name, lambda: ReportBert(new_language_model(config, corpus.special.size)), batches, config, identity)
    steps = config.num_english_steps
    trained = train(task, _train_config(config, batches.per_epoch, steps), state / "english")
    network, last = trained.network, trained.metrics[-1]
    assert isinstance(network, ReportBert)
    weights = {name: value.detach().cpu().clone() for name, value in network.language.state_dict().items()}

    def build() -> BertForMaskedLM:
        model = new_language_model(config, corpus.special.size)
        model.load_state_dict(weights)
        return model

    return Start(build, {name: last[name] for name in COST_COLUMNS})


def _task(
    name: str, build: Callable[[], ReportBert], batches: Batches, config: TextEncoderConfig, identity: dict[str, Any]
) -> Task:
    loss = _loss(config.seed)

    @cache
    def flops() -> int:
        """Count the operations of a text of mean length; the tokens to predict are chosen by value, hence a real pass.

        Attention costs more than in proportion to length, so texts of many lengths take slightly more.
        """
        with torch.random.fork_rng(devices=[]):
            return count_flops(build, loss, batches.typical(), device="cpu")

    return Task(name, build, batches.batch, loss, identity, flops=flops)


def _sum(last: Mapping[str, Any], before: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the cost of a training run and of what came before it; None where one of them is unknown."""
    pairs = {name: (last[name], before[name]) for name in COST_COLUMNS}
    return {name: None if a is None or b is None else a + b for name, (a, b) in pairs.items()}


def hash_reports(reports: Sequence[ReportRow]) -> str:
    """Return the SHA-256 of ids, splits and texts of reports, which the provenance of a text encoder names."""
    return _sha256([f"{report.report_id} {report.split} {report.text('report')}" for report in reports])


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _loss(seed: int) -> Callable[[nn.Module, Any], Tensor]:
    """Return the training loss; dropout is seeded by the batch, so that a resumed run repeats the whole one."""

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        content = int(batch["ids"].sum()) * 31 + int(batch["labels"].sum())
        torch.manual_seed((seed * 1_000_003 + content) % 2**31)
        network.train()
        value: Tensor = network(**batch)["loss"]
        return value

    return loss


def _train_config(config: TextEncoderConfig, per_epoch: int, num_steps: int) -> TrainConfig:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return TrainConfig(
        num_steps=num_steps,
        batch_size=config.batch_size,
        micro_batch_size=max(1, config.batch_size // processes),
        learning_rate=config.learning_rate,
        num_warmup_steps=min(config.num_warmup_steps, per_epoch),
        ema_decay=_EMA_DECAY,
        ema_start_step=per_epoch // 2,
        precision=config.precision,
        checkpoint_every=_CHECKPOINT_EVERY,
        log_every=per_epoch,
        seed=config.seed,
    )


def _write(out: Path, stage: TextEncoderStage, corpus: Corpus, network: nn.Module, rows: list[dict[str, Any]]) -> None:
    """Write the folder in transformers' format, with curves, held-out measures and the encoder's settings."""
    assert isinstance(network, ReportBert)
    lengths = {"training": corpus.training.num_tokens(), "held_out": corpus.held_out.num_tokens()}
    facts = {
        "num_reports": {name: len(values) for name, values in lengths.items()},
        "tokens_per_report": {name: round(float(values.mean()), 1) for name, values in lengths.items()},
        "vocabulary_size": corpus.special.size,
        "num_parameters": sum(parameter.numel() for parameter in network.language.bert.parameters()),
    }
    encoder = {
        "num_tokens": stage.num_tokens,
        "mask_padding": stage.mask_padding,
        "max_tokens": stage.encoder.max_tokens,
        "long_reports": stage.long_reports,
    }
    with atomic_dir(out) as folder:
        with told_as_os_error(out):
            network.language.float().save_pretrained(folder)
        corpus.tokenizer.save_pretrained(folder)
        save_tensors(folder / "pairing_head.safetensors", dict(network.pairing.named_parameters()), {})
        write_json(folder / SETTINGS_FILE, encoder | {"model_sha256": sha256(folder / MODEL_FILE)})
        write_csv(folder / "metrics.csv", rows, CURVE_COLUMNS)
        record = provenance(stage, **corpus.hashes)
        write_json(folder / "heldout.json", {"held_out": rows[-1], **facts, "provenance": record})
