"""Recognition and ranking: the tables behind Figures 7 and 8, of readers' answers or of automatic observers.

The configuration's `study.answers` (and `study.key`) decides: with it the tables are of the readers' answers, without
it of automatic observers, who answer by the measures of the run's volumes (medsyn.study.observers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medsyn.config import Config, EvaluationConfig, StudyStage, load_stage, study_stage
from medsyn.errors import InputError
from medsyn.exhibits.base import Exhibit, PaperTable, Table
from medsyn.exhibits.captions import AUTOMATIC, NO_RADIOLOGIST
from medsyn.exhibits.finding_tables import reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources
from medsyn.layout import REAL

if TYPE_CHECKING:
    from medsyn.study.cases import Case
    from medsyn.study.responses import Response

OPTIONS = ("file", "measures", "prompts", "labels", "cohort", "split", "label", "phantom")
SETTINGS, ANSWERS, KEY = "settings", "answers", "key"
"""Labels of the option `file`."""
BLOCKS = (
    " A block is one ranking of a reader; blocks are taken as independent, though those of one reader are not. Columns"
    " “by reader” have one block per reader, the mean ranks over the sets. p: each method against the reference by the"
    " normal test of mean ranks (Dunn) after Friedman's test, and by Wilcoxon's signed-rank test, both times the number"
    " of pairs (Bonferroni). Bounds of mean ranks: Student's t over readers."
)


def recognition_needs(sources: Sources) -> list[Need]:
    """Return the answers, or the measures of the reference's prompt pairs and of the real CTs."""
    if sources.config.study.answers is not None:
        return _answer_needs(sources)
    return [
        _settings(sources),
        sources.prompts("pairs"),
        sources.made("measures", sources.reference, "pairs"),
        sources.real("measures"),
        *sources.validation(),
        sources.findings(),
        *sources.names([sources.reference]),
        *sources.phantom(),
    ]


def ranking_needs(sources: Sources) -> list[Need]:
    """Return the answers, or the measures of the ranked methods and of the real CTs."""
    if sources.config.study.answers is not None:
        return _answer_needs(sources)
    stage = study_stage(sources.config)
    methods = [name for name in stage.ranked if name in sources.config.methods]
    return [
        _settings(sources),
        *(sources.made("measures", name, stage.ranking.prompt_set) for name in methods),
        sources.real("measures"),
        *sources.validation(),
        *sources.names(methods),
        *sources.phantom(),
    ]


def make_recognition(inputs: Inputs, _: EvaluationConfig) -> Table:
    """Return one row per CT: how many of the readers named its finding."""
    from medsyn.study.analysis import recognition_table

    given = _given(inputs)
    if given is not None:
        return _with_readers(recognition_table(given), given, automatic=False)
    responses, about = _observed_recognition(inputs)
    return _with_readers(recognition_table(responses), responses, automatic=True, about=about)


def make_ranking(inputs: Inputs, _: EvaluationConfig) -> Table:
    """Return one row per structure and method: mean rank and tests."""
    from medsyn.study.analysis import ranking_table, reference_of

    given = _given(inputs)
    if given is not None:
        return _with_readers(ranking_table(given, reference_of(given)), given, automatic=False)
    responses, about = _observed_ranking(inputs)
    table = ranking_table(responses, _stage(inputs).reference)
    return _with_readers(table, responses, automatic=True, about=about)


def _answer_needs(sources: Sources) -> list[Need]:
    study = sources.config.study
    files = [Need("file", (ANSWERS,), (study.answers or "",))]
    return files + ([Need("file", (KEY,), (study.key,))] if study.key is not None else [])


def _settings(sources: Sources) -> Need:
    return Need("file", (SETTINGS,), (sources.layout.config("study"),))


def _stage(inputs: Inputs) -> StudyStage:
    paths = inputs.group("file").get(SETTINGS, [])
    if len(paths) != 1:
        raise InputError(f"{inputs.name}: --file {SETTINGS} FILE is needed, study.json of `medsyn config`")
    return load_stage(StudyStage, paths[0])


def _given(inputs: Inputs) -> list[Response] | None:
    """Return the readers' answers; None where the command names none."""
    from medsyn.study.definition import read_key
    from medsyn.study.responses import read_responses

    files = inputs.group("file")
    if ANSWERS not in files:
        return None
    keys = files.get(KEY, [])
    return read_responses(files[ANSWERS][0], read_key(keys[0]) if keys else None)


def _observed_recognition(inputs: Inputs) -> tuple[list[Response], str]:
    """Return the answers, and a sentence about the findings that are left out."""
    from medsyn.evaluate.inputs import read_prompts, split_prompt_type
    from medsyn.study.cases import NO_ABNORMALITY, Case, real_truths, truth_of
    from medsyn.study.observers import automatic_recognition

    stage, measures = _stage(inputs), inputs.measures()
    options = tuple(stage.recognition.options)
    (method,) = [label for label in measures if label != REAL] or [stage.reference]
    generated = []
    for sample, row in read_prompts(inputs.require("prompts")).items():
        sides = split_prompt_type(row["prompt_type"])
        if sides is not None and sample in measures.get(method, {}):
            truth = truth_of(sides[0], options) if sides[1] else NO_ABNORMALITY
            generated.append(Case(method, inputs.full_name(method), False, "pairs", sample, truth))
    truths = real_truths(inputs.require("cohort")[0], inputs.require("labels")[0], options)
    real = _real_cases(inputs, measures, truths)
    responses = automatic_recognition(stage, generated, real, {**measures.get(method, {}), **measures.get(REAL, {})})
    shown = {part.truth for part in responses}
    absent = [name for name in stage.recognition.counts if truth_of(name, options) not in shown]
    return responses, f"Not shown, for want of a measure or of volumes: {', '.join(absent)}." if absent else ""


def _observed_ranking(inputs: Inputs) -> tuple[list[Response], str]:
    """Return the rankings, and sentences about their rules and what is left out."""
    from medsyn.study.cases import Case
    from medsyn.study.observers import STRUCTURE_RULES, automatic_ranking

    stage, measures = _stage(inputs), inputs.measures()
    pools: dict[str, Sequence[Case]] = {}
    for name in stage.ranked:
        rows = measures.get(name, {})
        label, prompt_set = inputs.full_name(name), stage.ranking.prompt_set
        pools[name] = [Case(name, label, False, prompt_set, sample) for sample in rows]
    if REAL in pools:
        pools[REAL] = _real_cases(inputs, measures, {})
    absent = [name for name, pool in pools.items() if not pool]
    ranked = {name: pool for name, pool in pools.items() if pool}
    unmeasured = [name for name in stage.ranking.structures if name not in STRUCTURE_RULES]
    words = [f"No measure is of {', '.join(unmeasured)}, so none is ranked."] if unmeasured else []
    words += [f"Without volumes, and left out: {', '.join(absent)}."] if absent else []
    rules = "Lobes are ranked by lung volume, airways by airway volume."
    return automatic_ranking(stage, ranked, {REAL: {}, **measures}), " ".join([rules, *words])


def _real_cases(
    inputs: Inputs, measures: Mapping[str, Mapping[str, object]], truths: Mapping[str, str | None]
) -> list[Case]:
    from medsyn.study.cases import Case

    label = inputs.full_name(REAL)
    return [Case(REAL, label, True, "", name, truths.get(name)) for name in measures.get(REAL, {})]


def _with_readers(table: Table, responses: Sequence[Response], *, automatic: bool, about: str = "") -> Table:
    """Add who the readers were, and a note, to every row."""
    columns, rows = table
    count = len({response.reader for response in responses})
    readers = AUTOMATIC if automatic else "readers"
    note = f"Answers of {count} {readers}. {NO_RADIOLOGIST if automatic else ''} {about}"
    facts = {"readers": readers, "num_readers": count, "note": " ".join(note.split())}
    return [*columns, *facts], [row | facts for row in rows]


def _has_answers_or_text(config: Config) -> bool:
    """Return whether there are answers, or a reference that takes text, whose volumes observers can name."""
    return config.study.answers is not None or reference_takes_text(config)


RECOGNITION = Exhibit(
    name="recognition",
    kind="table",
    title="Recognition of findings (Figure 7)",
    caption=(
        "How many of the readers named the finding of each CT, with exact (Clopper-Pearson) 95 % bounds of the share."
        " The finding of a generated CT is that of its prompt. “said”: how often each answer was given."
    ),
    needs=recognition_needs,
    options=OPTIONS,
    make=make_recognition,
    uses_settings=False,
    in_all=_has_answers_or_text,
    headers={"truth": "Finding", "n": "answers", "num_correct": "right", "correct": "share right"},
    by_readers=True,
    paper=PaperTable(
        header=("CT", "right, of 10 radiologists"),
        rows=(
            ("generated, consolidation", "10"),
            ("generated, cardiomegaly", "9"),
            ("generated, effusion", "9"),
            ("generated, effusion", "8"),
            ("generated, normal", "9"),
            ("real", "10"),
        ),
    ),
)
RANKING = Exhibit(
    name="ranking",
    kind="table",
    title="Ranking of anatomy (Figure 8)",
    caption="Mean rank of each method per structure; 1 is the best." + BLOCKS,
    needs=ranking_needs,
    options=OPTIONS,
    make=make_ranking,
    uses_settings=False,
    headers={
        "n": "blocks",
        "n_readers": "readers",
        "num_incomplete": "incomplete",
        "rank": "mean rank",
        "friedman_p": "p (Friedman)",
        "kendall_w": "W",
        "p_value": "p, to the reference",
        "p_wilcoxon": "p, Wilcoxon",
        **{
            f"reader_{name}": f"{word}, by reader"
            for name, word in (
                ("chi2", "chi2"),
                ("friedman_p", "p (Friedman)"),
                ("kendall_w", "W"),
                ("p_value", "p, to the reference"),
                ("p_wilcoxon", "p, Wilcoxon"),
            )
        },
    },
    by_readers=True,
    paper=PaperTable(
        header=("Structure", "ours", "real", "p to real", "p to HA-GAN", "p to Medical Diffusion", "W"),
        rows=(
            ("lobes", "–", "–", "significant", "0.056", "< 0.05", "0.528"),
            ("airways", "2.28", "1.6", "0.1", "–", "< 0.05", "–"),
            ("vessels", "–", "–", "0.0", "1.0", "1.0", "0.413"),
        ),
    ),
)
