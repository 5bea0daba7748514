"""The embedded pair, and odd parts of other families, through recorded forwards with Triton's kernels, interpreted."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny_models
from helpers.block_cases import CASES
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.kernels.table import triton_kernels
from specexp.lm.model import Branches
from specexp.lm.native import invariance
from specexp.lm.runtime import ModelConfig

ROWS, NODES = (2, 5, 16), (20,)
DECODERS: dict[str, Any] = {
    "baseline": Baseline(Warp()),
    "speculative": Chain(DraftModel(3), Lossless(), Warp()),
    "specexec": SpecExec(8, 3, Warp()),
}


class Again:
    """Runs the function at each replay: what is interpreted cannot be recorded."""

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Any:
        return torch.inference_mode()(lambda: function(*inputs))

    def when(self, _flag: Tensor, body: Callable[[], None]) -> None:
        body()


def with_kernels(module: Any, name: str, products: bool = True) -> HFModel:
    """With all kernels, or all but the products, which take longest to interpret."""
    kernels = triton_kernels() if products else replace(triton_kernels(), product=None)
    model = HFModel(copy.deepcopy(module), name, graphs=Again(), kernels=kernels)
    assert model.native is not None, model.why_not_native
    return model


def assert_logits(plain: HFModel, other: HFModel, chains: Sequence[int], tree: int) -> None:
    """Chains of these lengths, and a tree of so many nodes, each node after a random earlier one."""
    sessions, numbers = (plain.session(), other.session()), random.Random(0)

    def fed(num: int, branches: Branches | None = None) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor([numbers.randrange(3, 90) for _ in range(num)])
        one, two = (session.feed(tokens, num, branches=branches)[0] for session in sessions)
        return one, two

    answers = [fed(num) for num in chains]
    base = sum(chains)
    ancestors: list[list[int]] = [[0]]
    for node in range(1, tree):
        ancestors.append([*ancestors[numbers.randrange(node)], node])
    answers.append(fed(tree, Branches(base, [len(each) - 1 for each in ancestors], ancestors)))
    for one, two in answers:
        gap = (one - two).abs().nan_to_num(0, posinf=1e9).max()  # minus infinity from itself
        assert float(gap) < 1e-4 * max(10, float(one.clamp(min=-1e9).abs().max()))


@pytest.fixture(scope="module")
def plain() -> dict[str, HFModel]:
    """The embedded pair in float32, on PyTorch's operations."""
    folder = files("specexp.zoo")
    return {role: load_model(ModelConfig(str(folder / role), dtype="float32")) for role in ("target", "draft")}


@pytest.fixture(scope="module")
def pair(plain: dict[str, HFModel]) -> dict[str, HFModel]:
    return {role: with_kernels(model.module, role, products=False) for role, model in plain.items()}


@pytest.mark.parametrize("role", ["draft", pytest.param("target", marks=pytest.mark.nightly)])
def test_logits_of_the_embedded_pair(plain: Any, pair: Any, role: str) -> None:
    assert_logits(plain[role], pair[role], (5, 1, 9), 16)


@pytest.mark.nightly
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_of_the_embedded_pair(plain: Any, pair: Any, name: str) -> None:
    prompt = [40, 51, 62, 73]
    expected = Engine(plain).generate(Baseline(Warp()), prompt, 8, CertainRng()).token_ids
    assert Engine(pair).generate(DECODERS[name], prompt, 8, CertainRng()).token_ids == expected


@pytest.mark.nightly
@pytest.mark.parametrize("role", ["draft", "target"])
def test_logits_of_the_embedded_pair_with_products(plain: Any, role: str) -> None:
    assert_logits(plain[role], with_kernels(plain[role].module, role), (5, 1), 4)


# Windows and caps; sinks; partial rotation of adjacent pairs; norms of queries and keys, before and after the rotation.
ODD = ("gemma 2, low caps", "gpt_oss", "glm4", "qwen3")


@pytest.mark.parametrize("case", ODD)
def test_logits_of_odd_parts(case: str) -> None:
    kind, settings = CASES[case]
    module = tiny_models.build(kind, **settings)
    assert_logits(HFModel(copy.deepcopy(module), "plain"), with_kernels(module, "kernels"), (11, 1), 4)


@pytest.mark.nightly
@pytest.mark.parametrize("case", [case for case in CASES if case not in ODD])
def test_logits_of_every_part(case: str) -> None:
    kind, settings = CASES[case]
    module = tiny_models.build(kind, **settings)
    assert_logits(HFModel(copy.deepcopy(module), "plain"), with_kernels(module, "kernels"), (11, 1), 4)


@pytest.mark.parametrize(
    "window,products",
    [(12, False), *(pytest.param(0, products, marks=pytest.mark.nightly) for products in (False, True))],
)
def test_an_invariant_forward_with_kernels(window: int, products: bool) -> None:
    """Recorded or not, in tiles, where products have no kernel: rows, a tree, a piece, and rows of a batch."""
    kind, more = ("mistral", {"sliding_window": window}) if window else ("llama", {})
    module = tiny_models.build(kind, **more)
    kernels = triton_kernels() if products else replace(triton_kernels(), product=None)
    model = HFModel(module, kind, graphs=Again(), kernels=kernels, invariant=True)
    assert model.native is not None, model.why_not_native
    assert model.native.kernels.attends
    assert model.native.tiled == (not products)
    made = list(invariance.compare(model, None, ROWS, NODES))
    assert {each.what for each in made} >= {invariance.CHAIN, invariance.TREE, invariance.NEIGHBOURS}
    assert not [each for each in made if each.num_differing]
    plain = HFModel(copy.deepcopy(module), kind)
    ids = plain.ids([(7 * i) % 90 + 3 for i in range(20)])
    one, two = (each.session().feed(ids, 20)[0] for each in (plain, model))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
