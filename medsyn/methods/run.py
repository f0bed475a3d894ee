"""A trained run of our model and how it samples volumes: two denoisers, a text encoder and sampling settings.

A run is run.json: a label and paths relative to it, one of them that of its sampling settings. Low resolution is
sampled from text and noise, enlarged as in training, and refined by the super-resolution network. A volume depends on
its prompt, its seed and the settings, not on the other volumes of its batch. Channels that are given (image, lobes,
airway, vessels) are fixed at low resolution, as the authors do, or with `fix_super_res` at both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from medsyn.config import Distillation, DistilledStage, ModelStage, SamplingStage, load_stage, validate
from medsyn.device import network_device
from medsyn.diffusion.base import SOLVERS, Denoiser, Solver
from medsyn.diffusion.objective import LowResolution
from medsyn.diffusion.sampling import sample
from medsyn.diffusion.seeds import volume_noise
from medsyn.errors import InputError
from medsyn.files import read_json, sha256, write_json
from medsyn.memory import available_bytes, keep_freed_memory, peak_bytes
from medsyn.methods.base import Method, Prompt
from medsyn.methods.sampling_plan import SHARE_OF_MEMORY, SamplingPlan, plan_sampling
from medsyn.models.channels import STRUCTURE_OF, from_channel, to_channel
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.footprint import forward_bytes
from medsyn.models.fast.unet import FastUNet
from medsyn.models.weights import load, read_stage
from medsyn.progress import log
from medsyn.stages.shards import identity_of
from medsyn.tensors import count_numbers
from medsyn.volume import Volume

if TYPE_CHECKING:
    from medsyn.text.encoder import TextEncoder

_RUN_KEYS = ("label", "low_res", "super_res", "text_encoder", "sampling")
_LARGEST_BATCH = 32
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run(Method):
    """A trained run in memory, on the device it will use."""

    label: str
    low_res: FastUNet
    super_res: FastUNet
    channels: tuple[str, ...]
    window_hu: tuple[float, float]
    low_resolution: LowResolution
    text_encoder: Path
    settings: SamplingStage
    hashes: dict[str, str]
    device: torch.device
    distilled: Mapping[str, Distillation] = field(default_factory=dict)
    """How those of the networks "low_res" and "super_res" must be sampled that were distilled."""

    def __post_init__(self) -> None:
        self.fixable = self.channels
        readers = [network for network in (self.low_res, self.super_res) if network.null_cond_emb is not None]
        if self.settings.sampling.null_text == "zero" and any(network.config.mask_padding for network in readers):
            raise InputError(
                f"{self.label}: null_text zero is all padding to this network, which ignores padding; expected learned"
            )
        if self.settings.sampling.null_text == "zero" and self.low_res.data_text_weight is not None:
            raise InputError(f"{self.label}: null_text zero is all padding, a text to num_components; expected learned")
        self._check_grid()
        for network in (self.low_res, self.super_res):
            network.set_precision(_DTYPES[self.settings.sampling.precision])
        if self.settings.sampling.compile:  # "reduce-overhead" adds CUDA graphs; a CPU has none
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            for network in (self.low_res, self.super_res):
                network.compile(mode=mode)

    @cached_property
    def plan(self) -> SamplingPlan:
        """How volumes are sampled in the memory that is found; logged, and an InputError where nothing fits."""
        plan = plan_sampling(
            self.settings.sampling,
            (self.low_res, self.super_res),
            self.settings.preprocess.size,
            self.low_resolution.factor,
            available_bytes(self.device),
        )
        log.info("%s", plan.in_words())
        return plan

    def _check_grid(self) -> None:
        """Raise InputError if the mean volume of the low-resolution network lies on another grid than the settings'."""
        mean = self.low_res.data_mean
        wanted = [edge // self.low_resolution.factor for edge in self.settings.preprocess.size]
        if mean is not None and list(mean.shape[1:]) != wanted:
            raise InputError(
                f"{self.label}: low_res has the mean volume of a grid {list(mean.shape[1:])}, expected"
                f" {wanted} (preprocess.size over low_res_factor); sample at the size of its training"
            )

    @property
    def _takes_text(self) -> bool:
        return any(network.null_cond_emb is not None for network in (self.low_res, self.super_res))

    @cached_property
    def _encoder(self) -> TextEncoder:
        return open_text_encoder(self.text_encoder)

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Open the language model if a prompt has a text and a network takes it."""
        if self._takes_text and any(prompt.text is not None for prompt in prompts):
            _ = self._encoder

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return text states (n, num_tokens, hidden), rounded to the float16 in which training reads them."""
        states, _ = self._encoder.encode(list(texts))
        return torch.as_tensor(states).half().float().to(self.device)

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[dict[str, Volume]]:
        """Yield the volumes of each prompt by file name: `volume` int16 HU and the structures uint8."""
        for array in self.sample_arrays(prompts):
            yield self.to_volumes(array)

    def identity(self) -> dict[str, Any]:
        """Return hashes of the networks and of the language model, and the kind of device, which rounds differently."""
        return {"weights": self.hashes, "encoder": identity_of(self.text_encoder), "device": self.device.type}

    @property
    def num_parameters(self) -> int | None:
        """Return the parameters of both networks and of the language model, None where that is no safetensors file."""
        networks = (self.low_res, self.super_res)
        own = sum(parameter.numel() for network in networks for parameter in network.parameters())
        try:
            return own + count_numbers(self.text_encoder / "model.safetensors", "bert.")
        except (OSError, SafetensorError):
            return None

    def record(self, prompt: Prompt) -> dict[str, Any]:
        """Return hashes of the networks and the guidance scale of one volume."""
        return {"weights": self.hashes, "guidance_scale": self.guidance_scale(prompt)}

    @torch.no_grad()
    def sample_arrays(self, prompts: Sequence[Prompt]) -> NDArray:
        """Return (n, C, D, H, W) in [-1, 1] at full resolution; all prompts fix the same channels and share w."""
        _ = self.plan  # a volume that does not fit is an error before anything is computed
        sampling = self.settings.sampling
        low_size = [s // self.low_resolution.factor for s in self.settings.preprocess.size]
        states = self._states(prompts)
        seeds = [prompt.seed for prompt in prompts]
        fixed, channels = self._fixed(prompts)
        noise = volume_noise(seeds, (len(self.channels), *low_size), "low_res").to(self.device)
        given = None if fixed is None else self.low_resolution.reduce(fixed)
        denoiser = self._low_res_denoiser(prompts, states)
        low = self._solve(
            "low_res",
            denoiser,
            noise,
            sampling.num_steps_low_res,
            end_time=sampling.end_time_low_res,
            fixed=given,
            fixed_channels=channels,
            description="low resolution",
        )
        text, null = self._text(self.super_res, prompts, states)
        if not sampling.fix_super_res:
            fixed, channels = None, []
        return self.super_resolve(low, seeds, text=text, null=null, fixed=fixed, channels=channels)

    @torch.no_grad()
    def super_resolve(
        self,
        low: Tensor,
        seeds: Sequence[int],
        *,
        text: Tensor | None = None,
        null: Tensor | None = None,
        fixed: Tensor | None = None,
        channels: Sequence[int] = (),
    ) -> NDArray:
        """Return (n, C, D, H, W) in [-1, 1], sampled by the super-resolution network.

        low: clean low-resolution volumes [n, C, d, h, w]; seeds: of the noise; text: states (n, num_tokens, hidden) for
        a network that takes text, None: no text; null: states (1, num_tokens, hidden) that stand for no text, None: the
        learned ones; fixed: volumes [n, C, D, H, W] whose `channels` are kept.
        """
        size = self.settings.preprocess.size
        self.super_res.slab_slices = self.plan.slices
        volumes = []
        for i, seed in enumerate(seeds):  # one at a time: memory, and nothing depends on the batch
            condition = self.low_resolution.enlarge(low[i : i + 1])
            own = None if text is None else text[i : i + 1]
            noise = volume_noise([seed], (len(self.channels), *size), "super_res").to(self.device)
            volume = self._solve(
                "super_res",
                prepared_denoiser(self.super_res, text=own, null=null, condition=condition),
                noise,
                self.settings.sampling.num_steps_super_res,
                end_time=self.settings.sampling.end_time_super_res,
                fixed=None if fixed is None else fixed[i : i + 1],
                fixed_channels=channels,
                description="super-resolution",
            )
            volumes.append(volume.cpu().numpy()[0])
        return np.stack(volumes)

    def _solve(self, network: str, denoiser: Denoiser, noise: Tensor, num_steps: int, **given: Any) -> Tensor:
        """Sample with the solver of the settings; a result that it must not give is an InputError.

        A distilled network is sampled by its own calls, whatever the settings say of solver, steps and end.
        """
        name = self.settings.sampling.solver
        if network in self.distilled:
            name, given = "ddim", {**given, "times": self.distilled[network].times}
        solver = SOLVERS[name]
        if not isinstance(solver, Solver):
            found = type(solver).__name__
            raise InputError(
                f"sampling.solver '{name}' is a {found}, expected a medsyn.diffusion.base.Solver; repair it"
            )
        try:
            solver.times(num_steps)
        except ValueError as error:
            raise InputError(f"sampling.solver '{name}': {error}") from None
        volumes = sample(solver, denoiser, noise, num_steps, **given)
        if volumes.shape != noise.shape:
            found, expected = list(volumes.shape), list(noise.shape)
            raise InputError(f"sampling.solver '{name}' gave volumes of shape {found}, expected {expected}; repair it")
        if not volumes.isfinite().all():
            raise InputError(
                f"sampling.solver '{name}' gave values that are not finite, expected [-1, 1]; use another solver, or"
                " sampling.precision fp32 if that is not set, or train the network again"
            )
        return volumes

    def _states(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """Return the text states (n, num_tokens, hidden) of prompts, those without text as ''; None if none is read."""
        if not self._takes_text or all(prompt.text is None for prompt in prompts):
            return None
        return self.encode([prompt.text or "" for prompt in prompts])

    def _text(
        self, network: FastUNet, prompts: Sequence[Prompt], states: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return a network's text states (n, num_tokens, hidden) or None, and what stands for no text (1, ...)."""
        learned = network.null_cond_emb
        if learned is None:
            return None, None
        null = torch.zeros_like(learned) if self.settings.sampling.null_text == "zero" else learned
        if states is None:
            return None, null
        without = torch.tensor([prompt.text is None for prompt in prompts], device=self.device)[:, None, None]
        return torch.where(without, null.to(states.dtype), states), null

    def _low_res_denoiser(self, prompts: Sequence[Prompt], states: Tensor | None) -> Denoiser:
        text, null = self._text(self.low_res, prompts, states)
        if text is None:
            return prepared_denoiser(self.low_res, null=null)
        both = 2 * len(prompts) * self._low_res_bytes <= SHARE_OF_MEMORY * available_bytes(self.device)
        scales = {self.guidance_scale(prompt) for prompt in prompts}
        if len(scales) > 1:
            raise ValueError(f"prompts of one batch need one guidance scale, got {sorted(scales)}")
        scale = 1.0 if "low_res" in self.distilled else scales.pop()  # distilled in: one call of the network
        return prepared_denoiser(self.low_res, text=text, guidance_scale=scale, one_batch=both, null=null)

    def guidance_scale(self, prompt: Prompt) -> float:
        """Return the guidance scale of a prompt: its own, or that of the sampling settings or of the distillation."""
        if "low_res" in self.distilled:
            learned = self.distilled["low_res"].guidance_scale
            if prompt.guidance_scale not in (None, learned):
                raise InputError(
                    f"{prompt.sample_id}: guidance_scale {prompt.guidance_scale}, expected {learned}, which the network"
                    f" of {self.label} was distilled with; leave it out, or sample with the teacher"
                )
            return learned
        return self.settings.sampling.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale

    @cached_property
    def batch_size(self) -> int:  # type: ignore[override]
        """Volumes to sample at a time: the setting, or as many as the memory found allows, at most 32."""
        asked = self.settings.sampling.batch_size
        if asked != "auto":
            return asked
        each = self._low_res_bytes
        each *= 1 if self.settings.sampling.guidance_scale == 1.0 else 2
        finished = 3 * 4 * len(self.channels) * math.prod(self.settings.preprocess.size)  # noise, volume, stacked
        host = torch.device("cpu")
        if self.device.type == "cpu":
            most = SHARE_OF_MEMORY * available_bytes(host) / (each + finished)
        else:
            most = SHARE_OF_MEMORY * min(available_bytes(self.device) / each, available_bytes(host) / finished)
        return min(max(int(most), 1), _LARGEST_BATCH)

    @cached_property
    def _low_res_bytes(self) -> int:
        """Bytes of a forward pass for one volume, counted from the widths of the network; on a GPU measured as well."""
        element = _DTYPES[self.settings.sampling.precision].itemsize
        each = forward_bytes(
            self.low_res, [s // self.low_resolution.factor for s in self.settings.preprocess.size], element
        )
        return max(each, peak_bytes(self._one_pass, self.device)) if self.device.type == "cuda" else each

    @torch.no_grad()
    def _one_pass(self) -> None:
        size = [s // self.low_resolution.factor for s in self.settings.preprocess.size]
        volume = torch.zeros(1, len(self.channels), *size, device=self.device)
        self.low_res(volume, torch.zeros(1, device=self.device))

    def to_volumes(self, array: NDArray) -> dict[str, Volume]:
        """Return channels (C, D, H, W) in [-1, 1] as volumes by file name: `volume` int16 HU and uint8 structures."""
        return {
            STRUCTURE_OF.get(channel, "volume"): self.on_grid(from_channel(channel, values, self.window_hu))
            for channel, values in zip(self.channels, array, strict=True)
        }

    def _fixed(self, prompts: Sequence[Prompt]) -> tuple[Tensor | None, list[int]]:
        names = tuple(prompts[0].fixed)
        if not names:
            return None, []
        indices = [self.channels.index(name) for name in names]
        values = np.zeros((len(prompts), len(self.channels), *self.settings.preprocess.size), np.float32)
        for i, prompt in enumerate(prompts):
            for name, index in zip(names, indices, strict=True):
                values[i, index] = to_channel(name, prompt.fixed[name], self.window_hu)
        return torch.from_numpy(values).to(self.device), indices


def open_text_encoder(folder: Path) -> TextEncoder:
    """Open the language model of a run; imported here, because a run samples without it until a prompt has a text."""
    from medsyn.text.encoder import TextEncoder

    return TextEncoder.from_folder(folder)


def assemble(out: Path, *, label: str, low_res: Path, super_res: Path, text_encoder: Path, sampling: Path) -> None:
    """Write run.json: the label, and paths relative to its folder; that of the settings, whose content may change."""
    load_stage(SamplingStage, sampling)
    load_pair(low_res, super_res)
    folder = out.parent.resolve()
    paths = {"low_res": low_res, "super_res": super_res, "text_encoder": text_encoder, "sampling": sampling}
    for path in paths.values():
        if not path.exists():
            raise InputError(f"{path}: no such file")
    relative = {name: os.path.relpath(path.resolve(), folder) for name, path in paths.items()}
    write_json(out, {"label": label, **relative})


def load_pair(low_res: Path, super_res: Path) -> tuple[FastUNet, FastUNet, ModelStage]:
    """Load both networks and the settings of the second; different channels or windows are an InputError."""
    low, low_stage = load(low_res)
    high, high_stage = load(super_res)
    for path, stage, wanted in ((low_res, low_stage, "low_res"), (super_res, high_stage, "super_res")):
        if stage.stage != wanted:
            raise InputError(f"{path}: a {stage.stage} network, {wanted} is wanted here")
    for name in ("channels", "window_hu", "low_res_factor", "low_res_reduction"):
        if getattr(low_stage, name) != getattr(high_stage, name):
            raise InputError(f"{super_res}: {name} differs from that of {low_res}; train both with the same settings")
    texts = [net.null_cond_emb.shape[1:] for net in (low, high) if net.null_cond_emb is not None]
    if len(set(texts)) > 1:
        raise InputError(
            f"{super_res}: takes text states of shape {tuple(texts[1])} (tokens, width), {low_res} those of"
            f" {tuple(texts[0])}; train both with the same text encoder"
        )
    return low, high, high_stage


def sampling_with(weights: Path, config: Path | None, **changes: Any) -> SamplingStage:
    """Return the settings of `config`, or of the file that run.json names, with `changes` that are not None."""
    if config is None:
        config = run_files(weights)["sampling"]
    given = {name: value for name, value in changes.items() if value is not None}
    values = load_stage(SamplingStage, config).model_dump(mode="json")
    values["sampling"] |= given
    stage = validate(SamplingStage, values, config)
    if max(stage.sampling.num_steps_low_res, stage.sampling.num_steps_super_res) > 1000:
        raise InputError(f"{config}: a solver takes at most 1000 steps")
    return stage


def run_files(weights: Path) -> dict[str, Path]:
    """Return the files that run.json, or that of a folder, names: low_res, super_res, text_encoder and sampling."""
    source, record = _run_record(weights)
    return {name: source.parent / record[name] for name in _RUN_KEYS if name != "label"}


def open_run(weights: Path, settings: SamplingStage) -> Run:
    """Load the networks of run.json (or of the folder that holds it) onto the GPU if there is one."""
    keep_freed_memory()
    source, record = _run_record(weights)
    folder = source.parent
    paths = {name: folder / record[name] for name in ("low_res", "super_res")}
    low, high, stage = load_pair(paths["low_res"], paths["super_res"])
    device = network_device()
    return Run(
        label=record["label"],
        low_res=low.to(device),
        super_res=high.to(device),
        channels=stage.channels,
        window_hu=stage.window_hu,
        low_resolution=LowResolution.of(stage),
        text_encoder=folder / record["text_encoder"],
        settings=settings,
        hashes={name: sha256(path) for name, path in paths.items()},
        device=device,
        distilled={
            name: found.distillation
            for name, path in paths.items()
            if isinstance(found := read_stage(path), DistilledStage)
        },
    )


def _run_record(weights: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of run.json, named itself or by its folder; another file is an InputError."""
    source = weights / "run.json" if weights.is_dir() else weights
    record = read_json(source)
    missing = [key for key in _RUN_KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise InputError(f"{source}: not a run written by `medsyn assemble` ({missing[0]} is missing)")
    for key in _RUN_KEYS:
        if not isinstance(record[key], str) or not record[key] or "\0" in record[key]:
            raise InputError(
                f"{source}: {key} is {str(record[key])[:80]!r}, expected text; run `medsyn assemble` again"
            )
    return source, record
