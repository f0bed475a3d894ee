"""Verbs of the evaluation: feature extractor, classifier, tables, figures, report, and any two folders compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs, add_split, add_state, table_and_json
from medsyn.errors import InputError

VOLUMES_HELP = "folders <id>/volume.nii.gz, one a shard"
GROUP_HELP = "a label, then its files or folders (repeat the option for every label)"


def add_verbs(verbs: Verbs) -> None:
    """Add train-features, features, classify, score-segmentation, table, figure, report and evaluate."""
    _add_feature_verbs(verbs)
    _add_score_verbs(verbs)
    _add_table_verb(verbs)
    _add_figure_verb(verbs)
    parser = verbs.add(
        "report",
        _report,
        summary="Write one self-contained HTML page about everything under a results folder.",
        example="medsyn report --results results --phantom --out results/report.html",
    )
    parser.add_argument("--results", required=True, help="results folder of a run; parts that are absent are named so")
    parser.add_argument("--phantom", action="store_true", help="say that the cohort consists of procedural phantoms")
    parser.add_argument("--out", required=True, help="HTML file")
    parser = verbs.add(
        "evaluate",
        _evaluate,
        summary="Compare two folders of volumes from any system: FID, MMD, anatomical measures with 95 % bounds.",
        example="medsyn evaluate --real ct/ --synthetic fake/ --weights extractor.safetensors --out table.csv",
        outputs=table_and_json,
    )
    parser.add_argument("--real", required=True, help="folder of real volumes in HU (NIfTI, MetaImage, NRRD, npz)")
    parser.add_argument("--synthetic", required=True, help="folder of generated volumes in HU")
    for prefix, group in (("", "generated"), ("real-", "real")):
        parser.add_argument(
            f"--{prefix}spacing-mm",
            metavar="'Z Y X'",
            help=f"of the {group} volumes in mm, instead of the files' own",
        )
        parser.add_argument(
            f"--{prefix}orientation",
            metavar="CODE",
            help=f"where x, y, z of the {group} volumes run to, such as LPS, instead of what the files say",
        )
    parser.add_argument(
        "--max-refused-fraction",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="end with an error if more of a folder than this, and more than one volume, is refused (default"
        " %(default)s)",
    )
    parser.add_argument("--weights", help="extractor from train-features; without it FID and MMD stay empty")
    parser.add_argument("--config", help="preprocess.json: grid in voxels, field of view in mm (default: 64^3)")
    parser.add_argument("--seed", type=int, default=0, help="of subsets and bootstrap")
    parser.add_argument("--out", required=True, help="CSV file; the provenance goes to the same name with .json")


def _add_feature_verbs(verbs: Verbs) -> None:
    parser = verbs.add(
        "train-features",
        _train_features,
        summary="Make the feature extractor of FID and MMD: read a Med3D checkpoint, or train on the cohort's labels.",
        example="medsyn train-features --config results/config/features.json --store results/store/0"
        " --labels results/labels.csv --out results/features/extractor.safetensors",
    )
    parser.add_argument("--config", required=True, help="features.json of the verb config")
    parser.add_argument("--store", nargs="+", default=[], help="training stores, one a shard")
    parser.add_argument("--labels", required=True, help="labels.csv of the verb label")
    parser.add_argument("--out", required=True, help="safetensors file")
    add_state(parser)

    parser = verbs.add(
        "features",
        _features,
        summary="Features of a folder of volumes (HU on the model grid).",
        example="medsyn features --weights results/features/extractor.safetensors --volumes results/preprocessed/0"
        " --config results/config/preprocess.json --out results/features/real/0.npz",
    )
    parser.add_argument("--weights", required=True, help="extractor from train-features")
    parser.add_argument("--volumes", required=True, nargs="+", help=VOLUMES_HELP)
    parser.add_argument("--config", required=True, help="preprocess.json: the HU window")
    parser.add_argument("--out", required=True, help=".npz with ids, features (n, F), extractor")
    add_state(parser)
    add_split(parser)


def _add_score_verbs(verbs: Verbs) -> None:
    parser = verbs.add(
        "classify",
        _classify,
        summary="Cross-validate a classifier of one finding with and without synthetic volumes (Table VI).",
        example="medsyn classify --finding pleural_effusion --config results/config/augmentation.json"
        " --cohort results/cohort/cohort.csv --labels results/labels.csv --volumes results/preprocessed/0"
        " --prompts results/prompts/augmentation.csv --samples results/samples/medsyn/augmentation/0"
        " --out results/classify/pleural_effusion.csv",
    )
    parser.add_argument("--finding", required=True, help="a column of labels.csv")
    parser.add_argument("--config", required=True, help="augmentation.json of the verb config")
    parser.add_argument("--cohort", required=True, help="cohort.csv")
    parser.add_argument("--labels", required=True, help="labels.csv")
    parser.add_argument("--volumes", required=True, nargs="+", help=f"real: {VOLUMES_HELP}")
    parser.add_argument(
        "--split",
        default="validation",
        choices=("train", "validation", "all"),
        help="whose real volumes (default: validation)",
    )
    parser.add_argument("--prompts", required=True, help="prompt set 'augmentation'")
    parser.add_argument("--samples", required=True, nargs="+", help=f"generated: {VOLUMES_HELP}")
    parser.add_argument("--method-label", default="MedSyn", help="name of the generating model in the rows")
    parser.add_argument("--out", required=True, help="CSV, one row a method and fold")
    add_state(parser)

    parser = verbs.add(
        "score-segmentation",
        _score_segmentation,
        summary="Dice of generated airway and lobes where the image was given (Table V).",
        example="medsyn score-segmentation --prompts results/prompts/segmentation.csv"
        " --samples results/samples/medsyn/segmentation/0 --masks results/masks/0"
        " --out results/segmentation_scores.csv",
    )
    parser.add_argument("--prompts", required=True, help="prompt set 'segmentation'")
    parser.add_argument("--samples", required=True, nargs="+", help="generated folders, one a shard")
    parser.add_argument("--masks", required=True, nargs="+", help="folders <subject_id>/{lobes,airway}.nii.gz")
    parser.add_argument("--out", required=True, help="CSV, one row a sample")


def _add_table_verb(verbs: Verbs) -> None:
    parser = verbs.add(
        "table",
        _table,
        summary="Write one of the paper's tables I to VII as tidy CSV, with its provenance beside it.",
        example="medsyn table 2 --config results/config/evaluation.json --prompts results/prompts/pairs.csv"
        " --measures medsyn results/measures/medsyn/pairs/0.csv --out results/eval/table2.csv",
        outputs=table_and_json,
    )
    parser.add_argument("number", type=int, choices=range(1, 8), help="1 to 7")
    parser.add_argument("--config", required=True, help="evaluation.json of the verb config")
    parser.add_argument("--features", nargs="+", action="append", metavar="LABEL FILE", help=f"1: {GROUP_HELP}")
    parser.add_argument("--measures", nargs="+", action="append", metavar="LABEL FILE", help=f"1-4, 7: {GROUP_HELP}")
    parser.add_argument("--against", help="1: method whose airway the others' must exceed (default: without_shape)")
    parser.add_argument("--label", nargs=2, action="append", metavar=("KEY", "TEXT"), help="1, 6: a method's full name")
    parser.add_argument("--prompts", nargs="+", help="2-4, 7: prompt CSVs of the measured samples")
    parser.add_argument("--finding", help="2-4, 7: another finding than the paper's")
    parser.add_argument("--scores", nargs="+", help="5: score-segmentation CSVs; 6: classify CSVs")
    parser.add_argument("--out", required=True, help="CSV; the provenance goes to the same name with .json")
    add_split(parser)


def _add_figure_verb(verbs: Verbs) -> None:
    parser = verbs.add(
        "figure",
        _figure,
        summary="Draw figure 3, 4, 5 or 6 of the paper, or the README's picture (hero), as PNG.",
        example="medsyn figure 3 --volumes real results/preprocessed/0 --volumes medsyn"
        " results/samples/medsyn/reports/0 --out results/eval/figures/figure3.png",
    )
    parser.add_argument("which", choices=("3", "4", "5", "6", "hero"))
    parser.add_argument(
        "--volumes", nargs="+", action="append", metavar="LABEL DIR", help=f"3, 4, 6, hero: {GROUP_HELP}"
    )
    parser.add_argument("--measures", nargs="+", action="append", metavar="LABEL FILE", help=f"5: {GROUP_HELP}")
    parser.add_argument("--prompts", nargs="+", default=[], help="4, 5, 6: prompt CSVs")
    parser.add_argument("--labels", help="4: labels.csv")
    parser.add_argument("--masks", nargs="+", default=[], help="6: folders <subject_id>/{lobes,airway,vessels}.nii.gz")
    parser.add_argument("--name", nargs=2, action="append", metavar=("LABEL", "TEXT"), help="how a label is printed")
    parser.add_argument("--num", type=int, default=2, help="3: volumes of each method")
    parser.add_argument("--phantom", action="store_true", help="say that the cohort consists of procedural phantoms")
    parser.add_argument("--out", required=True, help="PNG file")
    add_split(parser)


def _train_features(args: argparse.Namespace) -> None:
    from medsyn.config import FeaturesStage, load_stage
    from medsyn.evaluate.features import make_extractor

    stage = load_stage(FeaturesStage, args.config)
    make_extractor(stage, [Path(store) for store in args.store], Path(args.labels), Path(args.out), args.state)


def _features(args: argparse.Namespace) -> None:
    from medsyn.config import PreprocessConfig, load_stage
    from medsyn.evaluate.inputs import keep_split, list_volumes
    from medsyn.stages.features import extract

    config = load_stage(PreprocessConfig, args.config)
    files = list_volumes(args.volumes)
    kept = keep_split(files, args.cohort, args.split)
    chosen = {name: path for name, path in files.items() if name in kept}
    extract(Path(args.weights), chosen, config.window_hu, Path(args.out), args.state)


def _classify(args: argparse.Namespace) -> None:
    from medsyn.config import AugmentationStage, load_stage
    from medsyn.evaluate.classifier import classify

    classify(
        args.finding,
        load_stage(AugmentationStage, args.config),
        cohort=Path(args.cohort),
        labels=Path(args.labels),
        volumes=args.volumes,
        split=args.split,
        prompts=Path(args.prompts),
        samples=args.samples,
        method_label=args.method_label,
        out=Path(args.out),
        state=args.state,
    )


def _score_segmentation(args: argparse.Namespace) -> None:
    from medsyn.evaluate.segmentation import score_segmentation

    score_segmentation(Path(args.prompts), args.samples, args.masks, Path(args.out))


def _table(args: argparse.Namespace) -> None:
    from medsyn.config import EvaluationConfig, load_stage
    from medsyn.evaluate import tables
    from medsyn.evaluate.inputs import grouped

    config = load_stage(EvaluationConfig, args.config)
    features, measures = grouped(args.features, "--features"), grouped(args.measures, "--measures")
    inputs = [path for files in (*features.values(), *measures.values()) for path in files]
    inputs += [*(args.prompts or []), *(args.scores or []), *([args.cohort] if args.cohort else [])]
    facts: dict[str, str] = {}
    if args.number == 1:
        table = _table1(args, features, measures, config)
        facts = {
            "feature_extractor": next((r["feature_extractor"] for r in table[1] if "feature_extractor" in r), "none")
        }
    elif args.number in (5, 6):
        if not args.scores:
            raise InputError(f"table {args.number}: --scores is needed")
        table = (
            tables.table5(args.scores, config)
            if args.number == 5
            else tables.table6(args.scores, dict(args.label or []))
        )
    else:
        if not args.prompts or not measures:
            raise InputError(f"table {args.number}: --prompts and --measures are needed")
        from medsyn.evaluate.inputs import read_measures

        finding = args.finding or tables.FINDING_OF_TABLE.get(args.number, "pleural_effusion")
        read = {label: read_measures(files) for label, files in measures.items()}
        table = tables.prompt_pair_table(finding, args.prompts, read, config, name_methods=args.number == 7)
    tables.write_table(args.out, table, args.number, config, inputs, **facts)


def _table1(args: argparse.Namespace, features: dict, measures: dict, config: object) -> tuple:
    from medsyn.evaluate.inputs import FeatureSet, keep_split, read_features, read_measures
    from medsyn.evaluate.tables import REAL, table1

    feature_sets = {label: read_features(files) for label, files in features.items()}
    measured = {label: read_measures(files) for label, files in measures.items()}
    if args.against is not None and args.against not in measured:
        raise InputError(f"--against {args.against}: no --measures with that label")
    against = args.against or "without_shape"
    if REAL in feature_sets:
        part = feature_sets[REAL]
        kept = keep_split(part.ids, args.cohort, args.split)
        rows = [i for i, name in enumerate(part.ids) if name in kept]
        feature_sets[REAL] = FeatureSet([part.ids[i] for i in rows], part.features[rows], part.extractor)
    if REAL in measured:
        kept = keep_split(measured[REAL], args.cohort, args.split)
        measured[REAL] = {name: row for name, row in measured[REAL].items() if name in kept}
    return table1(feature_sets, measured, config, against, dict(args.label or []))  # type: ignore[arg-type]


def _figure(args: argparse.Namespace) -> None:
    from medsyn.evaluate import figures
    from medsyn.evaluate.inputs import grouped, keep_split, list_volumes

    groups = {label: list_volumes(folders) for label, folders in grouped(args.volumes, "--volumes").items()}
    if "real" in groups:
        kept = keep_split(groups["real"], args.cohort, args.split)
        groups["real"] = {name: path for name, path in groups["real"].items() if name in kept}
    names = {"real": "real (phantom)" if args.phantom else "real", "medsyn": "MedSyn", "without_shape": "without shape"}
    names |= dict(args.name or [])
    out = Path(args.out)
    if args.which == "5":
        figures.figure5(out, _ratios(args), args.phantom)
        return
    if not groups:
        raise InputError(f"figure {args.which}: --volumes is needed")
    if args.which == "3":
        figures.figure3(out, groups, names, args.num, args.phantom)
        return
    if args.which == "hero":
        figures.hero(out, groups, names, args.phantom)
        return
    generated = [label for label in groups if label != "real"]
    if "real" not in groups or len(generated) != 1 or not args.prompts:
        raise InputError(f"figure {args.which}: give --volumes real .., --volumes LABEL .. of one model, and --prompts")
    samples = groups[generated[0]]
    if args.which == "4":
        positives = _positives(args, list(groups["real"]))
        figures.figure4(out, groups["real"], samples, positives, args.prompts, args.phantom)
    else:
        figures.figure6(out, args.prompts, groups["real"], samples, args.masks, args.phantom)


def _positives(args: argparse.Namespace, ids: list[str]) -> dict[str, list[str]]:
    """Real subjects with each finding, those with the fewest other findings first."""
    from medsyn.evaluate.inputs import labels_of, read_labels
    from medsyn.files import read_csv

    if args.labels is None or args.cohort is None:
        raise InputError("figure 4: --labels and --cohort are needed to find real subjects with each finding")
    names, by_id = read_labels(args.labels)
    known = {row["subject_id"]: labels_of(row, by_id) for row in read_csv(args.cohort, ["subject_id"])}
    found: dict[str, list[str]] = {}
    for finding in names:
        with_it = [(sum(entry.values()), i) for i in ids if (entry := known.get(i)) is not None and entry[finding]]
        found[finding] = [i for _, i in sorted(with_it)]
    return found


def _ratios(args: argparse.Namespace) -> dict[str, list[float | None]]:
    from medsyn.evaluate.inputs import grouped, read_measures, read_prompts, split_prompt_type

    groups = grouped(args.measures, "--measures")
    if len(groups) != 1 or not args.prompts:
        raise InputError("figure 5: give --prompts and --measures LABEL FILE.. of one model")
    measured = read_measures(next(iter(groups.values())))
    values: dict[str, list[float | None]] = {"negative": [], "positive": []}
    for name, row in read_prompts(args.prompts).items():
        kind = split_prompt_type(row["prompt_type"])
        if kind is not None and kind[0] == "cardiomegaly":
            values["positive" if kind[1] else "negative"].append(measured.get(name, {}).get("cardiothoracic_ratio"))
    return values


def _report(args: argparse.Namespace) -> None:
    from medsyn.evaluate.report import write_report

    write_report(Path(args.results), Path(args.out), phantom=args.phantom)


def _evaluate(args: argparse.Namespace) -> None:
    from medsyn.config import PreprocessConfig, load_stage
    from medsyn.header_hints import parse_hints
    from medsyn.stages.folders import Folder, evaluate_folders

    config = load_stage(PreprocessConfig, args.config) if args.config else PreprocessConfig()
    real, synthetic = (
        parse_hints({name: getattr(args, f"{prefix}{name}") or "" for name in ("spacing_mm", "orientation")}, group)
        for prefix, group in (("real_", "real volumes"), ("", "generated volumes"))
    )
    evaluate_folders(
        Folder(args.real, real),
        Folder(args.synthetic, synthetic),
        args.weights,
        config,
        args.seed,
        args.out,
        args.max_refused_fraction,
    )
