"""What one training run needs of a GPU's memory, part by part, counted without data (medsyn.live_bytes).

`count_training` follows `medsyn.training.loop`: float32 weights, their average (EMA) and the moments of AdamW stay on
the device; with several processes DistributedDataParallel adds its buckets, of which the gradients become views in the
last micro-batch of a step only: a second copy before. While gradients are accumulated the first micro-batch's stay
beside the activations of the next one. bfloat16 and float16 come from autocast, whose 16-bit copies of the weights live
through the forward pass and as long as the backward pass needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsyn.config import TrainConfig
from medsyn.live_bytes import META, CudaRules, LiveBytes, build_on_meta
from medsyn.training.cost import GIB
from medsyn.training.ema import Ema

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
    """Count one optimiser step of a run that is under way: its last micro-batch, the update and the preview."""
    micro = min(config.micro_batch_size, config.batch_size)
    live, rules = LiveBytes(), CudaRules(training.share_true)
    network = build_on_meta(training.build, live)
    standing = {"weights": live.live}
    with live:
        average = Ema(network, decay=config.ema_decay).average
        standing["ema"] = live.live - standing["weights"]
        moments, update = _count_update(network, live)
        standing["moments"] = sum(moment.nbytes for moment in moments)
        before = live.live
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        gradients = live.live - before
        if config.batch_size <= micro * num_processes:  # nothing is accumulated: gradients appear as activations go
            network.zero_grad(set_to_none=True)
        moving = _count_pass(training, network, config, live, rules)
        network.zero_grad(set_to_none=True)
        preview = _count_preview(training, network, config, live, rules)
    del average, moments
    standing["buckets"] = gradients if num_processes > 1 else 0
    phases = [moving, {"gradients": gradients, "temporaries": update}, {"temporaries": preview}]
    return Need(standing | max(phases, key=lambda parts: sum(parts.values())), num_processes)


def _count_update(network: nn.Module, live: LiveBytes) -> tuple[list[Tensor], int]:
    """Return the moments of AdamW, and the bytes that its step takes beside them.

    One flat parameter stands for all, because a step over many tensors without data takes long.
    """
    flat = nn.Parameter(torch.empty(sum(p.numel() for p in network.parameters()), device=META))
    flat.grad = torch.empty_like(flat)
    optimizer = torch.optim.AdamW([flat], foreach=True)  # PyTorch's choice on CUDA
    live.restart()
    optimizer.step()
    moments = [value for value in optimizer.state[flat].values() if value.device == META]
    return moments, live.peak - live.live


def _count_pass(
    training: TrainingShapes, network: nn.Module, config: TrainConfig, live: LiveBytes, rules: CudaRules
) -> dict[str, int]:
    """Count forward and backward of one micro-batch: the gradients, and what lives beside the standing parts."""
    gradients = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    before = live.restart()
    network.train()
    with rules, rules.autocast(DTYPES[config.precision]):
        loss = training.loss(network, training.batch(min(config.micro_batch_size, config.batch_size)))
        copies = rules.copied_bytes
        activations = live.live - before - copies
    rules.backward(loss)
    temporaries = live.peak - before - activations - copies
    return {"gradients": gradients, "weight_copies": copies, "activations": activations, "temporaries": temporaries}


def _count_preview(
    training: TrainingShapes, network: nn.Module, config: TrainConfig, live: LiveBytes, rules: CudaRules
) -> int:
    """Count the preview picture, whose forward passes run under autocast too (accelerate wraps the network's)."""
    before = live.restart()
    if training.preview is not None:
        with rules, rules.autocast(DTYPES[config.precision]), torch.no_grad():
            training.preview(network.eval())
    return live.peak - before
