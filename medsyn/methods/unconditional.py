"""Kinds that take no text and train on the image alone: what the paper's baselines share.

A network file holds all networks of one training run, as `<network>.<parameter>`, with the settings and the provenance
in its metadata. The parameters of a single network have no such prefix.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError

from medsyn.config import Config, MethodConfig, Section, TrainConfig
from medsyn.config.section import Count
from medsyn.config.stages import Window
from medsyn.errors import InputError
from medsyn.methods.base import (
    Answer,
    CountedTraining,
    Kind,
    Method,
    MethodStage,
    Network,
    NetworkStage,
    Prompt,
    Training,
)
from medsyn.progress import log

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medsyn.training.loop import TrainingResult
    from medsyn.training.need import Need
    from medsyn.training.task import Networks, PhasedTask
    from medsyn.training.volumes import ImageVolumes

AVERAGE_SETTINGS = ("ema_decay", "ema_start_step", "ema_every")
"""Settings without effect where no average of the weights is kept."""
NUM_PREVIEWS = 8
"""Volumes in a row of a training run's picture."""


class UnconditionalConfig(MethodConfig):
    """What the entries of these kinds share."""

    num_gpus: Count = Field(1, description="GPUs for the training of a network, at most compute.num_gpus_training")

    @property
    def takes_text(self) -> bool:
        """Return False: a volume depends on the seed of its prompt alone."""
        return False


class UnconditionalStage(NetworkStage):
    """config/<network>_<method>.json: settings of the network and its training; window in HU of the values -1 and 1."""

    settings: SerializeAsAny[Section]
    window_hu: Window


StageType = TypeVar("StageType", bound=UnconditionalStage)


class UnconditionalKind(Kind):
    """A kind whose networks are trained on the image alone."""

    stages_of_networks: ClassVar[dict[str, type[UnconditionalStage]]]
    """Network -> the settings of its training."""

    @abstractmethod
    def settings(self, entry: Any) -> dict[str, Section]:
        """Return the settings of every network of an entry, by name."""

    def networks(self, config: Config, name: str) -> dict[str, Network]:
        """Return the networks; each reads the weights of those before it."""
        entry = config.methods[name]
        assert isinstance(entry, UnconditionalConfig)
        found: dict[str, Network] = {}
        for network, settings in self.settings(entry).items():
            model = self.stages_of_networks[network]
            stage = model(kind=entry.kind, settings=settings, window_hu=config.preprocess.window_hu)
            found[network] = Network(stage, after=tuple(found), num_gpus=entry.num_gpus)
        return found

    def sampling(self, config: Config, name: str) -> tuple[str, Section]:
        """Return the settings of sampling, without the number of GPUs for training."""
        file, stage = super().sampling(config, name)
        assert isinstance(stage, MethodStage)
        return file, stage.model_copy(update={"entry": stage.entry.model_copy(update={"num_gpus": 1})})


class Unconditional(Method):
    """A trained entry in memory: the seed of a prompt gives a volume, which is enlarged to the model's grid."""

    channels = ("image",)
    takes_text = False

    def __init__(self, stage: MethodStage, files: Sequence[Path], window_hu: Window) -> None:
        from medsyn.files import sha256

        self.label, self.settings, self.window_hu = stage.name, stage, window_hu
        self._hashes = {path.stem: sha256(path) for path in files}

    @abstractmethod
    def cube(self, seed: int) -> Tensor:
        """Return the volume [1, 1, D, H, W] in [-1, 1] of a seed, on the model's grid or one that is coarser."""

    @property
    def num_parameters(self) -> int:
        """Return the number of parameters of the networks that this object holds as attributes."""
        from torch import nn

        networks = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        return sum(parameter.numel() for network in networks for parameter in network.parameters())

    def identity(self) -> dict[str, Any]:
        """Return hashes of the weights, and the kind of device, which rounds differently."""
        from medsyn.device import network_device

        return {"weights": self._hashes, "device": network_device().type}

    def record(self, prompt: Prompt) -> dict[str, Any]:
        """Return hashes of the weights."""
        return {"weights": self._hashes}

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Yield the volume of each prompt's seed, one at a time, so that it does not depend on the others."""
        import torch

        from medsyn.diffusion.objective import LowResolution
        from medsyn.models.channels import from_channel

        for prompt in prompts:
            with torch.no_grad():
                cube = self.cube(prompt.seed).float()
            if not cube.isfinite().all():
                raise InputError(f"{self.label}: seed {prompt.seed} gave values that are not finite; train it again")
            image = LowResolution(self.grid.size[0] // cube.shape[2]).enlarge(cube)[0, 0].cpu().numpy()
            yield {"volume": self.on_grid(from_channel("image", image, self.window_hu))}


def counted(
    settings: Any, section: tuple[str, ...], task: Callable[[Any], PhasedTask], **fields: Any
) -> CountedTraining:
    """Return how the training that `task` makes of settings is counted.

    section: keys of the settings in the configuration; task(settings): makes it, on batches without data; fields:
    further fields of the result.
    """

    def need(train: TrainConfig, num_processes: int) -> Need:
        memory = task(settings.model_copy(update={"train": train})).memory
        assert memory is not None
        return memory(train, num_processes)

    return CountedTraining(settings.train, (*section, "train"), need, **fields)


def volumes_without_data(size: Sequence[int]) -> Callable[[int, Sequence[int]], Tensor]:
    """Return training volumes [len(slots), 1, *size] on the meta device, as a function of batch and slots."""
    import torch

    return lambda _number, slots: torch.empty(len(slots), 1, *size, device="meta")


def grid_fault(config: Config, name: str, edge: int) -> str | None:
    """Return that the model's grid is not a cube of `edge` voxels or of a multiple, or None."""
    size = config.preprocess.size
    if len(set(size)) == 1 and size[0] % edge == 0:
        return None
    return f"methods.{name}.size: {edge} does not fit preprocess.size {list(size)}, expected a cube of a multiple of it"


def num_processes(config: Config, entry: UnconditionalConfig) -> int:
    """Return the number of processes that train each network of an entry, one per GPU."""
    return max(min(entry.num_gpus, config.compute.num_gpus_training), 1)


def unused_fault(key: str, train: TrainConfig, names: Sequence[str]) -> str | None:
    """Return that one of the settings `names`, which a training run does not use, is not its default, or None."""
    default = type(train)()
    for name in names:
        value = getattr(train, name)
        if value != getattr(default, name):
            return f"{key}.{name}: {value} has no effect on this network; leave the key out"
    return None


def train_on_images(
    training: Training,
    stage: UnconditionalStage,
    edge: int | None,
    task: Callable[[ImageVolumes, Mapping[str, Any]], PhasedTask],
    preview: Callable[[Networks, ImageVolumes, Path], None],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Train the networks of a stage on the CTs, and write them with metrics and a picture.

    edge: see `ImageVolumes`; task(volumes, identity): makes the training; preview(networks, volumes, path): draws a
    picture; facts: hashes of what the training reads besides the volumes, for its identity and the provenance.
    """
    from medsyn.training.checkpoint import flatten
    from medsyn.training.driver import claim_training, previews_of, train_to_files
    from medsyn.training.volumes import ImageVolumes

    claim_training(training.out, training.state, lambda path: read_stage(path, type(stage)))
    settings: Any = stage.settings
    batches = {"batch_size": settings.train.batch_size, "seed": settings.train.seed}
    volumes = ImageVolumes(training.store, edge, window_hu=stage.window_hu, **batches)
    log.info("%s: %d volumes of %s voxels", stage.kind, len(volumes), volumes.size)
    identity = flatten(stage.model_dump(mode="json", exclude={"settings": {"train"}}))
    data = {"store": volumes.store.hash, **(facts or {})}
    identity |= {f"data.{name}": value for name, value in data.items()}
    train_to_files(
        replace(
            task(volumes, identity),
            preview=lambda networks, step: preview(networks, volumes, previews_of(training.out, step)),
        ),
        settings.train,
        training.state,
        training.out,
        write=lambda trained: write_networks(training.out, trained, stage, num_volumes=len(volumes), **data),
        preview=lambda networks, path: preview(networks, volumes, path),
    )


def write_networks(out: Path, trained: TrainingResult, stage: UnconditionalStage, **facts: Any) -> None:
    """Write all networks of a training run. facts: what the provenance says of the data."""
    from medsyn.provenance import provenance
    from medsyn.tensors import save_tensors

    tensors = {
        f"{_prefix(name)}{key}": value
        for name, network in trained.networks.items()
        for key, value in network.state_dict().items()
    }
    record = provenance(stage, **trained.facts(), **facts)
    metadata = {"config": json.dumps(stage.model_dump(mode="json"), sort_keys=True)}
    save_tensors(out, tensors, metadata | {"provenance": json.dumps(record, sort_keys=True)})


def read_stage(path: Path, model: type[StageType]) -> StageType:
    """Return the settings in a file of `write_networks`; another file is an InputError."""
    from medsyn.tensors import check_tensors, read_metadata

    check_tensors(path)
    try:
        return model(**json.loads(read_metadata(path)["config"]))
    except (KeyError, ValidationError, TypeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a network that `medsyn train` wrote for this method ({reason})") from None


def provenance_of(path: Path) -> dict[str, Any]:
    """Return the provenance in a file of `write_networks`, which `read_stage` has accepted."""
    from medsyn.tensors import read_metadata

    record: dict[str, Any] = json.loads(read_metadata(path)["provenance"])
    return record


def open_network(path: Path, name: str, network: nn.Module) -> nn.Module:
    """Load the tensors of `name` in a file of `write_networks` into `network`, ready for sampling on its device.

    The network of a plain Task has the empty name. Tensors that do not fit are an InputError.
    """
    from safetensors import safe_open

    from medsyn.device import network_device

    with safe_open(path, framework="pt") as handle:
        names = [key for key in handle.keys() if key.startswith(_prefix(name))]  # noqa: SIM118
        state = {key.removeprefix(_prefix(name)): handle.get_tensor(key) for key in names}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: the tensors of {name} do not fit the settings in the file ({error})") from None
    return network.eval().to(network_device())


def _prefix(name: str) -> str:
    return f"{name}." if name else ""
