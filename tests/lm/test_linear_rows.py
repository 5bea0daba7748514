"""Products with a weight matrix have few different numbers of rows where oneDNN compiles a primitive for each."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specexp.lm.blocks import linear
from specexp.lm.blocks.linear import Linear, joined, primitive_rows

IN, OUT = 256, 640  # as many values as are packed
NUMBERS = (1, 2, 3, 5, 17, 18, 21, 30, 33, 34, 64, 100)
GROWTH = """
import ctypes, torch
from specexp.lm.blocks.linear import joined, Linear
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h hblkhd us fs used free keep".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
torch.set_num_threads(1)
with torch.inference_mode():
    product = Linear(torch.randn(640, 256).to(torch.{dtype}), None, {pack})
    product(torch.randn(3, 256).to(torch.{dtype}))
    before = libc.mallinfo2()
    for rows in range(1, 257):
        product(torch.randn(rows, 256).to(torch.{dtype}))
    after = libc.mallinfo2()
print(after.used + after.hblkhd - before.used - before.hblkhd)
"""


class Rows(TorchDispatchMode):
    """Collects the numbers of rows with which products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.mkldnn._linear_pointwise):
            self.seen.add(args[0].shape[0])
        elif func.overloadpacket is torch.ops.aten.addmm:
            self.seen.add(args[1].shape[0])
        return func(*args, **(kwargs or {}))


def test_there_are_five_sizes_up_to_every_power_of_two() -> None:
    sizes = [primitive_rows(num) for num in range(1, 4097)]
    assert sizes == sorted(sizes)
    assert sizes[: linear.MOST_EXACT_ROWS] == list(range(1, linear.MOST_EXACT_ROWS + 1))
    assert all(num <= size < num * 5 / 4 for num, size in enumerate(sizes, 1))
    assert [primitive_rows(size) for size in sizes] == sizes
    assert sorted(set(sizes) - set(sizes[:32])) == [
        33, 41, 49, 57, 64, 65, 81, 97, 113, 128, 129, 161, 193, 225, 256, 257, 321, 385, 449, 512, 513, 641, 769, 897,
        1024, 1025, 1281, 1537, 1793, 2048, 2049, 2561, 3073, 3585, 4096,
    ]  # fmt: skip


def test_a_drafted_chain_or_tree_and_a_piece_of_a_prompt_have_no_padding() -> None:
    for drafted in (4, 8, 16, 32, 64, 128):
        assert primitive_rows(drafted + 1) == drafted + 1
    for piece in (32, 64, 128, 256, 512):
        assert primitive_rows(piece) == piece


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_have_few_numbers_of_rows_and_are_right(dtype: torch.dtype, bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    weight, of_outputs = random(OUT, IN), random(OUT) if bias else None
    product = Linear(weight, of_outputs, pack=dtype == torch.float32)
    near = {torch.float32: 3e-4, torch.bfloat16: 1, torch.float16: 0.2}[dtype]  # of values up to about 150
    for num in NUMBERS:
        x, residual = random(num, IN), random(num, OUT)
        with torch.inference_mode(), Rows() as rows:
            made = [product(x), product.added(x, residual), product.added(x, residual, 2)]
        assert rows.seen == {primitive_rows(num)}
        exact = x.double() @ weight.double().t() + (0 if of_outputs is None else of_outputs.double())
        expected = [exact, exact + residual.double(), 2 * exact + residual.double()]
        assert all(each.shape == (num, OUT) for each in made)
        assert all(float((a - b).abs().max()) < near for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_joined_once(bias: bool) -> None:
    parts = [torch.nn.Linear(4, size, bias=bias) for size in (3, 2, 5)]
    before = [part(torch.ones(4)).tolist() for part in parts]
    (weight, first), (again, second) = joined(parts), joined(parts)
    assert again.data_ptr() == weight.data_ptr()
    assert torch.equal(again, weight)
    assert first is None if not bias else torch.equal(first, second)
    assert [part(torch.ones(4)).tolist() for part in parts] == before
    # Neither in another order, nor some of them, nor rows that are not next to each other.
    assert torch.equal(joined([parts[1], parts[0]])[0], torch.cat([weight[3:5], weight[:3]]))
    apart = [torch.nn.Linear(4, 2, bias=False) for _ in range(2)]
    rows = torch.randn(6, 4)
    apart[0].weight.data, apart[1].weight.data = rows[:2], rows[4:]
    assert torch.equal(joined(apart)[0], torch.cat([rows[:2], rows[4:]]))


def test_where_nothing_is_compiled_rows_are_as_they_come() -> None:
    product = Linear(torch.randn(OUT, IN), None, pack=False)
    with torch.inference_mode(), Rows() as rows:
        for num in range(1, 40):
            product(torch.zeros(num, IN))
    assert rows.seen == set(range(1, 40))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize("dtype, pack", [("float32", True), ("bfloat16", False)])
def test_a_product_that_meets_every_length_keeps_less_than_32_mib(dtype: str, pack: bool) -> None:
    """With a primitive for each number of rows it kept 130 MiB."""
    code = GROWTH.format(dtype=dtype, pack=pack)
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    print(f"{int(made.stdout) / (1 << 20):.1f} MiB")
    assert int(made.stdout) < 32 << 20
