"""Seeded bugs in the native forward, its caches and its recordings: comparing with transformers' forward shows each.

Models have random biases and norms (`conftest.build`): with transformers' own beginnings, which are zeros and ones,
several of these would not change a single logit.
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers.feeds import fed_both_ways, gap
from helpers.model_folders import build
from helpers.seeded_bugs import FORWARD_BUGS, Bug, mutated
from helpers.tape import Tape

CLOSE = 2e-4
LAYERS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "num_hidden_layers": 3}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "a window": ("mistral_window", {}),
    "a window in some layers": ("qwen2", LAYERS),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": 1024}),
}
FAST = 6  # of the bugs
CASES = [
    pytest.param(bug, marks=[pytest.mark.slow] if place >= FAST else [], id=bug.name)
    for place, bug in enumerate(FORWARD_BUGS)
]


def module(name: str) -> Any:
    return importlib.import_module(f"specexp.{name}")


def feeds(long: bool) -> Iterator[tuple[list[int], int, Any, list[int]]]:
    """(tokens, rows that are asked for, branches, what is kept: a length, then slots)."""
    branches, numbers = module("lm.model").Branches, random.Random(0)

    def tokens(num: int) -> list[int]:
        return [numbers.randrange(3, 96) for _ in range(num)]

    yield tokens(21), 21, None, [21]
    yield tokens(1), 1, None, [22]
    yield tokens(2), 2, None, [24]
    yield tokens(5), 3, None, [26]
    tree = branches(26, [0, 1, 1, 2, 2, 3], [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 4, 5]])
    yield tokens(6), 6, tree, [26, 26, 28, 30]
    yield tokens(1), 1, None, [30]
    yield tokens(9), 9, None, [39]
    if long:
        yield tokens(500), 1, None, [539]  # past the end of the first table of angles
        yield tokens(3), 3, None, [20]
        yield tokens(200), 20, None, [21]
        yield tokens(200), 20, None, [221]  # a piece from another start than the one before


def checks() -> Iterator[str]:
    hf, graphs = module("lm.hf.hf_model"), module("lm.native.cuda_graphs")
    graphs.LEAST_BUCKET = 16
    for name, (family, more) in SHAPES.items():
        made = build(family, **more)
        reference = hf.HFModel(copy.deepcopy(made), "reference", forward="transformers")
        recorded = hf.HFModel(copy.deepcopy(made), "recorded", graphs=Tape())
        native = hf.HFModel(made, "native")
        if native.native is None:
            yield f"{name}: {native.why_not_native}"
            continue
        for what, model in (("as it comes", native), ("recorded", recorded)):
            one, other = reference.session(), model.session()
            for tokens, rows, branches, (length, *slots) in feeds(long=name == "biases everywhere"):
                ids = torch.tensor(tokens)
                off = gap([other.feed(ids, rows, True, branches)], [one.feed(ids, rows, True, branches)])
                if not off < CLOSE:
                    yield f"{name}, {what}: {len(tokens)} tokens differ by {off:.1e}"
                if other.length != one.length:
                    yield f"{name}, {what}: {other.length} slots are filled, not {one.length}"
                for session in (one, other):
                    session.truncate(length, slots)
            for fresh in (2, 3, 8, 9, 30):
                if (got := caught_up(model, fresh)) != (expected := caught_up(reference, fresh)):
                    yield f"{name}, {what}: a draft after {fresh} tokens is {got}, not {expected}"
            said = drafted(model)
            if [out.token_ids for out in said] != [out.token_ids for out in drafted(native, drafts=False)]:
                yield f"{name}, {what}: its own drafts change what it says"
            if any(out.num_full < out.num_rounds - 1 for out in said):
                yield f"{name}, {what}: its own drafts are not all accepted"
        if name == "a window":
            for actual, expected in fed_both_ways(native, rounds=8):
                if not gap(actual, expected) < CLOSE:
                    yield f"rows together differ by {gap(actual, expected):.1e}"
    yield from trees_in_module()


def trees_in_module() -> Iterator[str]:
    """A tree of one branch through transformers' forward is the chain, in layers with and without a window."""
    model = module("lm.hf.hf_model").HFModel(build("qwen2", **LAYERS), "reference", forward="transformers")
    chain, tree = model.session(), model.session()
    for session in (chain, tree):
        session.feed(torch.arange(3, 23), 0)
    branches = module("lm.model").Branches(20, [0, 1, 2], [[0], [0, 1], [0, 1, 2]])
    ids = torch.tensor([40, 41, 42])
    off = gap([tree.feed(ids, 3, True, branches)], [chain.feed(ids, 3, True)])
    if not off < CLOSE:
        yield f"a tree of one branch differs by {off:.1e}"


def caught_up(model: Any, num: int) -> list[int]:
    """The chain of a draft that begins with `num` tokens, after others; and what follows it."""
    session, ids = model.session(), torch.arange(3, 20 + num)
    session.feed(ids[:17], 0)
    ask = module("decoding.protocol").Draft(4, module("decoding.rules").Warp())
    rng, fed = module("decoding.rng").CertainRng(), ids[17:]
    if model.drafts(ask, rng):
        chain = model.draft(module("lm.model").Feed(session, fed, 1), ask, 4, rng, 0)
        tokens = chain.tokens.tolist()
    else:
        tokens = []
        while len(tokens) < 4:
            logits, _ = session.feed(fed, 1)
            fed = logits.argmax(-1)
            tokens += fed.tolist()
    logits, _ = session.feed(torch.tensor(tokens[-1:]), 1)
    return [*tokens, int(logits.argmax()), session.length]


def drafted(model: Any, drafts: bool = True) -> list[Any]:
    """What the target says with itself as a draft, or plainly; with a buffer that has to grow for the second prompt.

    The third one needs recordings of the first and of the second.
    """
    chain, rules, rng = module("decoding.chain"), module("decoding.rules"), module("decoding.rng")
    engine, warp = module("engine").Engine({"target": model, "draft": model}), rules.Warp()
    decoder = chain.Chain(chain.DraftModel(4), chain.Lossless(), warp)
    if not drafts:
        decoder = module("decoding.baseline").Baseline(warp)
    prompts = (([5, 6, 7], 20), ([9, 8], 130), ([11, 12, 13, 14], 140))
    return [engine.generate(decoder, prompt, length, rng.CertainRng()) for prompt, length in prompts]


def caught_by(bug: Bug) -> str | None:
    """The first check that notices the bug, or None."""
    with mutated(bug):
        try:
            return next(checks(), None)
        except (AssertionError, IndexError, RuntimeError, ValueError, module("errors").ModelError) as error:
            if bug.name in str(error):  # it could not be seeded
                raise
            return f"{type(error).__name__}: {error}"[:120]


@pytest.mark.slow
def test_the_unchanged_forward_passes_the_same_checks() -> None:
    assert caught_by(Bug("nothing", "specexp.lm.native.kv_cache", "LEAST = 64", "LEAST = 64")) is None


@pytest.mark.at_most(slow=6)
@pytest.mark.slow
@pytest.mark.parametrize("bug", CASES)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None
