"""Say which files the report is made from: as options of its command, for a run of the workflow or a results folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medsyn.config import stage_configs
from medsyn.errors import InputError
from medsyn.exhibits.base import EXHIBITS, exhibits_of
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.layout import Layout
from medsyn.methods.base import METHODS

ReportFiles = Mapping[str, list[Path]]
"""Role -> files or folders; a role that is absent is named as absent in the report."""


def report_needs(sources: Sources) -> list[Need]:
    """Return the options of the command that writes the report of an experiment."""
    config, layout = sources.config, sources.layout
    exhibits = exhibits_of(config)
    needs = [need for exhibit in exhibits for need in exhibit.needs(sources)]
    sampled = dict.fromkeys(need.sampled for need in needs if need.sampled is not None)
    stages = [name for name in stage_configs(config) if name != "phantom" or config.cohort.source == "phantom"]
    encoders = dict.fromkeys(encoder for name in config.methods if (encoder := sources.text_encoder(name)))
    trained = [
        (name, network)
        for name, entry in config.methods.items()
        for network in METHODS[entry.kind].networks(config, name)
    ]
    paths = {
        "settings": [layout.config(name) for name in stages],
        "cohort": [layout.cohort(name) for name in ("cohort", "rejects", "reports")],
        "labels": [layout.labels()],
        "preprocessed": list(sources.real("volumes").paths),
        "masks": list(sources.masks().paths),
        "quality": [layout.quality(name) for name in ("masks", "alignment")],
        "encoders": [layout.text_encoder(name) for name in encoders],
        "training": [path(m, n) for path in (layout.training_metrics, layout.training_preview) for m, n in trained],
        "samples": [path for method, prompts in sampled for path in sources.made("volumes", method, prompts).paths],
        "viewer": [layout.viewer()],
        "exhibits": [path for exhibit in exhibits for path in exhibit.files(layout).values()],
    }
    return [Need(role, (), tuple(found)) for role, found in paths.items() if found] + sources.phantom()


def viewer_needs(sources: Sources) -> list[Need]:
    """Return the options of the command that writes the viewer's page of an experiment.

    It shows real CTs, and what the reference samples for the reports and the prompt pairs that exhibits use.
    """
    needs = [need for exhibit in exhibits_of(sources.config) for need in exhibit.needs(sources)]
    sampled = dict.fromkeys(need.sampled for need in needs if need.sampled is not None)
    sets = [name for method, name in sampled if method == sources.reference and name in ("reports", "pairs")]
    made = [sources.made(kind, sources.reference, name) for kind in ("volumes", "measures") for name in sets]
    found = [sources.real("volumes"), sources.real("measures"), *made]
    paths = {
        kind: tuple(p for need in found if need.option == kind for p in need.paths) for kind in ("volumes", "measures")
    }
    return [Need(kind, (), paths[kind]) for kind in paths] + [sources.masks(), sources.cohort()]


def find_files(results: Path) -> ReportFiles:
    """Return what a results folder holds; InputError if there is no such folder."""
    if not results.is_dir():
        raise InputError(f"{results}: no such results folder; run the workflow first")
    layout = Layout(str(results))
    patterns = {
        "settings": [layout.config("*")],
        "cohort": [layout.cohort(name) for name in ("cohort", "rejects", "reports")],
        "labels": [layout.labels()],
        "preprocessed": [layout.preprocessed("*")],
        "masks": [layout.masks("*")],
        "quality": [layout.quality(name) for name in ("masks", "alignment")],
        "encoders": [layout.text_encoder("*")],
        "training": [layout.training_metrics("*", "*"), layout.training_preview("*", "*")],
        "samples": [layout.samples("*", "*", "*")],
        "viewer": [layout.viewer()],
        "exhibits": [layout.table("*"), layout.table_provenance("*"), layout.figure("*")],
    }
    found = {role: [path for pattern in part for path in _match(results, pattern)] for role, part in patterns.items()}
    return {role: paths for role, paths in found.items() if paths}


def _match(results: Path, pattern: str) -> list[Path]:
    return sorted(results.glob(str(Path(pattern).relative_to(results))))


def exhibit_files(files: ReportFiles) -> dict[str, Path]:
    """Return the table or figure of every exhibit that is there; files are known by their names."""
    given = {path.name: path for path in files.get("exhibits", [])}
    names = {name: f"{name}.{'png' if EXHIBITS[name].kind == 'figure' else 'csv'}" for name in EXHIBITS.names()}
    return {name: given[file] for name, file in names.items() if file in given}
