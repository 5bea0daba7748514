"""Which implementation computes the parts of a block that have kernels.

Triton is imported only by `triton_kernels`, which `verification.py` calls where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from specexp.lm.kernels.reference import Table

RmsNorm = Callable[[Tensor, Tensor | None, float], Tensor]
Gated = Callable[[Tensor, str], Tensor]
RotateAndStore = Callable[[Tensor, Table | None, int, int, Tensor | None, Tensor], None]
Attend = Callable[..., Tensor]  # the arguments are those of `reference.attend`
Product = Callable[..., Tensor]  # with the arguments of `reference.product`, and a `Tiling`


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels in use, with the signatures of `reference.py`; None: PyTorch's operations as they were."""

    rms_norm: RmsNorm | None = None
    gated: Gated | None = None
    rotate_and_store: RotateAndStore | None = None
    attend: Attend | None = None
    product: Product | None = None  # of the weights that `product_timing.choose` finds it fast for
    faults: tuple[str, ...] = ()  # which kernels are left out, and why
    notes: tuple[str, ...] = ()  # what else there is to say of them

    @property
    def attends(self) -> bool:
        """True if recorded forwards attend by kernels: both parts are needed."""
        return self.rotate_and_store is not None and self.attend is not None

    def said_of(self, model: str) -> list[str]:
        """What a user is told of the kernels of a model."""
        faults = [f"model '{model}' does without a kernel, and may be slower: {fault}." for fault in self.faults]
        return [*faults, *(f"model '{model}': {note}." for note in self.notes)]


PYTORCH = Kernels()


def triton_kernels() -> Kernels:
    """All kernels. Imports Triton."""
    from specexp.lm.kernels.attention_kernel import attend
    from specexp.lm.kernels.gated_kernel import gated
    from specexp.lm.kernels.norm_kernel import rms_norm
    from specexp.lm.kernels.product_kernel import product
    from specexp.lm.kernels.rotary_kernel import rotate_and_store

    return Kernels(rms_norm, gated, rotate_and_store, attend, product)
