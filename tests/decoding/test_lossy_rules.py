"""Judged decoding and Top-K at both ends of their dials, what they read and what they cost, and exactly what they say.

The checks take models of any kind: they run on the numpy toy, on tiny Hugging Face models, and on seeded bugs.
"""

from __future__ import annotations

import importlib
import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from helpers.mining import Reads
from helpers.model_folders import build
from helpers.networks import network_arrays
from helpers.seeded_bugs import JUDGED_BUGS, Bug, mutated
from specexp.certify.reference_distribution import gap, warp
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import Drafted, Scored
from specexp.decoding.rng import ACCEPT, HashRng
from specexp.judge import trees
from specexp.judge.features import MODES
from specexp.judge.network import Network
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.toy import ToyModel

EXACT = 1e-12
FAMILIES = ["llama", "qwen2", "gpt2"]
KINDS = ("mlp", "logistic", "trees")
SCALAR_MODES = ("target_scalars", "both_previous_scalars", "scalars")
SEEN_MODES = [mode for mode in MODES if not mode.endswith("scalars") or mode in SCALAR_MODES]
TEMPERATURES = [0.0, 0.8]
NAMES = {"target": "p", "draft": "q"}
SAME_COUNTS = (
    "num_rounds", "num_drafted", "num_accepted", "num_judged", "num_cut", "num_full", "num_tested", "num_target_calls",
    "num_target_positions", "accepted_histogram",
)  # fmt: skip
Mutable = Any  # a module, class or instance of the package as it is imported now, maybe with a bug in it


@dataclass
class Lab:
    """A pair of models, prompts for it, and the package's modules as they are imported now."""

    models: dict[str, Any]
    eos: tuple[int, ...]
    prompts: list[list[int]]
    tolerance: float
    sizes: dict[str, int]
    vocab: int
    length: int = 28
    every_kind: bool = True
    cached: bool = True

    def module(self, name: str) -> Mutable:
        return importlib.import_module(f"specexp.{name}")

    def engine(self) -> Mutable:
        return self.module("engine").Engine(self.models, self.eos, cached=self.cached)

    def judge(self, mode: str, kind: str = "logistic", seed: int = 0) -> Mutable:
        size = self.module("judge.features").MODES[mode].size(self.sizes)
        return self.module("judge.network").Network(kind, network_arrays(kind, size, seed))

    def judged(self, mode: str, threshold: float, score: Callable[[Any], Any], temperature: float = 0.0) -> Mutable:
        features, warp = self.module("judge.features").MODES[mode], self.module("decoding.rules").Warp(temperature)
        judged = self.module("decoding.lossy_rules").Judged
        return judged(score, features.parts, threshold, self.eos, features.needs, warp)

    def chain(self, rule: Mutable, gamma: int = 4, temperature: float = 0.0, bonus: bool = True) -> Mutable:
        chain, rules = self.module("decoding.chain"), self.module("decoding.rules")
        return chain.Chain(chain.DraftModel(gamma), rule, rules.Warp(temperature), bonus)

    def generate(self, decoder: Mutable, prompt: list[int], temperature: float = 0.0) -> Mutable:
        rng = self.module("decoding.rng").rng_for(temperature, 5, "p")
        return self.engine().generate(decoder, prompt, self.length, rng)

    def lossless(self) -> Mutable:
        return self.module("decoding.chain").Lossless()

    def top_k(self, k: int) -> Mutable:
        return self.module("decoding.lossy_rules").TopK(k)

    def favourite(self, role: str, ids: list[int]) -> int:
        """A fresh forward's first choice."""
        model = self.models[role]
        logits, _ = model.session().feed(model.ids(ids), rows=1)
        return int(logits[-1].argmax())

    def drafts_own(self, prompt: list[int]) -> list[int]:
        """The draft's greedy output, token by token."""
        out: list[int] = []
        while len(out) < self.length and not (out and out[-1] in self.eos):
            out.append(self.favourite("draft", [*prompt, *out]))
        return out


def toy_lab(seed: int = 6, vocab: int = 8, noise: float = 0.5) -> Lab:
    toy = importlib.import_module("specexp.lm.toy")
    models = {"target": toy.ToyModel(vocab, seed), "draft": toy.ToyModel(vocab, seed, draft_noise=noise)}
    prompts = [[1 + i % (vocab - 1), 2, 1 + (3 * i) % (vocab - 1)] for i in range(7)]
    return Lab(models, (0,), prompts, EXACT, {"target": toy.HIDDEN, "draft": toy.HIDDEN}, vocab)


def tiny_lab() -> Lab:
    """Small enough to follow every way the rng can fall."""
    return toy_lab(3, 3, 0.8)


def hf_lab(models: dict[str, Any]) -> Lab:
    prompts = [random_prompt(length, length) for length in (1, 11)]
    # Every eleventh token ends a text, so that texts do end.
    lab = Lab(models, tuple(range(5, 96, 11)), prompts, 1e-5, {"target": 32, "draft": 32}, 96, 18, every_kind=False)
    others = [random_prompt(seed, 12 + seed) for seed in range(40)]
    # Unrelated models may have no such prompt; the checks that need one fail then.
    prompts.append(next((prompt for prompt in others if ends_alone(lab, prompt)), others[0]))
    return lab


def random_prompt(seed: int, length: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(3, 96) for _ in range(length)]


def ends_alone(lab: Lab, prompt: list[int]) -> bool:
    """True if the draft ends its text where the target would go on."""
    *text, last = lab.drafts_own(prompt)
    return last in lab.eos and lab.favourite("target", [*prompt, *text]) not in lab.eos


@pytest.fixture(params=["toy", *FAMILIES])
def lab(request: pytest.FixtureRequest, pair: Callable[[str], Any]) -> Lab:
    return toy_lab() if request.param == "toy" else hf_lab(pair(request.param))


def settings(lab: Lab) -> Iterator[tuple[str, str, list[int]]]:
    """Every mode of hidden states, with both kinds of networks or with each in turn, and scalars with trees, on the
    prompts in turn."""
    prompts, kinds = itertools.cycle(lab.prompts), itertools.cycle(KINDS[:2])
    for mode in SEEN_MODES:
        several = KINDS[:2] if lab.every_kind else [next(kinds)]
        for kind in ["trees"] if mode in SCALAR_MODES else several:
            yield mode, kind, next(prompts)


@dataclass
class Watched:
    """A chain, and what it said: for each round the drafted tokens, those committed, and how many were accepted."""

    inner: Mutable
    drafted: list[list[int]] = field(default_factory=list)
    committed: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    q: list[Any] = field(default_factory=list)

    @property
    def models(self) -> tuple[str, ...]:
        models: tuple[str, ...] = self.inner.models
        return models

    def steps(self, rng: Any, remaining_tokens: int) -> Any:
        steps, answer = self.inner.steps(rng, remaining_tokens), None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                return
            answer = yield ask
            if type(ask).__name__ == "Draft":
                self.drafted.append([int(token) for token in answer.tokens])
                # At temperature 0 the tokens say what q is.
                one_hot = np.eye(100)[np.asarray(answer.tokens)]
                self.q.append(one_hot if answer.q is None else np.asarray(answer.q))
            elif type(ask).__name__ == "Round":
                self.committed.append([int(token) for token in ask.tokens[: int(ask.num_tokens)]])
                self.accepted.append(int(ask.counts["num_accepted"]))

    def rounds(self, prompt: list[int]) -> Iterator[tuple[list[int], list[int], int]]:
        """(the text so far, what was drafted behind it, how many of that were accepted)."""
        ids = list(prompt)
        for drafted, committed, accepted in zip(self.drafted, self.committed, self.accepted, strict=True):
            yield ids, drafted, accepted
            ids = [*ids, *committed]


# One end of the dial.


def check_threshold_zero_is_lossless(lab: Lab) -> None:
    for mode, kind, prompt in settings(lab):
        for temperature in TEMPERATURES:
            rule = lab.judged(mode, 0.0, lab.judge(mode, kind))
            got = lab.generate(lab.chain(rule, temperature=temperature), prompt, temperature)
            expected = lab.generate(lab.chain(lab.lossless(), temperature=temperature), prompt, temperature)
            assert got.token_ids == expected.token_ids
            assert [getattr(got, name) for name in SAME_COUNTS] == [getattr(expected, name) for name in SAME_COUNTS]
            assert got.num_judged == 0
            if not rule.needs.feed_last_token:
                assert (got.num_draft_calls, got.num_draft_positions) == (
                    expected.num_draft_calls, expected.num_draft_positions,
                )  # fmt: skip


def check_top_one_is_lossless_greedy(lab: Lab) -> None:
    for prompt in lab.prompts:
        for bonus in (True, False):
            got = lab.generate(lab.chain(lab.top_k(1), bonus=bonus), prompt)
            expected = lab.generate(lab.chain(lab.lossless(), bonus=bonus), prompt)
            assert got.token_ids == expected.token_ids
            assert [getattr(got, name) for name in SAME_COUNTS] == [getattr(expected, name) for name in SAME_COUNTS]


# The other end.


def unjudged(lab: Lab, prompt: list[int], gamma: int, bonus: bool) -> list[int]:
    """What a judge that waives everything leads to: the draft's favourites, but the target's where the draft would
    end the text and the target would not; and the target's behind each full chain, if there is a bonus.
    """
    out: list[int] = []
    while len(out) < lab.length:
        remaining = lab.length - len(out)
        num = max(0, min(gamma, remaining - bonus))
        whole = True
        for _ in range(num):
            token = lab.favourite("draft", [*prompt, *out])
            whole = token not in lab.eos or lab.favourite("target", [*prompt, *out]) == token
            out.append(token if whole else lab.favourite("target", [*prompt, *out]))
            if out[-1] in lab.eos:
                return out
            if not whole:
                break
        if whole and (bonus or not num):
            out.append(lab.favourite("target", [*prompt, *out]))
            if out[-1] in lab.eos:
                return out
    return out


def check_above_one_everything_is_accepted_but_an_unwanted_eos(lab: Lab) -> None:
    drafts_own = ended_otherwise = 0
    for mode, kind, prompt in settings(lab):
        for bonus in (True, False):
            watched = Watched(lab.chain(lab.judged(mode, 1.1, lab.judge(mode, kind)), bonus=bonus))
            out = lab.generate(watched, prompt)
            assert out.token_ids == unjudged(lab, prompt, 4, bonus)
            assert len(out.token_ids) == out.num_accepted + out.num_rounds - out.num_cut - (
                0 if bonus else out.num_full
            )
            for ids, drafted, accepted in watched.rounds(prompt):
                if accepted < len(drafted):
                    assert drafted[accepted] in lab.eos
                    assert lab.favourite("target", [*ids, *drafted[:accepted]]) != drafted[accepted]
            if bonus:
                continue
            alone = lab.drafts_own(prompt)
            before = len(alone) - (alone[-1] in lab.eos)
            assert out.token_ids[:before] == alone[:before]
            drafts_own += out.token_ids == alone
            ended_otherwise += out.token_ids != alone
    assert drafts_own, "some texts are the draft's own to their end"
    assert ended_otherwise, "in others the target does not want the draft's EOS"


def check_above_one_nothing_but_an_eos_is_rejected_at_a_temperature(lab: Lab) -> None:
    judged = 0
    for mode, kind, prompt in settings(lab):
        watched = Watched(lab.chain(lab.judged(mode, 1.1, lab.judge(mode, kind)), temperature=0.8))
        judged += lab.generate(watched, prompt, 0.8).num_judged
        rounds = list(watched.rounds(prompt))
        assert all(n == len(drafted) or drafted[n] in lab.eos for _, drafted, n in rounds)
    assert judged > 0


def check_top_all_is_the_draft(lab: Lab) -> None:
    ended = 0
    for prompt in lab.prompts:
        out = lab.generate(lab.chain(lab.top_k(lab.vocab), bonus=False), prompt)
        assert out.token_ids == lab.drafts_own(prompt)
        assert out.num_accepted == out.num_drafted
        ended += out.token_ids[-1] in lab.eos
    assert ended, "an EOS is a token like any other to Top-K"


def check_a_drafted_eos_is_never_waived(lab: Lab) -> None:
    """At every threshold a text ends only where the target would end it."""
    ends = 0
    for prompt, threshold in itertools.product(lab.prompts, (0.3, 0.7, 1.1)):
        out = lab.generate(lab.chain(lab.judged("target", threshold, lab.judge("target"))), prompt)
        if out.finish_reason == "stop":
            ends += 1
            assert lab.favourite("target", [*prompt, *out.token_ids[:-1]]) == out.token_ids[-1]
    assert ends


# What a judge sees.


def check_decoding_reads_the_features_that_mining_kept(lab: Lab) -> None:
    """At every drafted position of every round, tested or not, and in the order of the mode's parts."""
    pair = lab.module("pair.loading")
    miner = lab.module("judge.mining").Miner(pair.Pair(pair.ToyText(96), lab.models, lab.eos), Reads("every token"), 1)
    for mode, kind, prompt in settings(lab):
        judge = lab.judge(mode, kind)
        seen: list[Any] = []

        def score(features: Any, judge: Any = judge, seen: list[Any] = seen) -> Any:
            seen.append(features.tolist())
            return judge(features)

        watched = Watched(lab.chain(lab.judged(mode, 0.5, score), gamma=3))
        lab.generate(watched, prompt)
        rounds = [one for one in watched.rounds(prompt) if one[1]]
        assert len(seen) == len(rounds)
        for features, (ids, drafted, _) in zip(seen, rounds, strict=True):
            for row, at in zip(features, range(len(drafted)), strict=True):
                rows: dict[str, Any] = {}
                for role in ("target", "draft"):
                    look = miner.rows(role, [*ids, *drafted[:at]], drafted[at])
                    ((_, parts),) = miner._engine.run_all([look])
                    rows |= parts
                kept = np.concatenate([rows[part] for part in MODES[mode].parts])
                assert np.abs(np.array(row) - kept).max() <= lab.tolerance


def check_what_a_round_costs(lab: Lab) -> None:
    """One call of the judge over all drafted positions, one target forward, and gamma draft forwards; where the
    draft's row at the last token is read, one more, which saves the next round that token behind a full chain.
    """
    full = 0
    for mode, kind, prompt in settings(lab):
        for temperature in TEMPERATURES:
            judge = lab.judge(mode, kind)
            calls: list[int] = []

            def score(features: Any, judge: Any = judge, calls: list[int] = calls) -> Any:
                calls.append(features.shape[0])
                return judge(features)

            rule = lab.judged(mode, 0.6, score)
            watched = Watched(lab.chain(rule, temperature=temperature))
            out = lab.generate(watched, prompt, temperature)
            drafting = [len(drafted) for drafted in watched.drafted if drafted]
            assert calls == drafting
            assert out.num_target_calls == out.num_rounds
            assert out.num_draft_calls == out.num_drafted + (len(drafting) if rule.needs.feed_last_token else 0)
            unread = 0  # rounds that begin with two tokens the draft has not read
            for at, (accepted, drafted) in enumerate(zip(watched.accepted, watched.drafted, strict=True)):
                behind = watched.drafted[at + 1 : at + 2]
                unread += accepted == len(drafted) > 0 and bool(behind and behind[0])
            full += unread
            assert out.num_draft_positions == out.num_drafted + (
                len(drafting) if rule.needs.feed_last_token else unread
            )
    assert full > 2


def check_judged_tokens_are_those_the_lossless_rule_rejects(lab: Lab) -> None:
    """Counted over the accepted ones, from fresh forwards of both models and the rng of each position."""
    total = 0
    for prompt, temperature in itertools.product(lab.prompts, TEMPERATURES):
        rule = lab.judged("both", 0.6, lab.judge("both", "mlp"))
        watched = Watched(lab.chain(rule, temperature=temperature))
        out = lab.generate(watched, prompt, temperature)
        rng = HashRng.of(5, "p")
        rejected = 0
        for (ids, drafted, accepted), q in zip(watched.rounds(prompt), watched.q, strict=True):
            for at in range(accepted):
                model = lab.models["target"]
                logits, _ = model.session().feed(model.ids([*ids, *drafted[:at]]), rows=1)
                p = warp(logits[-1].tolist(), temperature)[drafted[at]]
                where = np.asarray(len(ids) - len(prompt) + at)
                noise = float(rng.uniform(where, where * 0 + ACCEPT, where * 0)) if temperature else 0.5
                rejected += noise >= p / q[at][drafted[at]]
        assert out.num_judged == rejected
        total += rejected
    assert total > 5


def by_hand(a: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """The log-odds of trees, walked node by node."""
    odds = np.zeros(len(features))
    for number, row in enumerate(features):
        for tree in range(len(a["feature"])):
            node = 0
            while a["left"][tree, node] != node:
                goes_left = row[a["feature"][tree, node]] <= a["bound"][tree, node]
                node = a["left" if goes_left else "right"][tree, node]
            odds[number] += a["value"][tree, node]
    return odds + a["bias"][0]


def check_probabilities_are_the_formulas(lab: Lab) -> None:
    features = np.random.default_rng(1).normal(size=(40, 2 * lab.sizes["target"])).astype(np.float32)
    for kind in KINDS:
        a = network_arrays(kind, features.shape[1])
        if kind == "trees":
            expected = 1 / (1 + np.exp(-by_hand(a, features)))
            assert np.abs(lab.judge("both", kind)(features) - expected).max() < 1e-6
            continue
        x = (features - a["mean"]) / a["scale"]
        if kind == "mlp":
            x = np.maximum(x @ a["weight_1"].T + a["bias_1"], 0) @ a["weight_2"].T + a["bias_2"]
        else:
            x = x @ a["weight_1"].T + a["bias_1"]
        assert np.abs(lab.judge("both", kind)(features) - 1 / (1 + np.exp(-x[:, 0]))).max() < 1e-6


CHECKS = [
    check_probabilities_are_the_formulas,
    check_threshold_zero_is_lossless,
    check_top_one_is_lossless_greedy,
    check_above_one_everything_is_accepted_but_an_unwanted_eos,
    check_above_one_nothing_but_an_eos_is_rejected_at_a_temperature,
    check_top_all_is_the_draft,
    check_a_drafted_eos_is_never_waived,
    check_decoding_reads_the_features_that_mining_kept,
    check_what_a_round_costs,
    check_judged_tokens_are_those_the_lossless_rule_rejects,
]


@pytest.mark.at_most(fast=14)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_on_the_toy_and_on_real_models(check: Callable[[Lab], None], lab: Lab) -> None:
    check(lab)


@pytest.mark.slow
def test_models_of_different_sizes_are_read_side_by_side(pair: Callable[[str], Any]) -> None:
    small = HFModel(build("gpt2", seed=1, n_embd=16), "small")
    lab = hf_lab({"target": pair("llama")["target"], "draft": small})
    lab.sizes = {"target": 32, "draft": 16}
    check_decoding_reads_the_features_that_mining_kept(lab)


@pytest.mark.at_most(fast=1)
def test_the_cache_changes_nothing(lab: Lab) -> None:
    for mode, kind, prompt in settings(lab):
        for temperature in TEMPERATURES:
            decoder = lab.chain(lab.judged(mode, 0.6, lab.judge(mode, kind)), temperature=temperature)
            with_cache, without = (
                replace(lab, cached=cached).generate(decoder, prompt, temperature) for cached in (True, False)
            )
            assert with_cache.token_ids == without.token_ids
            assert with_cache.num_judged == without.num_judged


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("context", [3, 4, 6, 9, 14])
def test_judging_goes_on_where_the_drafts_context_ends(context: int) -> None:
    """The toy asserts that nothing is fed beyond its context; plain steps of the target follow."""
    lab = toy_lab()
    lab.models["draft"] = ToyModel(8, 6, draft_noise=0.5, context=context)
    lab.eos = ()
    for (mode, _, prompt), bonus in itertools.product(settings(lab), (True, False)):
        out = lab.generate(lab.chain(lab.judged(mode, 1.1, lab.judge(mode)), bonus=bonus), prompt)
        assert len(out.token_ids) == lab.length
        # Where its own row is read, the last drafted token must fit too.
        fits = max(0, context - len(prompt) + (not MODES[mode].needs.feed_last_token))
        assert out.num_accepted <= fits if bonus else out.num_accepted == fits
        lossless = lab.generate(lab.chain(lab.judged(mode, 0, lab.judge(mode)), bonus=bonus), prompt)
        assert lossless.token_ids == lab.generate(lab.chain(lab.lossless(), bonus=bonus), prompt).token_ids


# Exactly what is said at a temperature.


def lossy_distribution(
    lab: Lab, prompt: list[int], length: int, gamma: int, temperature: float, bonus: bool,
    waives: Callable[[list[int], int], bool],
) -> dict[tuple[int, ...], float]:  # fmt: skip
    """Probability of every output when the rule waives a token behind a text: Algorithm 1 of speculative sampling, by
    recursion, with fresh forwards and no cache.
    """
    masses: dict[tuple[int, ...], float] = {}

    def row(role: str, out: tuple[int, ...]) -> list[float]:
        model = lab.models[role]
        logits, _ = model.session().feed(model.ids([*prompt, *out]), rows=1)
        return warp(logits[0].tolist(), temperature)

    def begin(out: tuple[int, ...], mass: float) -> None:
        remaining = length - len(out)
        if remaining == 0 or (out and out[-1] in lab.eos):
            masses[out] = masses.get(out, 0.0) + mass
        else:
            go(out, mass, max(0, min(gamma, remaining - bonus)), first=True)

    def go(out: tuple[int, ...], mass: float, left: int, first: bool = False) -> None:
        if out and out[-1] in lab.eos:
            begin(out, mass)
            return
        p = row("target", out)
        if left == 0:
            if not bonus and not first:
                begin(out, mass)
                return
            for token, chance in enumerate(p):
                if chance:
                    begin((*out, token), mass * chance)
            return
        q = row("draft", out)
        kept = 0.0
        for token, chance in enumerate(q):
            accept = chance if waives([*prompt, *out], token) else min(chance, p[token])
            kept += accept
            if accept:
                go((*out, token), mass * accept, left - 1)
        residual = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
        residual = residual if sum(residual) > 0 else p
        for token, weight in enumerate(residual):
            if weight and kept < 1:
                begin((*out, token), mass * (1 - kept) * weight / sum(residual))

    begin((), 1.0)
    return masses


def exactly(lab: Lab, rule: Mutable, waives: Callable[[list[int], int], bool], gamma: int, bonus: bool) -> float:
    """The gap between what a chain says with this rule and what the recursion says it should."""
    length, temperature = 4, 0.8
    oracle = lab.module("certify.oracle")
    decoder = lab.chain(rule, gamma, temperature, bonus)
    got = oracle.output_distribution(lab.engine, decoder, [1], length)
    assert sum(got.values()) == pytest.approx(1, abs=EXACT)
    return gap(got, lossy_distribution(lab, [1], length, gamma, temperature, bonus, waives))


def waived_by_judge(lab: Lab, mode: str, threshold: float, judge: Mutable) -> Callable[[list[int], int], bool]:
    """From fresh forwards: whether the judge lets a token pass behind a text, at temperature 0.8."""

    def waives(ids: list[int], token: int) -> bool:
        rows: dict[str, Any] = {}
        for role, model in lab.models.items():
            logits, hidden = model.session().feed(model.ids([*ids, token]), rows=2, hidden=True)
            p = warp(logits[0].tolist(), 0.8)
            rows |= {f"{role}_previous": hidden[0], f"{role}_token": hidden[1], f"{role}_{NAMES[role]}": [p[token]]}
            if role == "target":
                rows["target_entropy"] = [-sum(each * math.log(each) for each in p if each)]
                rows["target_margin"] = [max(p) - p[token]]
        features = np.concatenate([rows[part] for part in MODES[mode].parts])[None].astype(np.float32)
        return token not in lab.eos and bool(judge(features)[0] < threshold)

    return waives


def among_best(lab: Lab, k: int) -> Callable[[list[int], int], bool]:
    def waives(ids: list[int], token: int) -> bool:
        model = lab.models["target"]
        logits, _ = model.session().feed(model.ids(ids), rows=1)
        return token in sorted(range(lab.vocab), key=lambda i: (-logits[0, i], i))[:k]

    return waives


def check_a_judge_that_waives_nothing_is_lossless_exactly(lab: Lab) -> None:
    for mode, bonus in itertools.product(("both", "target_previous"), (True, False)):
        certain = lab.judged(mode, 0.99, lambda features: np.ones(features.shape[0], dtype=np.float32))
        assert exactly(lab, certain, lambda ids, token: False, 2, bonus) < EXACT


def check_only_what_the_judge_waives_passes_beyond_the_lossless_rule(lab: Lab) -> None:
    for number, mode in enumerate(SEEN_MODES):
        threshold = (0.4, 0.7)[number % 2]
        judge = lab.judge(mode, KINDS[number % 3], number)
        waives = waived_by_judge(lab, mode, threshold, judge)
        assert exactly(lab, lab.judged(mode, threshold, judge, 0.8), waives, 2, bonus=number % 3 > 0) < EXACT


def check_top_k_at_a_temperature(lab: Lab) -> None:
    for k, bonus in itertools.product((1, 2, 3), (True, False)):
        assert exactly(lab, lab.top_k(k), among_best(lab, k), 2, bonus) < EXACT


EXACT_CHECKS = [
    check_a_judge_that_waives_nothing_is_lossless_exactly,
    check_only_what_the_judge_waives_passes_beyond_the_lossless_rule,
    check_top_k_at_a_temperature,
]


@pytest.mark.at_most(fast=1)
@pytest.mark.parametrize("check", EXACT_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_every_way_the_dice_can_fall(check: Callable[[Lab], None]) -> None:
    check(tiny_lab())


# The rules and the network by themselves.

NAMESPACES: list[Callable[[Any], Any]] = [np.asarray, torch.tensor]


@pytest.mark.parametrize("make", NAMESPACES, ids=["numpy", "torch"])
def test_ties_in_top_k_go_to_the_lowest_id(make: Callable[[Any], Any]) -> None:
    logits = make([[1.0, 2.0, 2.0, 2.0, 0.0]] * 5 + [[9.0, 0.0, 0.0, 0.0, 0.0]])
    drafted = Drafted(make([0, 1, 2, 3, 4]), None)
    best = [[False, True, False, False, False], [False, True, True, False, False], [False, True, True, True, False]]
    for k, expected in enumerate([*best, [True, True, True, True, False], [True] * 5], start=1):
        accepted_anyway = TopK(k).accept_anyway(drafted, Scored(logits))
        assert accepted_anyway is not None
        assert accepted_anyway.tolist() == expected


@pytest.mark.parametrize("make", NAMESPACES, ids=["numpy", "torch"])
def test_a_threshold_waives_what_is_strictly_below_it_and_no_eos(make: Callable[[Any], Any]) -> None:
    def score(features: Any) -> Any:
        return features[:, 0]

    drafted = Drafted(make([3, 4, 0, 9, 5]), None)
    scored = Scored(None, make([[0.0], [0.5], [0.1], [0.1], [0.1], [0.9]]))
    rule = Judged(score, ("target_token",), 0.5, (0, 9), MODES["target"].needs)
    accepted_anyway = rule.accept_anyway(drafted, scored)
    assert accepted_anyway is not None
    assert accepted_anyway.tolist() == [False, True, False, False, False]


def test_an_empty_chain_asks_no_judge() -> None:
    def never(features: Any) -> Any:
        raise AssertionError("asked")

    nothing = Drafted(np.zeros(0, dtype=np.int64), np.zeros((0, 5)))
    scored = Scored(np.zeros((1, 5)), np.zeros((1, 6)))
    assert Judged(never, ("target_token",), 0.5, (0,), MODES["target"].needs).accept_anyway(nothing, scored) is None
    assert TopK(2).accept_anyway(nothing, scored) is None


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_torch_give_the_same_probabilities(kind: str) -> None:
    network = Network(kind, network_arrays(kind, 12))
    features = np.random.default_rng(1).normal(size=(200, 12))
    one = network(features)
    other = network(torch.tensor(features))
    assert one.dtype == np.float32
    assert other.dtype == torch.float32
    assert one.std() > 0.05
    assert np.abs(one - other.numpy()).max() < 1e-6


def test_a_logistic_judge_is_scikit_learns() -> None:
    numbers = np.random.default_rng(0)
    x = numbers.normal(3, 2, size=(300, 7)).astype(np.float32)
    y = x @ numbers.normal(size=7) + numbers.normal(size=300) > 3
    scaler = StandardScaler().fit(x)
    model = LogisticRegression().fit(scaler.transform(x), y)
    arrays = {"mean": scaler.mean_, "scale": scaler.scale_, "weight_1": model.coef_, "bias_1": model.intercept_}
    network = Network("logistic", {name: array.astype(np.float32) for name, array in arrays.items()})
    assert np.abs(network(x) - model.predict_proba(scaler.transform(x))[:, 1]).max() < 1e-5


def test_a_judge_of_trees_is_scikit_learns() -> None:
    """Features of 32 bits that stand exactly at a bound, or between its 64 and its 32 bits, take the same way."""
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=(300, 3)).astype(np.float32)
    x[:, 2] = 1 + numbers.integers(40, size=300) * np.finfo(np.float32).eps  # neighbours: their middles have no 32 bits
    y = x[:, 0] * x[:, 1] + 2e5 * (x[:, 2] - 1) + 0.3 * numbers.normal(size=300) > 0.5
    model, num_trees, _ = trees.fit((x[:200], y[:200]), (x[200:], y[200:]), lambda *_: None, trees.TreesRecipe())
    network = trees.network_of(model, num_trees, 3)
    *_, expected = itertools.islice(model.staged_predict_proba(x), num_trees)
    assert num_trees > 1
    assert {0, 1, 2} <= set(network.arrays["feature"].ravel().tolist())
    for features in (x, torch.tensor(x)):
        assert np.abs(np.asarray(network(features)) - expected[:, 1]).max() < 1e-6


def test_an_mlp_judge_is_torchs() -> None:
    arrays = network_arrays("mlp", 12)
    layers = torch.nn.Sequential(
        torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(5, 1), torch.nn.Sigmoid()
    ).eval()
    names = {"0.weight": "weight_1", "0.bias": "bias_1", "3.weight": "weight_2", "3.bias": "bias_2"}
    layers.load_state_dict({name: torch.tensor(arrays[array]) for name, array in names.items()})
    features = np.random.default_rng(1).normal(size=(200, 12)).astype(np.float32)
    with torch.no_grad():
        expected = layers((torch.tensor(features) - torch.tensor(arrays["mean"])) / torch.tensor(arrays["scale"]))[:, 0]
    assert np.abs(Network("mlp", arrays)(features) - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("make", NAMESPACES, ids=["numpy", "torch"])
def test_a_judge_may_be_very_sure(make: Callable[[Any], Any]) -> None:
    ones = np.ones(1, dtype=np.float32)
    network = Network("logistic", {"mean": 0 * ones, "scale": ones, "weight_1": ones[None], "bias_1": 0 * ones})
    p = network(make([[-1e4], [-60.0], [0.0], [60.0], [1e4]]))
    assert p.tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-20)
    assert 0 < p[1] < 1e-25, "what is nearly impossible can still be told apart"


# Seeded bugs.


def caught_by(bug: Bug) -> str | None:
    """The first check that notices the bug, or None. All of them pass on the same toys without one: see above."""
    with mutated(bug), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for check in [*CHECKS, *EXACT_CHECKS]:
            try:
                check(toy_lab() if check in CHECKS else tiny_lab())
            except (AssertionError, IndexError, ValueError) as error:
                return f"{type(error).__name__} in {check.__name__}"
    return None


@pytest.mark.nightly
@pytest.mark.parametrize("bug", JUDGED_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None
