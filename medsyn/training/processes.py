"""Processes and device of a training run: accelerate set up, batches prefetched, gradients exchanged, SIGTERM.

A process that reaches a collective operation fails when the others are not there within the time-out of its backend (10
minutes with NCCL). What the main process does alone may take longer, so the others wait for it with
`wait_for_main_process`, outside of any collective.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from medsyn.device import check_convolutions
from medsyn.progress import log

Key = TypeVar("Key")
Made = TypeVar("Made")
_MOST_THREADS = 8
MAIN_PROCESS_TIMEOUT = timedelta(hours=2)
"""How long processes wait for what one of them does alone: a checkpoint, a preview, its share of the latents."""
_WAITS = count()


def make_accelerator(precision: str) -> Accelerator:
    """Set up mixed precision: bf16 by autocast, fp16 with loss scaling (on a CPU too, where accelerate skips it).

    Trainings of one process share its process group, which cannot be founded twice; it ends with the process.
    """
    AcceleratorState._reset_state()  # several trainings in one process may differ in their precision
    mixed = {"fp32": "no"}.get(precision, precision)
    # Gradients become views of the buckets that are exchanged; two copies exist only while micro-batches accumulate.
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available(), kwargs_handlers=[views])
    if accelerator.num_processes > 1:
        atexit.register(_leave_process_group)
    if mixed == "fp16" and accelerator.scaler is None:
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
    if not accelerator.is_main_process:
        log.setLevel("ERROR")  # one line of each message, not one per process
    check_convolutions(accelerator.device)
    return accelerator


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def num_data_threads(device: torch.device) -> int:
    """Return how many threads make batches ahead of the device: none on a CPU, where they would take its cores."""
    if device.type == "cpu":
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // here))


def prefetch(make: Callable[[Key], Made], keys: Iterable[Key], num_threads: int) -> Generator[Made]:
    """Yield make(key) for each key, in order; with threads the next ones are made while the caller works."""
    if num_threads == 0:
        yield from map(make, keys)
        return
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for key in keys:
            waiting.append(pool.submit(make, key))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def pinned(batch: Any) -> Any:
    """Return the same batch in memory from which a GPU copies while it computes."""
    if isinstance(batch, Mapping):
        return {key: pinned(value) for key, value in batch.items()}
    return batch.pin_memory() if isinstance(batch, Tensor) else batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with the tensors of its dicts on `device`."""
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


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over the processes, in one exchange per type of number."""
    if accelerator.num_processes == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = (flat / accelerator.num_processes).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def share_buffers(accelerator: Accelerator, networks: Iterable[nn.Module]) -> None:
    """Give every process the buffers of the main process (statistics, codebooks), which are those of a checkpoint."""
    if accelerator.num_processes == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)


@contextmanager
def sigterm_event() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, the way schedulers announce the end of a job."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def wait_for_main_process(accelerator: Accelerator) -> None:
    """Hold the other processes until the main process gets here, for at most MAIN_PROCESS_TIMEOUT.

    They wait for a key in the store of the process group, which no time-out of a collective concerns. Every process
    calls this equally often, so that the number of the call is the same in all of them.
    """
    if accelerator.num_processes == 1:
        return
    store, key = distributed_c10d._get_default_store(), f"medsyn/main/{next(_WAITS)}"
    if accelerator.is_main_process:
        store.set(key, "")
    else:
        store.wait([key], MAIN_PROCESS_TIMEOUT)


def wait_for_all(accelerator: Accelerator) -> None:
    """Hold every process until all get here, for at most MAIN_PROCESS_TIMEOUT; they wait as `wait_for_main_process`."""
    if accelerator.num_processes == 1:
        return
    store, place = distributed_c10d._get_default_store(), f"medsyn/all/{next(_WAITS)}"
    store.set(f"{place}/{accelerator.process_index}", "")
    store.wait([f"{place}/{index}" for index in range(accelerator.num_processes)], MAIN_PROCESS_TIMEOUT)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any of the processes."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(total > 0)
