"""Verbs of the methods: train, import-checkpoint, assemble, package-model, generate, sample."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsyn.cli import Verbs, add_state, one_folder, refuse_options
from medsyn.errors import InputError
from medsyn.outputs import Outputs, volume_name
from medsyn.registry import SOLVERS


def add_verbs(verbs: Verbs) -> None:
    """Add train, import-checkpoint, assemble, package-model, generate and sample."""
    _add_train(verbs)
    _add_import(verbs)
    _add_assemble(verbs)
    _add_package(verbs)
    _add_generate(verbs)
    _add_sample(verbs)


def _add_train(verbs: Verbs) -> None:
    parser = verbs.add(
        "train",
        _train,
        summary="Train one network of a method; running the same command again continues a stopped training run.",
        example="medsyn train --config results/config/low_res_medsyn.json --store results/store/0 results/store/1"
        " --embeddings results/text/biomedical/embeddings.json --state results/state/medsyn/low_res"
        " --out results/models/medsyn/low_res.safetensors",
        outputs=_train_outputs,
    )
    parser.add_argument("--config", required=True, type=Path, help="results/config/<network>_<method>.json")
    parser.add_argument("--store", required=True, type=Path, nargs="+", help="shard folders of the training store")
    parser.add_argument("--embeddings", type=Path, help="text embeddings, for a network that takes text")
    parser.add_argument(
        "--networks",
        type=Path,
        nargs="+",
        default=[],
        help="weights of trained networks, for a network whose training reads them: of the same method, or of its"
        " teacher",
    )
    parser.add_argument("--state", required=True, type=Path, help="folder for checkpoints, removed at the end")
    parser.add_argument("--out", required=True, type=Path, help="weights, .safetensors")


def _add_import(verbs: Verbs) -> None:
    parser = verbs.add(
        "import-checkpoint",
        _import_checkpoint,
        summary="Turn a public checkpoint into safetensors of this project; sizes are read from its tensors.",
        example="medsyn import-checkpoint --source medsyn --stage low_res 40_ckpt low_res.safetensors",
    )
    parser.add_argument(
        "--source",
        required=True,
        choices=("medsyn", "naviairway", "med3d"),
        help="medsyn: the authors' denoisers, for `assemble`; naviairway: for the weights folder; med3d: for"
        " evaluation.features.weights",
    )
    parser.add_argument("--stage", choices=("low_res", "super_res"), help="which of the denoisers it is")
    parser.add_argument("checkpoint", type=Path, metavar="IN", help="folder of accelerate, .safetensors, .bin or .pt")
    parser.add_argument("out", type=Path, metavar="OUT", help="weights, .safetensors")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="which of two sets of weights (default: ema, else raw; the authors' super-resolution script reads raw)",
    )
    parser.add_argument(
        "--up-order",
        choices=("A", "B"),
        help="where the up path upsamples: B late, as the authors sample; A early, as they train (default B)",
    )


def _add_assemble(verbs: Verbs) -> None:
    parser = verbs.add(
        "assemble",
        _assemble,
        summary="Join two denoisers, a text encoder and the file of sampling settings into a run for `generate`.",
        example="medsyn assemble --label MedSyn --low-res low_res.safetensors --super-res super_res.safetensors"
        " --text-encoder results/text/biomedical/model --sampling results/config/sampling.json --out run.json",
    )
    parser.add_argument("--label", required=True, help="name in tables and figures")
    parser.add_argument("--low-res", required=True, type=Path, help="weights of the low-resolution network")
    parser.add_argument("--super-res", required=True, type=Path, help="weights of the super-resolution network")
    parser.add_argument("--text-encoder", required=True, type=Path, help="folder of the language model")
    parser.add_argument(
        "--sampling", required=True, type=Path, help="results/config/sampling.json, read again at every sampling"
    )
    parser.add_argument("--out", required=True, type=Path, help="run.json; it stores paths relative to itself")


def _add_package(verbs: Verbs) -> None:
    parser = verbs.add(
        "package-model",
        _package_model,
        summary="Write a run that was trained on phantoms as the small folder that `generate` uses without --weights.",
        example="medsyn package-model --weights results/models/medsyn --results results --out phantom_model",
        outputs=one_folder,
    )
    parser.add_argument("--weights", required=True, type=Path, help="run.json, or the folder that holds it")
    parser.add_argument(
        "--results",
        required=True,
        type=Path,
        help="results folder of the training, whose settings, store and reports are compared with the weights",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="folder to write; `medsyn generate` without --weights reads medsyn/phantom_model",
    )


def _add_generate(verbs: Verbs) -> None:
    parser = verbs.add(
        "generate",
        _generate,
        summary="Sample chest CTs (int16 HU with their affine) and their masks from text.",
        example='medsyn generate --weights results/models/medsyn --text "Large left pleural effusion."'
        " --seed 7 --out effusion.nii.gz",
        outputs=_generate_outputs,
    )
    parser.add_argument(
        "--weights", type=Path, help="run.json, or the folder that holds it (default: the package's phantom model)"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="FILE.nii.gz with --text (and FILE.png), a folder with --prompts"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="radiology text; an empty string samples without text")
    what.add_argument("--prompts", type=Path, help="CSV: sample_id, text, seed, text_mode, guidance_scale, fix_*, ...")
    parser.add_argument("--shard", metavar="K/N", help="rows K, K+N, K+2N, ... of --prompts (default 0/1, all)")
    add_state(parser)
    parser.add_argument("--config", type=Path, help="settings in place of the sampling.json that the run names")
    parser.add_argument("--masks-root", type=Path, help="folder whose */SUBJECT/ hold lobes, airway, vessels to fix")
    parser.add_argument("--volumes-root", type=Path, help="folder whose */SUBJECT/ hold volume.nii.gz to fix")
    parser.add_argument("--seed", type=int, help="0 or more; with --text (default: the sampling seed)")
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="guidance scale, 1 is none; a row's own comes first"
    )
    parser.add_argument("--null-text", choices=("learned", "zero"), help="states that stand for no text")
    own = ", ".join(SOLVERS.builtin)
    parser.add_argument("--solver", metavar="NAME", help=f"{own}, or one of an installed package or a plugin")
    parser.add_argument("--steps-low-res", type=int, metavar="N", help="solver steps at low resolution, 1..1000")
    parser.add_argument("--steps-super-res", type=int, metavar="N", help="solver steps at super-resolution, 1..1000")
    parser.add_argument("--batch-size", type=_batch_size, metavar="N", help="volumes at a time, or auto")
    parser.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="with --text: keep image, lobes, airway or vessels of FILE (on the model's grid); may be repeated",
    )


def _add_sample(verbs: Verbs) -> None:
    parser = verbs.add(
        "sample",
        _sample,
        summary="Answer a shard of a prompts table with any method: our model, another system, a plugin's.",
        example="medsyn sample --config results/config/sampling.json --files results/models/medsyn/run.json"
        " --prompts results/prompts/reports.csv --shard 0/2 --out results/samples/medsyn/reports/0",
        outputs=one_folder,
    )
    parser.add_argument("--config", required=True, type=Path, help="sampling.json or method_<name>.json")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="files of the method: run.json, weights")
    parser.add_argument("--prompts", required=True, type=Path, help="CSV: sample_id, text, seed, ...")
    parser.add_argument("--shard", default="0/1", metavar="K/N", help="rows K, K+N, K+2N, ... (default %(default)s)")
    parser.add_argument("--volumes", type=Path, nargs="+", default=[], help="folders SUBJECT/volume.nii.gz to fix")
    parser.add_argument("--masks", type=Path, nargs="+", default=[], help="folders SUBJECT/lobes.nii.gz, ... to fix")
    parser.add_argument("--out", required=True, type=Path, help="folder of <sample_id>/volume.nii.gz and index.csv")
    add_state(parser)


def _train_outputs(args: argparse.Namespace) -> Outputs:
    out = args.out
    return Outputs(files=[out, *(out.with_name(f"{out.stem}_{name}") for name in ("metrics.csv", "preview.png"))])


def _generate_outputs(args: argparse.Namespace) -> Outputs:
    out = args.out
    if args.prompts is not None:
        return Outputs(folders=[out])
    stem, suffix = volume_name(out)
    masks = (out.with_name(f"{stem}_{name}{suffix}") for name in ("lobes", "airway", "vessels"))
    return Outputs(files=[out, *(out.with_name(f"{stem}.{end}") for end in ("json", "png")), *masks])


def _batch_size(value: str) -> int | str:
    return value if value == "auto" else int(value)


def _train(args: argparse.Namespace) -> None:
    from medsyn.methods.base import Training, kind_of

    args.out.parent.mkdir(parents=True, exist_ok=True)
    networks = {path.stem: path for path in args.networks}
    training = Training(args.config, args.store, args.embeddings, networks, args.state, args.out)
    kind_of(args.config).train(training)


def _import_checkpoint(args: argparse.Namespace) -> None:
    if args.source != "medsyn":
        from medsyn.stages.checkpoints import import_network

        refuse_options(
            args, ("stage", "weights", "up_order"), chosen=f"--source {args.source}", other="--source medsyn"
        )
        import_network(args.checkpoint, args.source, args.out)
        return
    from medsyn.models.medsyn_checkpoint import import_medsyn

    if args.stage is None:
        raise InputError("--stage: say which of the denoisers it is, low_res or super_res")
    import_medsyn(args.checkpoint, args.stage, args.out, weights=args.weights, up_order=args.up_order or "B")


def _assemble(args: argparse.Namespace) -> None:
    from medsyn.methods.run import assemble

    assemble(
        args.out,
        label=args.label,
        low_res=args.low_res,
        super_res=args.super_res,
        text_encoder=args.text_encoder,
        sampling=args.sampling,
    )


def _package_model(args: argparse.Namespace) -> None:
    from medsyn.methods.packaging import package_model
    from medsyn.progress import log

    size = package_model(args.weights, args.results, args.out)
    log.info("wrote %s (%.1f MB)", args.out, size)


def _generate(args: argparse.Namespace) -> None:
    if args.prompts is not None and (args.seed is not None or args.fix):
        raise InputError("--seed and --fix go with --text; with --prompts they are columns of the table")
    if args.prompts is None:
        refuse_options(args, ("shard", "state", "masks_root", "volumes_root"), chosen="--text", other="--prompts")
    weights = _weights(args.weights)

    from medsyn.methods.prompts import Roots
    from medsyn.methods.run import open_run, sampling_with
    from medsyn.methods.sampling import sample_one, sample_shard

    sampling = sampling_with(
        weights,
        args.config,
        solver=args.solver,
        guidance_scale=args.guidance,
        null_text=args.null_text,
        batch_size=args.batch_size,
        num_steps_low_res=args.steps_low_res,
        num_steps_super_res=args.steps_super_res,
    )
    run = open_run(weights, sampling)
    if args.prompts is None:
        sample_one(run, args.text, sampling.sampling.seed if args.seed is None else args.seed, args.fix, args.out)
    else:
        roots = Roots.below(args.volumes_root, args.masks_root)
        sample_shard(run, args.prompts, "0/1" if args.shard is None else args.shard, roots, args.out, args.state)
        if args.weights is not None:  # the package's own model has seen phantoms alone
            _warn_before_release(args.weights)


def _warn_before_release(weights: Path) -> None:
    """Log in one line that volumes of a run may be copies of training volumes, or that nobody has looked."""
    from medsyn.exhibits.memorisation import release_warning
    from medsyn.progress import log

    if words := release_warning(weights):
        log.warning("generate: %s", words)


def _weights(given: Path | None) -> Path:
    """Return the run to sample with: the given one, else the package's phantom model, whose folder is then logged."""
    if given is not None:
        return given
    from medsyn.methods.phantom_model import phantom_model
    from medsyn.progress import log

    folder = phantom_model()
    log.info("model: the phantom model of this package, trained on phantoms, not on patients (%s)", folder / "card.md")
    return folder


def _sample(args: argparse.Namespace) -> None:
    from medsyn.methods.base import kind_of
    from medsyn.methods.prompts import Roots
    from medsyn.methods.sampling import sample_shard
    from medsyn.scratch import beside

    kind = kind_of(args.config)
    with beside(args.out.with_name(f"{args.out.name}.work"), clean=True) as work:
        method = kind.open(args.config, args.files, work)
        sample_shard(method, args.prompts, args.shard, Roots(args.volumes, args.masks), args.out, args.state)
