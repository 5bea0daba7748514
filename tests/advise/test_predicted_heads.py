"""Drafts that read the target's states: predicted rounds are those of the chains that they really draft."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest

from helpers.fake_clock import prepared_toy
from helpers.rounds import Noting, as_before, decode, plainly, trace_of
from helpers.toy_head import ToyHead
from specexp.advise.adaptive import adapted_rounds
from specexp.advise.rounds import Rounds, Stop, chain_rounds, fit_stop
from specexp.advise.traces import agreement, read_trace, recalled
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless
from specexp.decoding.draft_length import NOMINAL
from specexp.decoding.rules import Warp
from specexp.engine import Generation
from specexp.evaluation.preparation import Prepared
from specexp.lm.toy import ToyModel

LONGEST = 9


def toy(vocabulary: int = 3, **flags: Any) -> Prepared:
    target = ToyModel(vocabulary, context=512)
    models: Any = {"target": target, "draft": ToyHead(target)}
    given = {"eos_ids": (), "max_new_tokens": 60, "toy": f"vocab_size={vocabulary}", "limit": 3, **flags}
    return prepared_toy(models, **given)


def check_counts(rounds: Rounds, counted: Generation) -> None:
    assert (rounds.rounds, rounds.drafted) == (counted.num_rounds, counted.num_drafted)
    assert rounds.mean_length == len(counted.token_ids) / counted.num_rounds
    assert rounds.caught_up == counted.num_draft_positions - counted.num_draft_calls


@pytest.mark.parametrize("bonus", [True, False])
def test_simulated_rounds_are_those_of_a_greedy_head_at_every_draft_length(bonus: bool) -> None:
    prepared, before = toy(), 0
    seen: Counter[str] = Counter()
    for index in range(3):
        output = plainly(prepared, index).token_ids
        trace = trace_of(prepared, index, output, LONGEST)
        for gamma in (1, 2, 3, 5, LONGEST):
            noting = Noting(Chain(DraftModel(gamma), Lossless(), Warp(), bonus))
            counted = decode(prepared, noting, index)
            assert counted.token_ids == output
            rounds = chain_rounds([trace], gamma, bonus)
            check_counts(rounds, counted)
            assert rounds.by_accepted == Counter(noting.rounds)
            before += chain_rounds([as_before(trace)], gamma, bonus).rounds != counted.num_rounds
            seen["accepted"] += counted.num_accepted
            seen["rejected"] += counted.num_drafted - counted.num_accepted
    assert min(seen.values()) > 100, seen
    assert before >= 3, "of 15: by first tokens alone it would be other rounds"


def test_rounds_of_a_head_that_stops_early_and_of_one_whose_turn_is_last() -> None:
    prepared, least = toy(), 0.5
    for index in range(3):
        output = plainly(prepared, index).token_ids
        trace = trace_of(prepared, index, output, LONGEST)
        for gamma in (2, 6):
            counted = decode(prepared, Chain(DraftModel(gamma, least), Lossless(), Warp()), index)
            surely, most = (chain_rounds([trace], gamma, stop=Stop(least, each)) for each in (0.0, 1.0))
            assert surely.rounds == most.rounds == counted.num_rounds
            assert surely.drafted <= counted.num_drafted <= most.drafted
            fitted = chain_rounds([trace], gamma, stop=fit_stop(least, surely, counted.num_drafted))
            assert fitted.drafted == pytest.approx(counted.num_drafted)
            chain = Chain(InTurn({"lookup": Lookup(gamma, 3, 3), "draft": DraftModel(gamma)}), Lossless(), Warp())
            counted = decode(prepared, chain, index)
            others = recalled(prepared, index, output, {"": chain})[""]
            rounds = chain_rounds([trace], gamma, recalled=[others])
            check_counts(rounds, counted)
            assert 0 < rounds.recalled < rounds.drafted


def test_a_head_that_adapts_makes_the_rounds_that_are_simulated() -> None:
    prepared, draft = toy(max_new_tokens=200), DraftModel(8, costs=NOMINAL)
    outs = [decode(prepared, Chain(draft, Lossless(), Warp()), index) for index in range(3)]
    result = adapted_rounds([trace_of(prepared, i, out.token_ids, LONGEST) for i, out in enumerate(outs)], draft)
    assert result.rounds == pytest.approx(sum(out.num_rounds for out in outs), rel=0.05)
    assert result.drafted == pytest.approx(sum(out.num_drafted for out in outs), rel=0.12)


@pytest.mark.parametrize("verification", ["token", "block"])
def test_the_expectation_over_all_outputs_is_exact(verification: str) -> None:
    """Sum over outputs of p(output) times the rounds expected given it, against a sum over all that a chain may do."""
    prepared, length, gamma = toy(max_new_tokens=4, temperature=0.9, limit=1), 4, 3
    models, ids, warp = prepared.pair.models, prepared.prompts[0], Warp(0.9)
    known: dict[Any, list[float]] = {}

    def row(committed: tuple[int, ...], drafted: tuple[int, ...] | None = None) -> list[float]:
        """p after committed tokens; or q after drafted ones, too, as the head's own session says."""
        key = committed, drafted
        if key not in known:
            session: Any = models["target" if drafted is None else "draft"].session()
            if drafted is not None:
                session.read([*ids, *committed], None)
            logits, _ = session.feed(models["target"].ids([*ids, *committed, *(drafted or ())]), 1)
            known[key] = warp(logits)[0].tolist()
        return known[key]

    def drafting(committed: tuple[int, ...], drafted: tuple[int, ...], most: int) -> float:
        """Rounds after this one's draft is complete, weighted by the probability of the rest of the draft."""
        if len(drafted) == most:
            return block(committed, drafted) if verification == "block" else tested(committed, drafted)
        q = row(committed, drafted)
        return sum(q[x] * drafting(committed, (*drafted, x), most) for x in range(3))

    def tested(committed: tuple[int, ...], drafted: tuple[int, ...]) -> float:
        result, reached = 0.0, 1.0
        for i, x in enumerate(drafted):
            p, q = row((*committed, *drafted[:i])), row(committed, drafted[:i])
            accepted = min(1.0, p[x] / q[x])
            rest = [max(each - other, 0.0) for each, other in zip(p, q, strict=True)]
            for y, share in enumerate(rest):
                if share:
                    result += reached * (1 - accepted) * share / sum(rest) * started((*committed, *drafted[:i], y))
            reached *= accepted
        return result + reached * bonus((*committed, *drafted))

    def block(committed: tuple[int, ...], drafted: tuple[int, ...]) -> float:
        """Sun et al. 2403.10444, Algorithm 2: the longest prefix whose test passes is kept."""
        b = [1.0]
        for i, x in enumerate(drafted):
            b.append(min(1.0, b[-1] * row((*committed, *drafted[:i]))[x] / row(committed, drafted[:i])[x]))
        result, later = b[-1] * bonus((*committed, *drafted)), 1 - b[-1]
        for i in reversed(range(len(drafted))):
            p, q = row((*committed, *drafted[:i])), row(committed, drafted[:i])
            rest = [max(b[i] * each - other, 0.0) for each, other in zip(p, q, strict=True)]
            total = sum(rest)
            passes = 1.0 if i == 0 else total / (total + 1 - b[i]) if total + 1 - b[i] else 1.0
            for y, share in enumerate(rest):
                if share:
                    result += later * passes * share / total * started((*committed, *drafted[:i], y))
            later *= 1 - passes
        return result

    def bonus(committed: tuple[int, ...]) -> float:
        return sum(share * started((*committed, x)) for x, share in enumerate(row(committed)))

    def started(committed: tuple[int, ...]) -> float:
        left = length - len(committed)
        return 1 + drafting(committed, (), min(gamma, left - 1)) if left else 0.0

    num_rounds = before = 0.0
    for output in itertools.product(range(3), repeat=length):
        chance = math.prod(row(output[:i])[token] for i, token in enumerate(output))
        trace = trace_of(prepared, 0, output, gamma)
        blocks = verification == "block"
        num_rounds += chance * chain_rounds([trace], gamma, block=blocks).rounds
        before += chance * chain_rounds([as_before(trace)], gamma, block=blocks).rounds
    expected = started(())
    assert num_rounds == pytest.approx(expected, abs=1e-12)
    assert abs(before - expected) > 1e-3


def test_a_trace_is_read_again_as_it_was() -> None:
    prepared = toy(temperature=0.9, max_new_tokens=12)
    agreed = agreement(prepared, 0, plainly(prepared, 0).token_ids, longest=4)
    trace = replace(agreed.trace, certainty=agreed.certainty)
    again = read_trace(asdict(agreed.trace), agreed.certainty)
    assert again == trace
    assert len(again.deeper) == 3
    assert [each.accepted[:3] for each in again.deeper][2] == [0.0] * 3, "no chain reaches these after three tokens"
    assert again.after(9) is again.deeper[-1]
