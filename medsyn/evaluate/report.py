"""One self-contained HTML page about a run: what was run, on whom, how training went, Tables I to VII, Figures 3 to 6.

Reads the results folder and embeds every picture; a part that is absent is named as absent, so the page can
also be written for an unfinished run. Values of the paper stand beside the run's own, marked as such.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medsyn.diffusion.base import solver_label
from medsyn.errors import InputError
from medsyn.evaluate.curves import chart
from medsyn.evaluate.paper_values import CAPTIONS, FIGURES, PAPER
from medsyn.evaluate.report_tables import alignment_table, display_table, number, p_value
from medsyn.files import atomic_path, read_csv, read_json
from medsyn.provenance import provenance
from medsyn.scan_warnings import TOPICS, count_topics, split_warnings, topic_of

Facts = dict[str, Any]
FINDINGS = {2: "Pleural effusion", 3: "Bullous emphysema", 4: "Cardiomegaly"}
MAX_SHEETS = 1
NO_FURTHER_REPORTS = " No report without an image (cohort.reports) trains the text encoder."


def write_report(results: Path, out: Path, *, phantom: bool) -> None:
    """Write the page about `results` to `out`; a folder that does not exist is an InputError."""
    if not results.is_dir():
        raise InputError(f"{results}: no such results folder; run the workflow first")
    stages = _stages(results)
    tables = [_table(results, n) for n in PAPER]
    context = {
        "phantom": phantom,
        "cards": _cards(results),
        "hero": _image(results / "eval/figures/hero.png"),
        "settings": _settings(stages),
        "cohort": _cohort(results),
        "rejects": _rejects(results),
        "warnings": _warnings(results),
        "sheets": _sheets(results),
        "alignment": _alignment(results / "qc/alignment.csv"),
        "masks": _masks(results / "qc/masks.csv"),
        "encoders": [_encoder(folder) for folder in sorted(results.glob("text/*/model"))],
        "models": [model for folder in sorted(results.glob("models/*")) if (model := _model(folder))["charts"]],
        "tables": tables,
        "figures": [
            {"title": title, "caption": caption, "image": _image(results / f"eval/figures/{name}.png")}
            for name, (title, caption) in FIGURES.items()
        ],
        "provenance": _provenance(results),
        "stages": [(name, json.dumps(value, indent=1)) for name, value in stages.items()],
    }
    source = resources.files("medsyn.evaluate").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source).render(context)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _table(results: Path, index: int) -> Facts:
    title, caption = CAPTIONS[index]
    facts: Facts = {"number": index, "title": title, "caption": caption, "paper": PAPER[index]}
    path = results / f"eval/table{index}.csv"
    header, rows, notes = display_table(read_csv(path)) if path.exists() else ([], [], [])
    return facts | {"header": header, "rows": rows, "notes": notes}


def _cards(results: Path) -> list[dict[str, str]]:
    """The three prompt tests and the FID, each in one line."""
    cards = []
    for index, name in FINDINGS.items():
        path = results / f"eval/table{index}.csv"
        rows = read_csv(path) if path.exists() else []
        if len(rows) != 2:
            continue
        mean = next(key for key in rows[0] if key.endswith("_mean"))
        with_it = next(row for row in rows if row["prompt_type"].endswith("/with"))
        without = next(row for row in rows if row is not with_it)
        cards.append(
            {
                "title": f"{name}: with against without",
                "value": f"{number(with_it[mean])} / {number(without[mean])} {_unit(mean)}".strip(),
                "detail": f"p {_relation(p_value(with_it['p_value']))} · n = {with_it['n']} and {without['n']}",
            }
        )
    path = results / "eval/table1.csv"
    row = next((row for row in read_csv(path) if row["method"] == "medsyn"), None) if path.exists() else None
    if row is not None and row["fid"]:
        cards.append(
            {
                "title": "FID / MMD to the real volumes",
                "value": f"{number(row['fid'])} / {number(row['mmd'])}",
                "detail": f"n = {row['n_fid']} and {row['n_fid']}",
            }
        )
    return cards


def _relation(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _unit(column: str) -> str:
    return "ml" if "_ml_" in column else "%" if "_percent_" in column else ""


def _settings(stages: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that a reader asks for first."""
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
        if name.startswith(("low_res_", "super_res_")):
            train, unet = stage["train"], stage["unet"]
            text = (
                f"channels {', '.join(stage['channels'])}; width {unet['dim']}, multipliers"
                f" {'-'.join(map(str, unet['mults']))}; {train['num_steps']} steps of batch {train['batch_size']}"
            )
            rows.append((name.replace("_", " "), text))
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


def _cohort(results: Path) -> Facts | None:
    path = results / "cohort/cohort.csv"
    if not path.exists():
        return None
    subjects = read_csv(path, ["subject_id", "split"])
    labels: dict[str, dict[str, str]] = {}
    if (results / "labels.csv").exists():
        labels = {row["id"]: row for row in read_csv(results / "labels.csv", ["id"])}
    names = [name for name in next(iter(labels.values()), {}) if name != "id"]
    rows = []
    for split in ("train", "validation"):
        chosen = [row for row in subjects if row["split"] == split]
        known = [labels.get(row.get("report_id", ""), labels.get(row["subject_id"])) for row in chosen]
        counts = [sum(int(entry[name]) for entry in known if entry) for name in names]
        rows.append([split, len(chosen), *counts])
    note = "Columns of findings: subjects whose report, read by the rule labeler, mentions the finding."
    reports = results / "cohort/reports.csv"
    if reports.exists():
        extra = sum(row["split"] == "text_only" for row in read_csv(reports, ["split"]))
        note += f" {extra:,} further reports without images train the text encoder." if extra else NO_FURTHER_REPORTS
    return {"labels": [name.replace("_", " ") for name in names], "rows": rows, "note": note}


def _rejects(results: Path) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    path = results / "cohort/rejects.csv"
    if path.exists():
        rows += [(r["subject_id"], r["stage"], r["reason"]) for r in read_csv(path, ["subject_id", "stage", "reason"])]
    for index in sorted(results.glob("preprocessed/*/index.csv")) + sorted(results.glob("masks/*/index.csv")):
        stage = index.parent.parent.name
        rows += [
            (r["subject_id"], stage, r["reason"])
            for r in read_csv(index, ["subject_id", "status"])
            if r["status"] != "ok"
        ]
    for index in sorted(results.glob("samples/*/*/*/index.csv")):
        stage = "/".join(index.parts[-5:-2])
        for row in read_csv(index):
            if row.get("status", "ok") not in ("ok", ""):
                rows.append((row.get("sample_id") or row.get("subject_id", ""), stage, row.get("reason", "")))
    return rows


def _warnings(results: Path) -> Facts | None:
    """Number of preprocessed CTs with at least one warning of each topic, and one of the warnings as an example."""
    indices = sorted(results.glob("preprocessed/*/index.csv"))
    used = [row for index in indices for row in read_csv(index, ["subject_id", "status"]) if row["status"] == "ok"]
    scans = {row["subject_id"]: split_warnings(row.get("warnings", "")) for row in used}
    examples: dict[str, str] = {}
    for subject, warnings in scans.items():
        for warning in warnings:
            examples.setdefault(topic_of(warning), f"{subject}: {warning.partition(': ')[2]}")
    counts = count_topics(scans.values())
    rows = [(topic, number(str(count)), TOPICS.get(topic, ""), examples[topic]) for topic, count in counts.items()]
    return {"rows": rows, "count": sum(map(bool, scans.values())), "total": len(scans)} if scans else None


def _sheets(results: Path) -> list[Facts]:
    paths = sorted(results.glob("preprocessed/*/contact_sheet.png"))[:MAX_SHEETS]
    return [{"image": _image(path), "caption": f"Preprocessed volumes of shard {path.parent.name}."} for path in paths]


def _alignment(path: Path) -> Facts | None:
    rows = read_csv(path) if path.exists() else []
    return alignment_table(rows) if rows else None


def _masks(path: Path) -> Facts | None:
    rows = read_csv(path) if path.exists() else []
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


def _model(folder: Path) -> Facts:
    charts, pictures = [], []
    for stage in ("low_res", "super_res"):
        curves = _columns(folder / f"{stage}_metrics.csv")
        if "step" in curves and "loss" in curves:
            series = [("loss", curves["step"], curves["loss"])]
            if "loss_ema" in curves:
                series.append(("smoothed", curves["step"], curves["loss_ema"]))
            charts.append(chart(series, "step", f"{stage.replace('_', '-')} loss (log scale)", log_y=True))
        preview = folder / f"{stage}_preview.png"
        if preview.exists():
            caption = f"{stage.replace('_', '-')}: training volumes, noised to t = 0.5, and the network's estimate."
            pictures.append({"image": _image(preview), "caption": caption})
    return {"name": folder.name, "charts": [svg for svg in charts if svg], "pictures": pictures}


def _columns(path: Path) -> dict[str, list[float]]:
    """Numeric columns of a CSV; empty fields are NaN. No file gives no columns."""
    if not path.exists():
        return {}
    rows = read_csv(path)
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else {})}


def _provenance(results: Path) -> list[tuple[str, str]]:
    record = provenance()
    rows = [("medsyn", f"{record['medsyn']}, commit {record['commit']}")]
    rows += [(name, version) for name, version in record["versions"].items()]
    for path in sorted(results.glob("eval/table*.json")):
        sidecar = read_json(path)
        rows.append(
            (path.stem, f"settings {sidecar.get('config_hash', '?')}, {len(sidecar.get('inputs', {}))} input files")
        )
    return rows


def _stages(results: Path) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in sorted(results.glob("config/*.json"))}


def _image(path: Path) -> str | None:
    """A PNG as a data URI; None where there is none."""
    if not path.exists():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
