"""Count the bytes of live tensors while code runs on tensors without data, as a CUDA device would hold them.

The code under count is the project's own: the real network, loss, optimiser and average run on PyTorch's meta device,
which computes shapes only. `LiveBytes` sees every operation, forward and backward, and adds up the storages that are
alive after it, so saved activations and temporaries are observed and not estimated from formulas. `CudaRules` makes
two choices that PyTorch makes on a CUDA device only:

- autocast: which functions take 16-bit inputs, which float32, and how long the 16-bit copies of weights live;
- attention: the fused kernels, which keep queries, keys, values, result and one float32 per query and head. The plain
  path, which the meta device would take, keeps the whole attention matrix.

What no operation shows is not counted: work space inside a kernel (cuDNN), the CUDA context, fragmentation.
`medsyn.training.need` states an allowance for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

BLOCK_BYTES = 512
"""PyTorch's CUDA allocator hands out memory in multiples of this."""
META = torch.device("meta")
_STATE = "cpu"  # autocast of this device type holds the state (on, off, dtype): it does nothing to meta tensors
_LOWER_PRECISION = frozenset(
    [
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d),
        *(torch.conv_transpose3d, F.linear, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.mm),
        *(torch.addmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm),
    ]
)
"""Autocast of CUDA computes these in 16 bits (torch/amp, "CUDA Ops that can autocast to float16")."""
_FLOAT32 = frozenset(
    [
        *(F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softmax, torch.softmax, Tensor.softmax),
        *(F.log_softmax, torch.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss),
        *(F.binary_cross_entropy_with_logits, F.interpolate),
        *(F.cosine_similarity, F.normalize, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow),
        *(torch.rsqrt, Tensor.rsqrt, torch.norm, Tensor.norm, torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum),
    ]
)
"""And these in float32 (the same page, "CUDA Ops that can autocast to float32")."""


class LiveBytes(TorchDispatchMode):
    """Count the bytes of a device's storages that were made under this mode, or given to `hold`, and are alive."""

    def __init__(self, device: torch.device = META) -> None:
        super().__init__()
        self.device = device
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.hold(value for value in tree_leaves(out) if isinstance(value, Tensor))
        return out

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made elsewhere; those of other devices (a step counter) are left out."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.device == self.device and storage._cdata not in self._known:
                size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
                self._known.add(storage._cdata)
                self.live += size
                weakref.finalize(storage, self._free, storage._cdata, size)
        self.peak = max(self.peak, self.live)

    def restart(self) -> int:
        """Begin a new peak at what is alive now, and return that."""
        self.peak = self.live
        return self.live

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class WithoutData(TorchFunctionMode):
    """Answer every question about a tensor's truth with no: a tensor without data cannot answer it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is Tensor.__bool__ else func(*args, **(kwargs or {}))


class CudaRules(WithoutData):
    """Do what PyTorch does on a CUDA device: its autocast and its fused attention (see the module's docstring).

    share_true: boolean masks that select elements are taken to be true at this share of their places (their number
    is data, which a tensor without data does not have).
    """

    def __init__(self, share_true: float = 1.0) -> None:
        super().__init__()
        self.share_true = share_true
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled(_STATE):
            if func in _LOWER_PRECISION:
                args, kwargs = tree_map(self._lower, (args, kwargs))
            elif func in _FLOAT32:
                args, kwargs = tree_map(_single, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return self._selected(*args)
        return super().__torch_function__(func, types, args, kwargs)

    @contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        """Autocast to `dtype` (float32: no autocast); as in PyTorch, 16-bit copies of weights live until its end.

        Beyond it, and in a checkpointed part that is computed again, a copy lives as long as autograd keeps it.
        """
        enabled = dtype != torch.float32
        with torch.autocast(_STATE, dtype=dtype if enabled else torch.bfloat16, enabled=enabled):
            try:
                yield
            finally:
                self._copies.clear()

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a scalar under these rules, which computes again what is checkpointed.

        The engine is called by name because a mode is off while it handles torch.autograd.backward.
        """
        with self:
            _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), accumulate_grad=True)

    @property
    def copied_bytes(self) -> int:
        """Return the bytes of the 16-bit copies of weights that the present autocast holds."""
        return sum(copy.nbytes for _, copy in self._copies.values())

    def _lower(self, value: Any) -> Any:
        """Return the 16-bit form of a float32 tensor; the copy of a weight is made once."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        dtype = torch.get_autocast_dtype(_STATE)
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if torch._C._current_graph_task_id() != -1:  # in the backward pass
            return value.to(dtype)
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, value.to(dtype))
        return self._copies[id(value)][1]

    def _selected(self, x: Tensor, mask: Tensor) -> Tensor:
        count = max(1, round(self.share_true * mask.numel()))
        return x.flatten(0, mask.ndim - 1)[torch.empty(count, dtype=torch.long, device=x.device)]


class _FusedAttention(torch.autograd.Function):
    """Bytes of FlashAttention-2 (16 bits) and of the memory-efficient kernel (float32 or with a mask), no values.

    Forward keeps q, k, v, the result and the logarithm of the softmax's sum (float32). Backward makes the gradients,
    the row sums of their product with the result, and flash attention a float32 sum of the queries' gradient; for a
    mask that learns also its gradient for every sample and query.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, sums, mask = ctx.saved_tensors
        work = [torch.empty_like(sums), torch.empty_like(q, dtype=torch.float32)]
        of_mask = mask.new_empty(mask.shape) if ctx.needs_input_grad[3] else None
        result = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), of_mask
        del work
        return result


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_rest: Any, **_options: Any
) -> Tensor:
    if attn_mask is not None:  # the kernel takes an additive mask in the type of the queries, one value a query and key
        shape = (*query.shape[:-1], key.shape[-2])
        if not attn_mask.is_floating_point():
            attn_mask = query.new_empty(attn_mask.shape)
        attn_mask = attn_mask.expand(shape)
    out: Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return out


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def on_meta(batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Make a batch of `count` samples without data, of the shapes and types of the samples in `batch`."""
    return {name: torch.empty((count, *x.shape[1:]), dtype=x.dtype, device=META) for name, x in batch.items()}


def build_on_meta(build: Callable[[], nn.Module], live: LiveBytes) -> nn.Module:
    """Build a network without data whose weights are counted."""
    with META:
        network = build()
    live.hold([*network.parameters(), *network.buffers()])
    return network
