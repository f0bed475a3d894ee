"""What a method of the benchmark is: a name of `methods` in the configuration, of a kind in the registry METHODS.

A `Kind` says how its entries in the configuration look, which networks they train and how one is opened for sampling. A
`Method` is an opened entry: it answers prompts with volumes. A stranger's kind is a class derived from `Kind`, offered
as an entry point of the group `medsyn.methods` or registered by a module that the configuration names under `plugins`:

    METHODS.register("noise", Noise())

Everything else (rules, shards, resume, provenance, tables) is the same for all kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import SerializeAsAny

from medsyn.config import MethodConfig, PreprocessConfig, Section, validate
from medsyn.config.methods import AnyKind
from medsyn.config.section import Name, Registered
from medsyn.errors import InputError
from medsyn.files import read_json
from medsyn.layout import Layout
from medsyn.registry import METHODS, load_plugins

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsyn.config import Config, TrainConfig
    from medsyn.training.need import Need
    from medsyn.volume import Volume


@dataclass(frozen=True)
class Prompt:
    """One volume to sample.

    row: its number in the table of prompts, from 0; text None: without text; facts: what provenance.json repeats;
    fixed: channel name -> array (D, H, W) of HU or labels that the volume must keep; guidance_scale None: that of the
    sampling settings.
    """

    sample_id: str
    text: str | None
    seed: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, NDArray] = field(default_factory=dict)
    guidance_scale: float | None = None
    row: int = 0


@dataclass(frozen=True)
class Rejected:
    """An answer that cannot be used, with the reason that index.csv gives."""

    reason: str


Answer: TypeAlias = "Mapping[str, Volume] | Rejected"
"""Volumes on the model's grid by file name: `volume` (int16 HU) and any of `lobes`, `airway`, `vessels` (uint8)."""


class Method(ABC):
    """An entry of `methods`, opened for sampling.

    label: name in the provenance; settings: what results depend on, with the model's grid in `settings.preprocess`;
    channels: what an answer holds; fixable: those that a prompt may fix; takes_text: whether answers depend on the
    text; batch_size: prompts that `sample` is given at a time; max_reject_fraction: a shard of which more is rejected,
    and more than one volume, is an error; generates: whether `sample` generates the volumes in this process, so that
    its time and memory are those of the method.
    """

    label: str
    settings: Any
    channels: tuple[str, ...]
    fixable: tuple[str, ...] = ()
    takes_text: bool = True
    batch_size: int = 1
    max_reject_fraction: float = 1.0
    generates: bool = True

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Load what the next call of `sample`, with the same prompts, needs; its time is not that of sampling."""
        return

    @abstractmethod
    def sample(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Yield one answer per prompt, in their order.

        An answer depends on its prompt, the prompt's seed and the settings alone. All prompts of a call fix the same
        channels and have the same guidance scale. What is raised here stops the shard, and the next run goes on.
        """

    @property
    def num_parameters(self) -> int | None:
        """Return the number of parameters of all networks that sampling uses, None where it is unknown."""
        return None

    @property
    def grid(self) -> PreprocessConfig:
        """The model's grid, on which answers lie."""
        grid: PreprocessConfig = self.settings.preprocess
        return grid

    def on_grid(self, array: NDArray) -> Volume:
        """Return HU or labels (D, H, W) of the model's grid as a volume with its place in space."""
        from medsyn.volume import Volume, centred_origin_mm, grid_spacing_mm

        spacing = grid_spacing_mm(self.grid.size, self.grid.field_of_view_mm)
        return Volume(array, spacing, centred_origin_mm(self.grid.size, spacing))

    def identity(self) -> dict[str, Any]:
        """Return what all answers depend on besides the settings, such as hashes of weights (JSON).

        Volumes of a stopped run are used again only if it is the same.
        """
        return {}

    def record(self, prompt: Prompt) -> dict[str, Any]:
        """Return what provenance.json says of the answer to `prompt`, besides prompt and settings (JSON)."""
        return {}


KindName = Annotated[Name, Registered(METHODS)]


class NetworkStage(Section):
    """Base of config/<network>_<method>.json, for kinds other than `medsyn`: all that training a network depends on."""

    kind: KindName


@dataclass(frozen=True)
class Network:
    """A network that a method trains, into results/models/<method>/<network>.safetensors.

    settings: the content of results/config/<network>_<method>.json, a `NetworkStage`; text_encoder: the encoder whose
    embeddings of the reports it trains with, None: it takes no text; after: networks whose weights its training reads,
    of the method `after_method`, None: of the same method; num_gpus: GPUs of one node that it trains on, at most those
    of `compute`, None: all of them.
    """

    settings: Section
    text_encoder: str | None = None
    after: tuple[str, ...] = ()
    after_method: str | None = None
    num_gpus: int | None = None


@dataclass(frozen=True)
class CountedTraining:
    """What `medsyn plan` asks of the training of a network.

    train: its settings; section: keys under which they stand in the configuration; need(train, num_processes): what a
    run with changed settings needs of a GPU; least_micro_batch: fewest samples of a micro-batch that it accepts;
    checkpointing: whether `activation_checkpointing` has an effect.
    """

    train: TrainConfig
    section: tuple[str, ...]
    need: Callable[[TrainConfig, int], Need]
    least_micro_batch: int = 1
    checkpointing: bool = False


@dataclass(frozen=True)
class Training:
    """What `medsyn train` gives to a kind: files, and the folder for checkpoints.

    store: shards of the training store; embeddings: of the reports, None without text; networks: weights of the
    networks in `Network.after`, by name; out: the weights to write, with <stem>_metrics.csv and <stem>_preview.png
    beside them; state: removed by the training when `out` is complete.
    """

    config: Path
    store: Sequence[Path]
    embeddings: Path | None
    networks: Mapping[str, Path]
    state: Path
    out: Path


class MethodStage(Section):
    """config/method_<name>.json: what the answers of a method depend on besides its files.

    entry: its settings under `methods`, with its name as label, so that another label samples nothing again.
    """

    kind: KindName
    name: Name
    entry: Annotated[SerializeAsAny[MethodConfig], AnyKind()]
    preprocess: PreprocessConfig


class Kind(ABC):
    """A kind of method: what `kind:` of an entry under `methods` names.

    entry: the settings of such an entry.
    """

    entry: ClassVar[type[MethodConfig]]

    @abstractmethod
    def open(self, config: Path, files: Sequence[Path], work: Path) -> Method:
        """Open a method for sampling.

        config: its settings (`load`); files: those that `inputs` names; work: an empty folder, removed at the end.
        """

    def load(self, config: Path) -> MethodStage:
        """Read config/method_<name>.json; a mistake is an InputError that names the file and the key."""
        values = read_json(config)
        if not isinstance(values, dict) or "entry" not in values:
            raise InputError(f"{config}: entry is missing, expected the settings of a method; run `medsyn config`")
        entry = validate(self.entry, values["entry"], config)
        return validate(MethodStage, {k: v for k, v in values.items() if k != "plugins"} | {"entry": entry}, config)

    def fault(self, config: Config, name: str) -> str | None:
        """Return what of entry `name` does not fit the rest of the configuration, beginning with the key, or None."""
        return None

    def networks(self, config: Config, name: str) -> dict[str, Network]:
        """Return the networks that entry `name` trains, by name."""
        return {}

    def training_tables(self, config: Config, name: str) -> list[str]:
        """Return the metrics tables of all networks that sampling with entry `name` uses, whoever trained them.

        Their last rows say what training cost. The folder of a language model stands for the table in it.
        """
        layout = Layout(config.results_dir)
        return [layout.training_metrics(name, network) for network in self.networks(config, name)]

    def counted_trainings(self, config: Config, name: str) -> dict[str, CountedTraining]:
        """Return those of the networks of entry `name` whose memory `medsyn plan` can count, by network."""
        return {}

    def train(self, training: Training) -> None:
        """Train the network that `training.config` describes."""
        raise InputError(f"{training.config}: a method of this kind trains no network; leave `medsyn train` out")

    def sampling(self, config: Config, name: str) -> tuple[str, Section]:
        """Return the settings of sampling, and the name under results/config of the file that holds them."""
        entry = config.methods[name].model_copy(update={"label": name})
        stage = MethodStage(kind=entry.kind, name=name, entry=entry, preprocess=config.preprocess)
        return f"method_{name}", stage

    def inputs(self, config: Config, name: str) -> list[str]:
        """Return the paths that `open` reads, for the rule that samples: the weights of all networks of the entry."""
        layout = Layout(config.results_dir)
        return [layout.network(name, network) for network in self.networks(config, name)]

    def stages(self, config: Config, name: str) -> dict[str, Section]:
        """Return the settings of sampling and of all networks of entry `name`, by the names of their files."""
        file, settings = self.sampling(config, name)
        return {file: settings} | {
            f"{network}_{name}": found.settings for network, found in self.networks(config, name).items()
        }

    def parts(self, config: Config, name: str) -> dict[str, str]:
        """Return the files that run.json of an entry joins, by name; none for a method without such a file."""
        return {}

    def state(self, entry: MethodConfig) -> str:
        """Return a text that changes when files change that `open` reads and `inputs` cannot name."""
        return ""


def kind_of(config: Path) -> Kind:
    """Return the kind that a file under results/config is for; the modules that its `plugins` name are imported."""
    values = read_json(config)
    if not isinstance(values, dict):
        raise InputError(f"{config}: expected a mapping of settings, found {type(values).__name__}")
    load_plugins(values.get("plugins", ()))
    kind = str(values.get("kind", "medsyn"))
    if kind not in METHODS:
        raise InputError(f"{config}: kind: {METHODS.unknown(kind)}")
    found: Kind = METHODS[kind]
    return found


def check_answers(config: Config, name: str, prompt_set: str) -> None:
    """Raise InputError if a method cannot answer a set of prompts: a method without text answers `reports` alone."""
    if prompt_set != "reports" and not config.methods[name].takes_text:
        raise InputError(
            f"methods.{name}: takes no text and cannot answer the prompts '{prompt_set}', expected 'reports'; name a"
            " method that takes text as reference"
        )
