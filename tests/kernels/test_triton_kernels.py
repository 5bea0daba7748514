"""Triton's kernels, interpreted on a CPU: PyTorch's results, and for a row the same bits among any other rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from specexp.lm.kernels import reference
from specexp.lm.kernels.table import triton_kernels
from specexp.lm.kernels.verification import TOLERANCE, Heads, random_angles, verified

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16]
# The largest difference, as a fraction of the largest value: float16 is rounded once more by PyTorch's versions.
CLOSE = {torch.float32: 2e-6, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def kernels() -> Any:
    return triton_kernels()


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    gap = (got.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    assert float(gap) <= CLOSE[got.dtype]  # false for NaN


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_norms(kernels: Any, seed: int, dtype: torch.dtype) -> None:
    """Rows with one weight, without, and with a wide one; heads that lie in wider rows, with a weight for each."""
    draw = random.Random(seed)
    size, heads, num = draw.choice([8, 20, 96, 200]), draw.randrange(1, 9), draw.randrange(1, 6)
    x, weight = 3 * normal(seed, num, size, dtype=dtype), normal(seed + 9, size, dtype=dtype)
    wide = normal(seed, num, (heads + 2) * size, dtype=dtype)[:, : heads * size].view(num, heads, size)
    by_head = normal(seed, heads, size, dtype=dtype)
    for rows in (x, wide):
        for each in (weight, weight.float(), None, *([by_head, by_head.float()] if rows.dim() == 3 else [])):
            assert_close(kernels.rms_norm(rows, each, 1e-5), reference.rms_norm(rows, each, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_activations(kernels: Any, act: str, dtype: torch.dtype) -> None:
    for num, size in ((1, 24), (3, 1100)):
        inner = 4 * normal(size, num, 2 * size, dtype=dtype)
        inner[0, :3] = torch.tensor([-80.0, 80.0, 0.0])
        assert_close(kernels.gated(inner, act), reference.gated(inner.clone(), act))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide_angles", [False, True])
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("heads,kv_heads,size,rotated", [(4, 2, 20, 20), (3, 3, 8, 4), (6, 1, 12, 12), (2, 2, 40, 16)])
def test_rotation_with_the_write(
    kernels: Any, heads: int, kv_heads: int, size: int, rotated: int, axis: int, wide_angles: bool, dtype: torch.dtype
) -> None:
    """All values and some, pairs of both kinds; without angles; for layers that store nothing; other slots stay."""
    num, slots = 4, torch.tensor([6, 1, 2, 9])
    cos, sin = random_angles(num, rotated, CPU, torch.float32 if wide_angles else dtype)
    if axis == 3:
        cos, sin = (each.transpose(2, 3).contiguous() for each in (cos, sin))
    whole = normal(size, num, (heads + 2 * kv_heads) * size, dtype=dtype)
    for table in ((cos, sin, axis), None):
        for stores in (True, False):
            results = []
            for function in (kernels.rotate_and_store, reference.rotate_and_store):
                projected = whole.clone() if stores else whole[:, : heads * size].clone()
                flat = torch.full((11, 2 * kv_heads * size + 8), 7.0, dtype=dtype)
                function(projected, table, heads, kv_heads, flat[:, :-8] if stores else None, slots)
                results.append((projected[:, : heads * size], flat))
            for got, expected in zip(*results, strict=True):
                assert_close(got, expected)


CASES: dict[str, dict[str, Any]] = {
    "one token": {"num": 1, "start": 100},
    "the first slots": {"num": 3, "start": 0},
    "a head for each key": {"heads": 4, "kv_heads": 4, "size": 32, "start": 62},
    "a size that is no power of two": {"size": 20, "start": 70},
    "three heads a key, a window": {"heads": 6, "window": 16, "start": 150},
    "a window across splits": {"window": 90, "start": 180},
    "a cap": {"softcap": 2.0, "start": 66},
    "sinks": {"sinks": True, "start": 66},
    "sinks, a window": {"sinks": True, "window": 8, "start": 130},
    "a cap on a tree": {"softcap": 2.0, "tree": True, "num": 6, "start": 61},
    "a tree of more than one launch": {"tree": True, "num": 66, "start": 4, "heads": 1, "kv_heads": 1, "size": 8},
}


def attention_case(seed: int, dtype: torch.dtype, bucket: int, **case: Any) -> tuple[list[Any], int]:
    """Arguments of `attend`, and the number of slots in use. What follows these slots is no number."""
    heads, kv_heads, size = case.get("heads", 4), case.get("kv_heads", 2), case.get("size", 16)
    num, start = case.get("num", 5), case["start"]
    slots, used = torch.arange(start, start + num), start + num
    queries = normal(seed, num, (heads + 2 * kv_heads) * size, dtype=dtype)[:, : heads * size].view(num, heads, size)
    flat = torch.full((bucket, 2 * kv_heads * size + 8), float("nan"), dtype=dtype)
    flat[:used] = normal(seed + 1, used, flat.shape[1], dtype=dtype)
    seen = None
    if case.get("tree"):
        seen = torch.rand(num, bucket, generator=torch.Generator().manual_seed(seed)) < 0.4
        seen[:, 0] = True
        seen &= torch.arange(bucket) <= slots[:, None]
    sinks = normal(seed + 2, heads, dtype=dtype) if case.get("sinks") else None
    return [
        queries, flat[:, :-8], kv_heads, slots, case.get("window", 0), seen, bucket, size**-0.5,
        case.get("softcap", 0.0), sinks,
    ], used  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_attention(kernels: Any, case: str, dtype: torch.dtype) -> None:
    """What follows the last token is not read: it is no number here."""
    arguments, used = attention_case(len(case), dtype, 256, **CASES[case])
    got = kernels.attend(*arguments)
    arguments[1] = arguments[1][:used]
    arguments[6] = used
    arguments[5] = None if arguments[5] is None else arguments[5][:, :used]
    assert_close(got, reference.attend(*arguments))


def test_a_token_that_sees_nothing_gets_zeros(kernels: Any) -> None:
    arguments, _ = attention_case(0, torch.float32, 128, num=3, start=20, tree=True)
    arguments[5][1] = False
    got = kernels.attend(*arguments)
    assert not got[1].any()
    assert got[0].any()


def test_splits_cover_a_bucket_and_do_not_depend_on_it() -> None:
    from specexp.lm.kernels.attention_kernel import EACH, FIRST, boundaries

    longest = boundaries(1 << 17)
    assert longest[: EACH + 1] == [FIRST * i for i in range(EACH + 1)]
    assert longest[EACH + 1] - longest[EACH] == 2 * FIRST
    assert len(longest) < 200, "parts of long contexts would take too much memory"
    for bucket in (1, 63, 64, 65, 2048, 2049, 5000):
        starts = boundaries(bucket)
        assert starts == longest[: len(starts)]
        assert starts[-2] < bucket <= starts[-1]


def test_a_row_has_the_same_bits_among_any_number_of_rows(kernels: Any) -> None:
    """1 to 16 rows, as counted from the sequence's start: those before it in the same call change nothing."""
    heads, kv_heads, size, total, start = 4, 2, 20, 16, 58
    x, weight = normal(0, total, 80), normal(1, 80)
    inner = normal(2, total, 96)
    arguments, _ = attention_case(
        3, torch.float32, 128, heads=heads, kv_heads=kv_heads, size=size, num=total, start=start
    )
    queries, slots = arguments[0], arguments[3]
    joined, angles = normal(4, total, (heads + 2 * kv_heads) * size), random_angles(total, size, CPU, torch.float32)

    def results(begin: int, num: int) -> list[Tensor]:
        here = slice(begin, begin + num)
        projected, flat = joined[here].clone(), torch.zeros(128, 2 * kv_heads * size)
        table = (angles[0][here].contiguous(), angles[1][here].contiguous(), 2)
        kernels.rotate_and_store(projected, table, heads, kv_heads, flat, slots[here])
        attended = kernels.attend(queries[here], arguments[1], kv_heads, slots[here], *arguments[4:])
        return [
            kernels.rms_norm(x[here], weight, 1e-5), kernels.gated(inner[here], "silu"), flat[slots[here]],
            projected[:, : heads * size], attended,
        ]  # fmt: skip

    whole = results(0, total)
    for num in (1, 2, 3, 5, 8, 9, 15):
        for begin in {0, total - num}:
            for got, expected in zip(results(begin, num), whole, strict=True):
                assert torch.equal(got, expected[begin : begin + num]), (num, begin)


@pytest.mark.parametrize("more", [{}, {"window": 20}, {"sinks": True, "softcap": 3.0}, {"tree": True}], ids=str)
def test_a_row_has_the_same_bits_in_any_bucket_and_beside_padding(kernels: Any, more: Any) -> None:
    results = []
    for bucket in (128, 256, 4096):
        arguments, used = attention_case(5, torch.float32, bucket, num=5, start=100, **{**more, "tree": False})
        if more.get("tree"):
            arguments[5] = torch.zeros(5, bucket, dtype=torch.bool)
            arguments[5][:, :used] = (torch.arange(used) % 3 == 0) | (torch.arange(used) == arguments[3][:, None])
            arguments[5] &= torch.arange(bucket) <= arguments[3][:, None]
        results.append(kernels.attend(*arguments))
    assert all(torch.equal(each, results[0]) for each in results[1:])


def in_other_slots(arguments: list[Any], used: int, seed: int) -> list[Any]:
    """The same keys and values in slots of no order, with an index for each token."""
    queries, flat, _, slots = arguments[:4]
    order = torch.randperm(used, generator=torch.Generator().manual_seed(seed))
    mixed = flat.clone()
    mixed[order] = flat[:used]
    index = torch.zeros(len(queries), arguments[6], dtype=torch.int64)
    for row, at in enumerate(slots.tolist()):
        index[row, : at + 1] = order[: at + 1]  # after its own position nothing is read
    return [queries, mixed, *arguments[2:], index]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case.get("tree")])
def test_keys_in_other_slots_give_the_bits_of_a_chain(kernels: Any, case: str, dtype: torch.dtype) -> None:
    """A tree's nodes read their ancestors in the order of positions: its sums are those of plain decoding."""
    arguments, used = attention_case(len(case), dtype, 256, **CASES[case])
    indexed = in_other_slots(arguments, used, len(case))
    got = kernels.attend(*indexed)
    assert torch.equal(got, kernels.attend(*arguments))
    indexed[1] = indexed[1].nan_to_num(0.0)  # the reference reads all, and masks
    assert_close(got, reference.attend(*indexed))


def test_a_token_reads_by_its_own_index(kernels: Any) -> None:
    """Nodes of two branches in one call, each with other keys at the same positions."""
    arguments, used = attention_case(3, torch.float32, 128, num=4, start=70)
    indexed = in_other_slots(arguments, used, 1)
    other = indexed[-1].clone()
    other[1] = in_other_slots(arguments, used, 2)[-1][1]
    both = kernels.attend(*indexed[:-1], other)
    assert torch.equal(both[[0, 2, 3]], kernels.attend(*indexed)[[0, 2, 3]])
    assert not torch.equal(both[1], kernels.attend(*indexed)[1])
    assert_close(both, reference.attend(indexed[0], indexed[1].nan_to_num(0.0), *indexed[2:-1], other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_verification_takes_them(kernels: Any, dtype: torch.dtype) -> None:
    assert dtype in TOLERANCE
    assert verified(kernels, CPU, dtype, 40, [Heads(4, 2, 20, 0, 0.0), Heads(2, 2, 8, 16, 5.0)]) == kernels
