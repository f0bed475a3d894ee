"""The processes and the device of a training: accelerate set up, batches moved, gradients exchanged, SIGTERM heard."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn


def make_accelerator(precision: str) -> Accelerator:
    """Mixed precision as asked: bf16 by autocast, fp16 with loss scaling (on a CPU too, where accelerate skips it).

    Trainings of one process share its process group, which cannot be founded twice; it ends with the process.
    """
    AcceleratorState._reset_state()
    mixed = {"fp32": "no"}.get(precision, precision)
    accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        atexit.register(_leave_process_group)
    if mixed == "fp16" and accelerator.scaler is None:
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
    return accelerator


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors of a dict, on `device`."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, Tensor) else batch


@contextmanager
def synchronise(accelerator: Accelerator, network: nn.Module, *, last: bool) -> Iterator[None]:
    """Exchange gradients between processes only in the last micro-batch of a step."""
    if last:
        yield
    else:
        with accelerator.no_sync(network):
            yield


@contextmanager
def sigterm_event() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, the way schedulers announce the end of a job."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any of the processes."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(total > 0)
