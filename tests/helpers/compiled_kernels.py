"""Compiles the Triton kernels for a GPU that need not exist: `python compiled_kernels.py 90` prints what came of it,
and `python compiled_kernels.py 90 products` what came of every tiling of products.

It runs in a process of its own, in which Triton does not interpret.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specexp.lm.kernels import attention_kernel, gated_kernel, norm_kernel, product_kernel, rotary_kernel
from specexp.lm.kernels.product_choice import tilings

INSTRUCTIONS = re.compile(r"\b((?:mma|wgmma|tcgen05)\.[\w.:]+)")
LOADS = re.compile(r"\b(cp\.async\.\w+\.shared\.global) \[.*?\], \[.*?\], (0x\w+)")
FLOATS = {"scale", "softcap", "eps", "multiplier"}
# Of Llama 3.1 8B and Llama 3.2 1B: queries, keys and values; the output; gate and up; down; the head.
PRODUCTS = {
    "8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)),
    "1B": ((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)),
}
PLAIN, ALL_ENDS = {"BIASED": False, "ADDS": False}, {"BIASED": True, "ADDS": True}
POINTERS = {"slots": "*i64", "index": "*i64", "seen": "*u8", "bounds": "*i32", "parts": "*fp32", "sums": "*fp32"}
TENSORS = {"x", "weight", "out", "inner", "projected", "cos", "sin", "flat", "queries", "sinks", "bias", "residual"}


def compiled(
    kernel: Any, dtype: str, capability: int, options: Any = None, unaligned: Collection[str] | None = None,
    **constants: Any,
) -> dict[str, Any]:  # fmt: skip
    """The kernel's name, shared memory, size of its code and what it computes products with, for tensors of `dtype`.

    Of all arguments but the `unaligned` ones the compiler may assume that 16 divides them, as of aligned tensors with
    round sizes; without that, it may of none."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in TENSORS:
            signature[name] = dtype
        else:
            signature[name] = POINTERS.get(name, "fp32" if name in FLOATS else "i32")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = [] if unaligned is None else [
        name for name, kind in signature.items() if name not in unaligned and kind not in ("constexpr", "fp32")
    ]  # fmt: skip
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=places, attrs=attrs)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {
        "kernel": kernel.__name__, "shared": result.metadata.shared, "bytes": len(result.asm["cubin"]),
        "instructions": sorted(set(INSTRUCTIONS.findall(result.asm["ptx"]))),
        "loads": sorted(set(LOADS.findall(result.asm["ptx"]))), "dtype": dtype,
    }  # fmt: skip


def products(capability: int, every: bool) -> list[dict[str, Any]]:
    """The product kernels with each tiling of these shapes, each kind once; not `every`: with the first tiling."""
    results, seen = [], set()
    for dtype, given in ((torch.bfloat16, "*bf16"), (torch.float32, "*fp32")):
        shapes = [shape for of_model in PRODUCTS.values() for shape in of_model]
        for outputs, inputs in shapes if every else shapes[1:2]:
            for tiling in tilings(outputs, inputs, dtype)[: None if every and dtype == torch.bfloat16 else 1]:
                for blocks in (1, 2, 4):
                    ends, split = ALL_ENDS if blocks == 2 else PLAIN, tiling.splits > 1
                    kind = (given, tiling.out_block, tiling.in_block, blocks, split)
                    if kind in seen:
                        continue
                    seen.add(kind)
                    stages = product_kernel.stages_of(tiling, blocks, dtype.itemsize)
                    options = {"num_warps": tiling.warps, "num_stages": stages}
                    sizes = {"OUT_BLOCK": tiling.out_block, "IN_BLOCK": tiling.in_block, "BLOCKS": blocks}
                    results.append(
                        compiled(
                            product_kernel._multiply, given, capability, options, ("num", "splits"), **sizes, EVEN=True,
                            SPLIT=split, **ends,
                        )
                    )  # fmt: skip
        for ends in (PLAIN, ALL_ENDS):
            results.append(
                compiled(product_kernel._add_parts, given, capability, BLOCK=product_kernel.ADD_BLOCK, **ends)
            )
    return results


def kernels(capability: int) -> list[dict[str, Any]]:
    """All kernels, each of some kinds."""
    results = products(capability, every=False)
    for size in (2048, 4096):
        results.append(
            compiled(
                norm_kernel._rms_norm, "*bf16", capability, SIZE=size, HEAD_BLOCK=1, BLOCK=size, WEIGHTED=True,
                PER_HEAD=False, ROUND_FIRST=False,
            )
        )  # fmt: skip
    results.append(
        compiled(
            norm_kernel._rms_norm, "*bf16", capability, SIZE=128, HEAD_BLOCK=8, BLOCK=128, WEIGHTED=True, PER_HEAD=True,
            ROUND_FIRST=True,
        )
    )  # fmt: skip
    for act in ("silu", "gelu", "gelu_tanh"):
        results.append(compiled(gated_kernel._gated, "*bf16", capability, ACT=act, BLOCK=gated_kernel.BLOCK))
    for size, pairs, adjacent, stores in ((128, 64, False, True), (64, 16, True, True), (80, 40, False, False)):
        block = 128 if size > 64 else 64
        results.append(
            compiled(
                rotary_kernel._rotate_and_store, "*bf16", capability, HEADS=32, KV_HEADS=8, SIZE=size, PAIRS=pairs,
                ADJACENT=adjacent, STORES=stores, HEAD_BLOCK=1024 // block, PAIR_BLOCK=64, BLOCK=block,
            )
        )  # fmt: skip
    for dtype, size, width, block in (("*bf16", 128, 128, 64), ("*bf16", 80, 128, 64), ("*fp32", 256, 256, 32)):
        heads: dict[str, Any] = {"HEADS": 32, "SIZE": size, "WIDTH": width}
        for masked, windowed, indexed in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 1, 1)):
            results.append(
                compiled(
                    attention_kernel._attend_split, dtype, capability, {"num_stages": 2}, **heads, KV_HEADS=8, ROWS=16,
                    BLOCK=block, MASKED=bool(masked), WINDOWED=bool(windowed), CAPPED=bool(masked),
                    INDEXED=bool(indexed),
                )
            )  # fmt: skip
        for windowed in (False, True):
            results.append(
                compiled(
                    attention_kernel._add_splits, dtype, capability, **heads, EACH=attention_kernel.EACH,
                    WINDOWED=windowed, SINKS=windowed,
                )
            )  # fmt: skip
    return results


if __name__ == "__main__":
    number = int(sys.argv[1])
    print(json.dumps(products(number, every=True) if sys.argv[2:] == ["products"] else kernels(number)))
