"""Choose the volumes of a study, and the items and orders in which readers see them; nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medsyn.config import StudyStage
from medsyn.errors import InputError
from medsyn.study.balance import balanced_orders, balanced_places, generator
from medsyn.study.cases import Case, Pools, truth_of
from medsyn.study.definition import Group, Item, KeyEntry, Option, Reader, Slot, Study, Task, Window


@dataclass
class _Draw:
    """Take cases of the pools in random order, each at most once."""

    rng: np.random.Generator
    used: set[tuple[str, str, str]] = field(default_factory=set)

    def take(self, pool: Sequence[Case], count: int, what: str) -> list[Case]:
        """Return `count` unused cases; InputError if there are fewer."""
        free = [case for case in pool if _identity(case) not in self.used]
        if len(free) < count:
            raise InputError(
                f"{what}: {len(free)} volumes that no other item shows, expected {count}; add volumes, or change the"
                " section study of the configuration"
            )
        chosen = [free[index] for index in self.rng.permutation(len(free))[:count]]
        self.used.update(map(_identity, chosen))
        return chosen


@dataclass(frozen=True)
class Design:
    """A study, and the case behind each of its volumes."""

    study: Study
    cases: Mapping[str, Case]

    def key_entries(self) -> dict[str, KeyEntry]:
        """Return what the key says of each volume, by name."""
        return {
            name: KeyEntry(
                method=case.method,
                label=case.label,
                real=case.real,
                prompt_set=case.prompt_set,
                sample=case.sample,
                truth=case.truth,
            )
            for name, case in sorted(self.cases.items())
        }


def design(stage: StudyStage, pools: Pools, secret: str) -> Design:
    """Return a study that follows from settings, volumes and the secret; too few volumes are an InputError.

    Items and volumes have random names, and their lists stand in the order of the names.
    """
    rng = generator(secret, stage.seed, "cases")
    draw = _Draw(rng)
    recognition = _recognition_cases(stage, pools, draw)
    ranking = _ranking_sets(stage, pools, draw)
    practice = _practice_cases(stage, pools, draw)
    everything = [*recognition, *(case for sets in ranking.values() for each in sets for case in each)]
    everything += [case for cases in practice.values() for case in cases]
    names = _Names(generator(secret, stage.seed, "names"), list(dict.fromkeys(everything)))
    asked = list(_items(stage, names, recognition, ranking))
    repeats = _repeats(stage, names, asked, generator(secret, stage.seed, "repeats"))
    first = [_practice_item(stage, names, task, cases) for task, cases in practice.items()]
    readers = _readers(stage, names, asked, repeats, first, secret)
    study = Study(
        title=stage.title,
        seed=stage.seed,
        introduction=stage.introduction,
        window=Window(**stage.window.model_dump()),
        items=tuple(sorted([*first, *asked, *repeats], key=lambda item: item.id)),
        readers=tuple(readers),
    )
    return Design(study, names.cases())


class _Names:
    """Random names of items and volumes."""

    def __init__(self, rng: np.random.Generator, cases: Sequence[Case]) -> None:
        self._rng = rng
        self._items: set[str] = set()
        values = {rng.bytes(8).hex(): None for _ in cases}
        while len(values) < len(cases):
            values[rng.bytes(8).hex()] = None
        self._volumes = {_identity(case): (name, case) for case, name in zip(cases, values, strict=True)}

    def volume(self, case: Case) -> str:
        """Return the name of a volume."""
        return self._volumes[_identity(case)][0]

    def volumes(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """Return the names of volumes, sorted, so that their order says nothing."""
        return tuple(sorted(map(self.volume, cases)))

    def item(self, task: Task) -> str:
        """Return a new name of an item: a letter for the task, and four random digits."""
        letter = "r" if task == "recognition" else "k"
        while (name := f"{letter}{self._rng.integers(10_000):04d}") in self._items:
            pass
        self._items.add(name)
        return name

    def cases(self) -> dict[str, Case]:
        """Return the cases by name."""
        return dict(self._volumes.values())


def _identity(case: Case) -> tuple[str, str, str]:
    return case.method, case.prompt_set, case.sample


def _ranking_sets(stage: StudyStage, pools: Pools, draw: _Draw) -> dict[str, list[list[Case]]]:
    """Return the sets of each structure: one case of each method, in the order of the methods."""
    settings = stage.ranking
    rounds = 1 if settings.same_sets else len(settings.structures)
    if not settings.structures:
        return {}
    total = settings.num_sets * rounds
    columns = [draw.take(pools.ranked[name], total, f"ranking, {name}") for name in stage.ranked]
    sets = [list(row) for row in zip(*columns, strict=True)]
    size = settings.num_sets
    return {
        structure: sets[:size] if settings.same_sets else sets[place * size : (place + 1) * size]
        for place, structure in enumerate(settings.structures)
    }


def _recognition_cases(stage: StudyStage, pools: Pools, draw: _Draw) -> list[Case]:
    settings = stage.recognition
    cases = []
    for finding, count in settings.counts.items():
        truth = truth_of(finding, settings.options)
        pool = [case for case in pools.generated if case.truth == truth and not case.real]
        cases += draw.take(pool, count, f"recognition, {stage.shown} with {finding}")
    known = [case for case in pools.real if case.truth in settings.counts]
    return cases + draw.take(
        known, settings.num_real, f"recognition, real CTs with one of {', '.join(settings.counts)}"
    )


def _practice_cases(stage: StudyStage, pools: Pools, draw: _Draw) -> dict[Task, list[Case]]:
    """Return the volumes of the practice items, any that no other item shows."""
    anything = [*pools.generated, *pools.real, *(case for pool in pools.ranked.values() for case in pool)]
    unique = list({_identity(case): case for case in anything}.values())
    counts: dict[Task, int] = {"recognition": 1, "ranking": len(stage.ranked)}
    return {task: draw.take(unique, counts[task], f"practice, {task}") for task in stage.practice}


def _items(
    stage: StudyStage, names: _Names, recognition: Sequence[Case], ranking: Mapping[str, Sequence[Sequence[Case]]]
) -> Iterator[Item]:
    for case in recognition:
        yield _recognition_item(stage, names, case)
    for structure in stage.ranking.structures:
        for cases in ranking[structure]:
            yield Item(
                id=names.item("ranking"),
                task="ranking",
                structure=structure,
                question=stage.ranking.words(structure),
                volumes=names.volumes(cases),
            )


def _recognition_item(stage: StudyStage, names: _Names, case: Case, *, practice: bool = False) -> Item:
    options = tuple(Option(value=value, label=label) for value, label in stage.recognition.options.items())
    return Item(
        id=names.item("recognition"),
        task="recognition",
        question=stage.recognition.question,
        volumes=(names.volume(case),),
        options=options,
        practice=practice,
    )


def _practice_item(stage: StudyStage, names: _Names, task: Task, cases: Sequence[Case]) -> Item:
    if task == "recognition":
        return _recognition_item(stage, names, cases[0], practice=True)
    structure = stage.ranking.structures[0] if stage.ranking.structures else "lobes"
    return Item(
        id=names.item("ranking"),
        task="ranking",
        structure=structure,
        question=stage.ranking.words(structure),
        volumes=names.volumes(cases),
        practice=True,
    )


def _repeats(stage: StudyStage, names: _Names, asked: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    repeated = []
    for task, count in (("recognition", stage.repeats.recognition), ("ranking", stage.repeats.ranking)):
        pool = [item for item in asked if item.task == task]
        if count > len(pool):
            raise InputError(f"study.repeats.{task}: {count} is more than the {len(pool)} {task} items; lower it")
        for index in rng.permutation(len(pool))[:count]:
            item = pool[index]
            repeated.append(item.model_copy(update={"id": names.item(item.task), "repeats": item.id}))
    return repeated


def _readers(
    stage: StudyStage,
    names: _Names,
    asked: Sequence[Item],
    repeats: Sequence[Item],
    practice: Sequence[Item],
    secret: str,
) -> Iterator[Reader]:
    """Yield the readers with their orders: practice, recognition, ranking by structure, then what is repeated."""
    groups: list[Group] = [
        "" if group == "reader" else group for group, count in stage.readers.items() for _ in range(count)
    ]
    rng = generator(secret, stage.seed, "orders")
    recognition = [item for item in asked if item.task == "recognition"]
    ranking = [[item for item in asked if item.structure == name] for name in stage.ranking.structures]
    blocks = [balanced_orders(len(block), len(groups), rng) for block in (recognition, *ranking)]
    structures = balanced_orders(len(ranking), len(groups), rng)
    places = _Places(names, [item for item in asked if item.task == "ranking"], len(groups), rng)
    shuffled = rng.permutation(len(groups))
    for place, group in enumerate(groups):
        row = int(shuffled[place])  # so that groups do not follow the Latin squares
        order = [recognition[index] for index in blocks[0][row]] if recognition else []
        for block in structures[row] if ranking else []:
            order += [ranking[block][index] for index in blocks[block + 1][row]]
        seen = {item.id: number for number, item in enumerate(order)}
        order += sorted(repeats, key=lambda item: seen[item.repeats or ""])
        slots = [Slot(item=item.id, volumes=item.volumes) for item in practice]
        slots += [Slot(item=item.id, volumes=places.of(item, row)) for item in order]
        yield Reader(code=f"R{place + 1:02d}", group=group, order=tuple(slots))


class _Places:
    """Orders of display of the volumes of ranking items."""

    def __init__(self, names: _Names, items: Sequence[Item], num_readers: int, rng: np.random.Generator) -> None:
        methods = {name: case.method for name, case in names.cases().items()}
        self._numbers = {item.id: number for number, item in enumerate(items)}
        self._by_method = {item.id: sorted(item.volumes, key=lambda name: methods[name]) for item in items}
        size = max((len(item.volumes) for item in items), default=0)
        self._places = balanced_places(size, num_readers, len(items), rng) if items else []

    def of(self, item: Item, row: int) -> tuple[str, ...]:
        """Return the volumes of an item in the order in which the reader of this row sees them."""
        if item.task == "recognition":
            return item.volumes
        first = item.repeats or item.id
        volumes = self._by_method[first]
        order = self._places[row][self._numbers[first]]
        if item.repeats:  # in other places than before
            order = order[1:] + order[:1]
        return tuple(volumes[index] for index in order)
