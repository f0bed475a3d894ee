"""Train a network to do in one call what its teacher does in several: distillation to few calls.

The student has the network of its teacher and begins with its weights. Where the teacher is guided by the text, the
student learns the guided result, so that sampling calls it once where the teacher is called twice (Meng et al. 2023,
arXiv:2210.03142). Where the teacher starts from a linear estimate (`unet.num_components`), the student's estimate is
the exact solution for Gaussian volumes between its calls, under guidance. A teacher may itself have been distilled:
halving the calls again and again is the progressive distillation of Salimans and Ho (2022, arXiv:2202.00512).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medsyn.config import Distillation, DistilledStage, ModelStage, TrainConfig
from medsyn.diffusion.distillation import intervals, snr_weight, teacher_target, teacher_times
from medsyn.diffusion.sampling import sample
from medsyn.diffusion.schedule import TAU_PER_T, add_noise
from medsyn.diffusion.solvers import DDIM
from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.models.fast.unet import FastUNet
from medsyn.models.weights import build, load, save
from medsyn.progress import log
from medsyn.provenance import provenance
from medsyn.training.checkpoint import flatten
from medsyn.training.data import Embeddings, Store, TrainingData, reads_high
from medsyn.training.denoiser import network_conditions
from medsyn.training.driver import claim_training, train_to_files, write_pictures
from medsyn.training.loop import TrainingResult
from medsyn.training.task import Networks, Task

_NUM_PREVIEWS = 4


@dataclass(frozen=True)
class Teacher:
    """A trained network and how it is sampled: `times` of its calls (tau), end_time of the last one, guidance.

    distilled: whether guidance is already in the network.
    """

    network: FastUNet
    stage: ModelStage
    sha256: str
    times: tuple[float, ...]
    end_time: float
    guidance_scale: float
    distilled: bool = False

    def predict(self, x: Tensor, tau: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """Return x0 [B, C, D, H, W] of x at times tau [B], under guidance; where the text is dropped there is none."""
        network = self.network.to(x.device)
        x0 = network(x, tau, **conditions)
        if self.distilled or self.guidance_scale == 1.0 or "text" not in conditions:
            return x0
        null = network(x, tau, **{**conditions, "drop_text": torch.ones_like(conditions["drop_text"])})
        return null + self.guidance_scale * (x0 - null)


def open_teacher(path: Path, network: str, *, num_calls: int, guidance_scale: float, end_time: float) -> Teacher:
    """Load a teacher that is sampled in `num_calls` calls; one that does not fit these settings is an InputError."""
    loaded, stage = load(path)
    if stage.stage != network:
        raise InputError(f"{path}: a {stage.stage} network, expected {network}; name the network of this resolution")
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    if not isinstance(stage, DistilledStage):
        times = tuple(teacher_times(num_calls, end_time))
        return Teacher(loaded, stage, sha256(path), times, end_time, guidance_scale)
    own = stage.distillation
    wanted = (num_calls, guidance_scale, end_time)
    found = (len(own.times), own.guidance_scale, own.end_time)
    for name, given, learned in zip(("calls", "guidance_scale", "end_time"), wanted, found, strict=True):
        if given != learned:
            raise InputError(f"{path}: was distilled with {name} {learned}, expected {given}; set the same for both")
    return Teacher(loaded, stage, sha256(path), own.times, own.end_time, own.guidance_scale, distilled=True)


def distilled_stage(teacher: Teacher, num_calls: int, train: TrainConfig) -> DistilledStage:
    """Return the settings of the student: those of its teacher with the training `train`, and its calls.

    Raises InputError unless the teacher's calls are a multiple of `num_calls`.
    """
    try:
        times = tuple(part[0] for part in intervals(teacher.times, num_calls))
    except ValueError as error:
        raise InputError(f"{teacher.stage.stage}: {error}; choose numbers of calls that divide each other") from None
    settings = teacher.stage.model_dump(exclude={"distillation"})
    settings["train"] |= train.model_dump()
    record = Distillation(
        teacher=teacher.sha256, guidance_scale=teacher.guidance_scale, times=times, end_time=teacher.end_time
    )
    return DistilledStage(**settings, distillation=record)


def distil(
    teacher: Teacher, stage: DistilledStage, shards: Sequence[Path], embeddings: Path | None, state: Path, out: Path
) -> None:
    """Train the student to its files; `state` holds its checkpoints and is removed when `out` is complete."""
    claim_training(out, state, load)
    texts = None if embeddings is None else Embeddings(embeddings, stage.sections)
    data = TrainingData(stage, Store(shards, "high" if reads_high(stage) else "low"), texts)
    _check_fit(teacher, data)
    calls = len(stage.distillation.times)
    log.info("%s: %d calls of the teacher in %d, %d volumes", stage.stage, len(teacher.times), calls, len(data.store))

    def write(trained: TrainingResult) -> None:
        facts = {"num_volumes": len(data.store), "seed": stage.train.seed, "num_processes": trained.num_processes}
        save(out, trained.network.state_dict(), stage, provenance(stage, data=data.identity(), **facts))

    def preview(networks: Networks, path: Path) -> None:
        write_samples(path, networks[""], stage, data)

    train_to_files(distillation_task(teacher, stage, data), stage.train, state, out, write=write, preview=preview)


def distillation_task(teacher: Teacher, stage: DistilledStage, data: TrainingData) -> Task:
    """Return the training loop's task of a student."""
    parts = torch.tensor(intervals(teacher.times, len(stage.distillation.times)))

    def student() -> FastUNet:
        null = teacher.network.null_cond_emb
        network = build(stage, None if null is None else null.shape[2])
        if (mean := teacher.network.data_mean) is not None:
            network.reserve_statistics(mean.shape[1:])
        network.load_state_dict(teacher.network.state_dict())
        if not teacher.distilled:
            network.fold_guidance(teacher.guidance_scale)
        network.set_calls(stage.distillation.times, stage.distillation.end_time)
        return network

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        # A sample's time chooses the call, so `timestep_power` below 1 trains the first calls more often.
        times = parts.to(batch["t"])[(len(parts) * (1 - batch["t"])).long().clamp(max=len(parts) - 1)]
        x = add_noise(batch["x0"], batch["epsilon"], times[:, 0] / TAU_PER_T)
        conditions = network_conditions(batch, stage)
        with torch.no_grad():
            target = teacher_target(lambda x, tau: teacher.predict(x, tau, conditions).float(), x, times)
        error = (network(x, times[:, 0], **conditions).float() - target).square().mean(dim=(2, 3, 4))
        if "weights" in batch:  # of the channels; those of the noise are replaced by the paper's below
            error = error * (batch["weights"] / batch["weights"].mean(dim=1, keepdim=True))
        return (snr_weight(times[:, 0])[:, None] * error).mean()

    return Task(
        name=f"{stage.stage} in {len(parts)} calls",
        build=student,
        batch=data.batch,
        loss=loss,
        identity={**flatten(stage.model_dump(mode="json", exclude={"train"})), **data.identity()},
    )


def write_samples(path: Path, network: nn.Module, stage: DistilledStage, data: TrainingData) -> None:
    """Write a PNG of training volumes and, below them, what the student samples with their texts or conditions."""
    device = next(network.parameters()).device
    samples = [data.sample(number) for number in range(min(_NUM_PREVIEWS, len(data.store)))]
    batch = {key: torch.stack([sample[key] for sample in samples]).to(device) for key in samples[0]}
    if "drop_text" in batch:
        batch["drop_text"] = torch.zeros_like(batch["drop_text"])
    conditions = network_conditions(batch, stage)

    def denoiser(x: Tensor, tau: float) -> Tensor:
        return network(x, torch.full((len(x),), tau, device=device), **conditions)

    times = stage.distillation.times
    made = sample(DDIM, denoiser, batch["epsilon"], len(times), times=times, description="preview")
    write_pictures(path, [batch["x0"][:, :1], made[:, :1]])


def _check_fit(teacher: Teacher, data: TrainingData) -> None:
    mean, null = teacher.network.data_mean, teacher.network.null_cond_emb
    if mean is not None and tuple(mean.shape[1:]) != tuple(data.size):
        raise InputError(
            f"{teacher.stage.stage}: the teacher has a grid of {list(mean.shape[1:])}, the store {list(data.size)},"
            " expected the same; use the store of its training"
        )
    given = None if data.embeddings is None else data.embeddings.hidden_size
    wanted = None if null is None else null.shape[2]
    if given != wanted:
        raise InputError(
            f"{teacher.stage.stage}: text states of width {given}, expected {wanted}, which the teacher takes; give"
            " the embeddings of its training by --embeddings"
        )
