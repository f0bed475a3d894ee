"""Settings of who is in: a manifest, or the embedded phantoms."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medsyn.config.section import Count, DataSeed, Fraction, PathText, Section, Shards


class CohortConfig(Section):
    """Who is in: the embedded phantoms or a manifest that the user brings."""

    source: Literal["phantom", "manifest"] = Field("phantom", description="embedded phantoms, or your own CSV")
    manifest: PathText = Field("config/cohort.csv", description="CSV with subject_id, image, findings, impression")
    reports: PathText | None = Field(
        None,
        description="CSV with report_id, findings, impression and, if known, patient_id: reports without images, which"
        " train the text encoder as well (paper: 209,683); null: none",
    )
    validation_fraction: Fraction = Field(0.12, description="patient-level split; the paper holds out 12 %")
    max_reject_fraction: Fraction = Field(0.2, description="stop when more than this share of subjects is rejected")
    num_shards: Shards = Field(2, description="every per-volume stage runs as this many jobs")
    seed: DataSeed = 0


class PhantomConfig(Section):
    """The embedded cohort of procedural chest phantoms."""

    num_subjects: Count = 360
    num_text_only_reports: int = Field(
        1200, ge=0, le=10_000_000, description="reports without images, for the text encoder"
    )
    size: int = Field(64, ge=16, le=1024, description="voxels along each axis; the field of view is fixed")
    seed: DataSeed = 0
