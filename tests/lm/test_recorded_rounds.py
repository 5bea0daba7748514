"""Rounds that are decided in the target's recording equal those that are decided as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch

from helpers.model_folders import build, disturbed
from helpers.tape import Tape
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, ChainDecision, DraftModel, InTurn, Lookup, Lossless, Suffix
from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.lossy_rules import Judged, TopK
from specexp.decoding.protocol import Drafted, Needs, Round, Scored, SuffixLimits
from specexp.decoding.rng import ACCEPT, DRAFT, RESIDUAL, TARGET, ArrayRng, HashRng, rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.decoding.untrained_rules import EntropyGate, FLy, Fuzzy, Typical
from specexp.engine import Engine, Generation, recorded_rounds
from specexp.engine.ending import Ending
from specexp.engine.engine import Request
from specexp.engine.recorded_rounds import Layout, RecordedRounds
from specexp.errors import ModelError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.native import graph_capture
from specexp.lm.native.cuda_graphs import GraphSession

LENGTH = 60
PROMPTS = ([7], [5, 9, 11, 40, 5, 9, 11, 40, 5, 9], [(17 * i) % 90 + 3 for i in range(60)])
WARPS = {"greedy": Warp(), "warm": Warp(0.8), "top": Warp(0.9, top_k=20, top_p=0.9)}
COSTS = RelativeCosts(0.2, tuple(1 + n / 20 for n in range(9)))


@dataclass(frozen=True, eq=False)
class Unimportant:
    """The score of a judge; `recordable` says that it may be recorded."""

    recordable: bool = True

    def __call__(self, features: Any) -> Any:
        return torch.sigmoid(features.sum(-1))


def judged(parts: tuple[str, ...], needs: Needs, recordable: bool = True) -> Judged:
    return Judged(Unimportant(recordable), parts, 0.4, (2,), needs)


BOTH = judged(("target_token", "draft_token"), Needs(target=True, draft=True, feed_last_token=True))
METHODS: dict[str, Callable[[Warp], Any]] = {
    "plain": Baseline,
    "draft alone": lambda warp: Baseline(warp, "draft"),
    "chain": lambda warp: Chain(DraftModel(4), Lossless(), warp),
    "long chain": lambda warp: Chain(DraftModel(20), Lossless(), warp),
    "no bonus": lambda warp: Chain(DraftModel(4), Lossless(), warp, bonus=False),
    "block": lambda warp: Chain(DraftModel(4), Lossless(), warp, verification="block"),
    "match": lambda warp: Chain(DraftModel(4), Lossless(), warp, verification="match"),
    "likeliest drafts": lambda warp: Chain(DraftModel(4, temperature=0.0), Lossless(), warp),
    "ends early": lambda warp: Chain(DraftModel(6, min_draft_probability=0.1), Lossless(), warp),
    "adapts": lambda warp: Chain(DraftModel(6, costs=COSTS), Lossless(), warp),
    "in turn": lambda warp: Chain(InTurn({"lookup": Lookup(4), "draft": DraftModel(4)}), Lossless(), warp),
    "suffix": lambda warp: Chain(Suffix(6, SuffixLimits(2.0)), Lossless(), warp),
    "top-k": lambda warp: Chain(DraftModel(4), TopK(3, 0.2, warp), warp),
    "typical": lambda warp: Chain(DraftModel(4), Typical(0.3, 0.5, warp), warp),
    "entropy": lambda warp: Chain(DraftModel(4), EntropyGate(0.9, warp), warp),
    "fuzzy": lambda warp: Chain(DraftModel(4), Fuzzy("js", 0.1, warp), warp),
    "judge": lambda warp: Chain(DraftModel(4), BOTH, warp),
    "tree": lambda warp: SpecExec(24, 4, warp),
    "judge on a tree": lambda warp: SpecExec(24, 4, warp, rule=judged(("target_token",), Needs(target=True))),
}  # fmt: skip
CASES = [(method, warp) for method in METHODS for warp in WARPS]


def cases(*fast: tuple[str, str]) -> list[Any]:
    """All cases, of which those named are in the fast tier."""
    return [case if case in fast else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


@pytest.fixture(autouse=True)
def _recorded_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of tests are short."""
    monkeypatch.setattr(recorded_rounds, "OFTEN", 2)


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    return {"target": build("llama"), "draft": disturbed(build("llama"), 0.06)}


@pytest.fixture
def pairs(modules: dict[str, Any]) -> tuple[dict[str, HFModel], dict[str, HFModel]]:
    """A pair without recordings, and the same with them."""
    plain, recorded = (
        {role: HFModel(module, role, graphs=Tape() if taped else "off") for role, module in modules.items()}
        for taped in (False, True)
    )
    return plain, recorded


def noted(monkeypatch: pytest.MonkeyPatch, counts: Callable[[Any], bool]) -> list[bool]:
    """For every call of a model from now on whose asks count, whether its rounds were recorded."""
    result: list[bool] = []
    score = RecordedRounds.score

    def scored(self: RecordedRounds, asked: Any) -> Any:
        answer = score(self, asked)
        result.extend([answer is not None] if counts(asked) else [])
        return answer

    monkeypatch.setattr(RecordedRounds, "score", scored)
    return result


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of calls of several rows."""
    return noted(monkeypatch, lambda asked: len(asked) > 1)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of calls of a model with recordings."""

    def counts(asked: Any) -> bool:
        (state, ask), *_ = asked
        return ask.trial is not None and isinstance(state.contexts[ask.model].session, GraphSession)

    return noted(monkeypatch, counts)


def keys(models: dict[str, HFModel], kind: str) -> list[Any]:
    """What was recorded of this kind."""
    pools = [pool for model in models.values() if (pool := model.graph_pools)]
    return [key for pool in pools for each in pool.pools for key in each.recordings.kept if key[0] == kind]


def run(engine: Engine, decoder: Any, prompt: Any, warp: Warp, **more: Any) -> Generation:
    out = engine.generate(decoder, prompt, LENGTH, rng_for(warp.temperature, 5, str(prompt)), **more)
    return replace(out, seconds=0.0, prefill_seconds=0.0, time_to_first_token=0.0)


def check(pairs: Any, decoder: Any, warp: Warp) -> None:
    """Tokens and all counts are equal, and so is the overlap but for rounding."""
    engines = [Engine(models) for models in pairs]
    for prompt in PROMPTS:
        expected, got = (run(engine, decoder, prompt, warp) for engine in engines)
        assert got.overlap == pytest.approx(expected.overlap, rel=1e-4)
        assert asdict(replace(got, overlap=0.0)) == asdict(replace(expected, overlap=0.0))


@pytest.mark.at_most(slow=14)
@pytest.mark.parametrize(("method", "warp"), cases(("draft alone", "warm"), ("chain", "top"), ("block", "warm")))
def test_every_round_is_the_same(pairs: Any, method: str, warp: str, answered: list[bool]) -> None:
    check(pairs, METHODS[method](WARPS[warp]), WARPS[warp])
    # Short chains before the limit are as many kinds as their tokens; long ones make few rounds besides.
    assert sum(answered) > len(answered) / 2 or (method == "long chain" and any(answered))


@pytest.mark.at_most(slow=12)
@pytest.mark.parametrize(("method", "warp"), cases(("plain", "greedy"), ("chain", "top")))
def test_rounds_of_several_rows_are_those_of_each_alone(
    pairs: Any, method: str, warp: str, together: list[bool]
) -> None:
    """Rows join and leave, at places with gaps, and stand at lengths and positions of their own."""
    if "tree" in method:
        pytest.skip("trees of several rows are not recorded")
    decoder, prompts = METHODS[method](WARPS[warp]), [[*PROMPTS[i % 3], 3 + i] for i in range(7)]
    alone = Engine(pairs[0])
    requests = [
        Request(decoder, prompt, LENGTH - 9 * i % 40, rng_for(WARPS[warp].temperature, i, "p"))
        for i, prompt in enumerate(prompts)
    ]
    got = dict(Engine(pairs[1], max_batch_size=4).generate_all(requests))
    for i, each in enumerate(requests):
        expected = alone.generate(decoder, each.prompt_ids, each.max_new_tokens, each.rng)
        assert got[i].overlap == pytest.approx(expected.overlap, rel=1e-4)
        times = {"seconds": 0.0, "prefill_seconds": 0.0, "time_to_first_token": 0.0, "overlap": 0.0}
        assert asdict(replace(got[i], **times)) == asdict(replace(expected, **times))
    # Long chains make few rounds. Those of a draft and those that were looked up are not padded alike.
    assert sum(together) > len(together) / 2 or (method in ("long chain", "in turn") and any(together))
    batches = [each for model in pairs[1].values() if (pools := model.graph_pools) for each in pools.batches]
    recorded = [key for each in batches for key in each.recordings.kept if key[0] == "chain through"]
    assert {key[2] for key in recorded} == {True, False}, "rows were never gathered"


@pytest.mark.parametrize("rule", [FLy(0.2, 2, (0,), Warp()), BOTH], ids=["window", "judge"])
def test_a_rule_that_reads_more_is_given_that(pairs: Any, rule: Any) -> None:
    """The target's choices behind a token, or hidden rows of both models."""
    check(pairs, Chain(DraftModel(4), rule, Warp()), Warp())
    decisions = [key[5].decision for key in keys(pairs[1], "chain through")]
    assert any(isinstance(each, ChainDecision) and each.rule == rule for each in decisions)


def test_what_is_read_with_a_round_is_a_kind_of_its_own(pairs: Any) -> None:
    for draft in (DraftModel(3), DraftModel(3, costs=COSTS), DraftModel(3, min_draft_probability=0.01)):
        check(pairs, Chain(draft, Lossless(), Warp()), Warp())


def test_a_walk_is_counted_as_it_was(pairs: Any) -> None:
    check(pairs, METHODS["tree"](Warp()), Warp())


@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize("kind", ["token", "judged", "greedy", "match"])
@pytest.mark.parametrize("num", [0, 1, 3, 5])
def test_padding_behind_drafts_changes_nothing(num: int, kind: str, bonus: bool) -> None:
    """A decision on drafts with padding, at an array of a position, is that on the drafts alone."""
    most, vocab = 5, 12
    warp = Warp() if kind == "greedy" else Warp(0.9)
    rule = judged(("target_previous",), Needs(target=True)) if kind == "judged" else Lossless()
    decision = ChainDecision(rule, warp, ("target", "draft"), bonus, "match" if kind == "match" else "token")
    assert decision.takes_padding
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(most + 1, vocab, generator=generator) * 2
        hidden = torch.randn(most + 1, 3, generator=generator)
        q = torch.softmax(logits[:-1] + torch.randn(most, vocab, generator=generator), -1)
        tokens = torch.multinomial(q, 1, generator=generator)[:, 0]
        q_or_none = None if kind == "greedy" else q[:num]
        alone, rng = Drafted(tokens[:num], q_or_none, hidden[:num]), rng_for(warp.temperature, seed, "p")
        expected = decision(Scored(logits[: num + 1], hidden[: num + 1]), alone, rng, 7)
        padded = Drafted(tokens, None if q_or_none is None else q, hidden[:-1], num_drafted=torch.tensor([num]))
        if isinstance(rng, HashRng):
            rng = ArrayRng((torch.tensor([rng.key[0]]), torch.tensor([rng.key[1]])))
        got = decision(Scored(logits, hidden), padded, rng, torch.tensor([7]))
        number = int(expected.num_tokens)
        assert int(got.num_tokens) == number
        assert got.tokens[:number].tolist() == expected.tokens[:number].tolist()
        assert int(got.kept["target"]) == int(expected.kept["target"])
        assert int(got.counts["num_drafted"]) == num
        if num:
            assert torch.equal(got.counts["overlap"][:num], expected.counts["overlap"])
        if kind == "judged" and num:
            assert got.counts["judged"].tolist() == [*expected.counts["judged"].tolist(), *[False] * (most - num)]


def test_what_may_not_be_recorded_is_not() -> None:
    module = build("llama")
    models = {role: HFModel(module, role, graphs=Tape()) for role in ("target", "draft")}
    rule = judged(("target_token",), Needs(target=True), recordable=False)
    run(Engine(models), Chain(DraftModel(4), rule, Warp()), PROMPTS[1], Warp())
    run(Engine(models, [3]), Baseline(Warp()), PROMPTS[1], Warp(), ending=Ending(min_new_tokens=LENGTH))
    assert not keys(models, "chain through")


def test_recordings_are_no_more_than_so_many(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests at any temperature: what was not used for longest is dropped, and recorded again when it is needed."""
    monkeypatch.setattr(graph_capture, "MOST_KEPT", 4)
    monkeypatch.setattr(recorded_rounds, "MOST_SEEN", 8)
    module = build("llama")
    models = {role: HFModel(module, role, graphs=Tape()) for role in ("target", "draft")}
    engine, plain = Engine(models), Engine({role: each.without_graphs() for role, each in models.items()})
    captured = []
    for temperature in (0.5, 0.6, 0.7, 0.8, 0.5):
        warp = Warp(temperature)
        decoder = Chain(DraftModel(4), Lossless(), warp)
        assert run(engine, decoder, PROMPTS[0], warp).token_ids == run(plain, decoder, PROMPTS[0], warp).token_ids
        every = [each.recordings for model in models.values() if (pools := model.graph_pools) for each in pools.pools]
        assert all(len(each.kept) <= 4 for each in every)
        captured.append(sum(each.num_captures for each in every))
    assert captured[-1] > captured[-2], "nothing was dropped"


def test_a_rule_of_somebody_else_is_not_recorded(pairs: Any) -> None:
    """One that does not say that it may be."""

    class Own:
        needs = Needs()

        def accept_anyway(self, drafted: Drafted, scored: Scored) -> Any:
            return drafted.tokens < 9 if drafted.tokens.shape[0] else None

    check(pairs, Chain(DraftModel(4), Own(), Warp()), Warp())
    decisions = [key[5].decision for key in keys(pairs[1], "chain through")]
    assert not any(isinstance(each, ChainDecision) and isinstance(each.rule, Own) for each in decisions)


def test_what_happens_once_is_not_recorded() -> None:
    """Short chains before the limit of one output are not; those of two are."""
    module = build("llama")
    models = {role: HFModel(module, role, graphs=Tape()) for role in ("target", "draft")}
    engine, decoder = Engine(models), Chain(DraftModel(4), Lossless(), Warp())
    for expected in ({5}, {3, 5}):
        engine.generate(decoder, PROMPTS[0], 58, rng_for(0, 5, "p"))
        assert {key[1] for key in keys(models, "chain through")} == expected


def test_logits_that_are_not_finite_are_found_in_a_recorded_round() -> None:
    module = build("llama")
    models = {role: HFModel(module, role, graphs=Tape()) for role in ("target", "draft")}
    engine, decoder = Engine(models), Baseline(Warp())
    tokens = run(engine, decoder, PROMPTS[0], Warp()).token_ids
    at = max(i for i, token in enumerate(tokens[:30]) if token not in [*PROMPTS[0], *tokens[:i]])
    with torch.no_grad():
        module.model.embed_tokens.weight[tokens[at]] = float("nan")
    captured = len(keys(models, "chain through"))
    with pytest.raises(ModelError, match="gives NaN logits at position") as error:
        run(engine, decoder, PROMPTS[0], Warp())
    assert int(str(error.value).partition(" at position ")[2].split()[0]) == at + 1
    assert len(keys(models, "chain through")) == captured > 0


@pytest.mark.parametrize("position", [0, 1, 37])
def test_an_rng_at_positions_that_are_arrays_draws_the_same(position: int) -> None:
    rng = HashRng.of(3, "p", 1)
    seeds = torch.tensor([[each] for each in rng.key])
    arrays, at = ArrayRng((seeds[0], seeds[1])), torch.tensor([position])
    generator = torch.Generator().manual_seed(position)
    weights = torch.rand(5, 90, generator=generator, dtype=torch.float64)
    prob, anyway = torch.rand(5, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 0, 0, 1]) > 0
    for one, other in ((rng, arrays), (rng.of_round(position), arrays.of_round(at))):
        for purpose in (DRAFT, ACCEPT, RESIDUAL, TARGET):
            if purpose != ACCEPT:
                assert torch.equal(one.pick(weights[0], position, purpose), other.pick(weights[0], at, purpose))
        for waived in (None, anyway):
            pairs = zip(one.accept_prefix(prob, waived, position), other.accept_prefix(prob, waived, at), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(one.accept_longest(prob, position), other.accept_longest(prob, at))
        assert torch.equal(one.target_draws(weights, position), other.target_draws(weights, at))
        for num in range(6):
            count = torch.tensor(num)
            drawn = (each.sample_next(weights[1], place, count, 5) for each, place in ((one, position), (other, at)))
            assert torch.equal(*drawn)


def test_values_of_a_round_come_back_from_one_array() -> None:
    num, tokens = torch.tensor(2), torch.tensor([7, 8, 9])
    made = Round(tokens, num + 1, {"target": num, "draft": num}, {"num_accepted": num, "judged": 0, "overlap":
        torch.tensor([0.5, 0.25])}, "lookup", True)  # fmt: skip
    layout = Layout()
    packed = layout.pack(made, [torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.empty(0)])
    assert packed.dtype == torch.float64
    assert packed.shape[0] == 3 + 1 + 1 + 2 + 2 + 1, "what is named several times is there once"
    got, others = layout.read(packed.tolist())
    assert got.tokens == [7, 8, 9]
    assert (got.num_tokens, got.kept) == (3, {"target": 2, "draft": 2})
    assert got.counts == {"num_accepted": 2, "judged": 0, "overlap": [0.5, 0.25]}
    assert (got.source, got.reads_all) == ("lookup", True)
    assert others == [[1.0, 2.0], [3.0], []]
