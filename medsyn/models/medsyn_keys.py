"""Names of the authors' state dicts <-> names of medsyn.models.unet.UNet (facts: the state dicts of their release).

The two released networks hold the same modules under different names: the low-resolution one has list slots 0-3 and
four numbered bottom blocks whose self-attention matrices are one shared pair stored under every number; the
super-resolution one has slots 0, 1, 4, 5 and one bottom block. Values and shapes are the same as ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from medsyn.config import UNetConfig
from medsyn.errors import InputError
from medsyn.models.blocks import HEAD_DIM
from medsyn.models.unet import UNet

_LEVEL = re.compile(r"(downs|ups)\.(\d+)\.(first|second|solid|resample)\.(.+)")
_BOTTOM = re.compile(r"bottom\.(\d+)\.(norm|cross_attention|solid)\.(.+)")
_SHARED_QKV = re.compile(r"mid_spatial_attn\d*\.fn\.fn\.fn\.to_qkv\.weight")
_SLOTS = {
    True: {"first": "0", "second": "1", "solid": "2", "resample": "3"},  # with text: low resolution
    False: {"first": "0", "second": "1", "solid": "4", "resample": "5"},  # super-resolution
}


def medsyn_names(own_names: Iterable[str], num_bottom_blocks: int) -> dict[str, list[str]]:
    """Return the authors' names of each of our parameters by its name (several only for shared matrices)."""
    names = list(own_names)
    text = "null_cond_emb" in names
    if not text and num_bottom_blocks != 1:
        raise ValueError("the authors' super-resolution network has exactly one bottom block")
    return {name: _translate(name, text, num_bottom_blocks) for name in names}


def to_medsyn_keys(state: Mapping[str, Tensor], num_bottom_blocks: int) -> dict[str, Tensor]:
    """Return our state dict under the authors' names (shared tensors under each of their names)."""
    names = medsyn_names(state, num_bottom_blocks)
    return {theirs: state[own] for own, several in names.items() for theirs in several}


def from_medsyn_keys(state: Mapping[str, Tensor], network: UNet, source: str = "checkpoint") -> dict[str, Tensor]:
    """Return the authors' state dict under our names; missing, extra or misshapen tensors are InputErrors.

    Prefixes `module.` and `denoise_fn.` are removed; when any name carries the latter, all others (stale schedule
    buffers of older releases) are ignored. Of the names of a shared tensor one is enough: safetensors keeps only one.
    """
    theirs = strip_prefixes(state)
    wanted = network.state_dict()
    result: dict[str, Tensor] = {}
    for own, several in medsyn_names(wanted, network.config.num_bottom_blocks).items():
        found = [name for name in several if name in theirs]
        if not found:
            raise InputError(f"{source}: tensor {several[0]} is missing; not a checkpoint of this network")
        for name in found:
            value = theirs.pop(name)
            if value.shape != wanted[own].shape:
                shapes = tuple(value.shape), tuple(wanted[own].shape)
                raise InputError(f"{source}: tensor {name} has shape {shapes[0]}, the network wants {shapes[1]}")
            if result.setdefault(own, value) is not value and not torch.equal(result[own], value):
                raise InputError(f"{source}: tensors {found[0]} and {name} differ, in this network they are one")
    if theirs:
        raise InputError(f"{source}: unknown tensor {min(theirs)}; not a checkpoint of this network")
    return result


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop `module.` and `denoise_fn.`, and what does not belong to the network when the latter is used."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    prefix = "denoise_fn."
    if any(name.startswith(prefix) for name in plain):
        return {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    return plain


def read_shape(state: Mapping[str, Tensor], up_order: str, source: str = "checkpoint") -> tuple[UNetConfig, dict]:
    """Return settings and constructor arguments of the network of the authors' tensors (prefixes stripped)."""
    text = "null_cond_emb" in state
    try:
        first = state["init_conv.weight" if text else "init_conv0.weight"]
        dim, inputs, kernel = first.shape[0], first.shape[1], first.shape[2]
        num_levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("downs."))
        mults = tuple(state[f"downs.{i}.1.block1.norm.weight"].numel() // dim for i in range(num_levels))
        attention = next((name for name in state if _SHARED_QKV.fullmatch(name)), "mid_spatial_attn*.to_qkv.weight")
        num_heads = state[attention].shape[0] // (3 * HEAD_DIM)
        channels = state["final_conv.1.weight" if text else "final_conv0.1.weight"].shape[0]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"{source}: not a checkpoint of the authors' networks ({type(error).__name__}: {error})"
        ) from None
    num_bottom_blocks = sum(re.fullmatch(r"mid_spatial_attn\d*\.fn\.norm\.gamma", name) is not None for name in state)
    config = UNetConfig(
        dim=dim,
        mults=mults,
        num_heads=num_heads,
        init_kernel=kernel,
        num_bottom_blocks=num_bottom_blocks,
        up_order="A" if up_order == "A" else "B",
    )
    arguments = {"channels": channels, "condition_channels": inputs - channels}
    if text:
        arguments |= {"num_tokens": state["null_cond_emb"].shape[1], "cond_dim": state["null_cond_emb"].shape[2]}
    return config, arguments


def _translate(name: str, text: bool, num_bottom_blocks: int) -> list[str]:
    suffix = "" if text else "0"
    if match := _LEVEL.fullmatch(name):
        path, level, role, rest = match.groups()
        return [f"{path}.{level}.{_SLOTS[text][role]}.{rest}"]
    if match := _BOTTOM.fullmatch(name):
        index, role, rest = match.groups()
        number = str(int(index) + 1) if text else ""
        if role == "norm":
            return [f"mid_spatial_attn{number}.fn.norm.{rest}"]
        if role == "solid":
            return [f"mid_temporal_attn{number}.{rest}" if text else f"mid_temporal_conv.{rest}"]
        return [f"mid_cross_attn{number}.fn.{'' if rest.startswith('norm.') else 'fn.'}{rest}"]
    for own, theirs in (
        ("init_conv.", f"init_conv{suffix}."),
        ("head.", f"final_conv{suffix}.0."),
        ("to_volume.", f"final_conv{suffix}.1."),
        ("bottom_in.", "mid_block1."),
        ("bottom_out.", "mid_block2."),
    ):
        if name.startswith(own):
            return [theirs + name.removeprefix(own)]
    if name.startswith("attention."):
        numbers = range(1, num_bottom_blocks + 1) if text else [""]
        return [f"mid_spatial_attn{number}.fn.fn.fn.{name.removeprefix('attention.')}" for number in numbers]
    return [name]
