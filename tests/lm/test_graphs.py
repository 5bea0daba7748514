"""Captured forwards give the answers of the forward as it comes; a tape stands in for CUDA graphs where there are none.

What depends on a host value is frozen by the tape as by a graph: every output here comes from replays at other places
of the sequence, for other prompts and other seeds than those that were recorded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless, Replay
from specexp.decoding.draft_length import BINS, RelativeCosts, Stopping
from specexp.decoding.lossy_rules import Judged
from specexp.decoding.protocol import Draft, Needs
from specexp.decoding.rng import DRAFT, CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import Fuzzy
from specexp.engine import Decoder, Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.model import Branches, Feed
from specexp.lm.native import cuda_graphs
from specexp.lm.native.bucketed_forward import tree_masks
from specexp.lm.native.kv_cache import NativeSession
from specexp.lm.native.native_forward import NativeForward

FAMILIES = ("llama", "qwen2", "mistral_window")
WARPS = {"greedy": Warp(), "warm": Warp(0.8), "top": Warp(0.9, top_k=20, top_p=0.9)}
PROMPTS = ([7], [5, 9, 11, 40], [(17 * i) % 90 + 3 for i in range(60)])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
Pair = dict[str, HFModel]


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of tests go through several."""
    monkeypatch.setattr(cuda_graphs, "LEAST_BUCKET", 16)


def models(family: str, device: str, capture: Any) -> Pair:
    made = {"target": build(family), "draft": disturbed(build(family), 0.06)}
    return {role: HFModel(module.to(device), role, graphs=capture) for role, module in made.items()}


@pytest.fixture(scope="module", params=DEVICES)
def both(request: pytest.FixtureRequest) -> Callable[[str], tuple[Pair, Pair]]:
    """A pair without recordings, and the same with them."""
    device, made = request.param, {}

    def pairs(family: str) -> tuple[Pair, Pair]:
        if family not in made:
            capture = Tape() if device == "cpu" else "auto"
            made[family] = models(family, device, "off"), models(family, device, capture)
        return made[family]

    return pairs


def decoders(warp: Warp) -> Iterator[Decoder]:
    yield Baseline(warp)
    for gamma in (1, 4, 9):
        yield Chain(DraftModel(gamma), Lossless(), warp)
    yield Chain(DraftModel(4), Lossless(), warp, bonus=False)
    yield Chain(DraftModel(4), Lossless(), warp, verification="block")
    yield Chain(DraftModel(4, temperature=0.0), Lossless(), warp)
    yield Chain(DraftModel(4, min_draft_probability=0.2), Lossless(), warp)
    parts = ("target_token", "draft_token")
    judged = Judged(
        lambda x: torch.sigmoid(x.sum(-1)),
        parts,
        0.4,
        (2,),
        Needs(target=True, draft=True, feed_last_token=True),
    )
    yield Chain(DraftModel(4), judged, warp)
    yield Chain(DraftModel(4), Fuzzy("js", 0.002, warp), warp)
    yield SpecExec(24, 4, warp)
    judge = Judged(lambda x: torch.sigmoid(x.sum(-1)), ("target_token",), 0.4, (2,), Needs(target=True))
    yield SpecExec(24, 4, warp, rule=judge)


@pytest.mark.at_most(slow=2)
@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_decoding_gives_the_same_tokens_and_counts(both: Any, family: str, warp: str) -> None:
    plain, captured = both(family)
    accepted = 0
    for decoder in decoders(WARPS[warp]):
        engines, rounds = (Engine(plain), Engine(captured)), 0
        for number, prompt in enumerate(PROMPTS):
            rng = rng_for(WARPS[warp].temperature, 3, str(number))
            expected, got = (engine.generate(decoder, prompt, 40, rng) for engine in engines)
            assert got.token_ids == expected.token_ids
            for name in (
                "num_rounds",
                "num_accepted",
                "num_draft_calls",
                "num_draft_positions",
                "num_target_positions",
            ):
                assert getattr(got, name) == getattr(expected, name), name
            accepted += got.num_full
            rounds += got.num_rounds
        # A tree is grown on the device, and read with its round; without recordings the host reads each of its levels.
        # Where a chain ends early, the host reads its length; without recordings, each token's probability.
        if isinstance(decoder, Chain) and decoder.proposer == DraftModel(4, min_draft_probability=0.2):
            assert rounds < engines[1].num_host_reads <= min(2 * rounds, engines[0].num_host_reads)
            continue
        expected_reads = rounds if isinstance(decoder, SpecExec) else engines[0].num_host_reads
        assert engines[1].num_host_reads == expected_reads <= engines[0].num_host_reads
    assert accepted > 0, "no chain was ever accepted whole: two tokens were never fed first"


@pytest.mark.at_most(fast=4)
@pytest.mark.parametrize("feed_last_token", [False, True])
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("warp", WARPS)
def test_a_chain_ends_inside_its_recording(warp: str, verification: str, feed_last_token: bool) -> None:
    """Steps after the end are skipped, nothing is read before the end, and one replay drafts a chain of any length."""
    tape, costs = Tape(), RelativeCosts(0.2, tuple(1 + n / 20 for n in range(9)))
    plain, captured = models("llama", "cpu", "off"), models("llama", "cpu", tape)
    rule: Any = Lossless()
    if feed_last_token:
        parts, needs = ("target_token", "draft_token"), Needs(target=True, draft=True, feed_last_token=True)
        rule, verification = Judged(lambda x: torch.sigmoid(x.sum(-1)), parts, 0.4, (2,), needs), "token"
    decoder = Chain(DraftModel(8, costs=costs), rule, WARPS[warp], verification=verification)
    engines = Engine(plain), Engine(captured)
    for number, prompt in enumerate(PROMPTS):
        rng = rng_for(WARPS[warp].temperature, 3, str(number))
        before, was = [engine.num_host_reads for engine in engines], (tape.num_run, tape.num_skipped)
        expected, got = (engine.generate(decoder, prompt, 40, rng) for engine in engines)
        assert got.token_ids == expected.token_ids
        for name in ("num_rounds", "num_accepted", "drafted_before_end", "num_draft_calls", "num_draft_positions"):
            assert getattr(got, name) == getattr(expected, name), name
        drafts = got.num_rounds - got.drafted_before_end[0]
        reads = [engine.num_host_reads - earlier for engine, earlier in zip(engines, before, strict=True)]
        assert reads[0] == got.num_rounds
        assert reads[1] >= got.num_rounds + drafts, "one for a round, and one for the number of tokens of a draft"
        assert reads[1] <= 2 * got.num_rounds
        assert tape.num_run - was[0] == got.num_draft_calls - (reads[1] - got.num_rounds), "first steps always run"
        assert tape.num_skipped > was[1]


@pytest.mark.at_most(fast=8)
@pytest.mark.parametrize("by_round", [False, True])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("warp", WARPS)
def test_a_chain_drafted_in_one_go_is_the_one_drafted_step_by_step(
    both: Any, warp: str, recorded: bool, by_round: bool
) -> None:
    """Tokens, q and hidden rows, from a prompt's end and after one to many tokens, at two places of the sequence."""
    plain, captured = (pair["draft"] for pair in both("llama"))
    captured = captured if recorded else plain
    ask = Draft(5, WARPS[warp], hidden=True, feed_last_token=True, by_round=by_round)
    for seed, length in ((0, 5), (1, 5), (2, 3)):
        for fresh in ([8], [8, 30], [8, 30, 9], [*range(10, 19)], [*range(3, 27)], [*range(3, 73)]):
            rng = rng_for(ask.warp.temperature, seed, "p")
            draws = rng.of_round(7 + seed) if by_round else rng
            steps, whole = plain.session(), captured.session()
            for model, session in ((plain, steps), (captured, whole)):
                session.feed(model.ids([4, 5, 6] * (seed + 1)), rows=0)
            tokens, q, states, fed = [], [], [], plain.ids(fresh)
            for step in range(length + 1):
                logits, hidden = steps.feed(fed, rows=1, hidden=True)
                states.append(hidden)
                q.append(ask.warp(logits))
                fed = ask.warp.first(logits) if ask.warp.greedy else draws.pick(q[-1][0], 7 + seed + step, DRAFT)[None]
                tokens.append(int(fed[0]))
            assert captured.drafts(ask, rng)
            chain: Any = captured.draft(Feed(whole, captured.ids(fresh), 1, True), ask, length, rng, 7 + seed)
            assert chain.tokens.tolist() == tokens[:length]
            assert whole.length == steps.length
            assert torch.allclose(chain.hidden, torch.cat(states)[: length + 1], atol=1e-5)
            assert (chain.q is None) == ask.warp.greedy
            if chain.q is not None:
                assert torch.allclose(chain.q, torch.cat(q)[:length], atol=1e-5)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_greedy_chain_keeps_the_drafts_distributions_where_asked(both: Any, recorded: bool) -> None:
    """Those of temperature 1, in every way of drafting; recordings of both kinds of ask are two."""
    plain, captured = (pair["draft"] for pair in both("llama"))
    captured = captured if recorded else plain
    costs = RelativeCosts(0.2, tuple(1 + n / 20 for n in range(9)))
    for length, more in ((5, {}), (3, {}), (5, {"costs": costs})):
        steps, wholes = plain.session(), [captured.session() for _ in range(2)]
        for model, session in ((plain, steps), *((captured, whole) for whole in wholes)):
            session.feed(model.ids([4, 5, 6]), rows=0)
        q, fed = [], plain.ids([8])
        for _ in range(length):
            logits, _ = steps.feed(fed, rows=1)
            q.append(Warp(1.0)(logits))
            fed = Warp().first(logits)
        kept, left = (
            captured.draft(
                Feed(whole, captured.ids([8]), 1, False), Draft(5, Warp(), keep_q=keeps, **more), length, CertainRng(),
                3, Stopping((0.0,) * length, (1.0,) * BINS) if more else None,
            )
            for whole, keeps in zip(wholes, (True, False), strict=True)
        )  # fmt: skip
        assert left.q is None
        assert kept.q is not None
        assert torch.allclose(kept.q, torch.cat(q), atol=1e-5)
        assert kept.tokens.tolist() == left.tokens.tolist()


@pytest.mark.parametrize("recorded", [True, False])
def test_a_draft_that_was_not_asked_for_a_while_catches_up_in_one_forward(
    recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others proposed comes before the draft's first token: it is that step's forward, in the same recording."""
    pair, plain = models("llama", "cpu", Tape() if recorded else "off"), models("llama", "cpu", "off")
    prompt, rng = [5, 9, 11, 40], CertainRng()
    expected = Engine(plain).generate(Baseline(Warp()), prompt, 40, rng).token_ids
    sizes: list[int] = []
    forward = NativeForward.__call__

    def counted(self: NativeForward, tokens: Any, *more: Any) -> Any:
        if self is pair["draft"].native:
            sizes.append(tokens.shape[0])
        return forward(self, tokens, *more)

    fed: list[int] = []
    feed = NativeSession.feed

    def seen(self: NativeSession, tokens: Any, *more: Any, **named: Any) -> Any:
        if self.pool.forward is pair["draft"].native:
            fed.append(tokens.shape[0])
        return feed(self, tokens, *more, **named)

    monkeypatch.setattr(NativeForward, "__call__", counted)
    monkeypatch.setattr(NativeSession, "feed", seen)
    decoder = Chain(Replay((*prompt, *expected[:14]), 4, DraftModel(4)), Lossless(), Warp())
    out = Engine(pair).generate(decoder, prompt, 40, rng)
    assert out.token_ids == expected
    assert out.num_draft_positions > out.num_draft_calls + 10, "the draft had nothing to catch up on"
    if recorded:
        assert fed == [0], "a recording takes the prompt, too"
    else:  # after a full chain two tokens are fed, in two forwards of one row, which are cheaper on a CPU
        assert max(sizes) >= 14
        assert len(sizes) == 1 + out.num_draft_calls + fed.count(1), "a forward that no call counts"


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_are_masked_as_they_come(both: Any, family: str) -> None:
    plain, captured = (pair["target"] for pair in both(family))
    stand = Branches(9, [0, 0, 1, 1, 2], [[0], [1], [0, 2], [1, 3], [0, 2, 4]])
    answers = []
    for model in (plain, captured):
        session = model.session()
        session.feed(model.ids(range(3, 12)), rows=0)
        first = session.feed(model.ids([20, 21, 22]), rows=2, hidden=True, branches=stand)
        second = session.feed(model.ids([23, 24]), rows=2, branches=stand)
        session.truncate(9, [9, 11, 13])
        answers += [*first, second[0], session.feed(model.ids([30]), rows=1)[0]]
    for expected, got in zip(answers[:4], answers[4:], strict=True):
        assert torch.allclose(expected, got, atol=1e-4)


def test_padding_of_a_tree_sees_something() -> None:
    """Else its keys and values are no numbers, on devices where a row that sees nothing is none."""
    own = HFModel(build("mistral_window"), "x").native
    assert own is not None
    masks, positions = tree_masks(own, 20, 2, Branches(20, [0, 0], [[0], [1]]), 16, 32)
    assert positions.tolist() == [20, 20]
    for mask in masks:
        assert mask.shape == (16, 32)
        assert mask.any(1).all()
        assert mask[0].sum() == mask[1].sum() == 12, "the window"
    assert not masks[0][0, 21]


@pytest.mark.slow
def test_each_shape_is_recorded_once_and_recordings_outlive_an_engine() -> None:
    tape = Tape()
    pair = models("llama", "cpu", tape)
    decoder = Chain(DraftModel(4), Lossless(), Warp(0.7))
    counts = []
    for seed in range(3):
        engine = Engine(pair)
        for prompt in PROMPTS:
            engine.generate(decoder, prompt, 30, rng_for(0.7, seed, "p"))
        counts.append(tape.num_recorded)
        del engine
        gc.collect()
    assert counts[2] <= counts[0] + 4, "only shapes that did not come up before"
    assert len(pair["draft"].graph_pools.pools) == 1


def test_two_engines_at_a_time_do_not_share_a_cache() -> None:
    pair = models("llama", "cpu", Tape())
    decoder, rng = Chain(DraftModel(4), Lossless(), Warp()), CertainRng()
    expected = Engine(models("llama", "cpu", "off")).generate(decoder, [5, 6, 7], 20, rng).token_ids
    one, other = Engine(pair, reuse=True), Engine(pair)
    one.generate(decoder, [5, 6, 7], 10, rng)
    other.generate(decoder, [9, 9, 9], 20, rng)
    assert one.generate(decoder, [5, 6, 7], 20, rng).token_ids == expected


def test_a_pool_that_grows_forgets_its_recordings() -> None:
    pair = models("llama", "cpu", Tape())
    engine = Engine(pair)
    # The second does not fit what the first asked for; the third comes by the first one's shapes.
    for prompt, length in (([5, 6, 7], 8), (PROMPTS[2], 80), ([5, 6, 7], 8)):
        expected = Engine(models("llama", "cpu", "off")).generate(Baseline(Warp()), prompt, length, CertainRng())
        assert engine.generate(Baseline(Warp()), prompt, length, CertainRng()).token_ids == expected.token_ids


def test_several_rows_are_decoded_as_they_come() -> None:
    from specexp.engine.engine import Request

    pair = models("llama", "cpu", Tape())
    decoder, rng = Chain(DraftModel(4), Lossless(), Warp()), CertainRng()
    expected = [Engine(models("llama", "cpu", "off")).generate(decoder, p, 20, rng).token_ids for p in PROMPTS]
    outputs = dict(Engine(pair, max_batch_size=2).generate_all([Request(decoder, p, 20, rng) for p in PROMPTS]))
    assert [outputs[i].token_ids for i in range(len(PROMPTS))] == expected


def test_the_tape_freezes_host_values_and_refuses_to_read() -> None:
    """Else the tests above would show nothing."""
    place, at = torch.zeros(1, dtype=torch.int64), [1]
    frozen = Tape()(lambda x: (x + at[0],), (place,))
    at[0] = 5
    place.fill_(3)
    assert frozen()[0].tolist() == [4]
    with pytest.raises(AssertionError, match="host value"):
        Tape()(lambda x: (x + int(x[0]),), (place,))


def test_graphs_are_for_cuda_unless_asked_for() -> None:
    assert HFModel(build("llama"), "x").facts()["graphs"] == "off"
    assert HFModel(build("llama"), "x", graphs=Tape()).facts()["graphs"] == "captured"
    assert HFModel(build("gpt2"), "x", graphs=Tape()).facts()["graphs"] == "off", "not a forward of our own"
    with pytest.raises(ValueError, match="graphs is 'on'; it must be 'auto', 'off' or a `Capture`"):
        HFModel(build("llama"), "x", graphs="on")
