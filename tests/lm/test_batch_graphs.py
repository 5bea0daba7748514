"""Several prompts decoded from recordings: what comes of each is what comes of it alone, and nothing is recorded anew
where rows join and leave. A tape stands in for CUDA graphs; every output here is a replay's.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.feeds import fed_both_ways, gap
from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless, Replay
from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.lossy_rules import Judged
from specexp.decoding.protocol import Needs
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import Fuzzy
from specexp.engine import Engine
from specexp.engine.engine import Request, ScoreRequest
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Feed
from specexp.lm.native import batch_graphs, cuda_graphs
from specexp.lm.native.kv_cache import NativeSession, Pool

FAMILIES = ("llama", "qwen2", "mistral_window")
WARPS = {"greedy": Warp(), "warm": Warp(0.8), "top": Warp(0.9, top_k=20, top_p=0.9)}
SIZES = [(1, 24), (40, 1), (3, 40), (60, 9), (7, 5), (2, 30), (17, 16)]  # of prompts, and limits
COUNTS = ("token_ids", "num_rounds", "num_accepted", "num_draft_calls", "num_draft_positions", "num_target_positions",
          "num_target_calls", "drafted_before_end", "accepted_histogram")  # fmt: skip
COSTS = RelativeCosts(0.2, tuple(1 + n / 20 for n in range(9)))
Pair = dict[str, HFModel]


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of tests go through several."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 16)


def models(family: str, capture: Any) -> Pair:
    made = {"target": build(family), "draft": disturbed(build(family), 0.06)}
    return {role: HFModel(module, role, graphs=capture) for role, module in made.items()}


@pytest.fixture(scope="module")
def both() -> Callable[[str], tuple[Pair, Pair]]:
    """A pair without recordings, and the same with them."""
    made: dict[str, tuple[Pair, Pair]] = {}

    def pairs(family: str) -> tuple[Pair, Pair]:
        if family not in made:
            made[family] = models(family, "off"), models(family, Tape())
        return made[family]

    return pairs


JUDGED = Judged(
    lambda x: torch.sigmoid(x.sum(-1)), ("target_token", "draft_token"), 0.4, (2,),
    Needs(target=True, draft=True, feed_last_token=True),
)  # fmt: skip
METHODS: dict[str, Callable[[Warp], Any]] = {
    "baseline": Baseline,
    "chain": lambda warp: Chain(DraftModel(4), Lossless(), warp),
    "chain of 1": lambda warp: Chain(DraftModel(1), Lossless(), warp),
    "no bonus": lambda warp: Chain(DraftModel(4), Lossless(), warp, bonus=False),
    "block": lambda warp: Chain(DraftModel(4), Lossless(), warp, verification="block"),
    "likeliest drafts": lambda warp: Chain(DraftModel(4, temperature=0.0), Lossless(), warp),
    "early stop": lambda warp: Chain(DraftModel(6, min_draft_probability=0.05), Lossless(), warp),
    "early stop, judged": lambda warp: Chain(DraftModel(6, min_draft_probability=0.05), JUDGED, warp),
    "auto": lambda warp: Chain(DraftModel(8, costs=COSTS), Lossless(), warp),
    "auto, block": lambda warp: Chain(DraftModel(8, costs=COSTS), Lossless(), warp, verification="block"),
    "judged": lambda warp: Chain(DraftModel(4), JUDGED, warp),
    "fuzzy": lambda warp: Chain(DraftModel(4), Fuzzy("js", 0.002, warp), warp),
    "tree": lambda warp: SpecExec(12, 3, warp),
}
FEW = ("chain", "early stop, judged", "auto, block")


def requests(decoder: Any, name: str = "") -> list[Request]:
    numbers = random.Random(5)
    return [
        Request(decoder, [numbers.randrange(3, 90) for _ in range(length)], limit,
                rng_for(decoder.warp.temperature, 5, f"{name} {length}"))
        for length, limit in SIZES
    ]  # fmt: skip


def counted(out: Any) -> dict[str, Any]:
    return {name: getattr(out, name) for name in COUNTS}


def check(plain: Pair, captured: Pair, asked: list[Request], rows: int) -> None:
    expected = [counted(Engine(plain).generate(r.decoder, r.prompt_ids, r.max_new_tokens, r.rng)) for r in asked]
    got = dict(Engine(captured, max_batch_size=rows).generate_all(asked))
    assert [counted(got[i]) for i in range(len(asked))] == expected


@pytest.mark.parametrize("method", FEW)
@pytest.mark.parametrize("warp", ["greedy", "top"])
def test_rows_are_decoded_as_each_alone(both: Any, method: str, warp: str) -> None:
    """Seven prompts on three rows, each of which is used again while the others are half way."""
    check(*both("llama"), requests(METHODS[method](WARPS[warp]), method), 3)


@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_of_every_family(both: Any, family: str, warp: str) -> None:
    for name, make in METHODS.items():
        check(*both(family), requests(make(WARPS[warp]), name), 3)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 5, 7, 33])
def test_methods_are_mixed_on_any_number_of_rows(both: Any, rows: int) -> None:
    asked = [
        request
        for name, make in METHODS.items()
        for request in random.Random(name).sample(requests(make(WARPS["warm"]), name), 2)
    ]
    random.Random(1).shuffle(asked)
    check(*both("mistral_window"), asked, rows)
