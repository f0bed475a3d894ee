"""The U-Net that training and sampling run: `medsyn.models.unet.UNet`, weights and all, by faster operations.

What is faster, and where it comes from, stands in docs/performance.md. Beside the arguments of the plain network, its
forward pass takes what a sampled volume needs once (`prepare_condition`, `prepare_text`) and both branches of guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsyn.models.blocks import KeysValues, ResBlock
from medsyn.models.fast.blocks import repeated, res_block
from medsyn.models.fast.context import NormForm
from medsyn.models.fast.convolution import convolve, convolve_first, convolve_in_float32, convolve_last
from medsyn.models.fast.slabs import Slabs, convolve_in_slabs, in_slabs, res_block_in_slabs
from medsyn.models.unet import Level, UNet, add, from_patches, join_condition, to_patches

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class PreparedText:
    """Keys and values of the text for each bottom block, and what its mean state gives.

    pooled: `UNet.pooled_text` [B, time_dim]; coefficients: `UNet.text_coefficients` [B, K]; each may be None. Without
    text modules there are no keys.
    """

    keys: tuple[KeysValues, ...] = ()
    pooled: Tensor | None = None
    coefficients: Tensor | None = None

    def rows(self, part: slice) -> PreparedText:
        """Return the samples `part` of the batch."""
        keys = ((k[part], v[part], None if tokens is None else tokens[part]) for k, v, tokens in self.keys)
        pooled, coefficients = (None if x is None else x[part] for x in (self.pooled, self.coefficients))
        return PreparedText(tuple(keys), pooled, coefficients)


@dataclass(frozen=True)
class PreparedCondition:
    """A condition [B, C, D, H, W] with its share of the first convolution, which all steps of a volume reuse."""

    volume: Tensor
    features: Tensor


@dataclass(frozen=True)
class Trunk:
    """What the network computes before it reads the text: the state at the bottom, time, skips, first features."""

    bottom: Tensor
    time: Tensor
    skips: list[Tensor]
    first: Tensor


class FastUNet(UNet):
    """The denoiser of both resolutions.

    The weights may be float32, with or without autocast, or for sampling bfloat16 or float16 (`set_precision`): the
    activations then take half the memory. Sinusoids, statistics of the norms and the last convolution stay float32,
    and so does the result.
    """

    channels_last = True
    """Memory layout of the activations on a CPU."""
    channels_last_on_gpu = False
    """The same on a GPU (`set_channels_last_on_gpu`), where it has not been measured with the fused norm, which keeps
    it. Without the fused norm every group norm returns a contiguous tensor and the layout changes back and forth."""
    norm: NormForm = "auto"
    """How norms are computed; "fused" and "separate" are for comparisons."""
    activation_checkpointing = False
    """Keep only the inputs of the ResBlocks for the backward pass, which computes the rest again (Chen et al. 2016)."""

    slab_slices: int | None = None
    """Without gradients, compute every layer in slabs of so many slices (`medsyn.models.fast.slabs`); None: whole."""
    slab_stored: torch.dtype | None = None
    """Type in which activations are held between layers that are computed in slabs, None: that of the weights."""

    def forward(
        self,
        x: Tensor,
        tau: Tensor,
        text: Tensor | PreparedText | None = None,
        drop_text: Tensor | None = None,
        condition: Tensor | PreparedCondition | None = None,
        guidance_scale: float | None = None,
        one_batch: bool = True,
    ) -> Tensor:
        """Predict x0 [B, C, D, H, W] as the plain network does.

        For sampling: tau may be [1] (the same for all samples), text the result of `prepare_text`, condition that of
        `prepare_condition`. With a guidance_scale w, text is that of 2 B samples, first with text and then
        null, and the result is x0_null + w (x0_text - x0_null). What precedes the text is computed once, the rest as
        one batch of 2 B or, to save memory, as two batches of B.
        """
        self.check_condition(condition)
        given = (
            text if isinstance(text, PreparedText) else self.prepare_text(self.text_of_samples(len(x), text, drop_text))
        )
        volume = condition.volume if isinstance(condition, PreparedCondition) else condition
        known, scale = self.estimate(x, tau, volume)
        trunk = self._read(x, tau, condition if condition is not None else self.given_volume(known))

        def predict(text: PreparedText, copies: int = 1, keep: bool = False) -> Tensor:
            """Return x0 less what is known without text."""
            output = self._write(trunk, text, copies, keep)
            factor = scale if scale is None or len(scale) == 1 else repeated(scale, copies)
            times = tau if len(tau) == 1 else repeated(tau, copies)
            return add(self.text_shift(text.coefficients, times), output, factor)

        if guidance_scale is None:
            return add(known, predict(given))
        if one_batch:
            with_text, null = predict(given, copies=2).chunk(2)
        else:
            with_text = predict(given.rows(slice(len(x))), keep=True)
            null = predict(given.rows(slice(len(x), None)))
        return add(known, null + guidance_scale * (with_text - null))

    def prepare_text(self, text: Tensor | None) -> PreparedText:
        """Return what `forward` needs of text [B, num_tokens, cond_dim]; nothing without text modules."""
        if text is None:
            return PreparedText()
        coefficients = self.text_coefficients(text)
        text = text.to(self.to_volume.weight.dtype)
        keys = tuple(block.cross_attention.keys_values(text) for block in self.bottom)  # type: ignore[operator, union-attr]
        return PreparedText(keys, self.pooled_text(text), coefficients)

    def prepare_condition(self, condition: Tensor) -> PreparedCondition:
        """Return what `forward` needs of a condition [B, condition_channels, D, H, W]."""
        return PreparedCondition(condition, convolve_first(self.init_conv, self._patches(condition)))

    def _patches(self, x: Tensor) -> Tensor:
        x = to_patches(x, self.config.patch_size).to(self.to_volume.weight.dtype)
        last = self.channels_last if x.device.type == "cpu" else self.channels_last_on_gpu
        return x.contiguous(memory_format=torch.channels_last_3d) if last else x

    def _read(self, x: Tensor, tau: Tensor, condition: Tensor | PreparedCondition | None) -> Trunk:
        """Compute the down path and the bottom as far as the first self-attention."""
        time = self._time(tau)
        if isinstance(condition, PreparedCondition):
            x = convolve_last(self.init_conv, self._patches(x)) + condition.features
        elif (slabs := self._slabs) is not None:
            parts = [self._patches(part) for part in (condition, x) if part is not None]
            x = convolve_in_slabs(self.init_conv, torch.cat(parts, dim=1), slabs)
        else:
            x = convolve(self.init_conv, self._patches(join_condition(condition, x)))
        first, skips = x, []
        for level in self.downs:
            assert isinstance(level, Level)
            skip = self._block(level.second, self._block(level.first, x, time), time)
            x = self._block(level.solid, self._map(level.resample, skip), time)
            skips.append(skip)
        x = self._attend(self._block(self.bottom_in, x, time), self.bottom[0])
        return Trunk(x, time, skips, first)

    def _time(self, tau: Tensor) -> Tensor:
        """Embed tau [B]: the sinusoids are float32, the rest has the type of its weights."""
        sinusoids, *rest = self.time_mlp
        x = sinusoids(tau.float()).to(self.to_volume.weight.dtype)
        for module in rest:
            x = module(x)
        return x

    def _write(self, trunk: Trunk, text: PreparedText, copies: int = 1, keep: bool = False) -> Tensor:
        """Compute the rest of the bottom and the up path for `copies` batches that differ in their text only.

        The skips are dropped as they are read, which lowers the peak of memory, unless `keep`.
        """
        skips = list(trunk.skips) if keep else trunk.skips
        x = repeated(trunk.bottom, copies)
        time = trunk.time if len(trunk.time) == 1 else repeated(trunk.time, copies)
        if text.pooled is not None:
            time = time + text.pooled
        for i, block in enumerate(self.bottom):
            if i > 0:
                x = self._attend(x, block)
            if text.keys:
                x = self._attend_to_text(x, block, text.keys[i])
            x = self._block(block.solid, x, time)  # type: ignore[arg-type]
        x = self._block(self.bottom_out, x, time)
        for level in self.ups:
            assert isinstance(level, Level)
            x = self._block(level.first, x, time, skips.pop())
            x = self._up(level, x, time)
        x, slabs = self._block(self.head, x, skip=trunk.first), self._slabs
        x = self._last(x) if slabs is None else in_slabs(self._last, x, replace(slabs, stored=None))
        return from_patches(x, self.config.patch_size)

    def _up(self, level: Level, x: Tensor, time: Tensor) -> Tensor:
        """Compute a level of the up path after its first block."""
        if self.config.up_order == "A":
            return self._block(level.solid, self._block(level.second, self._map(level.resample, x), time), time)
        return self._map(level.resample, self._block(level.solid, self._block(level.second, x, time), time))

    def _block(self, block: ResBlock, x: Tensor, time: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if (slabs := self._slabs) is not None:
            return res_block_in_slabs(block, x, time, skip, slabs)
        if self.activation_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(
                res_block, block, x, time, skip, self.norm, use_reentrant=False, preserve_rng_state=False
            )
            return result
        return res_block(block, x, time, skip, self.norm)

    def _attend(self, x: Tensor, block: nn.Module) -> Tensor:
        return self._map(lambda part: self.attention(part, block.norm), x)

    def _attend_to_text(self, x: Tensor, block: nn.Module, keys: KeysValues) -> Tensor:
        return self._map(lambda part: block.cross_attention.attend(part, keys), x)  # type: ignore[operator, union-attr]

    def _last(self, x: Tensor) -> Tensor:
        return convolve_in_float32(self.to_volume, x)

    def _map(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return layer(x) for a layer that treats every slice alone."""
        return layer(x) if (slabs := self._slabs) is None else in_slabs(layer, x, slabs)

    @property
    def _slabs(self) -> Slabs | None:
        """How layers are computed in slabs, of slices of patches; None with gradients."""
        if self.slab_slices is None or torch.is_grad_enabled():
            return None
        return Slabs(-(-self.slab_slices // self.config.patch_size), self.slab_stored)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Convert the weights for sampling; what is known of the training volumes stays float32."""
        statistics = {name: buffer for name, buffer in self.named_buffers() if name.startswith("data_")}
        self.to(dtype)
        for name, buffer in statistics.items():
            setattr(self, name, buffer)


def set_activation_checkpointing(network: Network, enabled: bool) -> Network:
    """Switch activation checkpointing on or off, which changes memory and time but no gradient; return the network.

    Parts that can do it have an attribute `activation_checkpointing`; a network without such parts stays as it is.
    """
    for module in network.modules():
        if hasattr(module, "activation_checkpointing"):
            module.activation_checkpointing = enabled  # type: ignore[assignment]
    return network


def set_channels_last_on_gpu(network: FastUNet, enabled: bool) -> FastUNet:
    """Choose the memory layout of activations and convolution weights on a GPU; return the network.

    The weights keep their layout when they are converted to another type or device.
    """
    network.channels_last_on_gpu = enabled
    layout = torch.channels_last_3d if enabled else torch.contiguous_format
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return network
