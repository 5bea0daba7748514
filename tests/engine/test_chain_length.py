"""Drafts that adapt (`gamma: auto`): where a chain ends, what is learnt, and what is read. The oracle has exactness."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.generation import LENGTH, generate, prompts
from helpers.kept_chains import Watching, toys
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless
from specexp.decoding.draft_length import BINS, RelativeCosts, Stopping, bin_of
from specexp.decoding.protocol import Role
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Request
from specexp.engine.chain_length import RETRY, ChainLength
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.toy import ToyModel

GAMMA = 6
COSTS = RelativeCosts(0.2, tuple(1 + n / 20 for n in range(GAMMA + 1)))
CALLS = {
    "a line": tuple(1 + n / 20 for n in range(17)),
    "a jump": (1.0, *(1.8 + n / 50 for n in range(16))),
    "tiles": (*[1.0] * 8, *[1.5] * 9),
    "flat": (1.0,) * 17,
}


@pytest.mark.parametrize("begin", [0.0, 0.4])
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("draft", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("acceptance", [0.25, 0.5, 0.75, 0.875])
def test_where_every_token_is_accepted_alike_it_is_the_best_fixed_length(
    acceptance: float, draft: float, calls: str, begin: float
) -> None:
    costs = RelativeCosts(draft, CALLS[calls], begin)
    rates = [
        sum(acceptance**i for i in range(length + 1)) / (begin * (length > 0) + length * draft + costs.v(length + 1))
        for length in range(17)
    ]
    rate = costs.best_rate(16, acceptance)
    assert rate == pytest.approx(max(rates))
    stopping = Stopping([rate * price for price in costs.prices(16, acceptance)], [acceptance] * BINS)
    # A chain that is dear to begin is begun where drafting pays at all, as `ChainLength` has it.
    length = int(begin > 0 and rate > 1)
    less = 1 - 1e-12  # so that ties end it
    while (length or not begin) and stopping.goes_on(length, acceptance**length * less):
        length += 1
    assert rates[length] == pytest.approx(max(rates))


def test_a_jump_of_the_costs_does_not_end_a_chain_that_pays_beyond_it() -> None:
    costs = RelativeCosts(0.05, CALLS["a jump"])
    next_alone = costs.draft + costs.v(2) - costs.v(1)
    assert costs.prices(16, 0.875)[0] < next_alone / 0.875, "one more token costs more than several, each"


def test_a_chain_that_is_dear_to_begin_gets_longer() -> None:
    lengths = []
    for begin in (0.0, 1.0):
        learning = ChainLength(RelativeCosts(0.2, CALLS["a line"], begin), 16, greedy=True)
        for position in range(0, 90, 9):
            stopping = learning.begin(position, 16)
            assert stopping is not None
            length, survival = 1, 0.9
            while stopping.goes_on(length, survival):
                length, survival = length + 1, survival * 0.9
            learning.drafted(None, length)
            learning.commit(position, 9, length, 8, [[0.9] * 9])
        lengths.append(length)
    assert lengths[0] < lengths[1]


def test_probabilities_are_in_eight_bins() -> None:
    assert [bin_of(p) for p in (0.0, 0.1249, 0.125, 0.5, 0.99, 1.0)] == [0, 0, 1, 4, 7, 7]
    assert bin_of(float("nan")) == BINS - 1, "logits that are no numbers are told when the round is committed"


def test_a_draft_that_is_never_right_is_left_alone_and_tried_again() -> None:
    length = ChainLength(COSTS, GAMMA, greedy=True)
    drafted = []
    for position in range(20 * RETRY):
        stopping = length.begin(position, GAMMA)
        drafted.append(stopping is not None)
        if stopping is not None:
            length.drafted([0.9], 1)
        length.commit(position, 1, int(drafted[-1]), 0, [[0.9]] if drafted[-1] else [])
    assert drafted[0]
    assert sum(drafted[-8 * RETRY :]) == 8


def learnt(num_drafted: int, behind: list[float]) -> ChainLength:
    """After a round from position 0 with 2 accepted tokens, a rejected one, and what was drafted behind it."""
    length = ChainLength(COSTS, GAMMA, greedy=False)
    length.begin(0, GAMMA)
    length.drafted(None, num_drafted)
    length.commit(0, 3, num_drafted, 2, [[0.9, 0.6, 0.2, *behind]])
    return length


def test_what_was_drafted_behind_a_rejected_token_decides_nothing_before_it_is_passed() -> None:
    """Its draws are those of the next rounds: a chain that depended on them would bias the output."""
    one, other = learnt(5, [0.01, 0.99]), learnt(6, [0.7, 0.8, 0.3])
    for position in (3, 4):
        assert one.begin(position, GAMMA) == other.begin(position, GAMMA)
    assert one.begin(5, GAMMA) != other.begin(5, GAMMA), "behind its chain, what the round cost counts"


def test_acceptance_is_learnt_by_probability() -> None:
    length = ChainLength(COSTS, GAMMA, greedy=True)
    before = length.begin(0, GAMMA)
    assert before is not None
    assert before.acceptance == pytest.approx([(i + 0.5) / BINS for i in range(BINS)])
    for position in range(0, 400, 4):
        length.begin(position, GAMMA)
        length.drafted(None, 4)
        length.commit(position, 4, 4, 3, [[0.3, 0.3, 0.9, 0.9]])
    after = length.begin(400, GAMMA)
    assert after is not None
    assert after.acceptance[2] > 0.98
    assert after.acceptance[7] == pytest.approx(0.5, abs=0.01)
    assert after.acceptance[0] == before.acceptance[0]


@pytest.mark.parametrize("warp", [Warp(1.0), Warp(0.6, top_k=3)], ids=str)
def test_chains_end_where_the_rule_says(warp: Warp) -> None:
    """The rule is followed again along the output, from what was drafted and how much of it was accepted."""
    proposer = Watching(DraftModel(GAMMA, costs=COSTS))
    out = Engine(toys()).generate(Chain(proposer, Lossless(), warp), [1, 2], 300, rng_for(1.0, 0, "p"))
    assert {len(drafted.tokens) for drafted in proposer.seen} >= set(range(1, GAMMA + 1)), "the test says something"
    rule, position = ChainLength(COSTS, GAMMA, greedy=False), 0
    for drafted in proposer.seen:
        tokens = [int(token) for token in drafted.tokens]
        most = min(GAMMA, 300 - position - 1)
        stopping = rule.begin(position, most)
        given = [float(q[token]) for q, token in zip(drafted.q, tokens, strict=True)]
        if stopping is None:
            assert tokens == []
        else:
            survival = 1.0
            for i, probability in enumerate(given, 1):
                survival *= stopping.accepted(probability)
                assert stopping.goes_on(i, survival) == (i < len(tokens))
            rule.drafted(given, len(tokens))
        left = out.token_ids[position:]
        accepted = next((i for i, t in enumerate(tokens) if i >= len(left) or t != left[i]), len(tokens))
        rule.commit(position, accepted + 1, len(tokens), accepted, [given] if tokens else [])
        position += accepted + 1
    assert position == 300


def test_it_reads_one_value_for_each_token_that_another_may_follow() -> None:
    same: dict[Role, ToyModel] = {"target": toys()["target"], "draft": toys()["target"]}
    cheap = RelativeCosts(1e-9, (1.0,) * (GAMMA + 1))
    engine = Engine(same)
    out = engine.generate(Chain(DraftModel(GAMMA, costs=cheap), Lossless(), Warp()), [1], 35, CertainRng())
    assert (out.num_rounds, out.num_drafted) == (5, 5 * GAMMA)
    assert engine.num_host_reads == 5 * (1 + GAMMA - 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_gives_the_same_rounds_alone_and_among_others(temperature: float) -> None:
    decoder = Chain(DraftModel(GAMMA, costs=COSTS), Lossless(), Warp(temperature))
    asked = [Request(decoder, [1 + i, 2], 40 + i, rng_for(temperature, 3, f"{i}")) for i in range(7)]
    alone = [Engine(toys()).generate(decoder, r.prompt_ids, r.max_new_tokens, r.rng) for r in asked]
    together = dict(Engine(toys(), max_batch_size=3).generate_all(asked))
    for i, one in enumerate(alone):
        other = together[i]
        assert (one.token_ids, one.drafted_before_end) == (other.token_ids, other.drafted_before_end)
        assert (one.num_draft_calls, one.num_rounds) == (other.num_draft_calls, other.num_rounds)
    assert len({tuple(one.drafted_before_end) for one in alone}) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_output_equals_generate(pair: Callable[[str], dict[str, HFModel]], family: str) -> None:
    models, lengths = pair(family), [0] * 9
    decoder = Chain(DraftModel(8, costs=COSTS), Lossless(), Warp())
    for prompt in prompts():
        engine = Engine(models)
        out = engine.generate(decoder, prompt, LENGTH, CertainRng())
        assert out.token_ids == generate(models["target"], prompt, LENGTH, None)
        lengths = [a + b for a, b in zip(lengths, [*out.drafted_before_end, *[0] * 9], strict=False)]
        if family == "llama":
            assert engine.num_host_reads == out.num_rounds, "on a CPU, the draft model's own loop waits for nothing"
    assert sum(number > 0 for number in lengths) > 2, "chains had one length: the test says little"


def test_a_loop_of_the_model_drafts_what_the_engine_drafts(pair: Callable[[str], dict[str, HFModel]]) -> None:
    """The same chains in one call of the draft model, and step by step: in a batch of one, and without a cache."""
    models = pair("llama")
    for temperature in (0.0, 0.9):
        decoder = Chain(DraftModel(8, costs=COSTS), Lossless(), Warp(temperature))
        for prompt in prompts():
            rng = rng_for(temperature, 1, "p")
            whole = Engine(models).generate(decoder, prompt, 40, rng)
            steps = Engine(models, max_batch_size=2).generate(decoder, prompt, 40, rng)
            uncached = Engine(models, cached=False).generate(decoder, prompt, 40, rng)
            assert whole.token_ids == steps.token_ids == uncached.token_ids
            assert whole.drafted_before_end == steps.drafted_before_end == uncached.drafted_before_end
            assert (whole.num_draft_calls, whole.num_draft_positions) == (
                steps.num_draft_calls, steps.num_draft_positions
            )  # fmt: skip


def test_only_the_draft_models_turns_adapt() -> None:
    turns = InTurn({"lookup": Lookup(GAMMA, 2, min_match=2), "draft": DraftModel(GAMMA, costs=COSTS)})
    out = Engine(toys()).generate(Chain(turns, Lossless(), Warp(1.0)), [1, 2], 200, rng_for(1.0, 0, "p"))
    assert out.proposers["lookup"]["num_rounds"] > 0
    draft = out.proposers["draft"]
    assert 0 < draft["num_drafted"] < GAMMA * draft["num_rounds"]
    assert out.num_draft_calls <= draft["num_drafted"] + GAMMA


def test_what_is_looked_up_is_as_long_as_max_gamma_whatever_positions_cost() -> None:
    """Where each position costs a plain step, the draft model drafts one token at most."""
    steep = RelativeCosts(0.2, tuple(1.0 + n for n in range(GAMMA + 1)))
    proposers = {"lookup": Watching(Lookup(GAMMA, 2, min_match=2)), "draft": Watching(DraftModel(GAMMA, costs=steep))}
    Engine(toys()).generate(Chain(InTurn(proposers), Lossless(), Warp(1.0)), [1, 2], 200, rng_for(1.0, 0, "p"))
    lengths = {name: [each.tokens.shape[0] for each in proposer.seen] for name, proposer in proposers.items()}
    assert set(lengths["draft"]) == {0, 1}
    assert set(lengths["lookup"][:-6]) == {0, GAMMA}, "shorter ones only where the output ends"
    assert lengths["lookup"].count(GAMMA) > 10
