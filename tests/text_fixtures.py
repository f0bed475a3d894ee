"""A tiny text encoder that is trained once for all tests of the text stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from text_data import write_reports_csv

from medsyn.config import TextEncoderConfig, TextEncoderStage

if TYPE_CHECKING:
    from medsyn.text.encoder import TextEncoder

TINY = TextEncoderConfig(
    vocabulary_size=300, hidden_size=32, num_layers=1, num_heads=2, num_epochs=2, batch_size=16, max_tokens=96
)
SECTIONS = ("report", "findings", "impression")


def stage(encoder: TextEncoderConfig = TINY, **settings: object) -> TextEncoderStage:
    """Return the settings of the text stage, by default with the tiny encoder and 48 tokens."""
    return TextEncoderStage(
        **{"encoder": encoder, "num_tokens": 48, "mask_padding": False, "sections": SECTIONS} | settings
    )


@pytest.fixture(scope="session")
def text_reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of 160 reports, 24 of them of the validation split."""
    path = tmp_path_factory.mktemp("reports") / "reports.csv"
    write_reports_csv(path, 160, 24)
    return path


@pytest.fixture(scope="session")
def text_model(text_reports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the encoder, trained on `text_reports`."""
    from medsyn.text.pretrain import pretrain

    folder = tmp_path_factory.mktemp("text") / "model"
    pretrain(stage(), text_reports, folder)
    return folder


@pytest.fixture
def text_encoder(text_model: Path) -> Iterator[TextEncoder]:
    """The encoder, opened again for the test."""
    from medsyn.text.encoder import TextEncoder

    yield TextEncoder.from_folder(text_model)
