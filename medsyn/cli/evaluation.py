"""Verbs of the evaluation: feature extractor, classifier, scores, and any two folders compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs, add_split, add_state, table_and_json
from medsyn.errors import InputError

VOLUMES_HELP = "folders <id>/volume.nii.gz, one per shard"


def add_verbs(verbs: Verbs) -> None:
    """Add regions, train-features, features, classify, score-segmentation, nearest, diagnose and evaluate."""
    _add_regions(verbs)
    _add_feature_verbs(verbs)
    _add_score_verbs(verbs)
    _add_nearest(verbs)
    _add_diagnose(verbs)
    parser = verbs.add(
        "evaluate",
        _evaluate,
        summary="Compare two folders of volumes from any system: FID, MMD, anatomical measures with 95 % bounds.",
        example="medsyn evaluate --real ct/ --synthetic fake/ --weights extractor.safetensors --out table.csv",
        outputs=table_and_json,
    )
    parser.add_argument("--real", required=True, help="folder of real volumes in HU (NIfTI, MetaImage, NRRD, npz)")
    parser.add_argument("--synthetic", required=True, help="folder of generated volumes in HU")
    parser.add_argument(
        "--training",
        help="folder of the real volumes that the system was trained on: counts generated volumes that stand out as"
        " copies of one; the volumes of --real must then be unseen",
    )
    for prefix, group in (("", "generated"), ("real-", "real and training")):
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


def _add_regions(verbs: Verbs) -> None:
    parser = verbs.add(
        "regions",
        _regions,
        summary="Measure a folder of volumes by side and lobe (ml, %LAA-950, CTR), and what a swap of the text changes"
        " (HU): what Table VIII is made from.",
        example="medsyn regions --volumes results/samples/medsyn/faithfulness/0 --prompts"
        " results/prompts/faithfulness.csv --samples results/samples/medsyn/faithfulness/0 --out 0.csv",
    )
    parser.add_argument("--volumes", required=True, type=Path, help="folder with <id>/volume.nii.gz in HU")
    parser.add_argument(
        "--cohort", type=Path, help="cohort.csv: measure its validation split and a part of its training split only"
    )
    parser.add_argument("--prompts", type=Path, help="prompts of the set faithfulness, to measure the swaps")
    parser.add_argument(
        "--samples", nargs="+", type=Path, default=[], metavar="DIR", help="the folders of all shards (with --prompts)"
    )
    parser.add_argument("--config", help="regions.json of the verb config; none: the defaults")
    parser.add_argument("--out", required=True, type=Path, help="CSV file, one row per volume")
    add_state(parser)


def _regions(args: argparse.Namespace) -> None:
    from medsyn.config import RegionsStage, load_stage
    from medsyn.stages.regions import regions_shard

    if (args.prompts is None) != (not args.samples):
        given, missing = ("samples", "prompts") if args.samples else ("prompts", "samples")
        raise InputError(f"--{given}: is given without --{missing}; give both, or none of them")
    config = load_stage(RegionsStage, args.config) if args.config else RegionsStage()
    regions_shard(
        args.volumes,
        args.out,
        config,
        cohort=args.cohort,
        prompts=args.prompts,
        samples=args.samples,
        state=args.state,
    )


def _add_feature_verbs(verbs: Verbs) -> None:
    parser = verbs.add(
        "train-features",
        _train_features,
        summary="Make the feature extractor of FID and MMD: read a Med3D checkpoint, or train on the cohort's labels.",
        example="medsyn train-features --config results/config/features.json --store results/store/0"
        " --labels results/labels.csv --out results/features/extractor.safetensors",
    )
    parser.add_argument("--config", required=True, help="features.json of the verb config")
    parser.add_argument("--store", nargs="+", default=[], help="training stores, one per shard")
    parser.add_argument("--labels", required=True, help="labels.csv of the verb label")
    parser.add_argument("--out", required=True, help="safetensors file")
    add_state(parser)

    parser = verbs.add(
        "features",
        _features,
        summary="Extract features of a folder of volumes (HU on the model grid).",
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
    parser.add_argument("--out", required=True, help="CSV, one row per method and fold")
    add_state(parser)

    parser = verbs.add(
        "score-segmentation",
        _score_segmentation,
        summary="Write the Dice of generated airway and lobes where the image was given (Table V).",
        example="medsyn score-segmentation --prompts results/prompts/segmentation.csv"
        " --samples results/samples/medsyn/segmentation/0 --masks results/masks/0"
        " --out results/segmentation_scores.csv",
    )
    parser.add_argument("--prompts", required=True, help="prompt set 'segmentation'")
    parser.add_argument("--samples", required=True, nargs="+", help="generated folders, one per shard")
    parser.add_argument("--masks", required=True, nargs="+", help="folders <subject_id>/{lobes,airway}.nii.gz")
    parser.add_argument("--out", required=True, help="CSV, one row per sample")


def _add_nearest(verbs: Verbs) -> None:
    parser = verbs.add(
        "nearest",
        _nearest,
        summary="Find the training and the validation volume nearest to every generated one, by voxels and features.",
        example="medsyn nearest --cohort results/cohort/cohort.csv --real results/preprocessed/0"
        " --samples medsyn results/samples/medsyn/reports/0 --out results/nearest.csv",
    )
    parser.add_argument("--cohort", required=True, help="cohort.csv: which real volumes are of which split")
    parser.add_argument("--real", required=True, nargs="+", metavar="DIR", help=f"real: {VOLUMES_HELP}")
    parser.add_argument(
        "--samples", nargs="+", action="append", metavar="LABEL DIR", help=f"a method, then its {VOLUMES_HELP}"
    )
    parser.add_argument(
        "--features",
        nargs="+",
        action="append",
        metavar="LABEL FILE",
        help="training, validation or a method, then its files of features; without any, voxels alone are compared",
    )
    parser.add_argument("--out", required=True, help="CSV, one row per generated and per validation volume")


def _add_diagnose(verbs: Verbs) -> None:
    parser = verbs.add(
        "diagnose",
        _diagnose,
        summary="Test the networks of a trained run one by one on validation volumes: error by noise level and channel,"
        " and super-resolution of true low-resolution volumes.",
        example="medsyn diagnose --weights results/models/medsyn --store results/store/0 results/store/1"
        " --embeddings results/text/biomedical/embeddings.json --config results/config/diagnostics.json"
        " --out results/diagnostics/medsyn.csv",
        outputs=table_and_json,
    )
    parser.add_argument("--weights", required=True, type=Path, help="run.json, or the folder that holds it")
    parser.add_argument("--store", required=True, type=Path, nargs="+", help="shard folders of the training store")
    parser.add_argument("--embeddings", type=Path, help="text embeddings of the reports, for a network that takes text")
    parser.add_argument(
        "--config", help="diagnostics.json of the verb config (default: that of a configuration that sets nothing)"
    )
    parser.add_argument("--num-volumes", type=int, metavar="N", help="validation volumes, instead of the settings'")
    parser.add_argument("--out", required=True, help="CSV file; the provenance goes to the same name with .json")


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


def _nearest(args: argparse.Namespace) -> None:
    from medsyn.evaluate.inputs import grouped, keep_split, list_volumes, read_features
    from medsyn.evaluate.memorisation import VALIDATION
    from medsyn.stages.nearest import TRAINING, find_nearest

    real = list_volumes(args.real)
    groups = {
        label: {name: real[name] for name in sorted(keep_split(real, args.cohort, split))}
        for label, split in ((TRAINING, "train"), (VALIDATION, "validation"))
    }
    samples = grouped(args.samples, "--samples")
    if taken := groups.keys() & samples.keys():
        raise InputError(f"--samples {min(taken)}: is the name of a split; give the method another label")
    groups |= {label: list_volumes(folders) for label, folders in samples.items()}
    features = {label: read_features(files) for label, files in grouped(args.features, "--features").items()}
    if features and features.keys() != groups.keys():
        raise InputError(
            f"--features are of {', '.join(features)}, expected {', '.join(groups)}; give one for each, or none"
        )
    find_nearest(groups, features, Path(args.out))


def _diagnose(args: argparse.Namespace) -> None:
    from medsyn.config import DiagnosticsStage, load_stage, validate
    from medsyn.methods.diagnose import diagnose

    config = load_stage(DiagnosticsStage, args.config) if args.config else DiagnosticsStage()
    if args.num_volumes is not None:
        config = validate(DiagnosticsStage, config.model_dump() | {"num_volumes": args.num_volumes}, "--num-volumes")
    diagnose(args.weights, args.store, args.embeddings, config, Path(args.out))


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
        Folder(args.training, real) if args.training else None,
    )
