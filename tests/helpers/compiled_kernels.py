"""Compiles the Triton kernels for a GPU that need not exist: `python compiled_kernels.py 90` prints what came of it.

It runs in a process of its own, in which Triton does not interpret.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specexp.lm.kernels import attention_kernel, gated_kernel, norm_kernel, rotary_kernel

FLOATS = {"scale", "softcap", "eps"}
POINTERS = {"slots": "*i64", "index": "*i64", "seen": "*u8", "bounds": "*i32", "parts": "*fp32", "sums": "*fp32"}
TENSORS = {"x", "weight", "out", "inner", "projected", "cos", "sin", "flat", "queries", "sinks"}


def compiled(kernel: Any, dtype: str, capability: int, options: Any = None, **constants: Any) -> dict[str, Any]:
    """The kernel's name, shared memory and size of its code, for tensors of `dtype`."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in TENSORS:
            signature[name] = dtype
        else:
            signature[name] = POINTERS.get(name, "fp32" if name in FLOATS else "i32")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=places)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {"kernel": kernel.__name__, "shared": result.metadata.shared, "bytes": len(result.asm["cubin"])}


def main(capability: int) -> None:
    results = []
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
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]))
