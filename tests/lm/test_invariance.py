"""With invariant numerics a token's logits are the same bits whatever is fed with it, and lossless methods give plain
decoding's tokens in every dtype; without, they depend on rows, trees and neighbours.

A tape replaces CUDA graphs, as in test_graphs.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny_models
from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp import config
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.engine.engine import Request
from specexp.errors import ModelError
from specexp.evaluation.preparation import prepare
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.kernels import reference
from specexp.lm.kernels.ordered_attention import BLOCK, attend_in_order, slots_by_position
from specexp.lm.kernels.table import Kernels
from specexp.lm.model import Branches, Feed, Session
from specexp.lm.native import cuda_graphs, invariance
from specexp.lm.native.invariance import ROWS, TREES
from specexp.lm.native.kv_cache import NativeSession

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAMILIES = ("llama", "mistral_window", "qwen2", "gpt_neox", "gemma2", "gemma4_text", "qwen3", "cohere")
PROMPTS = ([7], [5, 9, 11, 40], [(17 * i) % 90 + 3 for i in range(70)])


def one_fast(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The parameters of a test, of which all but the first run in the slow tier."""
    return [pytest.param(*case, marks=[pytest.mark.slow] if i else []) for i, case in enumerate(cases)]


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of tests go through several."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 32)


def module(family: str) -> Any:
    if family in ("gemma2", "gemma4_text", "qwen3", "cohere"):
        return tiny_models.build(family, max_position_embeddings=512)
    return build(family, max_position_embeddings=512)


def loaded(family: str, dtype: str, noise: float = 0.0, graphs: Any = "off", **more: Any) -> HFModel:
    made = module(family)
    made = (disturbed(made, noise) if noise else made).to(DTYPES[dtype])
    return HFModel(made, family, graphs=graphs, **{"invariant": True, **more})


def differing(model: HFModel, ids: Sequence[int] | None = None) -> list[invariance.RowComparison]:
    made = list(invariance.compare(model, ids, ROWS, TREES))
    kinds = {invariance.CHAIN, invariance.TREE, invariance.NEIGHBOURS, invariance.PIECE, invariance.DIRECT}
    assert {each.what for each in made} == kinds
    return [each for each in made if each.num_differing]


@pytest.mark.at_most(slow=20)
@pytest.mark.parametrize("family,dtype,recorded", one_fast(product(FAMILIES, DTYPES, (False, True))))
def test_logits_are_the_same_bits_for_all_rows_trees_buckets_and_neighbours(
    family: str, dtype: str, recorded: bool
) -> None:
    model = loaded(family, dtype, graphs=Tape() if recorded else "off")
    assert model.why_not_native is None
    assert not differing(model)
    if recorded:
        assert model.graph_pools is not None
        assert model.graph_pools.pools[0].recordings.num_replays > len(ROWS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_without_the_setting_they_are_not(dtype: str) -> None:
    """Of models as small as these in bfloat16, they are by chance."""
    kinds = {each.what for each in differing(loaded("llama", dtype, invariant=False))}
    assert {invariance.CHAIN, invariance.TREE, invariance.PIECE} <= kinds


@dataclass
class Walk:
    """A session that is fed and truncated at random. The reference is fed one token at a time."""

    model: HFModel
    rng: random.Random
    session: Session
    ids: list[int]

    def expected(self, ids: Sequence[int]) -> Tensor:
        session = self.model.sessions(2)[0]
        return torch.cat([session.feed(self.model.ids([token]), 1)[0] for token in ids])

    def draw(self, num: int) -> list[int]:
        return [self.rng.randrange(3, 90) for _ in range(num)]

    def chain(self) -> None:
        new = self.draw(self.rng.randint(1, 40))
        rows = self.rng.randint(1, len(new))
        logits, _ = self.session.feed(self.model.ids(new), rows)
        self.ids += new
        assert torch.equal(logits, self.expected(self.ids)[-rows:])

    def truncate(self) -> None:
        self.ids = self.ids[: self.rng.randint(1, len(self.ids))]
        self.session.truncate(len(self.ids))

    def tree(self) -> None:
        """Feed a tree, compare every node with its path, and keep one path."""
        size, base = self.rng.randint(2, 40), len(self.ids)
        nodes, parents = self.draw(size), [self.rng.randrange(-1, i) for i in range(size)]
        paths: list[list[int]] = []
        for i, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), i])
        branches = Branches(base, [len(path) - 1 for path in paths], paths)
        logits, _ = self.session.feed(self.model.ids(nodes), size, False, branches)
        for i in self.rng.sample(range(size), min(size, 6)):
            text = [*self.ids, *(nodes[j] for j in paths[i])]
            assert torch.equal(logits[i], self.expected(text)[-1])
        kept = self.rng.choice(paths)
        self.session.truncate(base, [base + i for i in kept])
        self.ids += [nodes[i] for i in kept]


WALKS = [*product(("mistral_window", "llama", "gemma2"), (False, True))]


@pytest.mark.parametrize("family,recorded", one_fast(WALKS))
def test_whatever_a_session_was_fed_and_however_a_token_gets_its_own_logits(family: str, recorded: bool) -> None:
    dtype = {"mistral_window": "float32", "llama": "bfloat16", "gemma2": "float16"}[family]
    model = loaded(family, dtype, graphs=Tape() if recorded else "off")
    rng = random.Random(5)
    walk = Walk(model, rng, model.session(), [])
    walk.chain()
    for _ in range(12):
        if len(walk.ids) > 90:
            walk.truncate()
        rng.choice([walk.chain, walk.truncate, walk.tree, walk.tree])()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_batch_do_not_see_each_other(dtype: str) -> None:
    """Rows of other lengths, chains and trees, in any place of the pool."""
    model = loaded("llama", dtype)
    rng = random.Random(2)
    sessions = model.sessions(4)
    texts: list[list[int]] = [[rng.randrange(3, 90) for _ in range(length)] for length in (70, 3, 20, 66)]
    for session, text in zip(sessions, texts, strict=True):
        session.feed(model.ids(text), 0)
    for chosen in ([0, 1, 2, 3], [1, 3], [2, 0]):
        feeds, expected = [], []
        for row in chosen:
            new = [rng.randrange(3, 90) for _ in range(rng.randint(1, 9))]
            tree = row == 2
            # Two paths, their nodes interleaved.
            paths = [list(range(i % 2, i + 1, 2)) for i in range(len(new))]
            branches = Branches(len(texts[row]), [i // 2 for i in range(len(new))], paths) if tree else None
            feeds.append(Feed(sessions[row], model.ids(new), len(new), branches=branches))
            rows = []
            for i in range(len(new)):
                alone = model.session()
                path = paths[i] if tree else range(i + 1)
                rows.append(alone.feed(model.ids([*texts[row], *(new[j] for j in path)]), 1)[0])
            expected.append(torch.cat(rows))
        for (logits, _), own in zip(model.feed(feeds), expected, strict=True):
            assert torch.equal(logits, own)
        for row in chosen:
            sessions[row].truncate(len(texts[row]))


def decoders(warp: Warp) -> list[Any]:
    trees = [SpecExec(24, 4, warp, 4), SpecExec(40, 3, warp, 8, 5)]
    if not warp.greedy:
        return trees  # a chain makes draws of its own
    return [Chain(DraftModel(4), Lossless(), warp), Chain(Lookup(5, 3), Lossless(), warp), *trees]


def outputs(models: Any, decoder: Any, warp: Warp, rows: int = 1) -> list[list[int]]:
    requests = [
        Request(decoder, ids, 40, rng_for(warp.temperature, 3, str(i)), name=str(i)) for i, ids in enumerate(PROMPTS)
    ]
    by_place = dict(Engine(models, max_batch_size=rows).generate_all(requests))
    return [by_place[i].token_ids for i in range(len(PROMPTS))]


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("warp", [Warp(), Warp(0.9, top_k=20, top_p=0.9)], ids=["greedy", "sampled"])
def test_lossless_methods_give_plain_decodings_tokens_bit_for_bit(dtype: str, warp: Warp) -> None:
    plain = {"target": loaded("llama", dtype), "draft": loaded("llama", dtype, 0.06)}
    tape = Tape()
    recorded = {"target": loaded("llama", dtype, graphs=tape), "draft": loaded("llama", dtype, 0.06, graphs=tape)}
    expected = outputs(plain, Baseline(warp), warp)
    assert outputs(plain, Baseline(warp), warp, 3) == outputs(recorded, Baseline(warp), warp) == expected
    for decoder in decoders(warp):
        for models, rows in ((plain, 1), (plain, 3), (recorded, 1)):
            assert outputs(models, decoder, warp, rows) == expected, decoder


def blocks_of_16(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, multiplier: float = 1.0,
    _tiling: object = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A product whose rows do not depend on each other: a stand-in for the kernel."""
    parts = []
    for piece in torch.split(x, 16):
        whole = torch.cat([piece, piece.new_zeros(16 - len(piece), piece.shape[1])])
        parts.append(torch.mm(whole, weight.t())[: len(piece)])
    result = torch.cat(parts)
    result = (result if bias is None else result + bias) * multiplier
    result = result if residual is None else result + residual
    return result if out is None else out.copy_(result)


@pytest.mark.parametrize("family,dtype", [("llama", "bfloat16"), ("qwen2", "float32"), ("gpt_neox", "float16")])
def test_a_product_kernel_takes_the_place_of_tiles(family: str, dtype: str) -> None:
    calls: list[int] = []

    def kernel(x: Tensor, *more: Any) -> Tensor:
        calls.append(len(x))
        return blocks_of_16(x, *more)

    model = loaded(family, dtype, kernels=Kernels(product=kernel))
    assert model.why_not_native is None
    assert model.native is not None
    assert not model.native.tiled
    calls.clear()
    model.session().feed(model.ids(list(range(3, 43))), 40)
    # Queries, keys and values; output; up; down: of each layer at once, and the head.
    assert calls == [40] * (4 * len(model.native.blocks) + 1)
    assert not differing(model)


def test_without_a_kernel_for_one_of_its_weights_a_forward_is_tiled() -> None:
    def fails_at_the_head(x: Tensor, weight: Tensor, *more: Any) -> Tensor:
        return blocks_of_16(x, weight, *more) + (weight.shape[0] == tiny_models.VOCAB)

    model = loaded("llama", "float32", kernels=Kernels(product=fails_at_the_head))
    assert model.native is not None
    assert model.native.tiled
    assert [fault for fault in model.native.kernels.faults if "product" in fault]
    assert not differing(model)


@pytest.mark.parametrize("window,softcap,sinks,group", [(0, 0.0, False, 1), (9, 0.0, False, 3), (0, 5.0, True, 2)])
def test_ordered_attention_is_attention(window: int, softcap: float, sinks: bool, group: int) -> None:
    generator = torch.Generator().manual_seed(1)
    kv_heads, size, capacity, num = 2, 8, 2 * BLOCK + 40, 5
    queries = torch.randn(num, kv_heads * group, size, generator=generator)
    flat = torch.randn(capacity, 2 * kv_heads * size, generator=generator)
    index = torch.stack([torch.randperm(capacity, generator=generator) for _ in range(num)])
    positions = torch.tensor([0, 3, BLOCK - 1, BLOCK, capacity - 1])
    given = 0.4, softcap, torch.randn(kv_heads * group, generator=generator) if sinks else None
    expected = reference.attend(queries, flat, kv_heads, positions, window, None, capacity, *given, index)
    whole = attend_in_order(queries, flat, kv_heads, positions, index, window, *given)
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    for i in range(num):  # alone, and with an index that ends at its position
        stop = int(positions[i]) + 1
        one = slice(i, i + 1)
        alone = attend_in_order(queries[one], flat, kv_heads, positions[one], index[one, :stop], window, *given)
        assert torch.equal(alone, whole[one])


def test_an_index_has_the_slots_of_a_path_in_the_order_of_positions() -> None:
    at = torch.tensor([0, 1, 2, 2, 3, 3, 4])  # two slots before a tree, then nodes
    seen = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 1, 0, 0]]).bool()
    assert slots_by_position(seen, at)[:, :5].tolist() == [[0, 1, 3, 5, 6], [0, 1, 2, 4, 0]]


@pytest.mark.parametrize(
    "family,words",
    [
        ("gpt_oss", "the products of its experts depend on which tokens are fed together"),
        ("phi3", "its rotary angles change with the length"),
        ("gpt2", r"it does not run on the native forward \(the native forward does not know the family of GPT2LMHead"),
    ],
)
def test_a_model_that_cannot_be_invariant_is_refused_with_its_reason(family: str, words: str) -> None:
    model = HFModel(build(family), "mine", invariant=True)
    with pytest.raises(ModelError, match=f"numerics is invariant, but model 'mine' cannot be: {words}.*; set numerics"):
        invariance.require(model)


def test_libraries_whose_bits_depend_on_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama", "float32")
    invariance.require(model)
    feed = NativeSession.feed

    def several(self: NativeSession, tokens: Tensor, rows: int, *more: Any, **named: Any) -> tuple[Tensor, Any]:
        logits, hidden = feed(self, tokens, rows, *more, **named)
        return (logits * (1 + 1e-7) if rows > 8 else logits), hidden

    monkeypatch.setattr(NativeSession, "feed", several)
    words = r"with the libraries of this machine its logits depend on rows \(9 and 16 tokens; by up to .*a tree \(24"
    with pytest.raises(ModelError, match=words):
        invariance.require(model)


def zoo_outputs(dtype: str, numerics: str, temperature: float, limit: int) -> dict[str, list[list[int]]]:
    """The tokens of the embedded pair on some prompts, by method."""
    settings = {
        "methods": "baseline,speculative,specexec" if not temperature else "baseline,specexec", "numerics": numerics,
        "limit": limit, "max_new_tokens": 64, "temperature": temperature,
        "target": {"model": "zoo:target", "dtype": dtype}, "draft": {"model": "zoo:draft", "dtype": dtype},
    }  # fmt: skip
    prepared = prepare(config.resolve("arith_quick", settings))
    warp = prepared.experiment.warp
    result = {}
    for setting in prepared.settings:
        requests = [
            Request(setting.decoder, ids, 64, rng_for(warp.temperature, 0, str(i)), name=str(i))
            for i, ids in enumerate(prepared.prompts)
        ]
        by_place = dict(Engine(prepared.pair.models, prepared.pair.eos_ids).generate_all(requests))
        result[setting.config.method] = [by_place[i].token_ids for i in range(limit)]
    return result


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("limit", [8, pytest.param(24, marks=pytest.mark.nightly)])
def test_the_embedded_pair_decodes_the_same_tokens_by_every_lossless_method(
    dtype: str, temperature: float, limit: int
) -> None:
    """docs/gpu.md has how many outputs differ without the setting."""
    made = zoo_outputs(dtype, "invariant", temperature, limit)
    plain = made.pop("baseline")
    assert made
    for method, texts in made.items():
        assert texts == plain, method
