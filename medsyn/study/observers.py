"""Automatic observers: simulated readers who answer by rules on the measures of the volumes, with noise.

They stand in for readers where nobody has been asked, so that the figures, their files and their statistics can be seen
before a study. They say nothing about what people would see: no rule looks at a fissure or a vessel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medsyn.config import StudyStage
from medsyn.layout import REAL
from medsyn.study.balance import generator
from medsyn.study.cases import NO_ABNORMALITY, Case, Pools, truth_of
from medsyn.study.definition import Item
from medsyn.study.design import Design, design
from medsyn.study.responses import Response

MeasureRows = Mapping[str, Mapping[str, float | None]]
FINDING_RULES = {
    "pleural_effusion": ("effusion_volume_ml", 100.0, 100.0),
    "cardiomegaly": ("cardiothoracic_ratio", 0.55, 0.05),
    "emphysema": ("laa950_percent", 15.0, 10.0),
}
"""Finding -> measure, limit and unit. An observer names the finding that is the most units above its limit."""
RECOGNITION_NOISE = 0.5
"""Standard deviation of an observer's noise on each finding, in units."""
STRUCTURE_RULES = {"lobes": "lung_volume_ml", "airways": "airway_volume_mm3"}
"""Structure -> measure. An observer ranks by the distance to the real CTs' median, in their standard deviations.

No measure is of vessels, so they are not ranked.
"""
RANKING_NOISE = 1.0
"""Standard deviation of an observer's noise on each volume, in those standard deviations."""
FARTHEST = 10.0
"""Distance of a volume without the measure, and the largest one."""


def automatic_recognition(
    stage: StudyStage, generated: Sequence[Case], real: Sequence[Case], measures: MeasureRows
) -> list[Response]:
    """Return what observers name in CTs: as many of each case of the settings as there are with a measured finding."""
    wanted = [name for name in stage.recognition.cases if name in FINDING_RULES or name == NO_ABNORMALITY]
    cases: list[str] = []
    for name in wanted:
        there = sum(case.truth == truth_of(name, stage.recognition.options) for case in generated)
        if cases.count(name) < there:
            cases.append(name)
    num_real = min(stage.recognition.num_real, sum(case.truth in cases for case in real))
    recognition = stage.recognition.model_copy(update={"cases": tuple(cases), "num_real": num_real})
    made = _plan(stage, Pools(generated, real, {}), recognition=recognition, ranking=_without(stage))
    rng = generator(str(stage.seed), "automatic", "recognition")
    return [
        _response(made, reader, item, item.volumes[0], answer=_name_finding(stage, made, item, measures, rng))
        for reader, item in _asked(made)
    ]


def automatic_ranking(
    stage: StudyStage, ranked: Mapping[str, Sequence[Case]], measures: Mapping[str, MeasureRows]
) -> list[Response]:
    """Return how observers rank sets of volumes, as many as every method has; measures: by method, `real` included."""
    structures = tuple(name for name in stage.ranking.structures if name in STRUCTURE_RULES)
    rounds = 1 if stage.ranking.same_sets else max(len(structures), 1)
    num_sets = min(stage.ranking.num_sets, min((len(pool) // rounds for pool in ranked.values()), default=0))
    if num_sets == 0 or len(ranked) < 2:
        return []
    ranking = stage.ranking.model_copy(
        update={"structures": structures, "methods": tuple(ranked), "num_sets": num_sets}
    )
    recognition = stage.recognition.model_copy(update={"cases": (), "num_real": 0})
    made = _plan(stage, Pools((), (), ranked), recognition=recognition, ranking=ranking)
    rng = generator(str(stage.seed), "automatic", "ranking")
    responses = []
    for reader, item in _asked(made):
        rule = STRUCTURE_RULES[item.structure or ""]
        scores = {name: _distance(rule, made.cases[name], measures) for name in item.volumes}
        noisy = {name: score + RANKING_NOISE * rng.standard_normal() for name, score in scores.items()}
        for rank, name in enumerate(sorted(noisy, key=lambda name: noisy[name]), 1):
            responses.append(_response(made, reader, item, name, rank=float(rank)))
    return responses


def _plan(stage: StudyStage, pools: Pools, **parts: object) -> Design:
    """Return a study of automatic observers: no practice, no repetitions, no groups."""
    settings = {"readers": {"reader": stage.num_readers}, "practice": (), "repeats": type(stage.repeats)()}
    return design(stage.model_copy(update=settings | parts), pools, f"automatic {stage.seed}")


def _without(stage: StudyStage) -> object:
    return stage.ranking.model_copy(update={"structures": (), "methods": ()})


def _asked(made: Design) -> Iterable[tuple[str, Item]]:
    for reader in made.study.readers:
        for slot in reader.order:
            yield reader.code, made.study.item(slot.item)


def _name_finding(stage: StudyStage, made: Design, item: Item, measures: MeasureRows, rng: np.random.Generator) -> str:
    """Return the answer that the finding stands for which lies farthest above its limit, or NO_ABNORMALITY."""
    values = measures.get(made.cases[item.volumes[0]].sample, {})
    scores = {}
    for finding, (measure, limit, unit) in FINDING_RULES.items():
        value, noise = values.get(measure), RECOGNITION_NOISE * rng.standard_normal()
        scores[finding] = -math.inf if value is None else (value - limit) / unit + noise
    best = max(scores, key=lambda finding: scores[finding])
    return truth_of(best, stage.recognition.options) if scores[best] > 0 else NO_ABNORMALITY


def _distance(measure: str, case: Case, measures: Mapping[str, MeasureRows]) -> float:
    """Return how far a volume's measure lies from the median of the real CTs, in their standard deviations."""
    known = [value for row in measures[REAL].values() if (value := row.get(measure)) is not None]
    value = measures[case.method].get(case.sample, {}).get(measure)
    spread = float(np.std(known)) if known else 0.0
    if value is None or spread == 0:
        return FARTHEST
    return min(abs(value - float(np.median(known))) / spread, FARTHEST)


def _response(
    made: Design, reader: str, item: Item, volume: str, *, answer: str = "", rank: float | None = None
) -> Response:
    case = made.cases[volume]
    return Response(
        reader=reader,
        group="",
        item=item.id,
        task=item.task,
        structure=item.structure or "",
        repeats="",
        volume=volume,
        method=case.method,
        label=case.label,
        real=case.real,
        truth=case.truth or "",
        answer=answer,
        rank=rank,
    )
