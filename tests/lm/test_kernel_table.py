"""Kernels are used where they give PyTorch's results, and recorded forwards with them give the logits of those without.

PyTorch's versions of the kernels run here: the Triton ones are compared with them in `tests/kernels`.
"""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import tiny_models
from helpers.block_cases import CASES
from helpers.tape import Tape
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.lm.blocks.feed_forward import Mlp, activation
from specexp.lm.blocks.linear import Linear
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.kernels import reference
from specexp.lm.kernels.product_choice import always, default_tiling
from specexp.lm.kernels.table import PYTORCH, Kernels
from specexp.lm.kernels.verification import TOLERANCE, Heads, kernels_of, verified
from specexp.lm.model import Branches
from specexp.lm.native import cuda_graphs
from specexp.lm.native.native_forward import NativeForward

CPU = torch.device("cpu")
ALL = Kernels(
    reference.rms_norm, reference.gated, reference.rotate_and_store, reference.attend, reference.product
)  # fmt: skip
NAMES = [field.name for field in fields(Kernels) if field.name not in ("faults", "notes")]
SHAPES = [Heads(4, 2, 8, 0, 0.0), Heads(4, 2, 8, 0, 0.0), Heads(6, 3, 20, 16, 5.0)]
TREE = Branches(9, [0, 0, 1, 1, 2], [[0], [1], [0, 2], [1, 3], [0, 2, 4]])


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 16)


def counted(kernels: Kernels, calls: Counter[str]) -> Kernels:
    """These kernels, which count their calls."""

    def counting(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return getattr(kernels, name)(*arguments)

        return call

    return Kernels(*(counting(name) for name in NAMES))


@pytest.mark.at_most(fast=30)
@pytest.mark.parametrize("case", CASES)
def test_recorded_forwards_with_kernels_give_the_same_logits(case: str) -> None:
    """Chains of 1, 5 and 9 tokens, a tree and the path kept of it, for every part that a block may have."""
    kind, settings = CASES[case]
    module, calls = tiny_models.build(kind, **settings), Counter[str]()
    plain = HFModel(copy.deepcopy(module), "plain")
    model = HFModel(module, "recorded", graphs=Tape(), kernels=counted(ALL, calls))
    assert model.native is not None
    sessions, numbers, gaps, size = (plain.session(), model.session()), random.Random(0), [], 0.0

    def feed(num: int, branches: Branches | None = None) -> None:
        nonlocal size
        tokens = torch.tensor([numbers.randrange(3, 96) for _ in range(num)])
        expected, got = (session.feed(tokens, num, True, branches) for session in sessions)
        size = max(size, float(expected[0].abs().max()))
        gaps.extend(float((a - b).abs().nan_to_num(0).max()) for a, b in zip(got, expected, strict=True))

    feed(9)
    feed(5, TREE)
    for session in sessions:
        session.truncate(9, [9, 11, 13])
    for num in (1, 5, 9):
        feed(num)
    assert max(gaps) < 3e-5 * max(size, 10)
    spec = model.native.spec.blocks[0]
    assert calls["attend"] > 0
    if model.native.blocks[0].qk_norm is None or not spec.qk_norm_last:
        assert calls["rotate_and_store"] > 0


def test_a_step_calls_each_kernel_so_many_times_a_layer() -> None:
    """Two norms, a rotation with its write, an attention, an activation and four products a layer, and the head's, for
    any number of tokens."""
    calls: Counter[str] = Counter()
    model = HFModel(tiny_models.build("llama"), "counted", graphs=Tape(), kernels=counted(ALL, calls))
    session, layers = model.session(), 2
    for num, branches in ((9, None), (1, None), (5, Branches(10, *(TREE.depths, TREE.ancestors)))):
        calls.clear()
        session.feed(torch.arange(3, 3 + num), num, branches=branches)
        assert calls == {
            "rms_norm": 2 * layers + 1, "rotate_and_store": layers, "attend": layers, "gated": layers,
            "product": 4 * layers + 1,
        }, num  # fmt: skip


class Launches(TorchDispatchMode):
    """Lists PyTorch's operations that launch something on a GPU: neither views nor tensors without contents."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in str(func):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Attends:
    """A cache that stores nothing, and whose attention is nothing but a tensor."""

    def rotate_and_store(self, _block: Any, projected: torch.Tensor, _angles: Any) -> None:
        assert projected.is_contiguous()

    def attend(self, _block: Any, queries: torch.Tensor, fresh: torch.Tensor | None) -> torch.Tensor:
        assert fresh is None
        return queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])


def test_with_all_kernels_pytorch_launches_nothing_but_the_embedding() -> None:
    """Results are written to tensors that nothing copies, the residual in place."""

    def multiply(x: Any, weight: Any, bias: Any, residual: Any, multiplier: float, tiling: Any, out: Any = None) -> Any:
        assert tiling is not None
        assert out is residual
        return x.new_empty(x.shape[0], weight.shape[0]) if out is None else out

    module = tiny_models.build("llama")
    empty = Kernels(
        lambda x, *_: torch.empty_like(x), lambda x, _: x.new_empty(x.shape[0], x.shape[1] // 2),
        reference.rotate_and_store, reference.attend, reference.product,
    )  # fmt: skip
    native = NativeForward(module, kernels=empty)
    for linear in [native.head, *(each for block in native.blocks for each in linears_of(block))]:
        linear.use(multiply, always(default_tiling(linear.weight)))
    for num in (1, 5, 16):
        tokens, angles = torch.arange(num), native.angles(num)
        with torch.inference_mode(), Launches() as launches:
            native.logits(native(tokens, angles, Attends()))
        assert launches.names == ["aten.index_select.default"]


def linears_of(block: Any) -> list[Linear]:
    return [block.projection, block.out, block.mlp.up, block.mlp.down]


@pytest.mark.parametrize("name", NAMES)
def test_each_kernel_is_used_without_the_others(name: str) -> None:
    """Attention and the write of its keys are used together."""
    module = tiny_models.build("llama")
    plain = HFModel(copy.deepcopy(module), "plain").session()
    alone = HFModel(module, "alone", graphs=Tape(), kernels=Kernels(**{name: getattr(reference, name)})).session()
    for tokens in (torch.arange(3, 12), torch.tensor([5])):
        expected, got = (session.feed(tokens, 1)[0] for session in (plain, alone))
        assert torch.allclose(got, expected, atol=1e-4)


def test_decoding_with_kernels_gives_the_same_tokens() -> None:
    module = tiny_models.build("llama")
    draft = tiny_models.disturbed(module)
    plain: Any = {"target": HFModel(copy.deepcopy(module), "t"), "draft": HFModel(copy.deepcopy(draft), "d")}
    recorded: Any = {
        role: HFModel(each, role, graphs=Tape(), kernels=ALL) for role, each in (("target", module), ("draft", draft))
    }
    for warp in (Warp(), Warp(0.8)):
        for decoder in (Chain(DraftModel(4), Lossless(), warp), SpecExec(12, 4, warp)):
            rng = rng_for(warp.temperature, 1, "p")
            expected, got = (Engine(models).generate(decoder, [5, 9, 11, 40], 30, rng) for models in (plain, recorded))
            assert got.token_ids == expected.token_ids
            assert got.num_accepted == expected.num_accepted


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_gives_the_references_results_is_used(dtype: torch.dtype) -> None:
    assert verified(ALL, CPU, dtype, 32, SHAPES) == ALL


def broken(name: str, how: str) -> Any:
    def call(*arguments: Any) -> Any:
        if how == "raises":
            raise RuntimeError("no such instruction\nmore")
        result = getattr(reference, name)(*arguments)
        wrong = arguments[4] if result is None else result
        wrong.view(-1)[-1:] = float("nan") if how == "nan" else wrong.abs().max() * 1.5
        return result

    return call


@pytest.mark.parametrize("how", ["raises", "nan", "differs"])
@pytest.mark.parametrize("name", NAMES)
def test_what_fails_is_left_out_and_says_why(name: str, how: str) -> None:
    result = verified(replace(ALL, **{name: broken(name, how)}), CPU, torch.float32, 32, SHAPES)
    assert [each for each in NAMES if getattr(result, each) is None] == [name]
    (fault,) = result.faults
    assert fault.startswith(f"{name}: ")
    assert ("no such instruction" if how == "raises" else "differ") in fault
    assert "\n" not in fault
    notes = HFModel(tiny_models.build("llama"), "m", kernels=result).notes
    assert any(fault in note for note in notes)


def test_no_memory_is_not_a_fault_of_a_kernel() -> None:
    def exhausted(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        verified(replace(ALL, gated=exhausted), CPU, torch.float32, 32, SHAPES)


def test_a_cpu_uses_none_and_loads_no_triton() -> None:
    assert kernels_of(CPU, torch.float32, 32, SHAPES) is PYTORCH
    code = (
        "import sys\nimport specexp.lm.hf.hf_model\nprint([n for n in sys.modules if 'kernel' in n and 'specexp' in n])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "verification" in out
    assert "attention_kernel" not in out


def test_only_known_activations_of_gated_mlps_have_a_kernel() -> None:
    from transformers.activations import ACT2FN

    known = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "", "gelu_python": ""}
    x, linear = torch.randn(3, 8), lambda x: x
    for name, kind in known.items():
        given: list[str] = []

        def kernel(inner: Any, act: str, given: list[str] = given) -> Any:
            given.append(act)
            return reference.gated(inner, act)

        function = activation(ACT2FN[name])
        parts: Any = (linear, linear, function)
        for gated in (True, False):
            assert torch.allclose(Mlp(*parts, gated, kernel)(x), Mlp(*parts, gated)(x), atol=1e-6)
        assert given == ([kind] if kind else [])
