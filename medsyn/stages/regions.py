"""Measures by side and lobe of a shard of volumes, and how far a prompt's volume differs from that of its denial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn.config import RegionsStage
from medsyn.ct.reading import read_ct
from medsyn.errors import InputError
from medsyn.evaluate.inputs import list_volumes
from medsyn.evaluate.regions import CHANGES, MEASURES, Regions, changes, find_regions, regional_measures
from medsyn.files import read_csv, write_csv
from medsyn.orientation import reorient
from medsyn.provenance import provenance
from medsyn.stages.measures import open_anatomy_tool
from medsyn.stages.shards import VOLUME, accepted_ids, identity_of, open_shard, run_shard
from medsyn.volume import Volume

COLUMNS = ("subject_id", *MEASURES, "swapped_with", *CHANGES, "reason")


def regions_shard(
    volumes: Path,
    out: Path,
    config: RegionsStage,
    *,
    cohort: Path | None = None,
    prompts: Path | None = None,
    samples: Sequence[Path] = (),
    state: Path | None = None,
) -> None:
    """Write one row (COLUMNS) per accepted volume; one that cannot be measured has a reason and no values.

    cohort: real volumes, of which all of the validation split and the first num_threshold_volumes of the training split
    are measured. prompts, samples: prompts of the set `faithfulness` and the folders of all its shards; a volume whose
    prompt states a finding is compared with the one of the same pair that denies it.
    """
    tool = open_anatomy_tool(config)
    names = accepted_ids(volumes)
    if cohort is not None:
        names = chosen_subjects(names, cohort, config.num_threshold_volumes)
    denials = denial_of(prompts) if prompts is not None else {}
    sampled = list_volumes(samples)

    def opened(path: Path) -> tuple[Volume, Regions]:
        volume = reorient(read_ct(path))
        return volume, find_regions(volume, tool)

    def work(name: str, _: Path) -> dict[str, Any]:
        volume, regions = opened(volumes / name / VOLUME)
        row: dict[str, Any] = regional_measures(volume, regions)
        other = denials.get(name)
        if other is not None and other in sampled:
            row |= {"swapped_with": other} | changes(volume, *opened(sampled[other]))
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}

    def identify(name: str) -> str | None:
        partner = sampled.get(denials.get(name, ""))
        return identity_of(str(volumes), volumes / name / VOLUME, *([partner] if partner else []))

    facts = [tool.version, tool.weights_hash] if tool else None
    with open_shard(out, state, provenance(config, stage="regions", tool=facts)) as shard:
        outcomes = run_shard(shard, names, work, identify, "measuring regions")
        write_csv(out, ({"subject_id": o.name} | (o.result or {"reason": o.reason}) for o in outcomes), COLUMNS)


def chosen_subjects(names: Iterable[str], cohort: Path, num_training: int) -> list[str]:
    """Return the subjects of the validation split, and the first `num_training` of the training split, in order."""
    splits = {row["subject_id"]: row["split"] for row in read_csv(cohort, ("subject_id", "split"))}
    names = list(names)
    training = [name for name in names if splits.get(name) == "train"][:num_training]
    validation = {name for name in names if splits.get(name) == "validation"}
    return [name for name in names if name in validation or name in training]


def denial_of(prompts: Path) -> Mapping[str, str]:
    """Return, for each prompt that states a finding, the sample of its pair whose prompt denies it."""
    rows = read_csv(prompts, ("sample_id", "pair", "present"))
    denials = {row["pair"]: row["sample_id"] for row in rows if row["present"] == "0"}
    stating = {row["sample_id"]: row["pair"] for row in rows if row["present"] == "1"}
    if missing := [name for name, pair in stating.items() if pair not in denials]:
        raise InputError(
            f"{prompts}: no prompt of the pair of '{missing[0]}' denies the finding, expected one; write the prompts"
            " with `medsyn prompts --set faithfulness`"
        )
    return {name: denials[pair] for name, pair in stating.items()}
