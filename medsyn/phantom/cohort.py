"""Write phantoms: folders of NIfTI files with truth.json, cohort.csv with the paired reports, text-only reports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from medsyn.files import atomic_dir, write_csv, write_json
from medsyn.memory import keep_freed_memory
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.sampling import sample_findings
from medsyn.phantom.subject import MASK_NAMES, render_subject, subject_findings, subject_id
from medsyn.progress import log, track
from medsyn.provenance import provenance
from medsyn.volume import write_volume

COHORT_COLUMNS = ("subject_id", "image", "findings", "impression", "patient_id", "report_id", "labels", "truth")
REPORT_COLUMNS = ("report_id", "findings", "impression")


def shard_indices(count: int, shard: tuple[int, int]) -> range:
    """Return the global indices of shard k of N (every N-th subject, starting at k)."""
    k, n = shard
    return range(k, count, n)


def write_cohort(out: str | Path, indices: Iterable[int], *, seed: int, size: int) -> None:
    """Write the folder `out`: one folder a subject and cohort.csv; it appears whole or not at all."""
    keep_freed_memory()
    indices = list(indices)
    rows = []
    with atomic_dir(out) as folder:
        for index in track(indices, description="phantoms"):
            rows.append(write_subject(folder, index, seed=seed, size=size))
        write_csv(folder / "cohort.csv", rows, COHORT_COLUMNS)
        write_json(folder / "provenance.json", provenance(None, seed=seed, size=size, num_subjects=len(indices)))
    log.info("%s: %d phantoms at %d^3", out, len(indices), size)


def write_subject(folder: Path, index: int, *, seed: int, size: int) -> dict[str, str]:
    """Write one subject's folder below `folder` and return its row of cohort.csv (paths relative to `folder`)."""
    subject = render_subject(seed, index, size)
    name = subject_id(index)
    write_volume(folder / name / "volume.nii.gz", subject.volume)
    for mask in MASK_NAMES:
        write_volume(folder / name / f"{mask}.nii.gz", subject.volume.with_array(subject.masks[mask]))
    write_json(folder / name / "truth.json", subject.truth)
    specs = subject_findings(seed, index)
    findings, impression = _report(specs, np.random.default_rng(np.random.SeedSequence([seed, index]).spawn(2)[1]))
    return {
        "subject_id": name,
        "image": f"{name}/volume.nii.gz",
        "findings": findings,
        "impression": impression,
        "patient_id": name,
        "report_id": name,
        "labels": ";".join(dict.fromkeys(spec.kind for spec in specs)),
        "truth": f"{name}/truth.json",
    }


def write_reports(out: str | Path, count: int, *, seed: int) -> None:
    """Write `count` reports without images, text-00000 and on, of subjects that exist in words only."""
    rows = []
    for index in range(count):
        draw, words = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, index, 1]).spawn(2))
        findings, impression = _report(sample_findings(draw), words)
        rows.append({"report_id": f"text-{index:05d}", "findings": findings, "impression": impression})
    write_csv(out, rows, REPORT_COLUMNS)
    log.info("%s: %d reports", out, count)


def _report(specs: tuple[FindingSpec, ...], rng: np.random.Generator) -> tuple[str, str]:
    from medsyn.phantom.report import write_report

    report = write_report(specs, rng)
    return report.findings, report.impression
