"""Models with a recurrent state, and models without a cache: chains are right, and cost no call more than they need."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
import torch

from helpers import tiny_models
from helpers.recurrent_toy import RecurrentToy
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.seeded_bugs import REPLAY_BUGS, Bug, mutated
from specexp.certify.oracle import output_distribution
from specexp.certify.reference_distribution import gap, sequence_distribution
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.rng import CertainRng, rng_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm import replay
from specexp.lm.configs import refusals
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.recurrent_state import BY_ONE, CARRIED, SEVERAL, HFState
from specexp.lm.replay import ReplaySession

CLOSE = 2e-3  # of logits of 1 to 10: chunks of a scan add in another order than single steps
# First those of the fast tier: gated delta rule, convolutions alone, selective scan, states in modules, two in a layer.
FAMILIES = (
    "qwen3_next", "lfm2", "mamba", "recurrent_gemma", "falcon_h1", "bailing_hybrid", "bamba", "falcon_mamba",
    "granitemoehybrid", "inkling_text", "jamba", "kimi_linear", "lfm3", "mamba2", "nemotron_h", "olmo_hybrid",
    "qwen3_5_text", "qwen4_exp_text", "zamba", "zamba2", "zaya",
)  # fmt: skip
FAST = 5
CASES = [pytest.param(kind, marks=[pytest.mark.slow] if i >= FAST else []) for i, kind in enumerate(FAMILIES)]
# Families whose layers are helped to continue by several tokens.
HELPED = {"mamba", "falcon_mamba", "jamba", "zamba", "recurrent_gemma"}


def differences(model: Any, rounds: int, seed: int = 1) -> str | None:
    """Feed and truncate at random, within and before the latest feed; compare each answer with a fresh session's."""
    session, numbers, tokens = model.session(), random.Random(seed), list[int]()
    for number in range(rounds):
        new = [numbers.randrange(3, 90) for _ in range(numbers.randrange(1, 7))]
        tokens += new
        actual, _ = session.feed(model.ids(new), len(new))
        expected, _ = model.session().feed(model.ids(tokens), len(new))
        off = float(abs(actual - expected).max())
        if not off < CLOSE:
            return f"feed {number} of {len(new)} tokens: logits differ by {off:.1e}"
        far = numbers.random() < 0.15
        tokens = tokens[: numbers.randrange(0 if far else max(0, len(tokens) - len(new)), len(tokens) + 1)]
        session.truncate(len(tokens))
    return None


@pytest.mark.parametrize("kind", CASES)
def test_a_truncated_state_continues_as_a_fresh_one(kind: str) -> None:
    model = HFModel(tiny_models.build(kind), kind)
    assert model.cache_kind == refusals.RECURRENT
    assert model.continuation == (CARRIED if kind in HELPED else SEVERAL)
    assert isinstance(model.session(), ReplaySession)
    assert differences(model, rounds=25) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "kind", ["mamba", *(pytest.param(k, marks=pytest.mark.slow) for k in sorted(HELPED - {"mamba"}))]
)
def test_a_state_that_is_ignored_does_not_pass_for_rounding(kind: str, dtype: torch.dtype) -> None:
    """In these dtypes what the module itself does with several tokens can be as close as rounding explains."""
    for seed in range(4):
        model = HFModel(tiny_models.build(kind, seed).to(dtype), kind)
        assert model.continuation == CARRIED, seed
        session, ids = model.session(), [(5 * i + i * i) % 90 for i in range(40)]
        session.feed(model.ids(ids[:34]), 0)
        logits, _ = session.feed(model.ids(ids[34:]), 6)
        one = HFState(model, BY_ONE)
        one.advance(model.ids(ids[:34]), 0, 0, False)
        expected, _ = one.advance(model.ids(ids[34:]), 34, 6, False)
        assert float((logits - expected).abs().max()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["qwen3_next", "falcon_h1"])
def test_families_that_need_no_help_get_none_in_any_dtype(kind: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert HFModel(tiny_models.build(kind).to(dtype), kind).continuation == SEVERAL


@pytest.mark.filterwarnings("ignore")
def test_modules_that_are_helped_compile_as_before() -> None:
    """transformers compiles Jamba's forward as one graph."""
    module = tiny_models.build("jamba")
    assert HFModel(module, "m").continuation == CARRIED
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        compiled = torch.compile(module.forward, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(input_ids=ids).logits, module(input_ids=ids).logits, atol=1e-5)


def test_a_prompt_is_fed_at_once_where_a_later_piece_would_go_token_by_token() -> None:
    module = tiny_models.build("recurrent_gemma")
    model = HFModel(module, "m")
    session, forwards = model.session(), Forwards(module)
    session.feed(model.ids([5] * 300), 1)
    assert forwards.tokens == [300]


def test_sessions_of_modules_that_hold_the_state_do_not_mix() -> None:
    model = HFModel(tiny_models.build("recurrent_gemma"), "m")
    one, other = model.sessions(2)
    for start in (3, 20, 40):
        for session, ids in ((one, [start, start + 1]), (other, [start + 7])):
            session.feed(model.ids(ids), 1)
    logits, _ = one.feed(model.ids([50]), 1)
    expected, _ = model.session().feed(model.ids([3, 4, 20, 21, 40, 41, 50]), 1)
    assert float((logits - expected).abs().max()) < CLOSE


class Forwards:
    """Counts a module's forwards and their tokens."""

    def __init__(self, module: Any) -> None:
        self.tokens: list[int] = []
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens.append(kwargs["input_ids"].shape[1])


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "mamba"])
def test_a_chain_that_is_accepted_replays_nothing(kind: str) -> None:
    module = tiny_models.build(kind)
    model = HFModel(module, kind)
    engine = Engine({"target": model, "draft": HFModel(module, "draft")})
    forwards = Forwards(module)
    out = engine.generate(Chain(DraftModel(3), Lossless(), Warp()), [5, 6, 7, 8], 16, CertainRng())
    assert out.num_full == out.num_rounds == 4
    prefills = 2
    measured = 8  # of the question how the state takes several tokens
    assert len(forwards.tokens) == 2 * measured + prefills + out.num_target_calls + out.num_draft_calls


def test_rejected_tokens_cost_no_call_of_their_own_while_they_are_few() -> None:
    """They go along with the next feed; more than `MOST_REPLAYED` are fed before it, after which a copy is kept."""
    toy = RecurrentToy(90, seed=2)
    session = toy.session()
    state = session._state
    session.feed(toy.ids(list(range(10))), 1)
    for number in range(4):  # each time 5 of 7 are kept
        session.feed(toy.ids([20 + number] * 7), 7)
        session.truncate(session.length - 2)
        assert state.num_forwards == 2 + number
    assert session.num_replayed == 5 + 10 + 15
    session.feed(toy.ids([50]), 1)
    assert state.num_forwards == 2 + 3 + 2, "20 tokens by themselves, then the new one"
    session.truncate(session.length - 1)
    before = session.num_replayed
    session.feed(toy.ids([51]), 1)
    assert session.num_replayed == before, "there is a copy after the 20"


def test_a_draft_goes_back_to_any_of_its_last_tokens_without_a_replay() -> None:
    toy = RecurrentToy(90, seed=2)
    session = toy.session()
    session.feed(toy.ids([1, 2, 3]), 1)
    for back in range(1, replay.MOST_COPIES):
        for token in range(replay.MOST_COPIES):
            session.feed(toy.ids([token]), 1)
        session.truncate(session.length - back)
        session.feed(toy.ids([60]), 1)
        assert session.num_replayed == 0
        assert len(session._copies) <= replay.MOST_COPIES


@pytest.mark.at_most(fast=8)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("gamma,vocab,length", [(1, 3, 5), (2, 3, 5), (3, 2, 6)])
def test_the_output_distribution_is_the_targets(gamma: int, vocab: int, length: int, sampling: Any) -> None:
    """The exhaustive oracle on two recurrent toys, through the session that replays."""
    off = oracle_gap(gamma, vocab, length, sampling)
    assert off < EXACT


def oracle_gap(gamma: int, vocab: int, length: int, sampling: Any) -> float:
    engine, rules = (importlib.import_module(f"specexp.{name}") for name in ("engine", "decoding.rules"))
    chain = importlib.import_module("specexp.decoding.chain")
    target, draft = RecurrentToy(vocab, 3), RecurrentToy(vocab, 3, draft_noise=0.8)
    decoder = chain.Chain(chain.DraftModel(gamma), chain.Lossless(), rules.Warp(**sampling))
    actual = output_distribution(lambda: engine.Engine({"target": target, "draft": draft}, [EOS]), decoder, [1], length)
    return gap(actual, sequence_distribution(target, [1], length, EOS, **sampling))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_and_a_second_prompt_decode_as_one_alone(temperature: float) -> None:
    from specexp.engine.engine import Request

    module = tiny_models.build("qwen3_next")
    models: Any = {"target": HFModel(module, "t"), "draft": HFModel(tiny_models.disturbed(module), "d")}
    decoder = Chain(DraftModel(3), Lossless(), Warp(temperature))
    prompts = [[5, 6, 7], [5, 6, 7, 8, 9, 30, 31], [11, 12]]
    rngs = [rng_for(temperature, 0, str(i)) for i in range(3)]
    alone = [Engine(models).generate(decoder, p, 14, r).token_ids for p, r in zip(prompts, rngs, strict=True)]
    engine = Engine(models)
    assert [engine.generate(decoder, p, 14, r).token_ids for p, r in zip(prompts, rngs, strict=True)] == alone
    requests = [Request(decoder, p, 14, r) for p, r in zip(prompts, rngs, strict=True)]
    together = dict(Engine(models, max_batch_size=2).generate_all(requests))
    assert [together[i].token_ids for i in range(3)] == alone


@pytest.mark.parametrize("kind", ["openai-gpt", "rwkv"])
def test_a_model_without_a_cache_scores_each_row_by_a_forward_of_its_own(kind: str) -> None:
    module = tiny_models.build(kind)
    model = HFModel(module, kind)
    assert model.cache_kind == refusals.NO_CACHE
    session = model.session()
    session.feed(model.ids([5, 6, 7]), 0)
    logits, states = session.feed(model.ids([8, 9]), 2, True)
    assert states is not None
    assert states.shape == (2, 32)
    session.truncate(3)
    again, _ = session.feed(model.ids([8, 9]), 2)
    assert torch.equal(logits, again)
    with torch.inference_mode():
        for row, end in ((0, 4), (1, 5)):
            whole = module(torch.tensor([[5, 6, 7, 8, 9][:end]]), use_cache=False).logits[0, -1]
            assert torch.allclose(logits[row], whole, atol=1e-5)
    out = Engine({"target": model}).generate(Baseline(Warp()), [5, 6, 7], 5, CertainRng())
    assert len(out.token_ids) == 5


def shown(bug: Bug) -> str | None:
    """What shows a bug in the sessions that replay, or None."""
    with mutated(bug):
        try:
            for seed in range(3):
                if (said := differences(RecurrentToy(90, seed=2), 40, seed)) is not None:
                    return said
            model = importlib.import_module("specexp.lm.hf.hf_model").HFModel
            for kind in ("lfm2", "qwen3_next", "recurrent_gemma", "mamba", "zamba"):
                built = model(tiny_models.build(kind), kind)
                if (said := differences(built, 25)) is not None:
                    return f"{kind}: {said}"
                if built.continuation == BY_ONE:
                    return f"{kind}: the measurement of how it continues"
        except (AssertionError, IndexError, RuntimeError, ValueError, TypeError) as error:
            if bug.name in str(error):  # it could not be seeded
                raise
            return f"{type(error).__name__}: {error}"[:120]
    return None


@pytest.mark.slow
def test_without_a_bug_nothing_shows() -> None:
    nothing = Bug("nothing", "specexp.lm.replay", "MOST_REPLAYED = 16", "MOST_REPLAYED = 16")
    assert shown(nothing) is None


@pytest.mark.slow
@pytest.mark.parametrize("bug", REPLAY_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_shows(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = shown(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'shown, ' + how if how else 'NOT SHOWN'}", end="")
    assert how is not None
