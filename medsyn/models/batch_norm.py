"""Batch normalisation over the samples of all processes, which may be differentiated twice.

With it, several processes train as one does with the same batch. `torch.nn.SyncBatchNorm` does the same on GPUs only,
and has no second derivative, which a gradient penalty needs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medsyn.models.processes import num_processes, process_mean


class BatchNorm(_BatchNorm):
    """nn.BatchNorm1d, 2d and 3d in one; names and values are the same.

    In training mode the statistics are those of the micro-batches of all processes, each of the same size; where
    `alone` is set, those of this process.
    """

    alone: bool = False

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got the shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input [B, C, ...]. In evaluation mode the running statistics are used."""
        if not self.training or self.alone or num_processes() == 1 or input.is_meta:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        per_channel = [1, -1, *[1] * (input.ndim - 2)]
        values = input.to(self.weight.dtype)
        mean = process_mean(values.mean(axes))
        centred = values - mean.view(per_channel)
        variance = process_mean(centred.square().mean(axes))
        self._remember(mean, variance, num_processes() * input.numel() // input.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(per_channel) + self.bias.view(per_channel)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of `count` values per channel."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


@torch.no_grad()
def use_standing_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch normalisations to the averages over `batches`, inputs of the network.

    Those of the training are a moving average over all that the network was given there, which may be another
    distribution than that of sampling (Brock et al. 2019, appendix: standing statistics). The network is in evaluation
    mode afterwards. One without batch normalisation stays as it is.
    """
    layers = [module for module in network.modules() if isinstance(module, BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum, layer.alone = None, True  # type: ignore[assignment]  # None: the mean of all batches
    network.train()
    for batch in batches:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum, layer.alone = momentum, False
    network.eval()
