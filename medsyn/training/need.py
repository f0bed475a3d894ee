"""What one training run needs of a GPU's memory, part by part, counted without data (medsyn.live_bytes).

`count_phased_training` follows `medsyn.training.loop` through the phases of a step, and takes the largest moment. The
float32 weights of all networks, the averages (EMA) and the moments of every phase's AdamW stay on the device. The
gradients of a phase go with its update. While gradients are accumulated the first micro-batch's stay beside the
activations of the next one. bfloat16 and float16 come from autocast, whose 16-bit copies of the weights live through
the forward pass and as long as the backward pass needs them. With several processes the exchange of the gradients takes
two copies of them at once; for a plain Task (`count_training`) DistributedDataParallel keeps buckets instead, of which
the gradients become views in the last micro-batch of a step only: a second copy before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils.operations import convert_to_fp32
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.live_bytes import META, CudaRules, LiveBytes
from medsyn.models.fast.unet import set_activation_checkpointing
from medsyn.training.cost import GIB
from medsyn.training.ema import Ema
from medsyn.training.processes import to_device
from medsyn.training.task import Networks, Phase

CONTEXT_BYTES = GIB
"""Allowance: CUDA context, loaded kernels, handles of cuBLAS and cuDNN, what the driver keeps of the card."""
EXCHANGE_BYTES = GIB // 2
"""Allowance: NCCL's buffers, with several processes."""
FRAGMENTATION = 0.08
"""Allowance: share of activations and temporaries for gaps of the caching allocator and cuDNN's work space."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Need:
    """Bytes of a GPU by part at the moment of the largest total.

    `parts` are counted: weights, gradients, moments, ema, buckets, weight_copies (16 bits), activations (kept for the
    backward pass, or all of a pass without gradients), temporaries (what lives beside them at the peak).
    """

    parts: Mapping[str, int]
    num_processes: int = 1

    @property
    def counted(self) -> int:
        """Sum of the parts: what torch.cuda.max_memory_allocated is compared with."""
        return sum(self.parts.values())

    @property
    def allowance(self) -> int:
        """What is not counted but must be there: see CONTEXT_BYTES, EXCHANGE_BYTES, FRAGMENTATION."""
        moving = sum(self.parts.get(name, 0) for name in ("activations", "temporaries", "weight_copies"))
        exchange = EXCHANGE_BYTES if self.num_processes > 1 else 0
        return CONTEXT_BYTES + exchange + round(FRAGMENTATION * moving)

    @property
    def total(self) -> int:
        """Counted and allowance together."""
        return self.counted + self.allowance

    def in_words(self) -> str:
        """Describe the total, and the parts of at least a tenth of a GiB, in GiB."""
        parts = [*self.parts.items(), ("allowance", self.allowance)]
        named = [f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in parts if size >= GIB / 10]
        return f"{self.total / GIB:.1f} GiB ({', '.join(named)})"


@dataclass(frozen=True)
class TrainingShapes:
    """What `count_training` counts: build and loss as in `medsyn.training.task.Task`, batch(count) makes samples
    without data.

    share_true: see `CudaRules`. preview(network): what is computed without gradients between two steps.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    batch: Callable[[int], dict[str, Tensor]]
    share_true: float = 1.0
    preview: Callable[[nn.Module], object] | None = None


def count_training(training: TrainingShapes, config: TrainConfig, *, num_processes: int = 1) -> Need:
    """Count one optimiser step of a plain Task with an average of its weights."""
    preview = training.preview
    phase = Phase(
        "",
        ("",),
        lambda _update, slots: training.batch(len(slots)),
        lambda networks, batch, _step: training.loss(networks[""], batch),
    )
    return count_phased_training(
        lambda: {"": training.build()},
        [phase],
        config,
        averaged=("",),
        num_processes=num_processes,
        share_true=training.share_true,
        preview=None if preview is None else lambda networks: preview(networks[""]),
    )


def count_phased_training(
    build: Callable[[], Networks],
    phases: Sequence[Phase],
    config: TrainConfig,
    *,
    averaged: Sequence[str] = (),
    num_processes: int = 1,
    share_true: float = 1.0,
    preview: Callable[[Networks], object] | None = None,
) -> Need:
    """Count one optimiser step of a run that is under way, in which every phase takes part; then the preview.

    build, phases and averaged are those of a `medsyn.training.task.PhasedTask`. Only the shapes of a batch count, and
    it may lie on the meta device. share_true: see `CudaRules`. preview(networks): what is computed without gradients
    between two steps.
    """
    count = _Count(build, phases, config, num_processes, share_true)
    with count.live:
        averages = [Ema(count.networks[name], decay=config.ema_decay) for name in averaged]
        count.stands("ema")
        moments: list[Tensor] = []
        for phase in phases:
            moments += count.update(phase)
        count.standing["moments"] = sum(moment.nbytes for moment in moments)
        for phase in phases:
            count.phase(phase)
        if preview is not None:
            count.preview(preview)
    del averages, moments
    largest = max(count.moving, key=lambda parts: sum(parts.values()))
    return Need(count.standing | largest, num_processes)


@dataclass
class _Count:
    """Networks without data, what stands on the device all the time, and the moments of a step."""

    build: Callable[[], Networks]
    phases: Sequence[Phase]
    config: TrainConfig
    num_processes: int
    share_true: float
    standing: dict[str, int] = field(default_factory=dict)
    moving: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.live, self.rules = LiveBytes(), CudaRules(self.share_true)
        with META:
            self.networks = dict(self.build())
        self.trainable = {
            name: [p for p in network.parameters() if p.requires_grad] for name, network in self.networks.items()
        }
        learning = {name for phase in self.phases for name in phase.networks}
        for name, network in self.networks.items():
            self.live.hold([*network.parameters(), *network.buffers()])
            network.train(name in learning)
            set_activation_checkpointing(network, self.config.activation_checkpointing is True)
            if self.config.precision != "fp32":  # accelerate converts the results of mixed precision
                network.register_forward_hook(lambda _network, _given, result: convert_to_fp32(result))
        self.stands("weights")

    def stands(self, part: str) -> None:
        """Take what is alive beyond the parts so far as a further part."""
        self.standing[part] = self.live.live - sum(self.standing.values())

    def parameters(self, phase: Phase) -> list[nn.Parameter]:
        """Return those that learn in a phase."""
        return [parameter for name in phase.networks for parameter in self.trainable[name]]

    def update(self, phase: Phase) -> list[Tensor]:
        """Count the exchange and the update of a phase, and return the moments of its AdamW.

        One flat parameter stands for all, because a step over many tensors without data takes long.
        """
        flat = nn.Parameter(torch.empty(sum(p.numel() for p in self.parameters(phase)), device=META))
        flat.grad = torch.empty_like(flat)
        gradients = flat.grad.nbytes
        optimizer = torch.optim.AdamW([flat], foreach=True)  # PyTorch's choice on CUDA
        self.live.restart()
        optimizer.step()
        moments = [value for value in optimizer.state[flat].values() if value.device == META]
        temporaries = self.live.peak - self.live.live
        several = self.num_processes > 1
        if phase.name and several:
            temporaries = max(temporaries, 2 * gradients)
        elif not phase.name:
            self.standing["buckets"] = gradients if several else 0
        self.moving.append({"gradients": gradients, "temporaries": temporaries})
        return moments

    def phase(self, phase: Phase) -> None:
        """Count forward and backward of a phase's last micro-batch, beside the gradients of those before."""
        micro = self.config.micro_batch
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in phase.networks)
        learning = self.parameters(phase)
        if self.config.batch_size > micro * self.num_processes:
            for parameter in learning:
                parameter.grad = torch.empty_like(parameter)
        gradients = sum(p.grad.nbytes for p in learning if p.grad is not None)
        step = max(phase.first_step for phase in self.phases)
        before = self.live.restart()
        batch = to_device(phase.batch(step * phase.num_updates, range(micro)), META)
        with self.rules, self.rules.autocast(DTYPES[self.config.precision]):
            result = phase.loss(self.networks, batch, step)
            del batch
            copies = self.rules.copied_bytes
            activations = self.live.live - before - copies
        self.rules.backward(result[0] if isinstance(result, tuple) else result)
        temporaries = self.live.peak - before - activations - copies
        for parameter in learning:
            parameter.grad = None
        parts = {"gradients": gradients, "weight_copies": copies}
        self.moving.append({**parts, "activations": activations, "temporaries": temporaries})

    def preview(self, preview: Callable[[Networks], object]) -> None:
        """Count the preview picture, whose forward passes run under autocast too (accelerate wraps the network's)."""
        for network in self.networks.values():
            network.eval()
        before = self.live.restart()
        with self.rules, self.rules.autocast(DTYPES[self.config.precision]), torch.no_grad():
            preview(self.networks)
        self.moving.append({"temporaries": self.live.peak - before})
