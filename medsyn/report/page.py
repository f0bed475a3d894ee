"""Write one self-contained HTML page about a run: what was run, on whom, how training went, every table and figure.

Every picture is embedded. What is absent is named as absent, so the page can also be written for an unfinished run.
Values of the paper stand beside the run's own, marked as such. Tables and figures are those of the registry EXHIBITS.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medsyn.diffusion.base import solver_label
from medsyn.exhibits.base import EXHIBITS, Card, Stages
from medsyn.exhibits.numbers import number
from medsyn.files import atomic_path, read_csv, read_json
from medsyn.provenance import provenance
from medsyn.registry import load_plugins
from medsyn.report.curves import chart
from medsyn.report.files import ReportFiles, exhibit_files
from medsyn.report.tables import alignment_table, display_table
from medsyn.scan_warnings import TOPICS, count_topics, split_warnings, topic_of

Facts = dict[str, Any]
MAX_SHEETS = 1
NO_FURTHER_REPORTS = " No report without an image (cohort.reports) trains the text encoder."
_PREVIEW = "training volumes, below them what the networks make: samples, or of a VQ-GAN its reconstructions"
_OF_DENOISERS = (
    "one training volume per row, with all channels: as it is, noised to t = 0.5, as the network estimates it, and a"
    " sample"
)
_PREVIEWS = {"low-res": _OF_DENOISERS, "super-res": _OF_DENOISERS}
"""Network -> what its picture shows; _PREVIEW for all others."""
HERO = "hero"
"""The figure at the head of the page."""


def write_report(files: ReportFiles, out: Path, *, phantom: bool) -> None:
    """Write the page about the files of a run; phantom: its cohort consists of procedural phantoms."""
    stages = {path.stem: read_json(path) for path in files.get("settings", [])}
    evaluation = stages.get("evaluation", {})
    load_plugins(evaluation.get("plugins", ()))  # which may hold exhibits
    names = EXHIBITS.names()
    made = exhibit_files(files)
    quality = {path.stem: path for path in files.get("quality", [])}
    context = {
        "phantom": phantom,
        "warned": _warned(made),
        "cards": _cards(made),
        "hero": _image(made.get(HERO)),
        "viewers": [_viewer(path) for path in files.get("viewer", [])],
        "settings": _settings(stages),
        "cohort": _cohort(files),
        "rejects": _rejects(files),
        "warnings": _warnings(files),
        "sheets": _sheets(files),
        "alignment": _alignment(quality.get("alignment")),
        "masks": _masks(quality.get("masks")),
        "encoders": [_encoder(folder) for folder in files.get("encoders", [])],
        "models": _models(files, _labels(made)),
        "tables": [_table(name, made.get(name), stages) for name in names if EXHIBITS[name].kind == "table"],
        "figures": [_figure(name, made.get(name), stages) for name in names if EXHIBITS[name].kind == "figure"],
        "provenance": _provenance(files),
        "stages": [(name, json.dumps(value, indent=1)) for name, value in stages.items()],
    }
    source = resources.files("medsyn.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source).render(context)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _viewer(path: Path) -> Facts:
    return {"name": path.name, "size": f"{path.stat().st_size / 1e6:.1f} MB"}


def _table(name: str, path: Path | None, stages: Stages) -> Facts:
    exhibit = EXHIBITS[name]
    header, rows, notes = display_table(read_csv(path), exhibit.headers) if path else ([], [], [])
    title, caption = exhibit.full_title(stages), exhibit.full_caption(stages)
    facts: Facts = {"name": name, "title": title, "caption": caption, "paper": exhibit.paper}
    return facts | {"header": header, "rows": rows, "notes": notes}


def _figure(name: str, path: Path | None, stages: Stages) -> Facts:
    exhibit = EXHIBITS[name]
    title, caption = exhibit.full_title(stages), exhibit.full_caption(stages)
    return {"name": name, "title": title, "caption": caption, "image": _image(path)}


def _cards(made: Mapping[str, Path]) -> list[Card]:
    cards = [
        exhibit.card(read_csv(path)) for name, path in made.items() if (exhibit := EXHIBITS[name]).card is not None
    ]
    return [card for card in cards if card is not None]


def _warned(made: Mapping[str, Path]) -> list[str]:
    """Return what the tables that were made warn of."""
    checks = ((EXHIBITS[name].warnings, path) for name, path in made.items())
    return [line for check, path in checks if check is not None for line in check(read_csv(path))]


def _settings(stages: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that a reader asks for first."""
    rows: list[tuple[str, str]] = []
    if "preprocess" in stages:
        grid = stages["preprocess"]
        size, extent = grid["size"], grid["field_of_view_mm"]
        spacing = ", ".join(f"{e / s:.3g}" for e, s in zip(extent, size, strict=True))
        low = " × ".join(str(s // grid["low_res_factor"]) for s in size)
        rows.append(("Grid (z, y, x)", f"{' × '.join(map(str, size))} voxels of {spacing} mm; low resolution {low}"))
        rows.append(("HU window", f"{grid['window_hu'][0]:.0f} to {grid['window_hu'][1]:.0f}"))
    if "cohort" in stages:
        source = {"phantom": "embedded procedural phantoms", "manifest": "the user's manifest"}
        rows.append(("Cohort", source.get(stages["cohort"]["source"], stages["cohort"]["source"])))
    if "masks" in stages:
        rows.append(
            ("Mask tools", ", ".join(f"{name}: {stages['masks'][name]}" for name in ("lobes", "airway", "vessels")))
        )
    for name, stage in stages.items():
        if {"stage", "unet", "train"} <= stage.keys():  # a denoiser of this package
            train, unet = stage["train"], stage["unet"]
            text = f"channels {', '.join(stage['channels'])}; width {unet['dim']}, multipliers"
            text += f" {'-'.join(map(str, unet['mults']))}; {_length(train)}"
            rows.append((name.replace("_", " "), text))
        elif "train" in (settings := stage.get("settings") or {}):  # a network of another kind
            rows.append((name.replace("_", " "), _length(settings["train"])))
    if "sampling" in stages:
        s = stages["sampling"]["sampling"]
        scale = stages.get("evaluation", {}).get("segmentation_guidance_scale")
        segmentation = "" if scale is None else f" (Table V: {scale:g})"
        rows.append(
            (
                f"Sampling ({solver_label(s['solver']) if 'solver' in s else 'solver not recorded'})",
                f"{s['num_steps_low_res']} and {s['num_steps_super_res']} steps, guidance {s['guidance_scale']:g}"
                f"{segmentation}, no text: {s.get('null_text', 'not recorded which')} states",
            )
        )
    return rows


def _length(train: Mapping[str, Any]) -> str:
    return f"{train['num_steps']} steps of batch {train['batch_size']}"


def _cohort(files: ReportFiles) -> Facts | None:
    """Return the number of CTs and of findings per split."""
    tables = {path.stem: path for path in files.get("cohort", [])}
    if "cohort" not in tables:
        return None
    subjects = read_csv(tables["cohort"], ["subject_id", "split"])
    labels = {row["id"]: row for path in files.get("labels", []) for row in read_csv(path, ["id"])}
    names = [name for name in next(iter(labels.values()), {}) if name != "id"]
    rows = []
    for split in ("train", "validation"):
        chosen = [row for row in subjects if row["split"] == split]
        known = [labels.get(row.get("report_id", ""), labels.get(row["subject_id"])) for row in chosen]
        counts = [sum(int(entry[name]) for entry in known if entry) for name in names]
        rows.append([split, len(chosen), *counts])
    note = "Columns of findings: subjects whose report, read by the rule labeler, mentions the finding."
    if "reports" in tables:
        extra = sum(row["split"] == "text_only" for row in read_csv(tables["reports"], ["split"]))
        note += f" {extra:,} further reports without images train the text encoder." if extra else NO_FURTHER_REPORTS
    return {"labels": [name.replace("_", " ") for name in names], "rows": rows, "note": note}


def _rejects(files: ReportFiles) -> list[tuple[str, str, str]]:
    """Return subject or sample, stage and reason of everything that was refused."""
    rows: list[tuple[str, str, str]] = []
    for path in files.get("cohort", []):
        if path.stem == "rejects":
            table = read_csv(path, ["subject_id", "stage", "reason"])
            rows += [(row["subject_id"], row["stage"], row["reason"]) for row in table]
    for role in ("preprocessed", "masks", "samples"):
        for folder in files.get(role, []):
            stage = "/".join(folder.parts[-4:-1]) if role == "samples" else role
            for row in _index(folder, [] if role == "samples" else ["subject_id", "status"]):
                if row.get("status", "ok") not in ("ok", ""):
                    rows.append((row.get("sample_id") or row.get("subject_id", ""), stage, row.get("reason", "")))
    return rows


def _index(folder: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a shard's index.csv, which must have `columns`; none where there is none."""
    path = folder / "index.csv"
    return read_csv(path, columns) if path.exists() else []


def _warnings(files: ReportFiles) -> Facts | None:
    """Return the number of preprocessed CTs with warnings of each topic, and one of the warnings as an example."""
    listed = [row for folder in files.get("preprocessed", []) for row in _index(folder, ["subject_id", "status"])]
    used = [row for row in listed if row["status"] == "ok"]
    scans = {row["subject_id"]: split_warnings(row.get("warnings", "")) for row in used}
    examples: dict[str, str] = {}
    for subject, warnings in scans.items():
        for warning in warnings:
            examples.setdefault(topic_of(warning), f"{subject}: {warning.partition(': ')[2]}")
    counts = count_topics(scans.values())
    rows = [(topic, number(str(count)), TOPICS.get(topic, ""), examples[topic]) for topic, count in counts.items()]
    return {"rows": rows, "count": sum(map(bool, scans.values())), "total": len(scans)} if scans else None


def _sheets(files: ReportFiles) -> list[Facts]:
    paths = [path for folder in files.get("preprocessed", []) if (path := folder / "contact_sheet.png").exists()]
    return [
        {"image": _image(path), "caption": f"Preprocessed volumes of shard {path.parent.name}."}
        for path in paths[:MAX_SHEETS]
    ]


def _alignment(path: Path | None) -> Facts | None:
    rows = read_csv(path) if path else []
    return alignment_table(rows) if rows else None


def _masks(path: Path | None) -> Facts | None:
    rows = read_csv(path) if path else []
    subjects = [row for row in rows if row["subject_id"] != "mean"]
    if not subjects:
        return None
    names = [name for name in subjects[0] if name != "subject_id"]
    columns = {name: np.array([float(row[name]) for row in subjects if row[name]]) for name in names}
    means = [f"{c.mean():.3f}" if len(c) else "–" for c in columns.values()]
    quantiles = [np.quantile(c, [0.05, 0.95]) if len(c) else None for c in columns.values()]
    ranges = ["" if q is None else f"{q[0]:.2f} – {q[1]:.2f}" for q in quantiles]
    return {"names": [n.replace("_", " ") for n in names], "means": means, "ranges": ranges, "count": len(subjects)}


def _encoder(folder: Path) -> Facts:
    curves = _columns(folder / "metrics.csv")
    x = curves.get("epoch", curves.get("step", []))
    charts = []
    for title, names in (
        ("loss in training", {"train_loss": "training"}),
        (
            "held-out perplexity of masked words (lower is better)",
            {"mlm_perplexity": "model", "unigram_perplexity": "word frequencies alone"},
        ),
        ("held-out findings/impression pairing accuracy", {"pairing_accuracy": "held-out"}),
    ):
        charts.append(chart([(names[name], x, curves[name]) for name in names if name in curves], "epoch", title))
    facts = ""
    if (folder / "heldout.json").exists():
        values = read_json(folder / "heldout.json")
        size = values.get("num_parameters")
        facts = f"{size:,} parameters, vocabulary of {values.get('vocabulary_size')} tokens." if size else ""
    return {"name": folder.parent.name, "charts": [svg for svg in charts if svg], "facts": facts}


def _models(files: ReportFiles, labels: Mapping[str, str]) -> list[Facts]:
    """Return the losses and last pictures of every method that was trained; labels: by method."""
    methods: dict[str, list[Path]] = {}
    for path in files.get("training", []):
        methods.setdefault(path.parent.name, []).append(path)
    named = {labels.get(name, name): paths for name, paths in methods.items()}
    return [_model(name, paths) for name, paths in named.items() if any(path.suffix == ".csv" for path in paths)]


def _labels(made: Mapping[str, Path]) -> dict[str, str]:
    """Return the labels of the methods in Table I, by method."""
    rows = read_csv(made["table1"]) if "table1" in made else []
    return {row["method"]: row["label"] for row in rows if row.get("label")}


def _model(name: str, paths: list[Path]) -> Facts:
    charts, pictures = [], []
    for path in paths:
        network = path.stem.removesuffix("_metrics").removesuffix("_preview").replace("_", "-")
        if path.suffix == ".png":
            pictures.append({"image": _image(path), "caption": f"{network}: {_PREVIEWS.get(network, _PREVIEW)}"})
        else:
            charts.append(_losses(network, _columns(path)))
    return {"name": name, "charts": [svg for svg in charts if svg], "pictures": pictures}


def _losses(network: str, curves: Mapping[str, list[float]]) -> str:
    """Return the chart of a training run: its loss, or the losses of all phases, which may be negative."""
    steps = curves.get("step", [])
    if "loss" in curves:
        names = {"loss": "loss", "loss_ema": "smoothed"}
        series = [(label, steps, curves[name]) for name, label in names.items() if name in curves]
        return chart(series, "step", f"{network} loss (log scale)", log_y=True)
    phases = {name.removesuffix("_loss"): values for name, values in curves.items() if name.endswith("_loss")}
    series = [(phase.replace("_", " "), steps, values) for phase, values in phases.items()]
    return chart(series, "step", f"{network} losses")


def _columns(path: Path) -> dict[str, list[float]]:
    """Return the numeric columns of a CSV; empty fields are NaN, and no file gives no columns."""
    if not path.exists():
        return {}
    rows = read_csv(path)
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else {})}


def _provenance(files: ReportFiles) -> list[tuple[str, str]]:
    record = provenance()
    rows = [("medsyn", f"{record['medsyn']}, commit {record['commit']}")]
    rows += [(name, version) for name, version in record["versions"].items()]
    for path in files.get("exhibits", []):
        if path.suffix != ".json":
            continue
        sidecar = read_json(path)
        rows.append(
            (path.stem, f"settings {sidecar.get('config_hash', '?')}, {len(sidecar.get('inputs', {}))} input files")
        )
    return rows


def _image(path: Path | None) -> str | None:
    """Return a PNG as a data URI; None where there is none."""
    if path is None:
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
