"""Run the Triton kernels of `medsyn.models.fast.norm_kernels` on a CPU, or compile them for GPUs; print JSON.

    TRITON_INTERPRET=1 python tests/interpreted_norms.py run
    python tests/interpreted_norms.py compile

`run`: for each case the largest difference of every result from PyTorch in float64, over the largest value, and the
types of all offsets. `compile`: the kernels that were compiled, by architecture. A program of its own, because Triton
decides when it is imported whether it interprets.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F

from medsyn.models.fast import norm_kernels

CASES = {  # channels, groups, batch, size, mean over deviation
    "12 channels, batch 2": (12, 4, 2, (3, 9, 7), 0.5),
    "56 channels": (56, 8, 1, (3, 5, 8), 0.5),
    "112 channels, batch 2": (112, 8, 2, (2, 3, 5), 0.5),
    "160 channels": (160, 8, 1, (1, 4, 4), 0.5),
    "448 channels": (448, 8, 1, (1, 2, 2), 0.5),
    "one voxel": (12, 4, 2, (1, 1, 1), 0.5),
    "far mean": (12, 2, 1, (4, 8, 8), 1000.0),
}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RESULTS = ("y", "mean", "rstd", "dx", "dgain", "doffset")


def inputs(case: str, dtype: torch.dtype, last: bool) -> tuple[list[torch.Tensor], int]:
    """x, dy, gain, offset and the number of groups."""
    channels, groups, batch, size, ratio = CASES[case]
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    x, dy = (torch.randn((batch, channels, *size), generator=generator) for _ in range(2))
    gain, offset = (torch.randn((batch, channels), generator=generator) for _ in range(2))
    volumes = [value.to(dtype).contiguous(memory_format=layout) for value in (x + ratio, dy)]
    return [*volumes, gain, offset], groups


def reference(
    given: list[torch.Tensor], groups: int, dtype: torch.dtype = torch.float64, eps: float = 1e-5
) -> list[torch.Tensor]:
    """The six results by PyTorch's own operations and its autograd."""
    x, dy, gain, offset = (value.detach().to(dtype, copy=True).contiguous() for value in given)
    for value in (x, gain, offset):
        value.requires_grad_()
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    mean, rstd = grouped.mean(2), torch.rsqrt(grouped.var(2, correction=0) + eps)
    z = F.group_norm(x, groups, eps=eps) * gain[:, :, None, None, None] + offset[:, :, None, None, None]
    y = F.silu(z)
    y.backward(dy)
    return [y.detach(), mean.detach(), rstd.detach(), x.grad, gain.grad, offset.grad]


def errors(results: list[torch.Tensor], wanted: list[torch.Tensor]) -> dict[str, float]:
    """The largest difference of each result over its largest value."""
    pairs = zip(RESULTS, results, wanted, strict=True)
    return {name: float((a.double() - b).abs().max() / (b.abs().max() + 1e-12)) for name, a, b in pairs}


def run() -> dict[str, object]:
    """Small tiles and few programs, so that the loops over tiles and chunks have several turns."""
    from triton.runtime import interpreter

    norm_kernels._TILE, norm_kernels._PROGRAMS = 64, 4
    offsets, add = set(), interpreter.InterpreterBuilder.create_addptr

    def watched(self, pointer, offset):
        offsets.add(str(offset.data.dtype))
        return add(self, pointer, offset)

    interpreter.InterpreterBuilder.create_addptr = watched
    found, loops = {}, set()
    for case in CASES:
        for last in (False, True):
            for name, dtype in TYPES.items():
                wide = not last and CASES[case][0] > 12  # a program for every channel, and each takes 10 ms
                if wide or (dtype != torch.float32 and case != "12 channels, batch 2"):
                    continue
                given, groups = inputs(case, dtype, last)
                x, dy, gain, offset = given
                forward = norm_kernels.forward(x, gain, offset, groups, 1e-5)
                assert forward[0].stride() == x.stride()
                backward = norm_kernels.backward(dy, x, gain, offset, *forward[1:], groups)
                found[f"{case}, {'last' if last else 'first'}, {name}"] = errors(
                    [*forward, *backward], reference(given, groups)
                )
                work = norm_kernels._Work.of(x)
                loops |= {("tiles", work.num_tiles > 1), ("chunks", work.num_chunks > 1)}
                loops.add(("steps", work.joining(groups)["STEPS"] > 1))
    return {"errors": found, "offsets": sorted(offsets), "loops": sorted(name for name, several in loops if several)}


def compile_all() -> dict[str, list[str]]:
    """Compile every kernel for bfloat16 and float32 in both layouts, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    compiled: dict[str, list[str]] = {}
    for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
        names = compiled.setdefault(str(target.arch), [])
        for kind in ("bf16", "fp32"):
            for last in (False, True):
                for kernel, types, constants in kernels(kind, last):
                    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
                    made = triton.compile(source, target=target, options={"num_warps": norm_kernels._NUM_WARPS})
                    assert made.asm["hsaco" if target.backend == "hip" else "cubin"]
                    names.append(kernel.__name__)
    return compiled


def kernels(kind: str, last: bool):
    """Kernels with the types of their arguments and the constants of a volume of 56 channels in 8 groups."""
    block = norm_kernels.channel_block(56) if last else 1
    constants = {"TILES": 16, "C": 56, "LAST": last, "BLOCK_V": 4096 // block, "BLOCK_C": block, "GROUPS": 8}
    constants |= {"STEPS": 4, "BLOCK_K": 64}
    integers = ("V", "num_chunks", "num_blocks", "chunk_size")
    every = [getattr(norm_kernels, f"_{name}") for name in ("moments", "apply", "gradient_sums", "gradient")]
    joining = [norm_kernels._join_moments, norm_kernels._join_gradients]
    for kernel in every + joining:
        own = constants | ({"BLOCK_C": 8} if kernel in joining else {})
        types = {}
        for name in kernel.arg_names:
            other = "i32" if name in integers else "fp32" if name == "eps" else "*fp32"
            types[name] = "constexpr" if name in own else f"*{kind}" if name in ("x", "y", "dy", "dx") else other
        yield kernel, types, {name: own[name] for name in kernel.arg_names if name in own}


if __name__ == "__main__":
    print(json.dumps(run() if sys.argv[1] == "run" else compile_all()))
