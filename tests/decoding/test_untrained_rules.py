"""Acceptance rules without training: at the lossless end of their dials, and exactly what they accept elsewhere.

The equations are written out again here, on lists of floats, and every way the rng can fall is followed through them.
"""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.model_folders import slow_for
from helpers.sampling import EOS, EXACT, GREEDY, SAMPLINGS, names
from helpers.seeded_bugs import RULE_BUGS, Bug, mutated
from specexp.certify.reference_distribution import gap, sequence_distribution, warp
from specexp.decoding.protocol import Drafted, Scored
from specexp.decoding.rules import Warp
from specexp.decoding.untrained_rules import DISTANCES, Fuzzy

WARM: dict[str, Any] = {"temperature": 0.8}
Mutable = Any  # a module, class or instance of the package as it is imported now, maybe with a bug in it


@dataclass(frozen=True)
class Round:
    """A drafted chain as the equations see it: p and q of each position, not one-hot, and what the target chooses."""

    p: Sequence[Sequence[float]]
    q: Sequence[Sequence[float]]
    tokens: Sequence[int]
    choices: Sequence[int]


Equation = Callable[[Round], list[bool]]


def entropy(p: Sequence[float]) -> float:
    return -sum(x * math.log(x) for x in p if x)


def kullback_leibler(one: Sequence[float], other: Sequence[float]) -> float:
    """KL(one || other)."""
    return sum((a * math.log(a / b) if b else math.inf) for a, b in zip(one, other, strict=True) if a)


def distance(name: str, p: Sequence[float], q: Sequence[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return {
        "tv": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
        "kl": kullback_leibler(q, p),
        "js": (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2,
    }[name]


def typical(epsilon: float, delta: float) -> Equation:
    return lambda round_: [
        p[x] > min(epsilon, delta * math.exp(-entropy(p))) for p, x in zip(round_.p, round_.tokens, strict=True)
    ]


def gated(gate: float) -> Equation:
    return lambda round_: [entropy(p) > gate * math.log(len(p)) for p in round_.p]


def fly(gate: float, window: int, eos: tuple[int, ...]) -> Equation:
    """The window of position i is positions i + 1 .. i + window; the draft ends with its last token or with an EOS."""

    def accepts(round_: Round) -> list[bool]:
        tokens = list(round_.tokens)
        end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
        return [
            entropy(p) > gate * math.log(len(p))
            and all(j < end and round_.choices[j] == tokens[j] for j in range(i + 1, i + 1 + window))
            for i, p in enumerate(round_.p)
        ]

    return accepts


def fuzzy(name: str, bound: float) -> Equation:
    return lambda round_: [distance(name, p, q) < bound for p, q in zip(round_.p, round_.q, strict=True)]


def relaxed(k: int, margin: float) -> Equation:
    return lambda round_: [
        x in sorted(range(len(p)), key=lambda i: (-p[i], i))[:k] and p[x] > max(p) - margin
        for p, x in zip(round_.p, round_.tokens, strict=True)
    ]


def rules(
    module: Callable[[str], Mutable], warped: Mutable, eos: tuple[int, ...]
) -> dict[str, tuple[Mutable, Equation]]:
    """Each rule at dials between their ends, with its equation."""
    untrained, lossy = module("decoding.untrained_rules"), module("decoding.lossy_rules")
    result = {
        f"typical {epsilon:g}, {delta:g}": (untrained.Typical(epsilon, delta, warped), typical(epsilon, delta))
        for epsilon, delta in ((0.3, math.sqrt(0.3)), (0.15, 1.5), (0.9, 0.6))
    }
    result |= {f"entropy {gate:g}": (untrained.EntropyGate(gate, warped), gated(gate)) for gate in (0.0, 0.6, 0.85)}
    result |= {
        f"{name} {bound:g}": (untrained.Fuzzy(name, bound, warped), fuzzy(name, bound))
        for name, bound in (("js", 0.05), ("js", 0.12), ("kl", 0.2), ("kl", 0.5), ("tv", 0.3), ("tv", 0.4))
    }
    result |= {
        f"relaxed {k}, {margin:g}": (lossy.TopK(k, margin, warped), relaxed(k, margin))
        for k, margin in ((2, 0.25), (3, 0.4), (3, 0.15))
    }
    if warped.greedy:
        result |= {
            f"fly {gate:g}, {window}": (untrained.FLy(gate, window, eos, warped), fly(gate, window, eos))
            for gate, window in ((0.3, 1), (0.6, 1), (0.0, 2), (0.5, 3))
        }
    return result


def at_the_end(module: Callable[[str], Mutable], warped: Mutable) -> dict[str, Mutable]:
    """Each rule at the lossless end of its dial."""
    untrained, lossy = module("decoding.untrained_rules"), module("decoding.lossy_rules")
    result = {
        "typical": untrained.Typical(1.0, math.inf, warped),
        "entropy": untrained.EntropyGate(1.0, warped),
        **{name: untrained.Fuzzy(name, 0.0, warped) for name in DISTANCES},
        "relaxed": lossy.TopK(3, 0.0, warped),
    }
    return result | ({"fly": untrained.FLy(1.0, 1, (EOS,), warped)} if warped.greedy else {})


def module(name: str) -> Mutable:
    return importlib.import_module(f"specexp.{name}")


def pair(vocab: int, seed: int, noise: float = 0.8) -> dict[str, Mutable]:
    toy = module("lm.toy")
    return {"target": toy.ToyModel(vocab, seed), "draft": toy.ToyModel(vocab, seed, draft_noise=noise)}


def chain(rule: Mutable, gamma: int, warped: Mutable, bonus: bool = True) -> Mutable:
    chains = module("decoding.chain")
    return chains.Chain(chains.DraftModel(gamma), rule, warped, bonus)


def reference(
    models: dict[str, Mutable], prompt: list[int], length: int, gamma: int, sampling: dict[str, Any], bonus: bool,
    eos: int | None, accepts: Equation,
) -> dict[tuple[int, ...], float]:  # fmt: skip
    """Probability of every output: each chain that can be drafted is tested token by token, with fresh forwards."""
    masses: dict[tuple[int, ...], float] = {}
    soft = sampling if sampling["temperature"] else {"temperature": 1.0}
    rows: dict[tuple[str, tuple[int, ...]], list[float]] = {}

    def row(role: str, out: tuple[int, ...]) -> list[float]:
        if (role, out) not in rows:
            logits, _ = models[role].session().feed(models[role].ids([*prompt, *out]), rows=1)
            rows[role, out] = logits[-1].tolist()
        return rows[role, out]

    def drafts(out: tuple[int, ...], left: int) -> list[tuple[tuple[int, ...], float]]:
        if not left:
            return [((), 1.0)]
        q = warp(row("draft", out), **sampling)
        return [
            ((x, *rest), float(q[x]) * mass)
            for x in range(len(q)) if q[x] for rest, mass in drafts((*out, x), left - 1)
        ]  # fmt: skip

    def begin(out: tuple[int, ...], mass: float) -> None:
        left = length - len(out)
        if not mass:
            return
        if not left or (out and out[-1] == eos):
            masses[out] = masses.get(out, 0.0) + mass
            return
        for tokens, chance in drafts(out, max(0, min(gamma, left - bonus))):
            test(out, tokens, mass * chance)

    def test(out: tuple[int, ...], tokens: tuple[int, ...], mass: float) -> None:
        places = [(*out, *tokens[:i]) for i in range(len(tokens))]
        target, draft = ([row(role, place) for place in places] for role in ("target", "draft"))
        seen = Round(
            [warp(logits, **soft).tolist() for logits in target],
            [warp(logits, **soft).tolist() for logits in draft],
            tokens,
            [int(np.argmax(logits)) for logits in target],
        )
        for i, (token, anyway) in enumerate(zip(tokens, accepts(seen) if tokens else [], strict=True)):
            p, q = warp(target[i], **sampling), warp(draft[i], **sampling)
            accepted = 1.0 if anyway else min(1.0, float(p[token] / q[token]))
            residual = np.maximum(p - q, 0)
            residual = residual if residual.sum() > 0 else p
            for other in range(len(p)):
                begin((*places[i], other), mass * (1 - accepted) * float(residual[other] / residual.sum()))
            mass *= accepted
            if token == eos:
                begin((*places[i], token), mass)
                return
        if tokens and not bonus:
            begin((*out, *tokens), mass)
            return
        for token, chance in enumerate(warp(row("target", (*out, *tokens)), **sampling)):
            begin((*out, *tokens, token), mass * float(chance))

    begin((), 1.0)
    return masses


def outputs(models: dict[str, Mutable], decoder: Mutable, length: int, eos: tuple[int, ...]) -> dict[Any, float]:
    engine, oracle = module("engine"), module("certify.oracle")
    got: dict[Any, float] = oracle.output_distribution(lambda: engine.Engine(models, eos), decoder, [1], length)
    assert sum(got.values()) == pytest.approx(1, abs=EXACT)
    return got


def check_equations(
    vocab: int = 3, gamma: int = 2, length: int = 4, samplings: Sequence[dict[str, Any]] = (WARM,), varied: int = 9
) -> None:
    """Every output's probability is what the equation gives; `varied` of the rules and dials differ at least."""
    for sampling in samplings:
        models, warped = pair(vocab, 3), module("decoding.rules").Warp(**sampling)
        found = []
        for number, (rule, equation) in enumerate(rules(module, warped, (EOS,)).values()):
            bonus = number % 3 > 0
            got = outputs(models, chain(rule, gamma, warped, bonus), length, (EOS,))
            expected = reference(models, [1], length, gamma, sampling, bonus, EOS, equation)
            assert gap(got, expected) < EXACT
            found.append(tuple(sorted(got.items())))
        assert len(set(found)) >= varied


def check_long_greedy_outputs() -> None:
    """Outputs of many rounds on a larger vocabulary, where a draft has room for windows."""
    judged: dict[str, int] = {}
    rejected: dict[str, int] = {}
    for seed, (gamma, bonus) in itertools.product(range(4), ((2, True), (4, False), (6, True))):
        models, warped = pair(8, seed, 0.6), module("decoding.rules").Warp()
        eos = (EOS,) if seed % 2 else ()
        for name, (rule, equation) in rules(module, warped, eos).items():
            rng = module("decoding.rng").rng_for(0.0, 5, "p")
            out = module("engine").Engine(models, eos).generate(
                chain(rule, gamma, warped, bonus), [1, 2, 3], 24, rng
            )  # fmt: skip
            expected = reference(models, [1, 2, 3], 24, gamma, GREEDY, bonus, EOS if eos else None, equation)
            assert expected == {tuple(out.token_ids): pytest.approx(1)}
            judged[name] = judged.get(name, 0) + out.num_judged
            rejected[name] = rejected.get(name, 0) + out.num_rounds - out.num_full
    assert all(judged.values()), judged
    assert sum(rejected.values()) > 20


def check_the_lossless_end(sizes: Sequence[tuple[int, int, int]] = ((2, 3, 4), (3, 2, 5))) -> None:
    for (gamma, vocab, length), sampling in itertools.product(sizes, SAMPLINGS):
        models, warped = pair(vocab, 3), module("decoding.rules").Warp(**sampling)
        expected = sequence_distribution(models["target"], [1], length, EOS, **sampling)
        for number, rule in enumerate(at_the_end(module, warped).values()):
            got = outputs(models, chain(rule, gamma, warped, bonus=number % 2 > 0), length, (EOS,))
            assert gap(got, expected) < EXACT


def check_bounds_are_strict() -> None:
    """Where both sides of an inequality are the same number, nothing is accepted; just beyond it, everything is."""
    untrained, lossy = module("decoding.untrained_rules"), module("decoding.lossy_rules")
    greedy = module("decoding.rules").Warp()
    none = -math.inf
    cases: list[tuple[list[float], list[float], int, Callable[[float], Mutable], float]] = [
        ([0, 0, 0, 0], [1, 0, 0, 0], 2, lambda x: untrained.Typical(x, 9.0, greedy), 0.25),
        ([0, 0, 0, 0], [1, 0, 0, 0], 2, lambda x: untrained.Typical(1.0, x, greedy), 1.0),
        ([0, 0, none, none], [1, 0, 0, 0], 2, lambda x: untrained.EntropyGate(x, greedy), 0.5),
        ([0, 0, none, none], [1, 0, 0, 0], 2, lambda x: lossy.TopK(3, 1 - x, greedy), 0.5),
        ([0, 0, none, none], [0.5, 0, 0.5, 0], 0, lambda x: untrained.Fuzzy("tv", 1 - x, greedy), 0.5),
        ([0, 0, 0, 0], [0.5, 0.5, 0, 0], 0, lambda x: untrained.Fuzzy("kl", 1 - x, greedy), 1 - math.log(2)),
        ([0, none, none, none], [0, 1, 0, 0], 0, lambda x: untrained.Fuzzy("js", 1 - x, greedy), 1 - math.log(2)),
    ]  # fmt: skip
    for logits, q, token, rule, at in cases:
        drafted = module("decoding.protocol").Drafted(np.array([token]), np.array([q]))
        scored = module("decoding.protocol").Scored(np.array([logits, logits], dtype=np.float64))
        for dial, expected in ((at, False), (at - 1e-6, True), (at + 1e-6, False)):
            assert rule(dial).accept_anyway(drafted, scored).tolist() == [expected], (rule(dial), dial)


def check_windows(make: Callable[[Any], Any] = np.asarray) -> None:
    """The positions behind a token up to the draft's end. The target chooses 1 everywhere and is always unsure."""
    fly, warped = module("decoding.untrained_rules").FLy, module("decoding.rules").Warp()
    drafted, scored = module("decoding.protocol").Drafted, module("decoding.protocol").Scored

    def accepted(tokens: list[int], window: int, eos: tuple[int, ...] = (0,)) -> list[int]:
        logits = make([[0.1, 0.3, 0.2, 0.1]] * (len(tokens) + 1))
        result = fly(0.5, window, eos, warped).accept_anyway(drafted(make(tokens), None), scored(logits))
        return [i for i, yes in enumerate(result.tolist()) if yes]

    assert accepted([2, 1, 1, 2, 1], 1) == [0, 1, 3]
    assert accepted([2, 1, 1, 2, 1], 2) == [0]
    assert accepted([2, 1, 1, 1, 1], 3) == [0, 1]
    assert accepted([2, 1, 1, 1, 1], 4) == [0]
    assert accepted([2, 1, 1, 1, 1], 5) == []
    assert accepted([2], 1) == []
    # Behind an EOS nothing is the draft's any more.
    assert accepted([0, 1, 1, 1], 1) == []
    assert accepted([2, 1, 0, 1], 1) == [0]
    assert accepted([2, 1, 0, 1], 1, eos=(3,)) == [0, 2]


def check_distances() -> None:
    """Against the sums on lists, where some probabilities are 0."""
    numbers, distances = np.random.default_rng(7), module("decoding.untrained_rules").DISTANCES
    p, q = (numbers.dirichlet(np.ones(5), size=40) for _ in range(2))
    p[:10, 2] = q[5:15, 2] = q[20:30, 4] = 0
    for name, function in distances.items():
        expected = [distance(name, one, other) for one, other in zip(p.tolist(), q.tolist(), strict=True)]
        assert function(p, q).tolist() == pytest.approx(expected, abs=EXACT), name


CHECKS = [
    check_bounds_are_strict, check_windows, check_distances, check_equations, check_long_greedy_outputs,
    check_the_lossless_end,
]  # fmt: skip


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize(
    "check", slow_for(CHECKS, check_the_lossless_end), ids=lambda check: check.__name__.removeprefix("check_")
)
def test_exactly(check: Callable[[], None]) -> None:
    check()


@pytest.mark.at_most(slow=6)
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("gamma,vocab,length", [(1, 3, 4), (3, 2, 5), (4, 2, 6)])
def test_the_equations_hold_at_other_sizes(gamma: int, vocab: int, length: int, sampling: dict[str, Any]) -> None:
    check_equations(vocab, gamma, length, [sampling], varied=1)


def untimed(out: Any) -> Any:
    return replace(out, seconds=0, prefill_seconds=0, time_to_first_token=0)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=names)
def test_the_lossless_end_costs_what_the_lossless_chain_does(sampling: dict[str, Any]) -> None:
    models, warped = pair(8, 6, 0.5), Warp(**sampling)
    runs = {"lossless": module("decoding.chain").Lossless(), **at_the_end(module, warped)}
    counts = {
        name: module("engine").Engine(models, ()).generate(
            chain(rule, 4, warped), [1, 2], 30, module("decoding.rng").rng_for(sampling["temperature"], 5, "p")
        )
        for name, rule in runs.items()
    }  # fmt: skip
    for name, got in counts.items():
        assert untimed(got) == untimed(counts["lossless"]), name
    assert counts["lossless"].num_rounds > 4


@pytest.mark.parametrize("sampling", [GREEDY, {"temperature": 0.7, "top_k": 3}], ids=names)
def test_numpy_and_torch_accept_alike(sampling: dict[str, Any]) -> None:
    numbers = np.random.default_rng(2)
    logits = (3 * numbers.normal(size=(41, 6))).astype(np.float32)
    q = numbers.dirichlet(np.ones(6), size=40).astype(np.float32)
    tokens = numbers.integers(0, 6, size=40)
    some = 0
    for name, (rule, _) in rules(module, Warp(**sampling), (EOS,)).items():
        one = rule.accept_anyway(Drafted(tokens, q), Scored(logits))
        drafted = Drafted(torch.tensor(tokens), torch.tensor(q))
        other = rule.accept_anyway(drafted, Scored(torch.tensor(logits)))
        assert one.tolist() == other.tolist(), name
        assert one.dtype == np.bool_
        some += 0 < one.sum() < 40
    assert some > 6


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_windows(make: Callable[[Any], Any]) -> None:
    check_windows(make)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_of_equal_and_of_disjoint_distributions(name: str) -> None:
    same, other = np.array([[0.5, 0.5, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    assert DISTANCES[name](same, same).tolist() == pytest.approx([0.0], abs=EXACT)
    assert DISTANCES[name](same, other).tolist() == pytest.approx(
        [{"js": math.log(2), "kl": math.inf, "tv": 1.0}[name]]
    )


def test_a_rule_without_the_drafts_distributions_says_so() -> None:
    with pytest.raises(AssertionError, match="were not requested"):
        Fuzzy("js", 0.1, Warp()).accept_anyway(Drafted(np.array([1]), None), Scored(np.zeros((2, 3))))


def caught_by(bug: Bug) -> str | None:
    """The first check that notices the bug, or None."""
    with mutated(bug), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for check in CHECKS:
            try:
                check()
            except (AssertionError, AttributeError, IndexError, ValueError) as error:
                return f"{type(error).__name__} in {check.__name__}"
    return None


@pytest.mark.nightly
@pytest.mark.parametrize("bug", RULE_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None
