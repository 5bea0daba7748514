"""Tree asks: rows of a branching ask equal those of a plain forward, and a kept path leaves the right cache behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from helpers.model_folders import FAMILIES, build
from specexp.decoding.protocol import Role, Round, Score, Scored, Steps
from specexp.decoding.rng import CertainRng, Rng
from specexp.decoding.rules import best
from specexp.engine import Engine
from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Model
from specexp.lm.toy import ToyModel

PROMPT = [4, 1, 3, 2]


@dataclass
class Wanderer:
    """Asks about random trees, compares every row with a plain forward, and commits a random path."""

    model: Model
    numbers: random.Random
    tolerance: float
    models: tuple[Role, ...] = ("target",)
    committed: list[int] = field(default_factory=lambda: list(PROMPT))
    kept_away_from_the_front: int = 0

    def plain(self, path: Sequence[int]) -> np.ndarray:
        """Logits behind the committed tokens and `path`, from an empty cache."""
        logits, _ = self.model.session().feed(self.model.ids([*self.committed, *path]), rows=1)
        return np.asarray(logits[0])

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        while remaining_tokens:
            tokens: list[int] = []
            parents: list[int] = []
            paths: list[list[int]] = []
            for size in (3, 4):
                first = len(tokens)
                for slot in range(first, first + size):
                    parents.append(self.numbers.randrange(-1, slot))
                    tokens.append(self.numbers.randrange(self.model.vocab_size))
                    paths.append([*(paths[parents[slot]] if parents[slot] >= 0 else []), slot])
                scored: Scored = yield Score("target", self.model.ids(tokens[first:]), parents[first:])
                assert scored.first_slot == first
                assert scored.logits is not None
                rows = scored.logits if first else scored.logits[1:]
                assert len(rows) == size
                if not first:
                    assert np.allclose(scored.logits[0], self.plain([]), atol=self.tolerance)
                for row, path in zip(rows, paths[first:], strict=True):
                    assert np.allclose(row, self.plain([tokens[s] for s in path]), atol=self.tolerance)
            path = self.numbers.choice(paths)[: remaining_tokens - 1]
            self.kept_away_from_the_front += path != list(range(len(path)))
            block = [*(tokens[s] for s in path), self.numbers.randrange(self.model.vocab_size)]
            self.committed += block
            padded = self.model.ids([*path, *[-1] * (8 - len(path))])
            remaining_tokens = yield Round(self.model.ids(block), len(block), {"target": padded})


@pytest.mark.parametrize("cached", [True, False])
def test_rows_of_a_tree_are_those_of_a_plain_forward_on_the_toy(cached: bool) -> None:
    for seed in range(20):
        model = ToyModel(5, seed)
        decoder = Wanderer(model, random.Random(seed), 1e-12)
        out = Engine({"target": model}, cached=cached).generate(decoder, PROMPT, 20, CertainRng())
        assert decoder.committed == PROMPT + out.token_ids
        assert len(out.token_ids) == 20
        assert decoder.kept_away_from_the_front


@pytest.mark.at_most(fast=5)
@pytest.mark.parametrize(
    "family,attention",
    [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if (f, a) != ("gpt_oss", "sdpa")],  # which has no sdpa
)
def test_rows_of_a_tree_are_those_of_a_plain_forward(
    pair: Callable[[str], dict[str, HFModel]], family: str, attention: str
) -> None:
    model: Any = pair(family)["target"]
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation(attention)
    try:
        for seed in range(3):
            decoder = Wanderer(model, random.Random(seed), 1e-4)
            Engine({"target": model}).generate(decoder, PROMPT, 20, CertainRng())
            assert decoder.kept_away_from_the_front
    finally:
        model.module.set_attn_implementation(before)


def test_attention_that_takes_no_tree_mask_is_refused_by_name() -> None:
    model = HFModel(build("llama"), "tiny")
    model.module.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ModelError, match="uses flash_attention_2 attention, which takes no tree mask; use sdpa"):
        model.check_trees()
    model.module.config._attn_implementation_internal = "sdpa"
    model.module.config.layer_types = ["full_attention", "chunked_attention"]
    model.module.config.attention_chunk_size = 8
    with pytest.raises(ModelError, match="has chunked_attention layers, which take no tree mask"):
        model.check_trees()


def test_the_best_tokens_come_with_their_log_probabilities() -> None:
    logits = np.array([[0.0, 2.0, 2.0, -1.0], [1.0, 0.0, 0.0, 3.0]])
    logprob, ids = best(logits, 3)
    assert ids.tolist() == [[1, 2, 0], [3, 0, 1]], "of equal ones the lower id comes first"
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(np.exp(logprob), np.take_along_axis(p, ids, axis=1))
    assert best(logits, 9)[1].shape == (2, 4)
