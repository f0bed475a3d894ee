"""The validated configuration and the helper functions of all rules."""

import math
from pathlib import Path

from snakemake.exceptions import WorkflowError

from medsyn.cluster import check_executor, prefer_commands
from medsyn.config import (
    Config,
    check_keys,
    stage_texts,
    study_stage,
    validate,
)
from medsyn.config.study import STUDY_PROMPTS
from medsyn.errors import InputError
from medsyn.exhibits.base import exhibits_of
from medsyn.exhibits.needs import inputs_of, words_of
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL, Layout
from medsyn.manifest_files import manifest_state, shard_state
from medsyn.mask_tools import use_network
from medsyn.registry import METHODS as KINDS
from medsyn.methods.base import check_answers
from medsyn.report.files import report_needs, viewer_needs

try:
    check_keys(workflow.config_settings.configfiles or ["config/config.yaml"])
    CONFIG = validate(
        Config,
        config,
        ", ".join(map(str, workflow.config_settings.configfiles))
        or "config/config.yaml",
    )
except InputError as error:
    raise WorkflowError(str(error))

if CONFIG.cohort.source == "manifest" and not Path(CONFIG.cohort.manifest).exists():
    raise WorkflowError(
        f"{CONFIG.cohort.manifest}: no such file. Write your cohort there as CSV with the columns subject_id, image, "
        "findings, impression (optional: split, patient_id, report_id, labels, lobes, airway, vessels), one row per "
        "CT, image as a path relative to that file; or name another file under cohort.manifest in the configuration."
    )

if (
    CONFIG.cohort.source == "manifest"
    and CONFIG.cohort.reports
    and not Path(CONFIG.cohort.reports).exists()
):
    raise WorkflowError(
        f"{CONFIG.cohort.reports}: no such file, cohort.reports names it. Write the reports without images there as CSV with "
        "the columns report_id, findings, impression (optional: patient_id, subject_id), which train the text encoder as "
        "well; or set cohort.reports to null in the configuration to train it on the subjects' reports alone."
    )


onstart:
    try:
        check_executor(workflow.executor_plugin.name)
    except InputError as error:
        raise WorkflowError(str(error))


# On a cluster, the commands beside the SLURM profile stand before SLURM's own: see profiles/slurm/bin/sacct.
prefer_commands(Path(workflow.basedir) / "profiles/slurm/bin", scheduler="sbatch")

LAYOUT = Layout(CONFIG.results_dir)
SHARDS = [str(k) for k in range(CONFIG.cohort.num_shards)]
SAMPLE_SHARDS = [str(k) for k in range(CONFIG.sampling.num_shards)]
METHODS = list(CONFIG.methods)
NETWORKS = {
    name: KINDS[CONFIG.methods[name].kind].networks(CONFIG, name) for name in METHODS
}
MODELS = [
    name for name in METHODS if KINDS[CONFIG.methods[name].kind].parts(CONFIG, name)
]  # of this package: their networks are joined to a run.json
REFERENCE = CONFIG.reference
WRAPPER_MB = 400  # the two Snakemake processes that wrap a job inside its allocation
MEGAVOXELS = math.prod(CONFIG.preprocess.size) / 1e6
# Mask tools with a network request a GPU, and more memory and time.
NETWORKS_SEGMENT = use_network(
    CONFIG.masks.lobes, CONFIG.masks.airway, CONFIG.masks.vessels
)
NETWORKS_MEASURE = use_network(CONFIG.evaluation.anatomy_tool)
# Minutes for one volume of 256 x 256 x 256, for the time requests. Measured on one core: preprocessing, classical tools
# and the store. Estimated: whatever needs a GPU; see docs/cluster.md.
MINUTES_PREPROCESS = 0.5
MINUTES_SEGMENT = 2.5 if NETWORKS_SEGMENT else 0.5
MINUTES_MEASURE = 2.0 if NETWORKS_MEASURE else 0.5
MINUTES_REGIONS = 1.5 * MINUTES_MEASURE
MINUTES_STORE = 0.1
MINUTES_FEATURES = 0.1
MINUTES_SAMPLE = 1.5


wildcard_constraints:
    shard=r"\d+",
    method="|".join(METHODS),
    encoder="|".join(CONFIG.text.encoders),
    network="|".join(
        dict.fromkeys(network for found in NETWORKS.values() for network in found)
    ),
    set=r"[a-z_]+",


def memory_mb(base, per_megavoxel=0):
    """Return `base` MB plus `per_megavoxel` MB for the grid, half as much again on every retry."""
    return lambda wildcards, attempt: int(
        (WRAPPER_MB + base + per_megavoxel * MEGAVOXELS) * (1 + 0.5 * (attempt - 1))
    )


def minutes(first):
    """Return a time request: half as much again on every retry, at most the day that partitions commonly allow."""
    return lambda wildcards, attempt: min(int(first * (1 + 0.5 * (attempt - 1))), 1440)


def shard_minutes(each, volumes):
    """Return the time request of a shard: twice the estimated minutes of its volumes, at least one hour and at most eight.

    A shard that needs more than eight hours is requeued and goes on where it was.
    """
    return minutes(min(max(60, math.ceil(2 * each * volumes)), 480))


def num_cts():
    """Return the number of CTs of the cohort; a manifest is taken to have one on every line."""
    if CONFIG.cohort.source == "phantom":
        return CONFIG.phantom.num_subjects
    with open(CONFIG.cohort.manifest, encoding="utf-8", errors="replace") as lines:
        return sum(1 for _ in lines)


CTS_PER_SHARD = math.ceil(num_cts() / len(SHARDS))
VALIDATION_CTS_PER_SHARD = math.ceil(
    CTS_PER_SHARD * CONFIG.cohort.validation_fraction
)  # a manifest with splits of its own may hold more: its shards are requeued
REGION_CTS_PER_SHARD = VALIDATION_CTS_PER_SHARD + math.ceil(
    CONFIG.evaluation.num_threshold_volumes / len(SHARDS)
)
SAMPLES_PER_SHARD = math.ceil(
    CONFIG.evaluation.num_fid_samples / len(SAMPLE_SHARDS)
)  # of the largest set


def launcher(
    nodes=CONFIG.compute.num_nodes_training, gpus=CONFIG.compute.num_gpus_training
):
    """Return how a training job starts: plain Python, torchrun with one process per GPU, or torchrun on every node of a SLURM job.

    It replaces the shell, which SIGTERM would end before the checkpoint is written.
    """
    processes = max(gpus, 1)
    if nodes == 1 and processes == 1:
        return "exec python"
    # torchrun would kill its processes half a minute after SIGTERM, in the middle of a large checkpoint
    patience = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 "
    if nodes == 1:
        return f"{patience}exec torchrun --standalone --nproc-per-node {processes}"
    threads = CONFIG.compute.num_threads_training
    return (
        f"{patience}exec srun --nodes {nodes} --ntasks-per-node 1 --cpus-per-task {threads} --kill-on-bad-exit"
        f" torchrun --nnodes {nodes} --nproc-per-node {processes} --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID"
        " --rdzv-endpoint $(hostname):$((20000 + SLURM_JOB_ID % 10000))"
    )


def training_devices(devices=None):
    """Return GPUs and nodes of a training job. On several nodes GPUs are counted per node (gres) and the job itself calls srun (mpi).

    devices(wildcards): nodes and GPUs per node of a job that takes less than `compute` offers.
    """
    offered = CONFIG.compute.num_nodes_training, CONFIG.compute.num_gpus_training
    devices = devices or (lambda wildcards: offered)
    nodes = lambda wildcards: devices(wildcards)[0]
    if offered[0] == 1:
        return {"gpu": lambda wildcards: devices(wildcards)[1], "nodes": 1}
    gpus = {
        "gres": lambda wildcards: f"gpu:{devices(wildcards)[1]}",
        "tasks_per_gpu": 0,
    }
    return {"nodes": nodes, "tasks": nodes, "mpi": "srun"} | (
        gpus if offered[1] else {}
    )


def network_devices(wildcards):
    """Return nodes and GPUs per node that the training of a network takes: all, or the GPUs of one node that it states."""
    nodes, gpus = CONFIG.compute.num_nodes_training, CONFIG.compute.num_gpus_training
    wanted = NETWORKS[wildcards.method][wildcards.network].num_gpus
    return (nodes, gpus) if wanted is None else (1, min(wanted, gpus))


def option(name, values):
    """Return the words of an option of a verb; none without values."""
    return [name, *values] if values else []


def kind_of(method):
    """Return the kind of a method."""
    return KINDS[CONFIG.methods[method].kind]


def network_embeddings(wildcards):
    """Return the embeddings of the reports that a network trains with; none for one that takes no text."""
    encoder = NETWORKS[wildcards.method][wildcards.network].text_encoder
    return [LAYOUT.embeddings(encoder)] if encoder else []


def training_options(wildcards, input):
    """Return the words with which a training is given what not every network needs."""
    return [
        *option("--embeddings", input.embeddings),
        *option("--networks", input.networks),
    ]


def networks_before(wildcards):
    """Return the weights of the networks, of its own method or of another, that the training of a network reads."""
    network = NETWORKS[wildcards.method][wildcards.network]
    method = network.after_method or wildcards.method
    return [LAYOUT.network(method, before) for before in network.after]


def model_parts(wildcards):
    """Return the networks and the text encoder that a run of our model joins."""
    return kind_of(wildcards.method).parts(CONFIG, wildcards.method)


def sampler_files(wildcards):
    """Return the files that a method opens to answer prompts: run.json, weights, a folder."""
    try:
        check_answers(CONFIG, wildcards.method, wildcards.set)
    except InputError as error:
        raise WorkflowError(str(error))
    return kind_of(wildcards.method).inputs(CONFIG, wildcards.method)


def sampler_settings(wildcards):
    """Return the settings that a method answers prompts with."""
    stage, _ = kind_of(wildcards.method).sampling(CONFIG, wildcards.method)
    return LAYOUT.config(stage)


def sampler_state(wildcards):
    """Return the state of a method's files that the workflow does not make: one that is replaced changes it."""
    return kind_of(wildcards.method).state(CONFIG.methods[wildcards.method])


def manifests(wildcards=None):
    """Return the manifest files that make up the cohort."""
    if CONFIG.cohort.source == "manifest":
        return [CONFIG.cohort.manifest]
    return [f"{LAYOUT.phantom(shard)}/cohort.csv" for shard in SHARDS]


def cohort_inputs(wildcards):
    """Return what `validate_cohort` depends on: the user's files, or the folders of the phantoms.

    Snakemake reads braces in a path as a wildcard. A file of such a name is watched by `files_of_manifest` alone.
    """
    if CONFIG.cohort.source == "manifest":
        given = [CONFIG.cohort.manifest, CONFIG.cohort.reports]
        return [path for path in given if path and "{" not in path]
    return [*map(LAYOUT.phantom, SHARDS), LAYOUT.phantom_reports()]


def files_of_manifest(wildcards):
    """Return the state of the manifest and which of its files are missing: a file that is added later changes it."""
    if CONFIG.cohort.source == "phantom":
        return ""
    return manifest_state([CONFIG.cohort.manifest], CONFIG.cohort.reports)


def files_of_shard(wildcards):
    """Return the state of the CTs of a shard: a CT that is replaced, as a rejection advises, changes it.

    Snakemake evaluates it again when the job starts, and does not compare functions that take `input` with the last run.
    """
    if CONFIG.cohort.source == "phantom":
        return ""
    return shard_state(LAYOUT.cohort(), wildcards.shard)


def text_only_reports():
    """Return the CSV of reports without images, as words of the verb's option; none if there are none."""
    path = (
        CONFIG.cohort.reports
        if CONFIG.cohort.source == "manifest"
        else LAYOUT.phantom_reports()
    )
    return ["--reports", path] if path else []


def real_volumes(wildcards=None):
    """Return the folders of the preprocessed CTs."""
    return [LAYOUT.preprocessed(shard) for shard in SHARDS]


def real_masks(wildcards=None):
    """Return the folders of the CTs' masks."""
    return [LAYOUT.masks(shard) for shard in SHARDS]


def samples(method, prompt_set):
    """Return the folders of the volumes that `method` sampled for `prompt_set`."""
    return [LAYOUT.samples(method, prompt_set, shard) for shard in SAMPLE_SHARDS]


GIVEN_LABELS = CONFIG.evaluation.label_source == "given"


STUDY = study_stage(CONFIG)
STUDY_METHODS = [name for name in STUDY.ranked if name in CONFIG.methods]


def study_samples(wildcards):
    """Return the folders of the generated volumes that the study may show."""
    recognised = [STUDY.shown] if STUDY.shown in CONFIG.methods else []
    sets = [(name, STUDY.ranking.prompt_set) for name in STUDY_METHODS]
    sets += [(name, STUDY_PROMPTS) for name in recognised if STUDY.recognition.cases]
    return [path for name, prompts in sets for path in samples(name, prompts)]


def labels_in(layout):
    """Return the labels of a cohort's CTs that the feature extractor and Table VI's classifiers learn from."""
    return layout.cohort("given_labels") if GIVEN_LABELS else layout.labels()


# The real CTs of Table VI: those of this cohort, or of a run of another one.
TABLE6_LAYOUT = Layout(CONFIG.evaluation.augmentation.real_results or LAYOUT.root)
if Path(TABLE6_LAYOUT.root).resolve() == Path(LAYOUT.root).resolve():
    TABLE6_LAYOUT = LAYOUT  # by another name, or the training split would be tested on
TABLE6_SPLIT = "validation" if TABLE6_LAYOUT == LAYOUT else "all"


def table6_volumes(wildcards):
    """Return the folders of the preprocessed CTs that Table VI's classifiers learn from and are tested on."""
    if TABLE6_LAYOUT == LAYOUT:
        return real_volumes()
    shards = Path(TABLE6_LAYOUT.preprocessed("0")).parent
    folders = sorted(shards.glob("[0-9]*/index.csv"))
    if not folders:
        raise WorkflowError(
            f"{shards}: no shard in it, evaluation.augmentation.real_results names it. Run "
            "preprocessing and labels of that cohort first, such as: snakemake --configfile config/rad_chest.yaml "
            f"{TABLE6_LAYOUT.preprocessed('0')} {TABLE6_LAYOUT.labels()}; or set real_results to null."
        )
    return [str(path.parent) for path in folders]


SOURCES = Sources(CONFIG)
try:
    EXHIBITS = exhibits_of(CONFIG, only_in_all=False)
    REPORT_NEEDS = report_needs(SOURCES)
    VIEWER_NEEDS = viewer_needs(SOURCES)
except InputError as error:
    raise WorkflowError(str(error))
# Whose volumes are compared with the training CTs, and the features of all groups of `medsyn nearest`.
COMPARED = SOURCES.compared()
FEATURES_OF = {
    "training": [LAYOUT.training_features(shard) for shard in SHARDS],
    "validation": [LAYOUT.real_features(shard) for shard in SHARDS],
    **{
        method: [LAYOUT.features(method, "reports", shard) for shard in SAMPLE_SHARDS]
        for method in COMPARED
    },
}
CAPTIONS = {
    "evaluation": CONFIG.evaluation.model_dump(),
    "study": CONFIG.study.model_dump(),
}
IN_ALL = [exhibit for exhibit in EXHIBITS if exhibit.in_all(CONFIG)]


def exhibit_outputs(exhibit):
    """Return the files that an exhibit writes; Snakemake's report shows the table or figure."""
    files = exhibit.files(LAYOUT)
    category = "Tables" if exhibit.kind == "table" else "Figures"
    caption = "../report/exhibit.rst"
    files["exhibit"] = report(files["exhibit"], caption=caption, category=category)
    return files
