"""Which product computes how many rows, by made-up timings; what is measured is kept for its environment.

Nothing here is timed: a timer says what the test gives it. The kernel itself is in `tests/kernels`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specexp.lm.blocks.linear import Linear
from specexp.lm.kernels import product_cache, product_choice, reference, verification
from specexp.lm.kernels.product_cache import ProductCache, cache_folder, environment_of
from specexp.lm.kernels.product_choice import (
    BUCKETS,
    PYTORCH,
    ProductChoice,
    Tiling,
    always,
    default_tiling,
    fastest,
    invariant,
    tilings,
)
from specexp.lm.kernels.product_timing import LEAST_BYTES, LEAST_CALLS, choose, shape_name
from specexp.lm.kernels.table import Kernels
from specexp.lm.kernels.verification import chosen_products, product_faults

A, B, C = Tiling(16, 128, 4, 1), Tiling(32, 128, 4, 2), Tiling(64, 128, 4, 1)
CANDIDATES = [A, B, C]
ENVIRONMENT = {"gpu": "card", "torch": "2"}
SHAPES = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (3072, 2048), (2048, 8192), (1, 1),
    (37, 53), (2048, 33 * 128), (2048, 33 * 64),
]  # fmt: skip


def timings(**rows: tuple[float | None, ...]) -> Any:
    """Seconds of PyTorch, A, B and C at so many rows; those at others are of all 1."""
    names = (PYTORCH, *(each.name for each in CANDIDATES))
    return {most: dict(zip(names, rows.get(f"at_{most}", (1.0,) * 4), strict=True)) for most in BUCKETS}


# --- which tilings are tried


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("outputs,inputs", SHAPES)
def test_splits_are_long_enough_cover_the_inputs_and_none_is_empty(
    outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    given = tilings(outputs, inputs, dtype)
    assert len({each.name for each in given}) == len(given)
    for each in given:
        steps = -(-inputs // each.in_block)
        length = -(-steps // each.splits)
        assert (each.splits - 1) * length < steps <= each.splits * length
        assert each.splits == 1 or length >= product_choice.LEAST_STEPS


def test_weights_of_few_outputs_are_split_and_large_ones_are_not() -> None:
    assert max(each.splits for each in tilings(4096, 14336, torch.bfloat16)) >= 8
    assert {each.splits for each in tilings(128256, 4096, torch.bfloat16)} == {1}


# --- the decision


def test_the_fastest_is_used_for_each_number_of_rows_and_pytorch_beyond() -> None:
    choice = fastest(CANDIDATES, timings(at_1=(9, 8, 3, 9), at_16=(9, 3, 8, 9), at_64=(9, 9, 9, 3), at_8=(1, 4, 4, 2)))
    assert choice == ProductChoice((B, None, A, C))
    used = {1: B, 2: None, 8: None, 9: A, 16: A, 17: C, 64: C, 65: None, 1000: None}
    assert {rows: choice.of(rows) for rows in used} == used
    assert choice.used == [B, A, C]


def test_pytorchs_product_stays_where_nothing_is_clearly_faster() -> None:
    assert fastest(CANDIDATES, timings(at_1=(1.015, 1, 1.1, 1.1))).of(1) is None
    assert fastest(CANDIDATES, timings(at_1=(1.025, 1, 1.1, 1.1))).of(1) == A


def test_what_does_not_run_is_not_used() -> None:
    choice = fastest(CANDIDATES, timings(at_1=(5, None, 4, None)))
    assert choice.of(1) == B
    assert fastest(CANDIDATES, timings(at_1=(5, None, None, None))).of(1) is None


def test_one_order_is_one_tiling_for_all_rows_even_where_pytorch_is_faster() -> None:
    choice = invariant(CANDIDATES, timings(at_1=(1, 4, 2, 3), at_16=(1, 4, 3, 2)))
    assert choice == always(B)
    assert choice is not None
    assert {choice.of(rows) for rows in (1, 7, 16, 64, 65, 5000)} == {B}


def test_one_order_weighs_one_row_and_sixteen_alike() -> None:
    """As fractions of the least time at each: seconds of many rows would outweigh those of one."""
    assert invariant(CANDIDATES, timings(at_1=(1, 1, 1.5, 2), at_16=(100, 160, 120, 150))) == always(A)
    assert invariant(CANDIDATES, timings(at_1=(1, 1, 1.5, 2), at_16=(100, 160, 100, 150))) == always(B)


def test_one_order_takes_only_what_runs_at_both() -> None:
    assert invariant(CANDIDATES, timings(at_1=(1, 1, None, 9), at_16=(1, None, 1, 9))) == always(C)
    assert invariant(CANDIDATES, timings(at_1=(1, 1, None, None), at_16=(1, None, 1, None))) is None


def test_noise_within_two_percent_changes_no_choice() -> None:
    draw = random.Random(0)

    def noisy(*values: float) -> tuple[float, ...]:
        return tuple(value * (1 + 0.019 * draw.random()) for value in values)

    for _ in range(100):
        given = timings(at_1=noisy(2, 1, 1, 1), at_16=noisy(2, 1.5, 1, 1))
        assert fastest(CANDIDATES, given).of(1) == A
        assert invariant(CANDIDATES, given) == always(B)


# --- the measurement


class Measured:
    """A product that notes its tiling, and a timer that gives the seconds of what was called."""

    def __init__(self, seconds: Callable[[int, Tiling | None], float] = lambda *_: 1.0) -> None:
        self.timed: list[tuple[int, int, Tiling | None]] = []  # calls, rows, tiling
        self._seconds, self._last = seconds, (0, default_tiling(torch.empty(16, 16)))

    def product(self, x: Tensor, weight: Tensor, *_: Any, tiling: Tiling) -> Tensor:
        self._last = (x.shape[0], tiling)
        return x.new_empty(x.shape[0], weight.shape[0])

    def timer(self, calls: Sequence[Callable[[], object]]) -> float:
        self._last = (0, self._last[1])
        results = [call() for call in calls]
        rows, tiling = self._last
        by_pytorch = not rows
        rows = results[0].shape[0] if isinstance(results[0], Tensor) else 0
        self.timed.append((len(calls), rows, None if by_pytorch else tiling))
        return self._seconds(rows, self.timed[-1][2])


def weights_of(*shapes: tuple[int, int], each: int = 2) -> dict[str, list[Tensor]]:
    result: dict[str, list[Tensor]] = {}
    for shape in shapes:
        weight = torch.zeros(shape)
        result.setdefault(shape_name(weight), []).extend([weight, *(torch.zeros(shape) for _ in range(each - 1))])
    return result


def test_every_candidate_is_timed_at_every_number_of_rows_and_the_fastest_is_chosen(tmp_path: Path) -> None:
    weights = weights_of((64, 512))
    given = tilings(64, 512, torch.float32)
    measured = Measured(lambda rows, tiling: 0.5 if tiling == given[-1] and rows == 16 else 1.0)
    cache = ProductCache(tmp_path, ENVIRONMENT)
    choices = choose(measured.product, weights, (cache, measured.timer), one_order=False)
    assert [timed[1:] for timed in measured.timed] == [(rows, each) for rows in BUCKETS for each in (None, *given)]
    assert choices == {"64x512 float32": ProductChoice((None, None, given[-1], None))}
    # The same timings in one order: PyTorch's product is no candidate.
    again = Measured()
    assert choose(again.product, weights, (cache, again.timer), one_order=True) == {
        "64x512 float32": always(given[-1])
    }  # fmt: skip
    assert not again.timed


def test_a_weight_is_not_read_from_a_cache_that_the_call_before_filled(tmp_path: Path) -> None:
    """Calls take the weights of other layers in turn, until these are more than a GPU caches."""
    read: list[int] = []
    orders: list[list[int]] = []

    def product(x: Tensor, weight: Tensor, tiling: Tiling) -> Tensor:
        read.append(weight.data_ptr())
        return x

    def timer(calls: Sequence[Callable[[], object]]) -> float:
        read.clear()
        if calls[0].func is not torch.mm:  # type: ignore[attr-defined]
            for call in calls:
                call()
            orders.append([*read])
        return 1.0

    weights = {"512x40960 float32": [torch.empty(512, 40960) for _ in range(3)]}
    choose(product, weights, (ProductCache(tmp_path, ENVIRONMENT), timer), one_order=False)
    assert orders
    for order in orders:
        assert len(order) == max(LEAST_CALLS, -(-LEAST_BYTES // (512 * 40960 * 4)))
        assert all(a != b for a, b in pairwise(order))
        assert len(set(order)) == 3


def test_a_candidate_that_does_not_run_leaves_the_others(tmp_path: Path) -> None:
    given = tilings(64, 512, torch.float32)

    def seconds(_rows: int, tiling: Tiling | None) -> float:
        if tiling == given[0]:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if tiling is None else 0.5

    measured, cache = Measured(seconds), ProductCache(tmp_path, ENVIRONMENT)
    (choice,) = choose(measured.product, weights_of((64, 512)), (cache, measured.timer), one_order=False).values()
    assert choice == ProductChoice((given[1],) * len(BUCKETS))
    again = Measured()
    choose(again.product, weights_of((64, 512)), (cache, again.timer), one_order=False)
    assert not again.timed, "what does not run is known, too"


def test_no_memory_and_a_fault_of_pytorch_are_raised(tmp_path: Path) -> None:
    def exhausted(_rows: int, tiling: Tiling | None) -> float:
        if tiling is not None:
            raise torch.OutOfMemoryError("no memory")
        return 1.0

    def broken(_rows: int, tiling: Tiling | None) -> float:
        raise RuntimeError("no such kernel image")

    for seconds, error in ((exhausted, torch.OutOfMemoryError), (broken, RuntimeError)):
        measured, cache = Measured(seconds), ProductCache(tmp_path, ENVIRONMENT)
        with pytest.raises(error):
            choose(measured.product, weights_of((64, 512)), (cache, measured.timer), one_order=False)
        assert not list(tmp_path.iterdir())


def test_where_nothing_is_measured_the_kernel_computes_all_rows() -> None:
    weights = weights_of((64, 512))
    (first,) = weights.values()
    for one_order in (False, True):
        assert choose(reference.product, weights, None, one_order) == {
            "64x512 float32": always(default_tiling(first[0]))
        }  # fmt: skip


# --- the file


def test_shapes_are_measured_once_for_an_environment(tmp_path: Path) -> None:
    def timed(environment: dict[str, str], *shapes: tuple[int, int]) -> int:
        measured, cache = Measured(), ProductCache(tmp_path, environment)
        choose(measured.product, weights_of(*shapes), (cache, measured.timer), one_order=False)
        assert cache.notes == []
        return len(measured.timed) // len(BUCKETS)

    one, two = (1 + len(tilings(*shape, torch.float32)) for shape in ((64, 512), (16, 16)))
    assert timed(ENVIRONMENT, (64, 512)) == one
    assert timed(ENVIRONMENT, (64, 512), (16, 16)) == two
    assert timed(ENVIRONMENT, (16, 16), (64, 512)) == 0
    other = {**ENVIRONMENT, "torch": "3"}
    assert timed(other, (64, 512)) == one
    assert timed(ENVIRONMENT, (64, 512)) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_each_shape_is_kept_as_soon_as_it_is_measured(tmp_path: Path) -> None:
    """Whoever ends the process loses one shape."""

    def seconds(_rows: int, _tiling: Tiling | None) -> float:
        if len(measured.timed) > (1 + len(tilings(64, 512, torch.float32))) * len(BUCKETS):
            raise KeyboardInterrupt
        return 1.0

    measured, cache = Measured(seconds), ProductCache(tmp_path, ENVIRONMENT)
    with pytest.raises(KeyboardInterrupt):
        choose(measured.product, weights_of((64, 512), (16, 16)), (cache, measured.timer), one_order=False)
    assert list(ProductCache(tmp_path, ENVIRONMENT).read()) == ["64x512 float32"]


def filled(tmp_path: Path) -> ProductCache:
    measured, cache = Measured(), ProductCache(tmp_path, ENVIRONMENT)
    choose(measured.product, weights_of((64, 512)), (cache, measured.timer), one_order=False)
    return cache


def edited(path: Path, *keys: Any, value: Any) -> None:
    content = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: path.write_text(path.read_text()[:100]), "no JSON"),
    "empty": (lambda path: path.write_text(""), "no JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "no JSON"),
    "a list": (lambda path: path.write_text("[1]"), "another format"),
    "deep": (lambda path: path.write_text("[" * 100_000), "recursion"),
    "a later format": (lambda path: edited(path, "format", value=2), "another format"),
    "of another card": (lambda path: edited(path, "environment", "gpu", value="other"), "another environment"),
    "no products": (lambda path: edited(path, "products", value=3), "another format"),
    "rows by name": (lambda path: edited(path, "products", "64x512 float32", value={"one": {}}), "another format"),
    "text as a time": (
        lambda path: edited(path, "products", "64x512 float32", "1", PYTORCH, value="fast"), "a time that is none"
    ),
    "no number as a time": (
        lambda path: edited(path, "products", "64x512 float32", "1", PYTORCH, value=float("nan")), "a time that is none"
    ),
    "a time of zero": (
        lambda path: edited(path, "products", "64x512 float32", "1", PYTORCH, value=0), "a time that is none"
    ),
    "true as a time": (
        lambda path: edited(path, "products", "64x512 float32", "1", PYTORCH, value=True), "a time that is none"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_corrupt_or_foreign_file_is_measured_again_and_said_once(tmp_path: Path, fault: str) -> None:
    path = filled(tmp_path).path
    assert path is not None
    spoil, said = FAULTS[fault]
    spoil(path)
    measured, cache = Measured(), ProductCache(tmp_path, ENVIRONMENT)
    choose(measured.product, weights_of((64, 512)), (cache, measured.timer), one_order=False)
    assert measured.timed
    (note,) = cache.notes
    assert said in note.lower().replace("no json", "no JSON")
    assert str(path) in note
    assert "\n" not in note
    again, cache = Measured(), ProductCache(tmp_path, ENVIRONMENT)
    choose(again.product, weights_of((64, 512)), (cache, again.timer), one_order=False)
    assert not again.timed, "the file is whole again"
    assert not cache.notes


@pytest.mark.parametrize("change", ["a candidate is missing", "an unknown one", "rows are missing", "no PyTorch"])
def test_timings_of_other_candidates_are_measured_again_without_a_note(tmp_path: Path, change: str) -> None:
    cache = filled(tmp_path)
    known = cache.read()["64x512 float32"]
    if change == "rows are missing":
        del known[8]
    elif change == "no PyTorch":
        known[8][PYTORCH] = None
    elif change == "an unknown one":
        known[8]["7x7"] = 1.0
    else:
        del known[8][tilings(64, 512, torch.float32)[1].name]
    cache.add({"64x512 float32": known})
    measured = Measured()
    choose(measured.product, weights_of((64, 512)), (cache, measured.timer), one_order=False)
    assert measured.timed
    assert not cache.notes


def test_what_another_process_added_stays(tmp_path: Path) -> None:
    one, two = ProductCache(tmp_path, ENVIRONMENT), ProductCache(tmp_path, ENVIRONMENT)
    assert one.read() == two.read() == {}
    one.add({"a": {1: {PYTORCH: 1.0}}})
    two.add({"b": {1: {PYTORCH: 2.0}}})
    assert set(one.read()) == {"a", "b"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path)
    assert cache.path is not None
    before = cache.path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(product_cache.os, "replace", full)
    cache.add({"other": {1: {PYTORCH: 1.0}}})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    (note,) = cache.notes
    assert "No space left" in note
    assert product_cache.FOLDER in note


def test_a_folder_that_cannot_be_made_costs_a_note_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    measured, cache = Measured(), ProductCache(tmp_path / "file" / "cache", ENVIRONMENT)
    choices = choose(measured.product, weights_of((64, 512)), (cache, measured.timer), one_order=False)
    assert choices
    assert cache.notes
    assert all("\n" not in note and str(cache.path) in note for note in cache.notes)


def test_without_a_folder_nothing_is_kept() -> None:
    cache = ProductCache(None, ENVIRONMENT)
    cache.add({"a": {1: {PYTORCH: 1.0}}})
    assert cache.read() == {}
    assert cache.notes == []


def test_the_folder_is_the_users_or_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder({"SPECEXP_CACHE": "here", "XDG_CACHE_HOME": "/cache"}) == Path("here")
    assert cache_folder({"SPECEXP_CACHE": "", "XDG_CACHE_HOME": "/cache"}) == Path("/cache/specexp")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path("/home/someone/.cache/specexp")

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match="no home"):
        cache_folder({})


def test_an_environment_is_the_card_the_libraries_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    first = environment_of(torch.device("cpu"))
    assert first["gpu"] == "a card"
    assert first["capability"] == "9.0"
    assert first["torch"] == torch.__version__
    assert set(first) == {"gpu", "capability", "torch", "triton", "cuda", "kernels"}
    monkeypatch.setattr(product_cache, "SOURCES", ("product_kernel.py",))
    assert environment_of(torch.device("cpu"))["kernels"] != first["kernels"]


# --- the model's weights


def test_a_product_that_differs_leaves_its_weights_to_pytorch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, weight: Tensor, *more: Any) -> Tensor:
        result = reference.product(x, weight, *more)
        return result.mul_(1.1) if weight.shape[0] == 24 else result

    given = Kernels(product=wrong)
    kernels, choices = chosen_products(given, [torch.randn(24, 40), torch.randn(32, 40), torch.randn(24, 40)])
    assert list(choices) == ["32x40 float32"]
    (fault,) = kernels.faults
    assert fault.startswith("product with 24x40 float32 (32x64 warps 4 splits 1): its results differ")
    assert kernels.said_of("m") == [f"model 'm' does without a kernel, and may be slower: {fault}."]


@pytest.mark.parametrize("rows", [1, 18])
@pytest.mark.parametrize("how", ["bias", "residual", "last row", "nan"])
def test_whatever_a_product_gets_wrong_is_seen(how: str, rows: int) -> None:
    def wrong(
        x: Tensor, weight: Tensor, bias: Any, residual: Any, multiplier: float, tiling: Any, out: Any = None
    ) -> Any:
        if x.shape[0] != rows:
            return reference.product(x, weight, bias, residual, multiplier, tiling, out)
        bias = None if how == "bias" else bias
        result = reference.product(x, weight, bias, None if how == "residual" else residual, multiplier)
        if how in ("nan", "last row"):
            result[-1] = float("nan") if how == "nan" else 0
        return result if out is None else out.copy_(result)

    weights = {"24x40 float32": [torch.randn(24, 40)]}
    assert product_faults(wrong, weights, {"24x40 float32": always(A)})
    assert not product_faults(reference.product, weights, {"24x40 float32": always(A)})
    assert not product_faults(wrong, weights, {"24x40 float32": ProductChoice((None,) * len(BUCKETS))})


def test_without_the_kernel_nothing_is_chosen() -> None:
    kernels = Kernels(reference.rms_norm)
    assert chosen_products(kernels, [torch.randn(24, 40)]) == (kernels, {})


def test_on_cuda_products_are_measured_and_kept_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that says it is on CUDA, and a timer that needs none."""

    class OnCuda(Tensor):
        device = torch.device("cuda")

    made: list[Measured] = []

    def timer(_device: Any) -> Any:
        made.append(Measured(lambda _, tiling: 1.0 if tiling is None else 0.5))
        return lambda calls: 1.0 if calls[0].func is torch.mm else 0.5

    monkeypatch.setenv("SPECEXP_CACHE", str(tmp_path))
    monkeypatch.setattr(verification, "CudaTimer", timer)
    monkeypatch.setattr(verification, "environment_of", lambda _: ENVIRONMENT)
    monkeypatch.setattr(verification, "product_faults", lambda *_: {})
    monkeypatch.setattr("specexp.lm.kernels.product_timing.torch.randn", lambda *_, **__: torch.zeros(()))
    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)
    weight = torch.zeros(64, 512).as_subclass(OnCuda)
    kernels, choices = chosen_products(Kernels(product=reference.product), [weight])
    assert made
    assert kernels.notes == ()
    assert choices["64x512 float32"] == ProductChoice((tilings(64, 512, torch.float32)[0],) * len(BUCKETS))
    assert len(list(tmp_path.iterdir())) == 1
    (next(tmp_path.iterdir())).write_text("{")
    kernels, _ = chosen_products(Kernels(product=reference.product), [weight])
    (note,) = kernels.said_of("m")
    assert note.startswith("model 'm': '")
    assert note.endswith("measured again.")


def test_a_layer_uses_the_kernel_for_the_rows_that_it_is_chosen_for_only() -> None:
    called: list[tuple[int, Any]] = []

    def product(x: Tensor, weight: Tensor, *more: Any) -> Tensor:
        called.append((x.shape[0], more[3]))
        return reference.product(x, weight, *more)

    weight, bias = torch.randn(24, 40), torch.randn(24)
    for given in (None, bias):
        called.clear()
        linear, plain = Linear(weight, given, pack=False), Linear(weight, given, pack=False)
        linear.use(product, ProductChoice((A, None, B, None)))
        for rows in (1, 5, 16, 20, 100):
            x, residual = torch.randn(rows, 40), torch.randn(rows, 24)
            assert torch.allclose(linear(x), plain(x), atol=1e-5)
            before = residual.clone()
            for multiplier in (1.0, 0.5):
                expected = plain.added(x, before, multiplier)
                assert torch.allclose(linear.added(x, residual, multiplier), expected, atol=1e-5)
                assert torch.equal(residual, before)
            result = linear.added(x, residual, 0.5, overwrite=True)
            assert torch.allclose(result, expected, atol=1e-5)
            assert (result.data_ptr() == residual.data_ptr()) == (rows in (1, 16))
        assert called == [*[(1, A)] * 4, *[(16, B)] * 4]


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    path = filled(tmp_path).path
    assert path is not None
    content = json.loads(path.read_text())
    assert content["environment"] == ENVIRONMENT
    assert list(content["products"]) == ["64x512 float32"]
    assert list(content["products"]["64x512 float32"]) == ["1", "8", "16", "64"]
