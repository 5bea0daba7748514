"""Where time goes, on a clock that is turned by hand; rates and their intervals; bytes of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Draft
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import model_of_layers
from specexp.lm.model import Feed
from specexp.lm.toy import ToyModel, ToySession
from specexp.metrics.statistics import Timed, rate, rate_ratio
from specexp.profiling import bandwidth
from specexp.profiling.time_breakdown import (
    PARTS,
    Stopwatch,
    TimedDecoder,
    TimedModel,
    TimedRng,
    TimedSession,
    TimedWarp,
    shares,
)

FEED, THROW = 100.0, 10.0  # seconds that the hand turns the clock by
READ = 0.25  # and what reading it takes


class Hand:
    """A clock that goes on where it is told to, and a little at each reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += READ
        return self.now


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    clock = Hand()
    feed, argmax = ToySession.feed, Warp.first

    def slow_feed(self: Any, *arguments: Any, **more: Any) -> Any:
        clock.now += FEED
        return feed(self, *arguments, **more)

    def slow_pick(self: Any, *arguments: Any) -> Any:
        clock.now += THROW
        return argmax(self, *arguments)

    monkeypatch.setattr(ToySession, "feed", slow_feed)
    monkeypatch.setattr(Warp, "first", slow_pick)
    return clock


def instrumented(hand: Hand, decoder: Decoder, prompt: list[int]) -> tuple[dict[str, float], Any]:
    watch = Stopwatch(hand)
    models: Any = {
        "target": TimedModel(ToyModel(8), "target", watch),
        "draft": TimedModel(ToyModel(8, draft_noise=0.4), "draft", watch),
    }
    out = Engine(models).generate(TimedDecoder(decoder, watch), prompt, 12, TimedRng(CertainRng(), watch))
    return watch.seconds(), out


def test_each_part_is_charged_its_own_time_and_the_shares_sum_to_one(hand: Hand) -> None:
    seconds, out = instrumented(hand, Chain(DraftModel(3), Lossless(), Warp()), [1, 2, 3])
    assert seconds["draft"] == pytest.approx(FEED * out.num_draft_calls)
    assert seconds["target"] == pytest.approx(FEED * out.num_target_calls), "a prefill was charged, or the clock"
    assert seconds["sampling"] == pytest.approx(THROW * out.num_drafted)
    assert seconds["judge"] == seconds["host"] == pytest.approx(0)
    parts = shares(seconds)
    assert set(parts) == set(PARTS)
    assert sum(parts.values()) == pytest.approx(1)


def test_plain_decoding_has_no_draft(hand: Hand) -> None:
    seconds, out = instrumented(hand, Baseline(Warp()), [1, 2, 3])
    assert seconds["draft"] == 0
    assert seconds["target"] == pytest.approx(FEED * len(out.token_ids))
    assert seconds["sampling"] == pytest.approx(THROW * len(out.token_ids))


def test_a_judge_is_charged_apart_from_accepting(hand: Hand) -> None:
    class Slow(Lossless):
        def accept_anyway(self, drafted: Any, scored: Any) -> None:
            hand.now += 7.0

    seconds, out = instrumented(hand, Chain(DraftModel(3), Slow(), Warp()), [1, 2, 3])
    assert seconds["judge"] == pytest.approx(7.0 * out.num_rounds)
    assert seconds["sampling"] == pytest.approx(THROW * out.num_drafted)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_chain_that_a_model_drafts_in_one_go_is_charged_as_it_is_made(temperature: float) -> None:
    """Its forwards to the draft, its sampling to sampling: the path that is timed is the one that is looked into."""
    hand, drafts = Hand(), HFModel(disturbed(build("llama"), 0.06), "draft")
    assert drafts.native is not None
    forward, warp = drafts.native.__call__, Warp(temperature)
    calls = []

    class Slow:
        """The forward, which takes its time."""

        def __getattr__(self, name: str) -> Any:
            return getattr(drafts.native, name)

        def __call__(self, *arguments: Any) -> Any:
            calls.append(arguments[0].shape[0])
            hand.now += FEED
            return forward(*arguments)

    watch = Stopwatch(hand)
    session = drafts.session()
    session.pool.forward = Slow()  # type: ignore[attr-defined]
    timed = TimedModel(drafts, "draft", watch)
    rng = TimedRng(rng_for(temperature, 0, "p"), watch)
    ask = Draft(4, TimedWarp(temperature, watch=watch))
    assert timed.drafts(ask, rng)
    watch.begin()
    chain = timed.draft(Feed(TimedSession(session, "draft", watch), drafts.ids([5, 6]), 1), ask, 4, rng, 0)
    watch.end()
    assert (len(calls), chain.tokens.shape[0]) == (5, 4)
    seconds = watch.seconds()
    assert seconds["draft"] == pytest.approx(5 * FEED)
    assert seconds["host"] == pytest.approx(0)
    opened = {True: 4, False: 8}[warp.greedy]  # a choice; or a warp and a throw
    assert watch.num_opened("sampling") == opened


def test_a_recording_takes_no_watched_dice_or_warps() -> None:
    captured = HFModel(build("llama"), "draft", graphs=Tape())
    watch = Stopwatch()
    assert captured.drafts(Draft(4, Warp()), CertainRng())
    assert not captured.drafts(Draft(4, TimedWarp(watch=watch)), CertainRng())
    assert not captured.drafts(Draft(4, Warp(0.7)), TimedRng(rng_for(0.7, 0, "p"), watch))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_instrumented_decoder_decodes_the_same(temperature: float) -> None:
    decoder = Chain(DraftModel(3), Lossless(), Warp(temperature))
    models: Any = {"target": ToyModel(8), "draft": ToyModel(8, draft_noise=0.4)}
    watch = Stopwatch()
    timed: Any = {role: TimedModel(model, role, watch) for role, model in models.items()}
    rng = rng_for(temperature, 0, "a prompt")
    expected = Engine(models).generate(decoder, [1, 2], 20, rng)
    actual = Engine(timed).generate(TimedDecoder(decoder, watch), [1, 2], 20, TimedRng(rng, watch))
    assert actual.token_ids == expected.token_ids
    assert actual.accepted_histogram == expected.accepted_histogram


def test_a_draft_of_own_layers_has_the_same_slots_when_it_is_watched() -> None:
    target = HFModel(build("llama", num_hidden_layers=4), "target")
    models: dict[Any, Any] = {"target": target, "draft": model_of_layers(target, (0, 1, 2), "own")}
    decoder, watch, outs = Chain(DraftModel(4), Lossless(), Warp()), Stopwatch(), []
    watched = {role: TimedModel(model, role, watch) for role, model in models.items()}
    for each, made in ((models, decoder), (watched, TimedDecoder(decoder, watch))):
        engine = Engine(each)  # type: ignore[arg-type]
        outs.append(engine.generate(made, [5, 6, 7, 8], 40, CertainRng()))
        assert engine.spent()["draft_positions"] == outs[-1].num_draft_positions, "no prompt is fed to the draft"
    assert outs[0].token_ids == outs[1].token_ids
    assert outs[0].num_draft_positions == outs[1].num_draft_positions
    assert outs[0].num_full > 0


def test_a_rate_is_of_medians_and_its_interval_holds_what_was_drawn() -> None:
    timed = Timed([10, 30], [[1.0, 1.0, 50.0], [3.0, 3.0, 3.0]])  # one repeat was disturbed
    interval = rate(timed)
    assert interval.value == 10
    assert interval.low <= 10 <= interval.high
    assert rate(timed) == interval
    assert rate_ratio(timed, Timed([10, 30], [[2.0] * 3, [6.0] * 3])).value == 2


def test_a_disturbance_that_hits_both_alike_leaves_their_ratio_alone() -> None:
    candidate = Timed([10] * 4, [[1.0, 9.0], [2.0, 3.0], [4.0, 4.0], [1.0, 5.0]])
    baseline = Timed([10] * 4, [[2 * x for x in row] for row in candidate.seconds])
    ratio = rate_ratio(candidate, baseline)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))


def test_a_step_reads_every_weight_but_the_embeddings_other_rows() -> None:
    tied, untied = (build("llama", tie_word_embeddings=tie) for tie in (True, False))
    rows, width = tied.get_input_embeddings().weight.shape
    whole = {m: sum(p.numel() * 4 for p in m.parameters()) for m in (tied, untied)}
    assert bandwidth.weight_bytes(tied) == whole[tied]
    assert bandwidth.weight_bytes(untied) == whole[untied] - (rows - 1) * width * 4 == whole[tied] + width * 4


def test_of_a_mixture_only_the_chosen_experts_count() -> None:
    module = build("gpt_oss")
    experts = sum(p.numel() * 4 for name, p in module.named_parameters() if ".experts." in name)
    rest = sum(p.numel() * 4 for p in module.parameters()) - experts
    used = module.config.num_experts_per_tok / module.config.num_local_experts
    embedding = module.get_input_embeddings().weight
    assert bandwidth.weight_bytes(module) == rest + experts * used - (embedding.shape[0] - 1) * embedding.shape[1] * 4


def test_a_cache_holds_keys_and_values_of_every_layer() -> None:
    module = build("llama")
    with torch.inference_mode():
        out = module(torch.tensor([[1, 2, 3]]), use_cache=True)
        cache = out.cache if hasattr(out, "cache") else out.past_key_values
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert bandwidth.cache_bytes(module, 3) == held
