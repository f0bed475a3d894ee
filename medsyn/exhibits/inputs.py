"""Read what an exhibit is made from: the files and words that `medsyn table` and `medsyn figure` were given."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn.errors import InputError
from medsyn.layout import REAL

if TYPE_CHECKING:
    from medsyn.evaluate.inputs import FeatureSet

MeasureRows = Mapping[str, Mapping[str, float | None]]
Files = dict[str, Path]
GROUPED = ("features", "measures", "volumes", "training", "samples", "file")
"""Options that are given once per label: the label, then its files or folders."""
PLAIN = ("prompts", "scores", "masks", "labels", "cohort")
"""Options that take files or folders."""


@dataclass(frozen=True)
class Inputs:
    """The files of an exhibit by option, read when asked for.

    name: how messages call the exhibit, such as "table 2"; groups: option -> label -> paths; paths: option -> paths;
    names: full names of methods; against: method that the others are compared with; without_text: methods that take no
    text; finding, num: what the options of these names ask for; split: of the real volumes; phantom: whether all
    volumes are, or imitate, phantoms.
    """

    name: str = "exhibit"
    groups: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    against: str | None = None
    without_text: frozenset[str] = frozenset()
    finding: str | None = None
    num: int | None = None
    split: str | None = None
    phantom: bool = False

    def record(self) -> dict[str, Any]:
        """Return all fields as JSON holds them; the labels as pairs, because their order is that of the rows."""
        groups = {option: list(map(list, labels.items())) for option, labels in self.groups.items()}
        return asdict(self) | {"groups": groups, "without_text": sorted(self.without_text)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], root: Path) -> Inputs:
        """Return the inputs that `record` described, whose paths are relative to `root`."""

        def placed(paths: Sequence[str]) -> list[str]:
            return [str(root / path) for path in paths]

        values = {part.name: record[part.name] for part in fields(cls) if part.name in record}
        groups = {
            option: {label: placed(paths) for label, paths in labels}
            for option, labels in values.pop("groups", {}).items()
        }
        paths = {option: placed(files) for option, files in values.pop("paths", {}).items()}
        without_text = frozenset(values.pop("without_text", ()))
        return cls(**values, groups=groups, paths=paths, without_text=without_text)

    def get(self, option: str) -> list[str]:
        """Return the files of an option without labels; none where it was not given."""
        return list(self.paths.get(option, ()))

    def require(self, option: str) -> list[str]:
        """Return the files of an option without labels; InputError where it was not given."""
        if not self.paths.get(option):
            raise InputError(f"{self.name}: --{option} is needed")
        return self.get(option)

    def group(self, option: str) -> dict[str, list[str]]:
        """Return the files of an option by label; none where it was not given."""
        return {label: list(files) for label, files in self.groups.get(option, {}).items()}

    def require_group(self, option: str) -> dict[str, list[str]]:
        """Return the files of an option by label; InputError where it was not given."""
        if not self.groups.get(option):
            raise InputError(f"{self.name}: --{option} LABEL .. is needed")
        return self.group(option)

    def measures(self) -> dict[str, MeasureRows]:
        """Return the measures by label and volume, the real ones of the split alone."""
        from medsyn.evaluate.inputs import read_measures

        measured: dict[str, MeasureRows] = {
            label: read_measures(files) for label, files in self.group("measures").items()
        }
        if REAL in measured:
            kept = self._in_split(measured[REAL])
            measured[REAL] = {name: row for name, row in measured[REAL].items() if name in kept}
        return measured

    def features(self) -> dict[str, FeatureSet]:
        """Return the features by label, the real ones of the split alone."""
        from medsyn.evaluate.inputs import FeatureSet, read_features

        features = {label: read_features(files) for label, files in self.group("features").items()}
        if REAL in features:
            part = features[REAL]
            kept = self._in_split(part.ids)
            rows = [i for i, name in enumerate(part.ids) if name in kept]
            features[REAL] = FeatureSet([part.ids[i] for i in rows], part.features[rows], part.extractor)
        return features

    def volumes(self) -> dict[str, Files]:
        """Return the volume files by label and volume, the real ones of the split alone; InputError without any."""
        from medsyn.evaluate.inputs import list_volumes

        volumes = {label: list_volumes(folders) for label, folders in self.require_group("volumes").items()}
        if REAL in volumes:
            kept = self._in_split(volumes[REAL])
            volumes[REAL] = {name: path for name, path in volumes[REAL].items() if name in kept}
        return volumes

    def training_tables(self) -> dict[str, list[Path]]:
        """Return the metrics tables of training runs by label; the folder of a language model means the one in it."""
        from medsyn.exhibits.costs import training_table

        return {label: list(map(training_table, paths)) for label, paths in self.group("training").items()}

    def cost_files(self) -> dict[str, list[Path]]:
        """Return the files that say what sampling cost by label, out of the folders that have one."""
        from medsyn.exhibits.costs import cost_files

        return {label: cost_files(folders) for label, folders in self.group("samples").items()}

    def real_and_samples(self) -> tuple[Files, Files]:
        """Return the real volumes and those of the one method that was given; anything else is an InputError."""
        volumes = self.volumes()
        methods = [label for label in volumes if label != REAL]
        if REAL not in volumes or len(methods) != 1:
            raise InputError(f"{self.name}: give --volumes {REAL} .. and --volumes LABEL .. of one method")
        return volumes[REAL], volumes[methods[0]]

    def full_name(self, label: str) -> str:
        """Return the name under which a label is printed."""
        default = f"{REAL} (phantom)" if label == REAL and self.phantom else label
        return self.names.get(label, default)

    def all_files(self) -> Iterator[str]:
        """Yield every file and folder that was given; of those that only say what something cost, what is read."""
        for option in GROUPED:
            if option not in ("training", "samples"):
                for files in self.group(option).values():
                    yield from files
        for found in (self.training_tables(), self.cost_files()):
            for paths in found.values():
                yield from map(str, paths)
        for option in PLAIN:
            yield from self.get(option)

    def _in_split(self, ids: Mapping[str, object] | Sequence[str]) -> set[str]:
        from medsyn.evaluate.inputs import keep_split

        cohort = next(iter(self.get("cohort")), None)
        return keep_split(ids, cohort, self.split)


def parse_inputs(args: Namespace, name: str) -> Inputs:
    """Return the inputs that the parsed options of `medsyn table` and `medsyn figure` name."""
    from medsyn.evaluate.inputs import grouped

    def paths(option: str) -> list[str]:
        value = getattr(args, option)
        return [value] if isinstance(value, str) else list(value or ())

    return Inputs(
        name=name,
        groups={option: grouped(getattr(args, option), f"--{option}") for option in GROUPED},
        paths={option: paths(option) for option in PLAIN},
        names=dict(args.label or ()),
        against=args.against,
        without_text=frozenset(args.without_text or ()),
        finding=args.finding,
        num=args.num,
        split=args.split,
        phantom=args.phantom,
    )
