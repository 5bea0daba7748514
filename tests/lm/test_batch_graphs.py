"""Several prompts decoded from recordings: what comes of each is what comes of it alone, and nothing is recorded anew
where rows join and leave. A tape stands in for CUDA graphs; every output here is a replay's.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiny_models
from helpers.feeds import fed_both_ways, gap
from helpers.mining import Reads, toy_examples
from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.lossy_rules import Judged
from specexp.decoding.protocol import Needs
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import Fuzzy
from specexp.engine import Engine, recorded_rounds
from specexp.engine.engine import Request
from specexp.judge.mining import Miner
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import model_of_layers
from specexp.lm.model import Feed
from specexp.lm.native import batch_graphs, cuda_graphs, kv_cache
from specexp.lm.native.rows_forward import RowLayout, row_count
from specexp.pair.loading import Pair
from specexp.pair.tokenization import ToyText

FAMILIES = ("llama", "qwen2", "mistral_window")
WARPS = {"greedy": Warp(), "warm": Warp(0.8), "top": Warp(0.9, top_k=20, top_p=0.9)}
SIZES = [(1, 24), (40, 1), (3, 40), (60, 9), (7, 5), (2, 30), (17, 16)]  # of prompts, and limits
COUNTS = ("token_ids", "num_rounds", "num_accepted", "num_draft_calls", "num_draft_positions", "num_target_positions",
          "num_target_calls", "drafted_before_end", "accepted_histogram")  # fmt: skip
COSTS = RelativeCosts(0.2, tuple(1 + n / 20 for n in range(9)))
Models = dict[str, HFModel]


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of tests go through several."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 16)


def models(family: str, capture: Any) -> Models:
    made = {"target": build(family), "draft": disturbed(build(family), 0.06)}
    return {role: HFModel(module, role, graphs=capture) for role, module in made.items()}


@pytest.fixture(scope="module")
def both() -> Callable[[str], tuple[Models, Models]]:
    """A pair without recordings, and the same with them."""
    made: dict[str, tuple[Models, Models]] = {}

    def pairs(family: str) -> tuple[Models, Models]:
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
    "early stop": lambda warp: Chain(DraftModel(6, min_draft_probability=0.2), Lossless(), warp),
    "early stop, judged": lambda warp: Chain(DraftModel(6, min_draft_probability=0.2), JUDGED, warp),
    "auto": lambda warp: Chain(DraftModel(8, costs=COSTS), Lossless(), warp),
    "auto, block": lambda warp: Chain(DraftModel(8, costs=COSTS), Lossless(), warp, verification="block"),
    "judged": lambda warp: Chain(DraftModel(4), JUDGED, warp),
    "fuzzy": lambda warp: Chain(DraftModel(4), Fuzzy("js", 0.002, warp), warp),
    "tree": lambda warp: SpecExec(12, 3, warp),
}
FEW = [
    ("top", "chain"),
    ("greedy", "early stop, judged"),
    pytest.param("warm", "auto, block", marks=pytest.mark.slow),
]


def requests(decoder: Any, name: str = "") -> list[Request]:
    numbers = random.Random(5)
    return [
        Request(decoder, [numbers.randrange(3, 90) for _ in range(length)], limit,
                rng_for(decoder.warp.temperature, 5, f"{name} {length}"))
        for length, limit in SIZES
    ]  # fmt: skip


def counted(out: Any) -> dict[str, Any]:
    return {name: getattr(out, name) for name in COUNTS}


def check(plain: Models, captured: Models, asked: list[Request], rows: int) -> None:
    expected = [counted(Engine(plain).generate(r.decoder, r.prompt_ids, r.max_new_tokens, r.rng)) for r in asked]
    got = dict(Engine(captured, max_batch_size=rows).generate_all(asked))
    assert [counted(got[i]) for i in range(len(asked))] == expected


@pytest.mark.parametrize(("warp", "method"), FEW)
def test_rows_are_decoded_as_each_alone(both: Any, warp: str, method: str) -> None:
    """Seven prompts on three rows, each of which is used again while the others are half way."""
    check(*both("llama"), requests(METHODS[method](WARPS[warp]), method), 3)


@pytest.mark.at_most(slow=2)
@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_of_every_family(both: Any, family: str, warp: str) -> None:
    for name, make in METHODS.items():
        check(*both(family), requests(make(WARPS[warp]), name), 3)


@pytest.mark.at_most(slow=1)
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


# That recordings do it, and are not made again.


def refused(*arguments: Any, **more: Any) -> None:
    raise AssertionError("rows were fed without a recording")


@pytest.mark.parametrize("method", ["baseline", "chain", "early stop"])
def test_everything_is_recorded(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Prompts, plain steps, drafts and verifications: no row is fed in another way."""
    pair = models("llama", Tape())
    for name in ("BatchAttention", "SingleRowAttention"):
        monkeypatch.setattr(kv_cache, name, refused)
    asked = sorted(requests(METHODS[method](Warp(0.8))), key=lambda each: -len(each.prompt_ids))
    outputs = dict(Engine(pair, max_batch_size=4).generate_all(asked))  # the first one says how many slots there are
    assert len(outputs) == len(SIZES)
    (batch,) = pair["target"].graph_pools.batches
    assert batch.recordings.num_replays > 10


def keys(pair: Models, role: str = "target") -> list[tuple[Any, ...]]:
    (batch,) = pair[role].graph_pools.batches
    return list(batch.recordings.kept)


def test_rows_join_and_leave_without_another_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rows are fed, and wherever each of them is; nothing more is allocated for keys and values."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 256)
    monkeypatch.setattr(recorded_rounds, "OFTEN", 2)
    tape, seen = Tape(), set[tuple[Any, ...]]()
    pair, decoder = models("llama", tape), METHODS["chain"](Warp())
    inputs = batch_graphs.BatchGraphs.inputs

    def watched(self: Any, layout: Any, feeds: Any, size: int, values: Any) -> Any:
        if self._forward is pair["target"].native and feeds[0][1].rows:
            starts = values[0][0]
            seen.add(tuple((row, start) for (row, _), start in zip(feeds, starts, strict=True)))
        return inputs(self, layout, feeds, size, values)

    monkeypatch.setattr(batch_graphs.BatchGraphs, "inputs", watched)
    numbers = random.Random(3)
    sizes = [(40, 12), *((numbers.randrange(1, 40), numbers.randrange(4, 12)) for _ in range(13))]
    asked = [Request(decoder, [numbers.randrange(3, 90) for _ in range(n)], most, CertainRng()) for n, most in sizes]
    recorded, slots = [], []
    for _ in range(2):
        assert len(dict(Engine(pair, max_batch_size=5).generate_all(asked))) == len(asked)
        gc.collect()  # the engine's sessions, so that the next one's are in their buffers
        recorded.append(tape.num_recorded)
        slots.append([pair[role].graph_pools.batches[0].buffers.values for role in pair])
    assert recorded[0] == recorded[1]
    assert all(one is other for one, other in zip(*slots, strict=True))
    chains = [key for key in keys(pair) if key[0] in ("chain", "chain through")]
    assert {key[1] for key in chains} <= {1, 2, 4, 5}
    assert {key[2] for key in chains} == {True, False}, "rows in place and gathered ones"
    assert len(seen) > 2 * len([key for key in chains if key[0] == "chain through"]) > 0


def test_the_number_of_rows_is_a_power_of_two_or_all() -> None:
    assert [row_count(num, 32) for num in (1, 2, 3, 5, 9, 17, 32)] == [1, 2, 4, 8, 16, 32, 32]
    assert [row_count(num, 6) for num in (1, 3, 4, 5, 6)] == [1, 4, 4, 6, 6]
    gaps = RowLayout.of([5, 0, 2], 6)
    assert (gaps.rows, gaps.places, gaps.in_place) == ([5, 0, 2, 1], [0, 1, 2], False)
    assert gaps.by_place([7, 8, 9], -1) == [7, 8, 9, -1]
    held = RowLayout.of([3, 0, 1], 6)
    assert (held.rows, held.places, held.in_place) == ([0, 1, 2, 3], [3, 0, 1], True)
    assert held.by_place([7, 8, 9], -1) == [8, 9, -1, 7]


# Feeding without an engine.


@pytest.mark.parametrize("family", ["llama", "mistral_window", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_feeding_together_equals_feeding_alone(both: Any, family: str) -> None:
    """Chains, longer than a replay takes, and trees, on some of five rows; the others' slots stay, and buffers grow."""
    _, captured = both(family)
    for actual, expected in fed_both_ways(captured["target"], rounds=12):
        assert gap(actual, expected) < 2e-4


@pytest.mark.parametrize("recorded", [True, False])
def test_rows_that_are_not_fed_keep_their_slots(both: Any, recorded: bool) -> None:
    """Their own, and those that another session has in the same buffers: padding goes to reserved slots."""
    model = both("llama")[recorded]["target"]
    rows = model.sessions(4, 30)
    for i, each in enumerate(rows):
        each.feed(model.ids(range(3, 12 + 5 * i)), 0)
    everything = rows[0].pool.buffers.values
    pool = rows[0].pool
    for used in ([0], [3], [0, 2], [1, 2, 3]):
        kept = {row: everything[:, row, : pool.capacity - cuda_graphs.SPARE].clone() for row in range(4)}
        model.feed([Feed(rows[row], model.ids([40 + len(used), 7 + used[0], 42]), 1) for row in used])
        for row in range(4):
            assert torch.equal(everything[:, row, : pool.capacity - cuda_graphs.SPARE], kept[row]) == (row not in used)
        for row in used:
            rows[row].truncate(rows[row].length - 3)


def test_reserved_slots_hold_no_sequence(both: Any) -> None:
    """Buffers grow before a sequence reaches them."""
    model = both("llama")[1]["target"]
    row, other = model.sessions(2, 20)
    assert row.pool.capacity == 128
    row.feed(model.ids([5] * 70), 0)
    assert other.pool.capacity == 256


@pytest.mark.parametrize("rows", [1, 3])
def test_long_texts_are_scored_in_pieces(both: Any, rows: int) -> None:
    """Of very different lengths, with all or some of their rows."""
    plain, captured = (pair["target"] for pair in both("mistral_window"))
    texts = [[(7 * i + 11 * row) % 90 + 3 for i in range(num)] for row, num in enumerate((230, 3, 170)[:rows])]
    for scored in (lambda num: num, lambda num: min(num, 80)):
        answers = []
        for model in (plain, captured):
            sessions = model.sessions(rows, 300)
            for session in sessions:
                session.feed(model.ids([5, 6]), 0)
            feeds = [Feed(s, model.ids(ids), scored(len(ids)), True) for s, ids in zip(sessions, texts, strict=True)]
            answers.append(model.feed(feeds))
            assert [session.length for session in sessions] == [len(ids) + 2 for ids in texts]
        assert gap(*answers) < 2e-4


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("num", [1, 16, 17, 100, 150, 300])
def test_prompts_are_fed_in_recorded_pieces(both: Any, rows: int, num: int) -> None:
    """First turns and second ones; the last piece is padded where there is room, and what has none is fed as it is."""
    plain, captured = (pair["target"] for pair in both("llama"))
    ids, answers = [(7 * i) % 90 + 3 for i in range(num)], []
    for model in (plain, captured):
        sessions = model.sessions(rows, 100)
        for session in reversed(sessions):
            empty, _ = session.feed(model.ids(ids), 0)
            assert empty.shape == (0, 96)
            session.feed(model.ids(ids[: num // 2 + 1]), 0)
            assert session.length == num + num // 2 + 1
        answers.append([session.feed(model.ids([8]), 1) for session in sessions])
    assert gap(*answers) < 2e-4


def test_pieces_of_a_prompt_never_need_more_room() -> None:
    assert cuda_graphs.prefill_sizes(700, 1000, 1 << 30) == [256, 256, 256]
    assert cuda_graphs.prefill_sizes(700, 720, 1 << 30) == [256, 256, 128, 64]
    assert cuda_graphs.prefill_sizes(700, 700, 1 << 30) == [256, 256, 128, 16, 16, 16]
    assert cuda_graphs.prefill_sizes(100, 1000, 64) == [64, 64]
    assert cuda_graphs.prefill_sizes(100, 1000, 8) == cuda_graphs.prefill_sizes(0, 1000, 64) == []


def test_a_mixture_of_experts_is_recorded_as_far_as_its_tokens_allow() -> None:
    expected, captured = (HFModel(tiny_models.build("mixtral"), "x", graphs=each) for each in ("off", Tape()))
    answers = []
    for model in (expected, captured):
        rows, answer = model.sessions(3, 40), []
        for num in (1, 9, 40):
            answer += model.feed([Feed(row, model.ids(range(3 + i, 3 + i + num)), 1) for i, row in enumerate(rows)])
        answers.append(answer)
    assert gap(*answers) < 2e-4
    assert [key[3] for key in keys({"target": captured})] == [1, 9]


# Who else decodes several rows.


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["off", "tape"])
def test_drafts_in_the_targets_slots(capture: str) -> None:
    """A draft made of the target's first layers, whose rows are in the same buffers."""
    target = HFModel(
        tiny_models.build("llama", num_hidden_layers=4), "x", graphs=Tape() if capture == "tape" else "off"
    )
    pair: Any = {"target": target, "draft": model_of_layers(target, (0, 1), "own")}
    asked = [request for name in ("chain", "early stop") for request in requests(METHODS[name](Warp()), name)]
    random.Random(2).shuffle(asked)
    plain, decoder = Engine({"target": target}), Baseline(Warp())
    expected = [plain.generate(decoder, each.prompt_ids, each.max_new_tokens, each.rng) for each in asked]
    got = dict(Engine(pair, max_batch_size=3).generate_all(asked))
    assert [got[i].token_ids for i in range(len(asked))] == [out.token_ids for out in expected]
    assert sum(out.num_accepted for out in got.values()) > 20
    if capture == "tape":
        assert not pair["draft"].graph_pools.batches, "the draft has buffers of its own"


@pytest.mark.slow
def test_mining_of_several_prompts_is_recorded(both: Any) -> None:
    """Labels, features and counts are those without recordings."""
    task, examples, results = Reads("the sum modulo 3"), toy_examples(5), []
    for models_of in both("llama"):
        pair: Any = Pair(ToyText(96), models_of, tuple(range(2, 96, 17)))
        results.append(dict(Miner(pair, task, 24, max_batch_size=3).mine_all(examples)))
    plain, captured = results
    for place in range(len(examples)):
        for name in ("status", "labels", "counts", "response"):
            assert getattr(captured[place], name) == getattr(plain[place], name), name
        for part, rows in plain[place].features.items():
            assert np.allclose(captured[place].features[part], rows, atol=1e-4)
    assert sum(len(each.labels) for each in plain.values()) > 10
    (batch,) = both("llama")[1]["target"].graph_pools.batches
    assert batch.buffers.rows == 3
