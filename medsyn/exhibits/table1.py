"""Table I: how close every method's volumes are to the real ones, how much airway they have, and what they cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medsyn.config import EvaluationConfig
from medsyn.errors import InputError
from medsyn.exhibits.base import Card, Exhibit, PaperTable, Rows, Table
from medsyn.exhibits.captions import VERDICT, tests
from medsyn.exhibits.inputs import Inputs, MeasureRows
from medsyn.exhibits.needs import Need
from medsyn.exhibits.numbers import number
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

if TYPE_CHECKING:
    from medsyn.evaluate.inputs import FeatureSet

AIRWAY = "airway_volume_mm3"
COSTS = (
    " Parameters: of all networks that sampling uses, with the language model. Operations (two per multiply-add,"
    " counted from shapes) and device hours of training are summed over the networks that the method samples with:"
    " its language model and a network that it shares with another method are among them, and networks that are"
    " trained beside them, such as discriminators, count too. Device hours: on a GPU wall-clock time times the number"
    " of processes, on a CPU the processor time of all processes. Not counted: what a training run does before its"
    " first step and after its last one, the encoding of reports and of latents, steps that were lost when a job was"
    " killed, and networks that were trained elsewhere. Sampling: wall-clock time per volume without writing it,"
    " and peak memory, allocated on a GPU, or on a CPU the resident memory of the process. A dash: not known, as for"
    " volumes that another program has made."
)


def needs(sources: Sources) -> list[Need]:
    """Return features and measures of the real volumes and of every method's answers to the reports, and its cost."""
    methods = sources.compared()
    against = sources.config.compare_with
    return [
        *sources.validation(),
        *(
            need
            for kind in ("features", "measures")
            for need in (sources.real(kind), *(sources.made(kind, method, "reports") for method in methods))
        ),
        *(need for method in methods for need in sources.training(method)),
        *(sources.sampling(method, "reports") for method in methods),
        *sources.names(methods),
        *(Need("without-text", (method,)) for method in methods if not sources.takes_text(method)),
        *([Need("against", (against,))] if against is not None else []),
    ]


def make(inputs: Inputs, config: EvaluationConfig) -> Table:
    """Return Table I of the features and measures that were given, and of what they cost."""
    from medsyn.exhibits.costs import sampling_cost, training_cost

    costs: dict[str, dict[str, Any]] = {}
    for label, tables in inputs.training_tables().items():
        costs.setdefault(label, {}).update(training_cost(tables))
    for label, files in inputs.cost_files().items():
        costs.setdefault(label, {}).update(sampling_cost(files))
    return table1(
        inputs.features(),
        inputs.measures(),
        config,
        against=inputs.against,
        labels=inputs.names,
        without_text=inputs.without_text,
        costs=costs,
    )


def table1(
    features: Mapping[str, FeatureSet],
    measures: Mapping[str, MeasureRows],
    config: EvaluationConfig,
    *,
    against: str | None = None,
    labels: Mapping[str, str] | None = None,
    without_text: Collection[str] = (),
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Table:
    """Return FID to coverage against `real`, the airway's volume and the cost, one row per method, `real` last.

    FID and MMD: `medsyn.evaluate.distances.distance_columns`. labels: full names. p_value: the airway is larger than
    in the method `against`; p_paired: the same over the prompts that both answered. without_text: methods that take no
    text. costs: columns of `medsyn.exhibits.costs` by method. Raises InputError without anything real, for features of
    several extractors, and where `against` has no measures.
    """
    names = [*(name for name in dict.fromkeys([*features, *measures]) if name != REAL), REAL]
    if REAL not in features and REAL not in measures:
        raise InputError("table 1: no files labelled 'real'; pass --features real .. and --measures real ..")
    extractors = {part.extractor for part in features.values()}
    if len(extractors) > 1:
        raise InputError(f"table 1: features of different extractors cannot be compared: {'; '.join(extractors)}")
    if against is not None and against not in measures:
        raise InputError(
            f"table 1: --against {against}: no --measures with that label, only {', '.join(measures) or 'none'};"
            f" pass --measures {against} .., or leave --against out"
        )
    rows: Rows = []
    for name in names:
        measured = measures.get(name)
        row: dict[str, Any] = {"method": name, "label": (labels or {}).get(name, name)}
        row["takes_text"] = None if name == REAL else "no" if name in without_text else "yes"
        row["n"] = len(features[name].ids) if name in features else len(measured or {})
        row |= {"n_airway": 0, **(costs or {}).get(name, {})}
        if measured is not None:
            row |= _airway_columns(measured, config)
            if against is not None and name != against:
                row |= {"p_value_versus": against, **_test_columns(measured, measures[against], paired=name != REAL)}
        if REAL in features and name in features:
            row |= _distances(features[REAL], None if name == REAL else features[name], config)
        rows.append(row)
    return _columns(), rows


def _columns() -> list[str]:
    from medsyn.evaluate.distances import METRIC_NAMES
    from medsyn.evaluate.pairing import paired_columns
    from medsyn.exhibits.costs import SAMPLING_COLUMNS, TRAINING_COLUMNS
    from medsyn.exhibits.rows import summary_columns

    columns = ["method", "label", "takes_text"]
    columns += ["n", *(f"{name}{part}" for name in METRIC_NAMES for part in ("", "_ci_low", "_ci_high")), "n_fid"]
    columns += [*(f"{name}_half" for name in METRIC_NAMES), "n_half"]
    columns += [*summary_columns(AIRWAY), "n_airway", "num_missing"]
    columns += ["p_value", "p_value_versus", *paired_columns()]
    columns += ["airway_found", "num_volumes", "num_failed", "not_chest_fraction"]
    parameters, *sampling = SAMPLING_COLUMNS
    return [*columns, parameters, *TRAINING_COLUMNS, *sampling, "feature_extractor", "note"]


def _airway_columns(measured: MeasureRows, config: EvaluationConfig) -> dict[str, Any]:
    from medsyn.exhibits.rows import summary, validity

    row = summary([entry[AIRWAY] for entry in measured.values()], AIRWAY, config)
    row |= validity(list(measured.values()), AIRWAY)
    return row | {"airway_found": row.pop("num_found"), "n_airway": row.pop("n_used")}


def _test_columns(measured: MeasureRows, other: MeasureRows, *, paired: bool) -> dict[str, Any]:
    """Test that the airways of `measured` are larger; pairs are samples of equal id, which share prompt and seed."""
    from medsyn.evaluate.pairing import paired_test
    from medsyn.evaluate.statistics import one_tailed_p_value

    values, others = ([entry[AIRWAY] for entry in part.values()] for part in (measured, other))
    row: dict[str, Any] = {"p_value": one_tailed_p_value(values, others)}
    if paired:
        ids = dict.fromkeys([*measured, *other])
        pairs = ((i, measured.get(i, {}).get(AIRWAY), other.get(i, {}).get(AIRWAY)) for i in ids)
        row |= paired_test(pairs).columns()
    return row


def _distances(real: FeatureSet, synthetic: FeatureSet | None, config: EvaluationConfig) -> dict[str, Any]:
    from medsyn.evaluate.distances import distance_columns

    features = None if synthetic is None else synthetic.features
    row = distance_columns(real.features, features, max_volumes=config.num_fid_samples, seed=config.seed)
    return row | {"feature_extractor": (synthetic or real).extractor}


def card(rows: Sequence[Mapping[str, str]]) -> Card | None:
    """Return FID and MMD of the first method, the reference."""
    row = next((row for row in rows if row["method"] != REAL), None)
    if row is None or not row["fid"]:
        return None
    value = f"{number(row['fid'])} / {number(row['mmd'])}"
    return Card("FID / MMD to the real volumes", value, f"n = {row['n_fid']} and {row['n_fid']}")


TABLE1 = Exhibit(
    name="table1",
    kind="table",
    title="Table I. Quality of synthesis",
    caption=(
        "Fréchet distance (FID) and maximum mean discrepancy (MMD) to the real validation volumes, on features of the"
        " network named in feature_extractor; lower is closer. FIDs are comparable only within this table. Precision"
        " and density: how far generated volumes lie among real ones; recall and coverage: how much of the real variety"
        " the generated volumes reach (5 nearest neighbours); higher is better, at most 1 except for density. The row"
        " “real” compares two random halves of the real volumes; compare it with the columns “…, half”, where every"
        " method is given at the same, smaller number of volumes. Airway volume in mm³; a volume without"
        " airway counts as 0 mm³; “airway found” says in how many there is one. All tests ask whether the airway is"
        " larger than in the method named in p_value_versus. A pair is the two methods' volumes of one prompt and seed."
        + tests("prompts")
        + VERDICT
        + COSTS
    ),
    caption_setting=("training_budget", "Training budget"),
    needs=needs,
    options=(
        *("cohort", "split", "features", "measures", "training", "samples"),
        *("label", "without_text", "against"),
    ),
    make=make,
    card=card,
    paper=PaperTable(
        ("Method", "FID", "MMD", "Airway (mm³)"),
        (
            ("WGAN", "0.070", "0.094", "10,700 ± 6,400"),
            ("α-GAN", "0.028", "0.057", "11,400 ± 6,800"),
            ("HA-GAN", "0.023", "0.054", "20,400 ± 7,300"),
            ("Medical Diffusion", "0.013", "0.022", "17,700 ± 9,300"),
            ("MedSyn", "0.009", "0.019", "33,400 ± 11,900"),
            ("MedSyn without shape", "–", "–", "19,900 ± 10,500"),
            ("Real", "–", "–", "45,800 ± 14,500"),
        ),
    ),
)
