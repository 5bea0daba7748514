"""act(gate) * up as one Triton kernel. Imports Triton.

Shapes: T rows, I intermediate values.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from specexp.lm.kernels.launch import on_device

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _gated(
    inner: tl.tensor, out: tl.tensor, size: tl.tensor, row_stride: tl.tensor, ACT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(inner + row * row_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(inner + row * row_stride + size + at, mask=inside, other=0.0).to(tl.float32)
    if ACT == "gelu":
        result = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    else:  # 0.5 x (1 + tanh y) is x sigmoid(2 y)
        z = x if ACT == "silu" else 1.5957691216057308 * (x + 0.044715 * x * x * x)
        power = tl.exp(-tl.abs(z))  # which does not overflow
        result = x * tl.where(z < 0, power, 1.0) / (1 + power)
    tl.store(out + row * size + at, (result * up).to(out.dtype.element_ty), mask=inside)


def gated(inner: Tensor, act: str) -> Tensor:
    """`reference.gated` of inner[T, 2 I], rounded once."""
    num, size = inner.shape[0], inner.shape[1] // 2
    out = inner.new_empty(num, size)
    with on_device(inner):
        _gated[(num, triton.cdiv(size, BLOCK))](inner, out, size, inner.stride(0), ACT=act, BLOCK=BLOCK)
    return out
