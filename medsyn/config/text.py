"""Settings of the text: language models, and what of their states conditions the images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from medsyn.config.section import Count, Fraction, Name, OwnSeed, PathText, Precision, Section, Share, Width

ReportSection = Literal["report", "findings", "impression"]
LongReports = Literal["shorten_findings", "cut_end"]


class TextEncoderConfig(Section):
    """One language model: where it starts and how it is fine-tuned on the reports."""

    init: PathText = Field("scratch", description="'scratch', or a local folder or hub name of a BERT checkpoint")
    vocabulary: Literal["reports", "english"] = Field(
        "reports", description="from scratch: corpus of the tokenizer and, for english, of the pretraining"
    )
    vocabulary_size: int = Field(1000, ge=100, le=1_000_000)
    hidden_size: Width = 96
    num_layers: int = Field(2, ge=1, le=256)
    num_heads: int = Field(4, ge=1, le=1024, description="from scratch: must divide hidden_size")
    num_english_steps: int = Field(0, ge=0, description="masked-language-model steps on general English first")
    num_epochs: Count = Field(5, description="epochs over all reports of the training split (paper: 5)")
    batch_size: Count = 8
    learning_rate: PositiveFloat = 1e-3
    dropout: Share = Field(0.0, description="from scratch only; a checkpoint keeps its own")
    small_corpus: bool = Field(
        False,
        description="for few reports or few epochs, from scratch: initialise the attention so that it compares the two"
        " sections, and put each pair and its swapped copy into the same batch (layers >= 2, heads and batch size"
        " multiples of 4)",
    )
    num_warmup_steps: int = Field(50, ge=0, description="optimiser steps of linear warm-up, at most one epoch")
    mask_fraction: float = Field(0.15, gt=0, lt=1)
    swap_fraction: Fraction = 0.5
    pairing_weight: PositiveFloat = Field(1.0, description="of the pairing loss beside that of the masked tokens")
    max_tokens: int = Field(
        192,
        ge=4,
        le=1_000_000,
        description="longest input of the language model in tokens (authors: 2,048; a shorter checkpoint is extended)",
    )
    precision: Precision = "fp32"
    seed: OwnSeed = 0

    @model_validator(mode="after")
    def _check(self) -> TextEncoderConfig:
        if self.small_corpus and (self.num_layers < 2 or self.num_heads % 4 or self.batch_size % 4):
            raise ValueError("small_corpus needs num_layers of at least 2, num_heads and batch_size multiples of 4")
        if self.init == "scratch" and self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        return self


class TextInputs(Section):
    """Which text conditions the image model, and how much of it."""

    num_tokens: int = Field(96, ge=4, le=1_000_000, description="hidden states kept (paper: 192)")
    mask_padding: bool = Field(False, description="zero the states of padding positions (authors' code: false)")
    sections: Annotated[tuple[ReportSection, ...], Field(min_length=1)] = Field(
        ("report", "findings", "impression"),
        description="what a training step may be conditioned on, chosen evenly among those that the report has",
    )
    long_reports: LongReports = Field(
        "shorten_findings",
        description="a text beyond max_tokens loses the end of its Findings, and the states kept of one beyond"
        " num_tokens include its Impression's; cut_end (authors' code): the first tokens and states of any text",
    )


class TextConfig(TextInputs):
    """Text encoders by name and what of their states conditions the image model."""

    encoders: dict[Name, TextEncoderConfig] = Field(default_factory=lambda: {"biomedical": TextEncoderConfig()})
