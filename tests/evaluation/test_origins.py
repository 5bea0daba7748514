"""Who each token came from, told by the traced decoder and found again from the models and the rng alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from helpers.judges import random_network
from helpers.origins import check_counts
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, InTurn, Lookup, Lossless, Suffix
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import Role, SuffixLimits
from specexp.decoding.rng import ACCEPT, TARGET, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import Fuzzy
from specexp.engine import Decoder, Engine
from specexp.evaluation.token_view import teacher_forcing
from specexp.evaluation.token_view.origins import TracedDecoder, tally
from specexp.evaluation.token_view.teacher_forcing import teacher_forced_probs, unit_temperature
from specexp.judge.features import MODES
from specexp.lm.toy import HIDDEN, ToyModel

CLOCKS = ("seconds", "prefill_seconds", "time_to_first_token")
PROMPTS = [[1, 2, 3], [4, 4, 1, 6], [7, 2, 5], [1, 2, 3, 1, 2, 3, 1, 2], [5, 5, 5]]
LENGTH = 26


def models(noise: float = 0.5) -> dict[Role, Any]:
    return {"target": ToyModel(8, 3), "draft": ToyModel(8, 3, draft_noise=noise)}


def judge(threshold: float, features: str = "both") -> Judged:
    mode = MODES[features]
    network = random_network("mlp", mode.size({"target": HIDDEN, "draft": HIDDEN}), seed=1)
    return Judged(network, mode.parts, threshold, (0,), mode.needs)


def decoders(temperature: float) -> Iterator[tuple[str, Decoder, bool]]:
    """Name, decoder, whether it takes a bonus token."""
    warp = Warp(temperature)
    yield "baseline", Baseline(warp), True
    yield "draft_only", Baseline(warp, "draft"), True
    for bonus in (True, False):
        yield "speculative", Chain(DraftModel(4), Lossless(), warp, bonus), bonus
        yield "unsure", Chain(DraftModel(6, 0.5), Lossless(), warp, bonus), bonus
        yield "lookup", Chain(Lookup(4), Lossless(), warp, bonus), bonus
        yield "suffix", Chain(Suffix(6, SuffixLimits(2.0)), Lossless(), warp, bonus), bonus
        turns = {"suffix": Suffix(6, SuffixLimits(), 3), "lookup": Lookup(4, 3, 2), "draft": DraftModel(4)}
        yield "in turn", Chain(InTurn(turns), Lossless(), warp, bonus), bonus
        yield "block", Chain(DraftModel(4), Lossless(), warp, bonus, "block"), bonus
        yield "topk", Chain(DraftModel(4), TopK(2), warp, bonus), bonus
        yield "fuzzy", Chain(DraftModel(4), Fuzzy("tv", 0.3, warp), warp, bonus), bonus
        yield "autojudge", Chain(DraftModel(4), judge(0.6), warp, bonus), bonus
        yield "threshold 0", Chain(DraftModel(4), judge(0.0), warp, bonus), bonus
        yield "all", Chain(DraftModel(4), judge(2.0), warp, bonus), bonus
    yield "specexec", SpecExec(8, 3, warp), True
    yield "judged tree", SpecExec(8, 3, warp, rule=judge(0.6, "target")), True


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("eos", [(), (0,)])
def test_a_traced_decoder_decodes_the_same_and_its_origins_add_up_to_the_counts(
    temperature: float, eos: tuple[int, ...]
) -> None:
    seen: Counter[str] = Counter()
    for name, decoder, bonus in decoders(temperature):
        for number, prompt in enumerate(PROMPTS):
            rng = rng_for(temperature, 1, f"prompt {number}")
            expected = asdict(Engine(models(), eos).generate(decoder, prompt, LENGTH, rng))
            traced = TracedDecoder(decoder)
            actual = asdict(Engine(models(), eos).generate(traced, prompt, LENGTH, rng))
            assert {k: v for k, v in actual.items() if k not in CLOCKS} == {
                k: v for k, v in expected.items() if k not in CLOCKS
            }, name
            kept, cut = traced.tokens[: len(expected["token_ids"])], traced.tokens[len(expected["token_ids"]) :]
            assert [token.token for token in kept] == expected["token_ids"]
            check_counts(tally(kept), tally(cut), expected, bonus)
            assert [token.round for token in traced.tokens] == sorted(token.round for token in traced.tokens)
            assert traced.tokens[-1].round == expected["num_rounds"]
            seen += Counter(tally(kept)) + Counter({f"cut {name}": n for name, n in tally(cut).items()})
    assert {"accepted", "judged", "looked_up", "suffix", "tree", "corrected", "bonus", "target", "draft"} <= seen.keys()
    assert bool(eos) <= any(name.startswith("cut") for name in seen), "no prompt shows an EOS inside a block"


def rows(model: ToyModel, prompt: list[int], tokens: list[int]) -> np.ndarray[Any, Any]:
    """Logits before each of `tokens`, from one forward of a fresh cache."""
    return np.asarray(model.session().feed(model.ids([*prompt, *tokens[:-1]]), rows=len(tokens))[0])


@pytest.mark.parametrize("rule", [TopK(2), judge(0.6), "fuzzy"], ids=["topk", "judge", "fuzzy"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_the_lossless_rule_would_have_rejected_is_judged_and_nothing_else(rule: Any, temperature: float) -> None:
    warp, pair, seen = Warp(temperature), models(), set()
    rule = Fuzzy("tv", 0.3, warp) if rule == "fuzzy" else rule
    for number, prompt in enumerate(PROMPTS):
        rng: Any = rng_for(temperature, 1, f"prompt {number}")
        traced = TracedDecoder(Chain(DraftModel(4), rule, warp))
        ids = Engine(pair).generate(traced, prompt, LENGTH, rng).token_ids
        p, q = (warp(rows(pair[role], prompt, ids)) for role in ("target", "draft"))
        for position, token in enumerate(traced.tokens[: len(ids)]):
            if token.origin in ("accepted", "judged"):
                ratio = p[position, token.token] / q[position, token.token]
                noise = rng.uniform(*(np.asarray([x]) for x in (position, ACCEPT, 0)))[0] if temperature else 0.5
                assert token.origin == ("accepted" if noise < ratio else "judged")
                seen.add(token.origin)
    assert seen == {"accepted", "judged"}


def test_a_corrected_token_names_the_draft_in_whose_place_it_stands() -> None:
    pair, num = models(), 0
    for prompt in PROMPTS:
        traced = TracedDecoder(Chain(DraftModel(4), judge(0.6), Warp()))
        ids = Engine(pair).generate(traced, prompt, LENGTH, rng_for(0, 0, "")).token_ids
        target, draft = (rows(pair[role], prompt, ids).argmax(axis=-1) for role in ("target", "draft"))
        for position, token in enumerate(traced.tokens[: len(ids)]):
            assert (token.rejected is not None) == (token.origin == "corrected")
            if token.rejected is not None:
                assert token.rejected == draft[position] != target[position] == token.token
                assert token.rejected_score is not None
                assert token.rejected_score >= 0.6 or token.rejected == 0, "the judge would have accepted_anyway it"
                num += 1
            if token.origin == "judged":
                assert token.score is not None
                assert token.score < 0.6
                assert token.token == draft[position] != target[position]
    assert num > 3


def test_the_judges_score_is_of_the_rows_behind_the_drafted_token() -> None:
    pair, rule, prompt = models(), judge(2.0), PROMPTS[0]
    traced = TracedDecoder(Chain(DraftModel(4), rule, Warp()))
    ids = Engine(pair).generate(traced, prompt, LENGTH, rng_for(0, 0, "")).token_ids
    hidden = [
        np.asarray(pair[part.split("_")[0]].session().feed(np.asarray([*prompt, *ids]), len(ids), hidden=True)[1])
        for part in rule.parts
    ]
    scores = rule.score(np.concatenate(hidden, axis=-1).astype(np.float32))
    drafted = [i for i, token in enumerate(traced.tokens[: len(ids)]) if token.origin in ("accepted", "judged")]
    assert [traced.tokens[i].score for i in drafted] == pytest.approx([float(scores[i]) for i in drafted])
    assert all(t.score is None for i, t in enumerate(traced.tokens[: len(ids)]) if i not in drafted)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_tree_names_ranks_by_the_draft_and_what_it_had_instead(temperature: float) -> None:
    pair, seen = models(), Counter[str]()
    for number, prompt in enumerate(PROMPTS):
        traced = TracedDecoder(SpecExec(8, 3, Warp(temperature)))
        rng = rng_for(temperature, 1, f"prompt {number}")
        ids = Engine(pair).generate(traced, prompt, LENGTH, rng).token_ids
        order = np.argsort(-rows(pair["draft"], prompt, ids), axis=-1, kind="stable")
        for position, token in enumerate(traced.tokens[: len(ids)]):
            seen[token.origin] += 1
            rank = list(order[position]).index(token.token)
            if token.origin == "tree":
                assert token.rank == rank
            elif token.origin == "corrected":
                assert token.rejected == order[position][0] != token.token
            else:
                assert token.rejected is None
    assert seen["tree"] > seen["corrected"] > 0
    assert seen["bonus"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_judged_node_is_one_that_was_not_drawn_and_its_score_is_of_its_own_rows(temperature: float) -> None:
    pair, rule, num = models(), judge(0.6, "target"), 0
    for number, prompt in enumerate(PROMPTS):
        traced = TracedDecoder(SpecExec(8, 3, Warp(temperature), rule=rule))
        rng = rng_for(temperature, 1, f"prompt {number}")
        ids = Engine(pair).generate(traced, prompt, LENGTH, rng).token_ids
        model = pair["target"]
        hidden = np.asarray(model.session().feed(model.ids([*prompt, *ids]), len(ids), hidden=True)[1])
        scores = rule.score(hidden.astype(np.float32))
        p = Warp(temperature)(rows(model, prompt, ids))
        for position, token in enumerate(traced.tokens[: len(ids)]):
            drawn = int(rng.pick(p[position], position, TARGET))
            if token.origin in ("tree", "judged"):
                assert (token.origin == "tree") == (drawn == token.token)
                assert token.score == pytest.approx(float(scores[position]))
                num += token.origin == "judged"
            if token.origin == "judged":
                assert token.score is not None
                assert token.score < 0.6
            if token.origin == "corrected":
                assert token.rejected_score is not None
                assert token.rejected_score >= 0.6 or token.rejected == 0
    assert num > 1


def test_a_looked_up_token_is_no_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = TracedDecoder(Chain(Lookup(4), Lossless(), Warp()))
    Engine({"target": ToyModel(8, 3)}).generate(traced, [1, 2, 3, 1, 2, 3, 1, 2], LENGTH, rng_for(0, 0, ""))
    assert {"looked_up", "corrected"} <= tally(traced.tokens).keys() <= {"looked_up", "corrected", "bonus", "target"}


@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, 5, 0.9)], ids=["greedy", "warped"])
def test_probabilities_are_those_of_one_forward_whatever_it_is_cut_into(
    warp: Warp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_forcing, "ROWS", 3)
    prompt, tokens = [1, 2, 3], [4, 1, 7, 7, 2, 0, 5, 3]
    pair = models()
    engine = Engine(pair, reuse=True)
    others = {1: [6, 1], 7: [2]}
    for role, model in pair.items():
        logits = rows(model, prompt, tokens)
        p = unit_temperature(warp)(logits)
        assert 0 < p[0].max() < 1
        for i, score in enumerate(
            teacher_forced_probs(engine, role, model.context, unit_temperature(warp), prompt, tokens, others)
        ):
            assert score is not None
            assert score.probability == pytest.approx(p[i, tokens[i]], abs=1e-6)
            assert score.rank == 1 + sum(logits[i] > logits[i, tokens[i]])
            assert (score.first, score.first_probability) == (p[i].argmax(), pytest.approx(p[i].max(), abs=1e-6))
            assert score.others == {x: pytest.approx(p[i, x], abs=1e-6) for x in others.get(i, [])}


def test_a_model_scores_nothing_beyond_its_context() -> None:
    small = ToyModel(8, 3, context=6)
    scores = teacher_forced_probs(
        Engine({"draft": small}, reuse=True), "draft", 6, Warp(1.0), [1, 2, 3], [4, 5, 6, 7, 1, 2], {}
    )
    assert [one is not None for one in scores] == [True] * 4 + [False] * 2
    assert teacher_forced_probs(Engine({"draft": small}, reuse=True), "draft", 6, Warp(1.0), [1] * 9, [4], {}) == [None]
