"""Which drafts count for the acceptance rates: none after an EOS of the output or after the limit. Raw counts stay.

By hand on a model whose next token is written down, and for random ones recomputed literally from the tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from specexp.decoding.chain import Chain, DraftModel, Lookup, Lossless
from specexp.decoding.lossy_rules import TopK
from specexp.decoding.protocol import Draft, Recall, Role, Round, Steps
from specexp.decoding.rng import Rng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Generation
from specexp.lm.model import Array
from specexp.lm.toy import ToyModel
from specexp.metrics.summary import check_identities, summarise
from specexp.metrics.tally import total

GAMMA = 4


class Written(ToyModel):
    """The next token is written down for each; where it is not, it is the token + 1."""

    def __init__(self, exceptions: Mapping[int, int]) -> None:
        super().__init__(vocab_size=12)
        self._next = [exceptions.get(token, (token + 1) % 12) for token in range(12)]

    def rows(self, before: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
        logits = np.zeros((len(tokens), 12))
        logits[range(len(tokens)), [self._next[token] for token in tokens]] = 5.0
        return logits, super().rows(before, tokens, positions)[1]


def rates(out: Generation, gamma: int = GAMMA, bonus: bool = True) -> dict[str, float]:
    """What a run of one prompt shows, its identities asserted."""
    record = {
        **asdict(out), "prompt_id": "p", "turn": 0, "repeat": 0, "method": "speculative", "label": "speculative",
        "category": "", "correct": None, "answer": None, "seconds": 1.0,
    }  # fmt: skip
    check_identities(record, bonus=bonus)
    return summarise([record], [], None, gamma)


def decoded(target: Mapping[int, int], draft: Mapping[int, int], eos: int, gamma: int = GAMMA) -> Generation:
    models: dict[Role, Any] = {"target": Written(target), "draft": Written(draft)}
    return Engine(models, [eos]).generate(Chain(DraftModel(gamma), Lossless(), Warp()), [0], 30, rng_for(0, 0, "p"))


def test_drafts_after_an_eos_inside_a_block_count_for_neither_rate() -> None:
    """1 2 3 | 9 is drafted for 4. Then 5 6 7 8, all as the target has them, but the output ends with its EOS, the 6."""
    out = decoded({}, {3: 9}, eos=6)
    assert out.token_ids == [1, 2, 3, 4, 5, 6]
    assert (out.num_drafted, out.num_accepted, out.num_cut) == (8, 7, 3), "raw counts are as before"
    metrics = rates(out)
    assert metrics["accept/draft_rate"] == pytest.approx(5 / 6), "and not 7 / 8"
    assert [metrics[f"accept/position_{i}"] for i in (1, 2, 3, 4)] == [1.0, 1.0, 1.0, 0.0], "the last one not 1 / 2"


def test_an_eos_at_the_end_of_a_block_leaves_nothing_out() -> None:
    out = decoded({}, {}, eos=5)  # as the bonus token
    assert (out.token_ids, out.num_cut) == ([1, 2, 3, 4, 5], 0)
    assert rates(out)["accept/draft_rate"] == 1.0
    assert total(out.drafted_before_end) == out.num_drafted == 4


def test_tokens_after_a_rejection_count_below_the_line_up_to_an_eos() -> None:
    """1 2 | 9 10 11: the target has 3 there, which is no EOS, and in the second run is one."""
    first = decoded({}, {2: 9}, eos=11, gamma=5)
    assert first.token_ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert first.drafted_before_end == [0, 0, 1, 0, 0, 2], "five of each of two rounds, two up to the EOS in the last"
    assert first.accepted_before_end == [0, 0, 2, 0, 0, 1]
    ends = decoded({}, {2: 9}, eos=3, gamma=5)
    assert ends.token_ids == [1, 2, 3]
    assert (ends.num_drafted, total(ends.drafted_before_end), total(ends.accepted_before_end)) == (5, 3, 2)
    metrics = rates(ends, 5)
    assert metrics["accept/draft_rate"] == pytest.approx(2 / 3)
    assert metrics["accept/position_3"] == 0.0
    assert "accept/position_4" not in metrics, "no round had four drafts before its end"


class Noting:
    """Passes everything on, and keeps the drafts of each round, with what it committed and accepted."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.rounds: list[tuple[list[int], list[int], int]] = []

    @property
    def models(self) -> tuple[Role, ...]:
        return self._inner.models  # type: ignore[no-any-return]

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        steps, answer, drafts = self._inner.steps(rng, remaining_tokens), None, []
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                return
            if isinstance(ask, Round):
                committed = [int(token) for token in ask.tokens[: int(ask.num_tokens)]]
                self.rounds.append((drafts, committed, int(ask.counts["num_accepted"])))
            answer = yield ask
            if isinstance(ask, Draft | Recall):
                drafts = [int(token) for token in answer.tokens]


def literal(
    rounds: Sequence[tuple[list[int], list[int], int]], eos: int, limit: int
) -> tuple[Fraction | None, list[tuple[int, int]]]:
    """draft_rate, and (rounds whose first i drafts were accepted, rounds that had i) for each i, token by token."""
    written: list[int] = []  # all that was committed, the cut tokens included
    drafted = accepted = 0
    reached = [(0, 0)] * (GAMMA + 1)
    for drafts, committed, num_accepted in rounds:
        for i, _ in enumerate(drafts, 1):
            before = [*written, *committed][: len(written) + i - 1]
            if eos in before or len(before) >= limit:
                continue  # this draft lies after the end
            drafted += 1
            accepted += i <= num_accepted
            reached[i] = (reached[i][0] + (i <= num_accepted), reached[i][1] + 1)
        written += committed
    return (Fraction(accepted, drafted) if drafted else None), reached[1:]


CHAINS: dict[str, Callable[[Warp], Chain]] = {
    "chain": lambda warp: Chain(DraftModel(GAMMA), Lossless(), warp),
    "no bonus": lambda warp: Chain(DraftModel(GAMMA), Lossless(), warp, bonus=False),
    "stops early": lambda warp: Chain(DraftModel(GAMMA, 0.5), Lossless(), warp),
    "lookup": lambda warp: Chain(Lookup(GAMMA), Lossless(), warp),
    "top-k": lambda warp: Chain(DraftModel(GAMMA), TopK(3), warp),
}


@pytest.mark.parametrize("warp", [Warp(), Warp(0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", CHAINS)
def test_rates_are_those_of_a_literal_recount(name: str, warp: Warp) -> None:
    numbers, told_apart = random.Random(name), 0
    for seed in range(25):
        models: dict[Role, Any] = {
            role: ToyModel(6, seed, noise) for role, noise in (("target", 0.0), ("draft", 0.4))
        }  # fmt: skip
        eos, limit, prompt = numbers.randrange(6), numbers.randint(1, 14), [numbers.randrange(6) for _ in range(5)]
        noting = Noting(CHAINS[name](warp))
        out = Engine(models, [eos]).generate(noting, prompt, limit, rng_for(warp.temperature, seed, "p"))
        rate, positions = literal(noting.rounds, eos, limit)
        metrics = rates(out, bonus=name != "no bonus")
        assert metrics.get("accept/draft_rate") == (None if rate is None else pytest.approx(float(rate)))
        for i, (reached, had) in enumerate(positions, 1):
            assert metrics.get(f"accept/position_{i}") == (pytest.approx(reached / had) if had else None)
        told_apart += total(out.accepted_before_end) < out.num_accepted
    assert told_apart or name == "lookup", "no output ended inside a block: the test says nothing"


def test_what_a_judge_accepted_after_an_eos_is_left_out_too() -> None:
    """Top-12 accepts whatever is drafted: 1 2 9 10, of which 9 is the EOS; 9 and 10 are both against the rule."""
    models: dict[Role, Any] = {"target": Written({9: 5}), "draft": Written({2: 9})}
    out = Engine(models, [9]).generate(Chain(DraftModel(4), TopK(12), Warp()), [0], 30, rng_for(0, 0, "p"))
    assert out.token_ids == [1, 2, 9]
    assert (out.num_judged, out.num_judged_before_end) == (2, 1)
    assert rates(out)["accept/judged_rate"] == pytest.approx(1 / 3)


def test_records_of_earlier_versions_show_no_rate_that_they_cannot_tell() -> None:
    out = decoded({}, {3: 9}, eos=6)
    record = {**asdict(out), "prompt_id": "p", "turn": 0, "repeat": 0, "method": "speculative", "label": "s",
              "category": "", "correct": None, "answer": None, "seconds": 1.0}  # fmt: skip
    old = {key: value for key, value in record.items() if not key.endswith("before_end")}
    check_identities(old)
    for records in ([old], [old, record]):
        metrics = summarise(records, [], None, GAMMA)
        assert "accept/alpha" in metrics
        assert not any(name.startswith(("accept/draft", "accept/position", "accept/judged")) for name in metrics)


@pytest.mark.parametrize(
    "broken",
    [{"drafted_before_end": [0, 0, 0, 0, 2]}, {"accepted_before_end": [0, 0, 0, 2]}, {"num_judged_before_end": 1},
     {"drafted_before_end": [1, 0, 0, 0, 1]}, {"accepted_before_end": [0, 0, 1]}],
)  # fmt: skip
def test_a_broken_count_of_what_lies_before_the_end_is_noticed(broken: dict[str, Any]) -> None:
    out = asdict(decoded({}, {3: 9}, eos=6))
    record = {**out, "method": "speculative", **broken}
    if broken == {"drafted_before_end": [0, 0, 0, 0, 2]}:
        check_identities(record)  # as many as were drafted: nothing says that it is wrong
        record["num_drafted"] = 7
    with pytest.raises(AssertionError):
        check_identities(record)
