"""The native forward gives transformers' logits, and allocates nothing a step. (Every family: test_blocks.py.)"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.model_folders import build, disturbed
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm.blocks import linear
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.model import CHUNK, Branches, Feed
from specexp.lm.native import kv_cache, native_forward
from specexp.lm.runtime import ModelConfig
from specexp.lm.threads import Threads, fastest

# Of logits of size 10, in float32: rounding of sums in another order, and no more.
CLOSE = 1e-4
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, every head its own key": ("llama", {"num_key_value_heads": 4}),
    "llama, one key for all heads": ("llama", {"num_key_value_heads": 1}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, head size of its own": ("llama", {"head_dim": 16}),
    "llama, another activation": ("llama", {"hidden_act": "gelu"}),
    "llama, scaled rotary": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, a window in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "mistral": ("mistral", {}),
    "mistral, a window": ("mistral_window", {}),
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def both(request: pytest.FixtureRequest) -> tuple[HFModel, HFModel]:
    family, more = SHAPES[request.param]
    module = build(family, **more)
    reference = HFModel(copy.deepcopy(module), "reference", forward="transformers")
    model = HFModel(module, "native")
    assert model.native is not None, model.why_not_native
    assert reference.native is None
    return reference, model


def differ(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    assert one[0].shape == other[0].shape
    assert one[1].shape == other[1].shape
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_logits_and_hidden_rows_are_those_of_transformers(both: tuple[HFModel, HFModel]) -> None:
    """In one piece and in many, behind a rewind, in a tree, and behind the path that was kept of it."""
    sessions = [model.session() for model in both]
    rng = random.Random(0)

    def fed(num: int, rows: int, branches: Branches | None = None) -> float:
        tokens = torch.tensor([rng.randrange(3, 96) for _ in range(num)])
        return differ(*(session.feed(tokens, rows, True, branches) for session in sessions))

    worst = [fed(21, 21), fed(1, 1), fed(5, 3), fed(2, 2), fed(3, 3)]
    for session in sessions:
        session.truncate(24)
    worst.append(fed(7, 7))
    tree = Branches(31, [0, 1, 1, 2, 2, 3], [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 4, 5]])
    worst.append(fed(6, 6, tree))
    for session in sessions:
        session.truncate(31, [31, 33, 35])
    worst += [fed(1, 1), fed(9, 9)]
    assert max(worst) < CLOSE


def test_a_second_ask_behind_a_tree_sees_its_branch_alone(both: tuple[HFModel, HFModel]) -> None:
    sessions = [model.session() for model in both]
    for tokens, branches in (
        ([5, 9, 11], None),
        ([20, 21, 22], Branches(3, [0, 1, 1], [[0], [0, 1], [0, 2]])),
        ([30, 31], Branches(3, [0, 1, 1, 2, 2], [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4]])),
    ):
        assert differ(*(s.feed(torch.tensor(tokens), len(tokens), True, branches) for s in sessions)) < CLOSE


def test_rows_that_are_fed_together_are_those_fed_alone(both: tuple[HFModel, HFModel]) -> None:
    """Of different lengths, with a tree among chains, an idle row between, and a buffer that has to grow."""
    _, model = both
    rng = random.Random(1)
    together, alone = model.sessions(4), [model.session() for _ in range(4)]

    def tokens(num: int) -> torch.Tensor:
        return torch.tensor([rng.randrange(3, 96) for _ in range(num)])

    for i, (one, other) in enumerate(zip(together, alone, strict=True)):
        start = tokens(3 + 11 * i)
        one.feed(start, 0)
        other.feed(start, 0)
    for turn in range(12):
        feeds, fed_alone = [], []
        for i, (one, other) in enumerate(zip(together, alone, strict=True)):
            if (turn + i) % 4 == 0:
                continue
            num = 1 + (turn * i) % 5
            fed, base = tokens(num), one.length
            tree = Branches(base, [0] * num, [[k] for k in range(num)]) if (turn + i) % 3 == 0 and num > 1 else None
            feeds.append(Feed(one, fed, num - (num > 2), True, tree))
            fed_alone.append(other.feed(fed, num - (num > 2), True, tree))
            assert other.length == base + num
        for got, expected in zip(model.feed(feeds), fed_alone, strict=True):
            assert differ(got, expected) < CLOSE
        for one, other in zip(together, alone, strict=True):
            assert one.length == other.length
            kept = one.length - (turn % 3)
            one.truncate(kept)
            other.truncate(kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_a_reduced_dtype_it_is_as_near_to_the_exact_weights_as_transformers_is(dtype: torch.dtype) -> None:
    module = build("llama")
    exact = HFModel(copy.deepcopy(module).to(dtype).float(), "exact", forward="transformers")
    model, reference = (HFModel(copy.deepcopy(module).to(dtype), "m", forward=f) for f in ("auto", "transformers"))
    ids = torch.tensor([5, 9, 11, 40, 7, 8, 9])
    expected, model_off, reference_off = exact.session().feed(ids, 7)[0], 0.0, 0.0
    model_off = float((model.session().feed(ids, 7)[0] - expected).abs().max())
    reference_off = float((reference.session().feed(ids, 7)[0] - expected).abs().max())
    assert model.native is not None
    assert 0 < model_off < 2 * reference_off


@pytest.mark.parametrize("packed", [True, False])
def test_few_rows_and_many_go_through_products_that_agree(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(native_forward, "PACK_LIMIT", 0)
    model = HFModel(build("llama"), "m")
    assert model.native is not None
    assert model.native.packed is packed
    ids = torch.arange(3, 3 + 3 * linear.PACK_ROWS)
    one_by_one = model.session()
    rows = torch.cat([one_by_one.feed(ids[i : i + 1], 1)[0] for i in range(len(ids))])
    assert float((model.session().feed(ids, len(ids))[0] - rows).abs().max()) < CLOSE


def test_the_loaded_module_goes_on_working_and_holds_its_weights_once() -> None:
    module = build("qwen2")
    before = copy.deepcopy(module)
    model = HFModel(module, "m")
    ids = torch.tensor([[5, 9, 11, 40]])
    with torch.inference_mode():
        assert torch.equal(module(ids).logits, before(ids).logits)
    assert model.native is not None
    attention = module.model.layers[0].self_attn
    assert attention.k_proj.weight.untyped_storage().data_ptr() == model.native.blocks[0].projection.weight.data_ptr()
    assert HFModel(before, "m", forward="transformers").fingerprint() == model.fingerprint()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "gpt2": (lambda: build("gpt2"), "does not know the family of GPT2LMHeadModel"),
    "dynamic rotary": (
        lambda: build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "depend on the length",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_it_does_not_apply_transformers_forward_is_used_and_the_reason_is_kept(case: str) -> None:
    make, reason = REFUSED[case]
    model = HFModel(make(), "m")
    assert model.native is None
    assert reason in str(model.facts()["forward"])
    logits, _ = model.session().feed(torch.tensor([5, 9]), 2)
    with torch.inference_mode():
        assert torch.equal(logits, model.module(torch.tensor([[5, 9]])).logits[0])


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made anew: no view of, and nothing written into, what it was
    given."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, made.untyped_storage().nbytes())
        return result


def test_no_step_allocates_keys_and_values() -> None:
    """Not the buffers, and no copy of a layer's keys: concatenating caches make one of each a step."""
    model = HFModel(build("llama", max_position_embeddings=4096), "m")
    draft = HFModel(disturbed(build("llama", max_position_embeddings=4096), 0.06), "d")
    largest = []
    for session in (model.session(), HFModel(model.module, "t", forward="transformers").session()):
        session.feed(torch.arange(3, 90).repeat(12), 0)
        if isinstance(session, kv_cache.NativeSession):
            session.pool.buffers.ensure_capacity(session.length + 100)
        session.feed(torch.tensor([5]), 1)
        session.feed(torch.tensor([5, 6, 7]), 3)
        with Allocations() as watch:
            session.feed(torch.tensor([5]), 1)
            session.feed(torch.tensor([5, 6, 7]), 3)
            session.truncate(session.length - 2)
        largest.append(watch.largest)
    keys = 1000 * 2 * 8 * 4  # of one layer
    assert largest[0] < keys / 4
    assert largest[1] > keys, "a cache that concatenates is seen to do so"
    engine = Engine({"target": model, "draft": draft})
    engine.generate(Chain(DraftModel(4), Lossless(), Warp()), [5, 6, 7], 60, CertainRng())
    contexts = engine._contexts
    before = [c._session.pool.buffers.values.data_ptr() for rows in contexts.values() for c in rows]  # type: ignore[attr-defined]
    for prompt in ([5, 6], [9, 8, 7, 6]):
        engine.generate(Chain(DraftModel(4), Lossless(), Warp()), prompt, 50, CertainRng())
    assert [c._session.pool.buffers.values.data_ptr() for rows in contexts.values() for c in rows] == before  # type: ignore[attr-defined]


def test_what_was_in_a_buffer_before_is_not_seen() -> None:
    model = HFModel(build("llama"), "m")
    session = model.session()
    session.feed(torch.arange(3, 80), 0)
    session.truncate(0)
    fresh, used = (s.feed(torch.tensor([5, 9, 11]), 3, True) for s in (model.session(), session))
    assert differ(fresh, used) == 0


@pytest.mark.slow
def test_a_long_prompt_goes_through_in_pieces() -> None:
    """32,768 tokens, of which the widest thing between two layers holds a piece."""
    model = HFModel(build("llama", max_position_embeddings=1 << 15, hidden_size=16, intermediate_size=16), "m")
    widest = 0
    run = native_forward.NativeForward.__call__

    class Watching(native_forward.NativeForward):
        def __call__(self, tokens: Any, *more: Any) -> Any:
            nonlocal widest
            widest = max(widest, tokens.shape[0])
            return run(self, tokens, *more)

    assert model.native is not None
    model.native.__class__ = Watching
    tokens = torch.randint(3, 96, (1 << 15,), generator=torch.Generator().manual_seed(0))
    session = model.sessions(1, capacity=1 << 15)[0]
    logits, _ = session.feed(tokens, rows=1)
    assert widest == CHUNK
    assert logits.shape == (1, 96)
    # A window of the same model is what transformers says of it.
    short = model.session()
    rows, _ = short.feed(tokens[:600], rows=300)
    with torch.inference_mode():
        expected = model.module(tokens[None, :600]).logits[0, 300:]
    assert float((rows - expected).abs().max()) < CLOSE


@pytest.mark.parametrize("forward", ["auto", "transformers"])
@pytest.mark.parametrize("rows", [0, 1, CHUNK, CHUNK + 5, 2 * CHUNK + 40])
def test_pieces_answer_as_the_whole(forward: str, rows: int) -> None:
    module = build("llama", max_position_embeddings=1024)
    ids = torch.arange(3, 90).repeat(12)[: 2 * CHUNK + 40]
    with torch.inference_mode():
        whole = module(ids[None], output_hidden_states=True)
    logits, hidden = HFModel(module, "m", forward=forward).session().feed(ids, rows, True)
    assert hidden is not None
    assert logits.shape == (rows, 96)
    assert hidden.shape == (rows, 32)
    if rows:
        assert float((logits - whole.logits[0, -rows:]).abs().max()) < CLOSE
        assert float((hidden - whole.hidden_states[-1][0, -rows:]).abs().max()) < CLOSE


def test_only_the_rows_that_were_asked_for_are_scored() -> None:
    model = HFModel(build("llama"), "m")
    assert model.native is not None
    scored: list[int] = []
    head = model.native.head

    class Counting:
        weight = head.weight

        def __call__(self, x: Any) -> Any:
            scored.append(x.shape[0])
            return head(x)

    model.native.head = Counting()  # type: ignore[assignment]
    session = model.session()
    session.feed(torch.arange(3, 50), 0)
    session.feed(torch.tensor([5, 6, 7]), 2)
    session.feed(torch.tensor([5]), 1)
    assert scored == [2, 1]


def test_the_fastest_number_of_threads_is_taken_for_one_row_and_for_several() -> None:
    now = [0.0]

    def forward(rows: int) -> None:
        count = torch.get_num_threads()
        now[0] += (0.01 * count) if rows == 1 else 0.01 * rows / count

    before = torch.get_num_threads()
    assert fastest(forward, 4, lambda: now[0]) == (1, 4)
    assert fastest(lambda rows: now.__setitem__(0, now[0] + 1.0), 4, lambda: now[0]) == (4, 4), "it is not kept waiting"
    assert torch.get_num_threads() == before


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with Threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with Threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_counts_of_a_chain_do_not_depend_on_whose_forward_it_is(folder: Callable[..., Any]) -> None:
    counts = []
    for forward in ("auto", "transformers"):
        models: Any = {
            role: HFModel(load_model(ModelConfig(str(folder("llama", **more)))).module, role, forward=forward)
            for role, more in (("target", {}), ("draft", {"noise": 0.06}))
        }
        for decoder in (Baseline(Warp()), Chain(DraftModel(5), Lossless(), Warp())):
            out = Engine(models).generate(decoder, [5, 6, 7], 40, CertainRng())
            counts.append((out.token_ids, out.num_rounds, out.num_target_calls, out.num_draft_positions))
    assert counts[:2] == counts[2:]
