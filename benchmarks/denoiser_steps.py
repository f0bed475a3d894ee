"""Denoising and training steps of both networks with random weights, in every form that `benchmarks/gpu.py` compares.

A case is a network with the shapes of its inputs. A form is how it is computed: precision, norm, memory layout and so
on. The plain form is medsyn.models.unet: float32 without TF32, eager, the text and the condition read again in every
step, guidance as two calls. Training steps end with AdamW at a learning rate of 0, on a batch that is already there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import flat_convolutions
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medsyn.config import Config, TrainConfig
from medsyn.diffusion.base import SOLVERS
from medsyn.diffusion.objective import LowResolution, denoising_loss
from medsyn.diffusion.sampling import guided_denoiser, sample
from medsyn.diffusion.seeds import volume_noise
from medsyn.live_bytes import META, CudaRules, LiveBytes, build_on_meta
from medsyn.models.fast.denoiser import prepared_denoiser
from medsyn.models.fast.fused_norm import without_triton
from medsyn.models.fast.unet import FastUNet, set_activation_checkpointing, set_channels_last_on_gpu
from medsyn.models.unet import UNet
from medsyn.training.cost import GIB
from medsyn.training.need import DTYPES, TrainingShapes, count_training

ROOT = Path(__file__).resolve().parents[1]
TIME = 0.4  # of a step, in [0, 1]
Step = Callable[[], Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How a network is computed.

    precision: of the weights in a denoising step; in a training step autocast. norm: "auto", or one of "separate",
    "torch" (one operation without Triton) and "fused". attention: a backend of SDPBackend, else PyTorch's choice.
    compiled: a mode of torch.compile, "reduce-overhead" with CUDA graphs. flat: one of flat_convolutions.WAYS.
    batch: in place of the case's.
    """

    plain: bool = False
    precision: str = "bf16"
    norm: str = "auto"
    channels_last: bool | None = None
    attention: str | None = None
    cudnn_benchmark: bool = False
    compiled: str | None = None
    flat: str = "conv3d"
    checkpointing: bool = False
    batch: int | None = None

    @property
    def name(self) -> str:
        """The form in words, its batch apart."""
        if self.plain:
            return "plain"
        words = [self.precision] + ([] if self.norm == "auto" else [f"{self.norm} norm"])
        words += ["channels last"] if self.channels_last else []
        words += (
            [f"{self.attention.lower().replace('_', ' ').removesuffix(' attention')} attention"]
            if self.attention
            else []
        )
        words += ["cudnn.benchmark"] if self.cudnn_benchmark else []
        graphs = {"default": "compiled", "reduce-overhead": "compiled with CUDA graphs"}
        words += [graphs[self.compiled]] if self.compiled else []
        words += [] if self.flat == "conv3d" else [f"1x3x3: {self.flat}"]
        return ", ".join(words + (["checkpointing"] if self.checkpointing else []))

    @contextmanager
    def settings(self) -> Iterator[None]:
        """What the form sets for the whole process, put back at the end."""
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
        with ExitStack() as stack:
            if self.attention:
                stack.enter_context(sdpa_kernel(getattr(SDPBackend, self.attention)))
            if self.norm == "torch":
                stack.enter_context(without_triton())
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not self.plain
            torch.backends.cudnn.benchmark = self.cudnn_benchmark
            try:
                yield
            finally:
                torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[:2]
                torch.backends.cudnn.benchmark = before[2]

    def prepare(self, network: Any) -> Any:
        """Set what the form sets in a network, on any device, before its weights change their type."""
        if self.plain:
            return network
        network.norm = "fused" if self.norm == "torch" else self.norm
        if self.channels_last is not None:
            network.channels_last = self.channels_last
            set_channels_last_on_gpu(network, self.channels_last)
        set_activation_checkpointing(network, self.checkpointing)
        flat_convolutions.use(network, self.flat)
        return network


PLAIN = Form(plain=True, precision="fp32")


@dataclass(frozen=True)
class Case:
    """One network, the shapes of its inputs [B, C, D, H, W] and how it is sampled; tokens None: super-resolution."""

    name: str
    plain: UNet
    fast: FastUNet
    infer: Shape
    train: Shape
    tokens: tuple[int, int] | None
    guidance_scale: float

    def shape(self, training: bool, form: Form) -> Shape:
        """The shape of the volumes of a step."""
        shape = self.train if training else self.infer
        return (form.batch or shape[0], *shape[1:])

    def build(self, device: torch.device, form: Form) -> Any:
        """Build a form's network in float32 on a device: random weights, the same in every call."""
        network = deepcopy(self.plain if form.plain else self.fast).to_empty(device=device)
        network.reserve_statistics(self.infer[2:])
        generator = None if device == META else torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
                parameter.normal_(std=fan**-0.5, generator=generator)
            for name, buffer in network.named_buffers():
                buffer.fill_(float(name.endswith(("sigma", "variances", "variance"))))
        return form.prepare(network)

    def given(self, shape: Shape, device: torch.device) -> dict[str, Tensor]:
        """Random volume x, time t in [0, 1] and conditions for a step of `shape`."""
        generator = None if device == META else torch.Generator(device).manual_seed(1)

        def values(*shape: int) -> Tensor:
            return torch.empty(shape, device=device).normal_(generator=generator)

        made = {"x": values(*shape), "t": torch.full((shape[0],), TIME, device=device)}
        if self.tokens is None:
            return made | {"condition": values(*shape)}
        return made | {"text": values(shape[0], *self.tokens)}

    def scale(self) -> dict[str, float]:
        """The guidance, where the network reads a text."""
        return {} if self.tokens is None else {"guidance_scale": self.guidance_scale}


def cases(config: Config, width: int) -> dict[str, Case]:
    """Both networks of a configuration, without data; width: of the text states."""
    size, factor, sampling = config.preprocess.size, config.preprocess.low_res_factor, config.sampling
    low = tuple(side // factor for side in size)
    batch = 1 if sampling.batch_size == "auto" else sampling.batch_size
    crop = config.super_res.train.crop_size or size
    tokens = (config.text.num_tokens, width)
    high = config.super_res.unet.model_copy(update={"num_bottom_blocks": 1})
    with META:
        low_nets = [build(config.low_res.unet, num_tokens=tokens[0], cond_dim=width) for build in (UNet, FastUNet)]
        high_nets = [build(high, condition_channels=4) for build in (UNet, FastUNet)]
    trained = (config.low_res.train.micro_batch_size, 4, *low)
    return {
        "low_res": Case("low_res", *low_nets, (batch, 4, *low), trained, tokens, sampling.guidance_scale),
        "super_res": Case(
            "super_res", *high_nets, (1, 4, *size), (config.super_res.train.micro_batch_size, 4, *crop), None, 1.0
        ),
    }


def step_of(case: Case, training: bool, form: Form, device: torch.device) -> Step:
    """A denoising step (what a volume needs once is made in the first call), or a training step, in its settings."""
    network = case.build(device, form)
    given = case.given(case.shape(training, form), device)
    step = _training_step(case, network, form, given) if training else _denoising_step(case, network, form, given)

    def with_settings() -> Tensor:
        with form.settings():
            return step()

    return with_settings


def _denoising_step(case: Case, network: Any, form: Form, given: dict[str, Tensor]) -> Step:
    if not form.plain:
        network.set_precision(DTYPES[form.precision])
    compiled(network, form)
    conditions = {key: given[key] for key in ("text", "condition") if key in given}
    made = []

    @torch.no_grad()
    def denoise() -> Tensor:
        if not made:
            make = guided_denoiser if form.plain else prepared_denoiser
            made.append(make(network, **conditions, **case.scale()))
        return made[0](given["x"], 1000 * TIME)

    return denoise


def _training_step(case: Case, network: Any, form: Form, given: dict[str, Tensor]) -> Step:
    compiled(network, form)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0)
    half, device = form.precision != "fp32", given["x"].device.type

    def train() -> Tensor:
        """Return the loss and the norm of each parameter's gradient."""
        with torch.autocast(device, DTYPES[form.precision] if half else None, enabled=half):
            loss = loss_of(network, given)
        loss.backward()
        norms = [part.grad.norm().float() for part in network.parameters() if part.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack([loss.detach().float(), *norms])

    return train


def compiled(network: Any, form: Form) -> None:
    """Compile a network in place, if the form asks for it; on a CPU it is captured only, which takes seconds."""
    if form.compiled and next(network.parameters()).is_cuda:
        network.compile(mode=form.compiled)
    elif form.compiled:
        network.compile(backend="eager")


def loss_of(network: Any, given: dict[str, Tensor]) -> Tensor:
    """The denoising loss of what `Case.given` made."""
    conditions = {key: given[key] for key in ("text", "condition") if key in given}
    return denoising_loss(network, given["x"].clamp(-1, 1), given["x"], given["t"], **conditions)


def timed(step: Step, device: torch.device) -> tuple[float, float | None, Tensor]:
    """Seconds (on one thread of a CPU: its time), peak GiB of GPU memory and the result of one call."""
    if device.type == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        result = step()
        return clock() - start, None, result
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = step()
    torch.cuda.synchronize(device)
    took = time.perf_counter() - start
    return took, torch.cuda.max_memory_allocated(device) / GIB, result.clone()


@cache
def _flops(case: Case, training: bool) -> int:
    given = case.given(case.train if training else case.infer, META)
    with FlopCounterMode(display=False) as counter:
        if training:
            loss_of(case.plain, given).backward()
            case.plain.zero_grad()
        else:
            conditions = {key: given[key] for key in ("text", "condition") if key in given}
            guided_denoiser(case.plain, **conditions, **case.scale())(given["x"], 1000 * TIME)
    return counter.get_total_flops()


def count_flops(case: Case, training: bool, batch: int | None = None) -> float:
    """Operations (2 per multiply-add) of the plain step at the case's batch or another, counted without doing them."""
    own = (case.train if training else case.infer)[0]
    return _flops(case, training) * (batch or own) / own


def counted_bytes(case: Case, training: bool, form: Form) -> int:
    """Bytes that the planner's rules count for a step, without data; for training without an average of the weights.

    The norm of "auto" is counted as one operation, as it is on a GPU. `medsyn plan` still counts separate ones.
    """
    return _counted(case, training, form.plain, form.norm == "separate", form.precision, form.checkpointing, form.batch)


@cache
def _counted(
    case: Case, training: bool, plain: bool, separate: bool, precision: str, checkpointing: bool, batch: int | None
) -> int:
    norm = "separate" if separate else "fused"
    form = Form(plain=plain, norm=norm, precision=precision, checkpointing=checkpointing, batch=batch)
    shape = case.shape(training, form)
    if training:
        shapes = TrainingShapes(
            lambda: case.build(META, form), loss_of, lambda count: case.given((count, *shape[1:]), META)
        )
        config = TrainConfig(batch_size=shape[0], micro_batch_size=shape[0], precision=precision)
        need = count_training(shapes, config)
        return need.counted - need.parts["ema"]
    live = LiveBytes()
    network = build_on_meta(lambda: case.build(META, form), live)
    with live, CudaRules():
        given = case.given(shape, META)
        step = _denoising_step(case, network, form, given)
        step()
        live.restart()
        step()
    return live.peak


def whole_volume(
    config: Config, built: dict[str, Case], forms: dict[str, Form], device: torch.device
) -> Callable[[int, int], Tensor]:
    """Return a function of both numbers of steps that samples one volume, as `medsyn generate` does.

    Without reading the text and writing files; the noise is made on the CPU.
    """
    low, high = built["low_res"], built["super_res"]
    networks = {name: built[name].build(device, form) for name, form in forms.items()}
    for name, network in networks.items():
        network.set_precision(DTYPES[forms[name].precision])
        compiled(network, forms[name])
    text = low.given((1, *low.infer[1:]), device)["text"]
    solver, low_resolution = SOLVERS[config.sampling.solver], LowResolution(config.preprocess.low_res_factor)

    @torch.no_grad()
    def volume(low_steps: int, high_steps: int) -> Tensor:
        with forms["low_res"].settings():
            denoiser = prepared_denoiser(networks["low_res"], text=text, **low.scale())
            noise = volume_noise([0], low.infer[1:], "low_res").to(device)
            small = sample(solver, denoiser, noise, low_steps)
        with forms["super_res"].settings():
            denoiser = prepared_denoiser(networks["super_res"], condition=low_resolution.enlarge(small))
            noise = volume_noise([0], high.infer[1:], "super_res").to(device)
            return sample(solver, denoiser, noise, high_steps)

    return volume
