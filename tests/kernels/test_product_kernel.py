"""The product kernel, interpreted on a CPU: PyTorch's results, and for a row the same bits among any other rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from specexp.lm.kernels import reference
from specexp.lm.kernels.product_choice import Tiling, default_tiling

DTYPES = [torch.float32, torch.float16]
# The largest difference, as a fraction of the largest value: PyTorch rounds float16 at each of its steps.
CLOSE = {torch.float32: 5e-6, torch.float16: 3e-3}
SMALL = Tiling(16, 16, 4, 1)
SPLIT = Tiling(16, 16, 4, 3)


@pytest.fixture(scope="module")
def product() -> Any:
    from specexp.lm.kernels.product_kernel import product

    return product


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    gap = (got.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    assert float(gap) <= CLOSE[got.dtype]  # false for NaN


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(8))
def test_products_of_random_shapes(product: Any, seed: int, dtype: torch.dtype) -> None:
    """Odd sizes and whole blocks; splits; a bias, a multiplier, and a residual that is kept or written over."""
    draw = random.Random(seed)
    num = (1, 2, 16, 17, 31, 40, 64, 70)[seed]
    outputs, inputs = draw.choice([(16, 48), (48, 64), (1, 1), (37, 53), (50, 131), (33, 7)])
    tiling = draw.choice([SMALL, SPLIT if inputs > 40 else SMALL, Tiling(32, 16, 4, 1), None])
    x, weight = normal(seed, num, inputs + 5, dtype=dtype)[:, :inputs], normal(seed + 20, outputs, inputs, dtype=dtype)
    bias, residual = normal(seed + 40, outputs, dtype=dtype), normal(seed + 60, num, outputs, dtype=dtype)
    for given in ((None, None, 1.0), (bias, None, 1.0), (None, residual, 0.5), (bias, residual, 2.0)):
        expected, before = reference.product(x, weight, *given), residual.clone()
        assert_close(product(x, weight, *given, tiling), expected)
        assert torch.equal(residual, before), "a residual is written over only where that is asked for"
    expected = reference.product(x, weight, bias, residual, 2.0)
    result = product(x, weight, bias, residual, 2.0, tiling, residual)
    assert result.data_ptr() == residual.data_ptr()
    assert_close(residual, expected)


@pytest.mark.parametrize("tiling", [SMALL, SPLIT, None], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_among_any_number_of_rows_and_in_any_place(
    product: Any, tiling: Tiling | None, dtype: torch.dtype
) -> None:
    """1 to 33 rows, and more than one program takes; the row first, last and in between."""
    outputs, inputs = 19, 70
    weight, bias = normal(0, outputs, inputs, dtype=dtype), normal(1, outputs, dtype=dtype)
    row, beside = normal(2, 1, inputs, dtype=dtype), normal(3, 130, inputs, dtype=dtype)
    added, residual = normal(4, 1, outputs, dtype=dtype), normal(5, 130, outputs, dtype=dtype)
    alone = product(row, weight, bias, added, 0.5, tiling)
    for num in (*range(1, 34), 64, 129):
        for place in {0, num - 1} if num in (1, 2, 16, 17, 33, 64, 129) else {num // 2}:
            x, kept = beside[:num].clone(), residual[:num].clone()
            x[place], kept[place] = row[0], added[0]
            assert torch.equal(product(x, weight, bias, kept, 0.5, tiling, kept)[place], alone[0]), (num, place)


def test_a_product_launches_one_kernel_or_two_for_any_number_of_rows(
    product: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads the weight once for up to 64 rows, once more for each 64 further ones."""
    from specexp.lm.kernels import product_kernel

    class Counting:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            launched.append((self.kernel.__name__, grid))
            return self.kernel[grid]

    for name in ("_multiply", "_add_parts"):
        monkeypatch.setattr(product_kernel, name, Counting(getattr(product_kernel, name)))
    weight = normal(0, 19, 40)
    for num, times in ((1, 1), (17, 1), (64, 1), (65, 2)):
        for tiling, more in ((SMALL, []), (SPLIT, [("_add_parts", (1, num))])):
            launched: list[Any] = []
            residual = normal(1, num, 19)
            product(normal(2, num, 40), weight, normal(3, 19), residual, 1.0, tiling, residual)
            assert launched == [("_multiply", (2, tiling.splits, times)), *more]


def test_what_lies_around_the_rows_and_the_weight_is_not_read(product: Any) -> None:
    """It is no number here: rows in wider ones, and a weight between others."""
    x, around = torch.full((21, 60), float("nan")), torch.full((41, 43), float("nan"))
    x[:20, :43], around[2:39] = normal(0, 20, 43), normal(1, 37, 43)
    for tiling in (SMALL, SPLIT, Tiling(64, 64, 4, 1)):
        got = product(x[:20, :43], around[2:39], tiling=tiling)
        assert_close(got, reference.product(x[:20, :43], around[2:39]))


def test_no_rows_give_no_results_and_touch_nothing(product: Any) -> None:
    weight = normal(0, 20, 30)
    assert product(torch.empty(0, 30), weight).shape == (0, 20)
    assert product(torch.empty(0, 30), weight, None, torch.empty(0, 20), 2.0, SPLIT).shape == (0, 20)


def test_parts_are_added_from_the_first_to_the_last(product: Any) -> None:
    """In float32 (2^24 + 1) - 2^24 is 0, and (2^24 - 2^24) + 1 is 1."""
    weight = torch.ones(1, 48)
    for values, expected in (((2.0**24, 1, -(2.0**24)), 0.0), ((2.0**24, -(2.0**24), 1), 1.0)):
        x = torch.zeros(1, 48)
        x[0, 0], x[0, 16], x[0, 32] = values
        assert product(x, weight, tiling=SPLIT).item() == expected


def test_sums_are_in_float32_and_rounded_once(product: Any) -> None:
    """2048 + 1 - 1 in float16 loses the 1 if it is rounded in between; 2048 + 3 x 1 becomes 2052, not 2048."""
    weight, x = torch.ones(1, 48, dtype=torch.float16), torch.zeros(1, 48, dtype=torch.float16)
    x[0, 0], x[0, 17], x[0, 34] = 2048, 1, 1
    one = torch.ones(1, 1, dtype=torch.float16)
    for tiling in (SMALL, SPLIT):
        assert product(x, weight, tiling=tiling).item() == 2050
        assert product(x, weight, one[0], None, 1.0, tiling).item() == 2052  # 2051 lies between; ties to even
        assert product(x, weight, None, -one, 1.0, tiling).item() == 2048  # 2049, too
        assert product(x, weight, one[0], -one, 1.0, tiling).item() == 2050


def test_by_default_the_tiling_is_that_of_the_weights_shape(product: Any) -> None:
    x, weight = normal(0, 3, 700), normal(1, 40, 700)
    assert default_tiling(weight).splits > 1
    assert torch.equal(product(x, weight), product(x, weight, tiling=default_tiling(weight)))
