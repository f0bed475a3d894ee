"""The kind `distilled`: a model of this package that samples in few calls what its teacher samples in many.

Its networks learn from those of the method that `teacher` names (`medsyn.training.distillation`), of kind `medsyn` or
itself `distilled`. It is sampled, measured and compared as any method is; the times of its calls are in its weights.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medsyn.config import Config, MedSynConfig, MethodConfig, TrainConfig, load_stage
from medsyn.config.section import Count, Name, Share, Steps
from medsyn.errors import InputError
from medsyn.layout import Layout
from medsyn.methods.base import Network, NetworkStage, Training
from medsyn.methods.medsyn import MedSyn, medsyn_entry

NetworkName = Literal["low_res", "super_res"]
NETWORKS: tuple[NetworkName, ...] = ("low_res", "super_res")


class DistillationTrainConfig(TrainConfig):
    """Training of a student; what is special to a denoiser, such as crops, is as in the training of its teacher."""

    num_steps: int = Field(1000, ge=1, le=1_000_000_000)
    batch_size: Count = 4
    micro_batch_size: Count = 4
    ema_decay: Share = 0.99
    learning_rate_decay: Literal["constant", "cosine"] = "cosine"


class DistilledNetwork(NetworkStage):
    """config/<network>_<method>.json: all that training a student depends on, besides its teacher's weights."""

    network: NetworkName
    num_calls: Steps
    teacher_calls: Steps
    guidance_scale: float
    end_time: float
    train: DistillationTrainConfig


class DistilledConfig(MethodConfig):
    """A model that was distilled to few calls of its networks."""

    kind: Literal["distilled"] = "distilled"
    teacher: Name = Field(description="method of kind medsyn or distilled, whose networks these learn from")
    num_steps_low_res: Steps = Field(4, description="calls of the low-resolution network")
    num_steps_super_res: Steps = Field(2, description="calls of the super-resolution network")
    teacher_steps_low_res: Steps = Field(
        32,
        description="calls of a teacher of kind medsyn, a multiple of num_steps_low_res; a distilled one has its own",
    )
    teacher_steps_super_res: Steps = Field(8, description="the same of super-resolution")
    train_low_res: DistillationTrainConfig = DistillationTrainConfig()
    train_super_res: DistillationTrainConfig = DistillationTrainConfig()

    def num_calls(self, network: NetworkName) -> int:
        """Return the calls of one of its networks."""
        return self.num_steps_low_res if network == "low_res" else self.num_steps_super_res


class Distilled(MedSyn):
    """Two distilled denoisers, and the text encoder of their teacher."""

    entry = DistilledConfig

    def fault(self, config: Config, name: str) -> str | None:
        """Return that the teacher does not exist, is taught by this entry, or makes calls that do not fit, or None."""
        key, entry = f"methods.{name}", distilled_entry(config, name)
        seen, at = {name}, entry
        while True:
            found = config.methods.get(at.teacher)
            if not isinstance(found, MedSynConfig | DistilledConfig) or at.teacher in seen:
                return f"{key}.teacher: '{at.teacher}' must be another method of kind medsyn or distilled"
            if isinstance(found, MedSynConfig):
                break
            seen.add(at.teacher)
            at = found
        for network in NETWORKS:
            calls, given = entry.num_calls(network), teacher_calls(config, entry, network)
            if given % calls or given < 2:
                return (
                    f"{key}.num_steps_{network}: {calls} calls for {given} of the teacher, expected a divisor, and a"
                    f" teacher with at least 2; change this or teacher_steps_{network}"
                )
        return None

    def networks(self, config: Config, name: str) -> dict[str, Network]:
        """Return both networks; each is trained after its teacher."""
        entry, sampling = distilled_entry(config, name), config.sampling
        first = first_teacher(config, entry)
        encoder = medsyn_entry(config, first).text_encoder
        found: dict[str, Network] = {}
        for network in NETWORKS:
            low = network == "low_res"
            stage = DistilledNetwork(
                kind="distilled",
                network=network,
                num_calls=entry.num_calls(network),
                teacher_calls=teacher_calls(config, entry, network),
                guidance_scale=sampling.guidance_scale if low else 1.0,
                end_time=sampling.end_time_low_res if low else sampling.end_time_super_res,
                train=entry.train_low_res if low else entry.train_super_res,
            )
            owner = entry.teacher
            if owner == first and not low:
                owner = medsyn_entry(config, first).super_res_from or first
            reads = encoder if low or config.super_res.text else None
            found[network] = Network(stage, text_encoder=reads, after=(network,), after_method=owner)
        return found

    def train(self, training: Training) -> None:
        """Distil a network."""
        from medsyn.training.distillation import distil, distilled_stage, open_teacher

        stage = load_stage(DistilledNetwork, training.config)
        path = training.networks.get(stage.network)
        if path is None:
            raise InputError(f"{training.config}: learns from {stage.network} of a teacher; give it by --networks")
        teacher = open_teacher(
            path,
            stage.network,
            num_calls=stage.teacher_calls,
            guidance_scale=stage.guidance_scale,
            end_time=stage.end_time,
        )
        student = distilled_stage(teacher, stage.num_calls, stage.train)
        distil(teacher, student, training.store, training.embeddings, training.state, training.out)

    def training_tables(self, config: Config, name: str) -> list[str]:
        """Return the tables of its networks and of all that its teachers are made of."""
        entry, layout = distilled_entry(config, name), Layout(config.results_dir)
        own = [layout.training_metrics(name, network) for network in NETWORKS]
        if isinstance(config.methods[entry.teacher], DistilledConfig):
            return [*own, *self.training_tables(config, entry.teacher)]
        return [*own, *super().training_tables(config, entry.teacher)]

    def parts(self, config: Config, name: str) -> dict[str, str]:
        """Return the files that run.json of an entry joins: both networks and the teacher's text encoder."""
        layout = Layout(config.results_dir)
        encoder = medsyn_entry(config, first_teacher(config, distilled_entry(config, name))).text_encoder
        return {
            **{network: layout.network(name, network) for network in NETWORKS},
            "text_encoder": layout.text_encoder(encoder),
        }


def distilled_entry(config: Config, name: str) -> DistilledConfig:
    """Return entry `name` of the configuration's methods, which must be of this kind."""
    entry = config.methods[name]
    assert isinstance(entry, DistilledConfig)
    return entry


def first_teacher(config: Config, entry: DistilledConfig) -> str:
    """Return the name of the method of kind medsyn at the beginning of a row of teachers."""
    teacher = config.methods[entry.teacher]
    return first_teacher(config, teacher) if isinstance(teacher, DistilledConfig) else entry.teacher


def teacher_calls(config: Config, entry: DistilledConfig, network: NetworkName) -> int:
    """Return how many calls the teacher of a network makes."""
    teacher = config.methods[entry.teacher]
    if isinstance(teacher, DistilledConfig):
        return teacher.num_calls(network)
    return entry.teacher_steps_low_res if network == "low_res" else entry.teacher_steps_super_res


KIND = Distilled()
