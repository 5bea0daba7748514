"""Prompts decoded together: what comes of each is what comes of it alone, and they really share their forwards.

The checks take models of any kind and the package's modules as they are imported now: they run on the numpy toy, on
tiny Hugging Face models, and on seeded bugs.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest

from helpers.feeds import Mutable, fed_both_ways, gap, module
from helpers.model_folders import build, disturbed, slow_for
from helpers.networks import network_arrays
from helpers.seeded_bugs import BATCH_BUGS, Bug, mutated

FAMILIES = ["llama", "qwen2", "mistral_window", "gpt2"]
TEMPERATURES = [0.0, 0.8]
CLOCKS = ("seconds", "prefill_seconds", "time_to_first_token")
# Prompt lengths and limits: very different ones, in an order in which rows are refilled while others are half way.
SIZES = [(1, 24), (40, 1), (3, 40), (90, 9), (7, 5), (2, 30), (17, 16)]


@dataclass
class Lab:
    """A pair of models, and what ends a text."""

    models: dict[str, Any]
    eos: tuple[int, ...]
    hidden: dict[str, int]
    vocab: int
    median_score: float = 0.5  # a judge with this threshold accepts some of the last drafts and not others

    def engine(self, rows: int = 1, **more: Any) -> Mutable:
        return module("engine").Engine(self.models, self.eos, max_batch_size=rows, **more)

    def decoders(self, temperature: float) -> dict[str, Mutable]:
        """Every method, by name."""
        chain, judged, rules = module("decoding.chain"), module("decoding.lossy_rules"), module("decoding.rules")
        baseline, specexec = module("decoding.baseline").Baseline, module("decoding.specexec").SpecExec
        untrained = module("decoding.untrained_rules")
        warp, lossless = rules.Warp(temperature), chain.Lossless()
        mode = module("judge.features").MODES["both"]
        network = module("judge.network").Network("logistic", network_arrays("logistic", mode.size(self.hidden)))
        judge = judged.Judged(network, mode.parts, 0.5, self.eos, mode.needs)
        lenient = judged.Judged(network, mode.parts, self.median_score, self.eos, mode.needs)
        text = tuple(random.Random(3).randrange(self.vocab) for _ in range(30))
        fly = untrained.FLy(0.3, 2, self.eos, warp)
        return {
            "baseline": baseline(warp),
            "draft only": baseline(warp, "draft"),
            **{f"gamma {g}": chain.Chain(chain.DraftModel(g), lossless, warp) for g in (1, 4, 9)},
            "gamma 4, no bonus": chain.Chain(chain.DraftModel(4), lossless, warp, bonus=False),
            "block": chain.Chain(chain.DraftModel(4), lossless, warp, verification="block"),
            "block of lookup": chain.Chain(chain.Lookup(4, 2), lossless, warp, verification="block"),
            "likeliest drafts": chain.Chain(chain.DraftModel(4, temperature=0.0), lossless, warp),
            "suffix": chain.Chain(chain.Suffix(6, chain.SuffixLimits(2.0)), lossless, warp),
            "in turn": chain.Chain(
                chain.InTurn(
                    {
                        "suffix": chain.Suffix(6, chain.SuffixLimits(), 3),
                        "lookup": chain.Lookup(4, 2, 2),
                        "draft": chain.DraftModel(4),
                    }
                ),
                lossless,
                warp,
            ),
            "early stop": chain.Chain(chain.DraftModel(9, 0.3), lossless, warp),
            "lookup": chain.Chain(chain.Lookup(4, 2), lossless, warp),
            "replay": chain.Chain(chain.Replay(text, 6, chain.DraftModel(3)), lossless, warp),
            "judged": chain.Chain(chain.DraftModel(4), judge, warp),
            "judged, gamma 1": chain.Chain(chain.DraftModel(1), lenient, warp),
            "topk": chain.Chain(chain.DraftModel(4), judged.TopK(3), warp),
            "typical": chain.Chain(chain.DraftModel(4), untrained.Typical(0.3, 0.5, warp), warp),
            "fuzzy": chain.Chain(chain.DraftModel(4), untrained.Fuzzy("js", 0.3, warp), warp),
            "specexec": specexec(12, 4, warp, parallel_branches=3),
            "judged tree": specexec(12, 4, warp, parallel_branches=3, rule=self.judge_of_target()),
        } | ({} if temperature else {"fly": chain.Chain(chain.DraftModel(6), fly, warp)})

    def judge_of_target(self) -> Mutable:
        mode = module("judge.features").MODES["target"]
        network = module("judge.network").Network("logistic", network_arrays("logistic", mode.size(self.hidden)))
        return module("decoding.lossy_rules").Judged(network, mode.parts, 0.5, self.eos, mode.needs)

    def requests(self, decoder: Mutable, temperature: float, name: str = "") -> list[Mutable]:
        numbers = random.Random(5)
        rng_for, request = module("decoding.rng").rng_for, module("engine").Request
        return [
            request(decoder, [numbers.randrange(3, self.vocab) for _ in range(length)], limit,
                    rng_for(temperature, 5, f"{name} {length}"))
            for length, limit in SIZES
        ]  # fmt: skip


def calibrated(lab: Lab) -> Lab:
    """The lab with the median of what its judge gives the last drafts of chains of one."""
    judged, chain, rules = module("decoding.lossy_rules"), module("decoding.chain"), module("decoding.rules")
    mode = module("judge.features").MODES["both"]
    network = module("judge.network").Network("logistic", network_arrays("logistic", mode.size(lab.hidden)))
    scores: list[float] = []

    def score(features: Any) -> Any:
        result = network(features)
        scores.extend(result.tolist())
        return result

    strict = judged.Judged(score, mode.parts, 1e-9, lab.eos, mode.needs)  # asks, and accepts nothing
    for request in lab.requests(chain.Chain(chain.DraftModel(1), strict, rules.Warp(0.0)), 0.0):
        lab.engine().generate(request.decoder, request.prompt_ids, request.max_new_tokens, request.rng)
    lab.median_score = float(np.median(scores))
    return lab


def toy_lab() -> Lab:
    toy = module("lm.toy")
    models = {"target": toy.ToyModel(12, 1, context=160), "draft": toy.ToyModel(12, 1, 0.4, context=160)}
    return Lab(models, (0,), dict.fromkeys(models, toy.HIDDEN), 12)


def hf_lab(models: dict[str, Any]) -> Lab:
    return Lab(models, tuple(range(2, 96, 17)), {"target": 32, "draft": 32}, 96)


@pytest.fixture
def lab(request: pytest.FixtureRequest, pair: Callable[[str], dict[str, Any]]) -> Lab:
    return calibrated(toy_lab() if request.param == "toy" else hf_lab(pair(request.param)))


def told(out: Any) -> dict[str, Any]:
    """All that a generation says but its clocks."""
    return {name: value for name, value in asdict(out).items() if name not in CLOCKS}


def alone(lab: Lab, requests: Sequence[Any]) -> list[dict[str, Any]]:
    return [told(lab.engine().generate(r.decoder, r.prompt_ids, r.max_new_tokens, r.rng)) for r in requests]


def disagreements(lab: Lab, rows: int, requests: Sequence[Any], expected: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where decoding together differs from decoding one at a time."""
    answers = {place: told(out) for place, out in lab.engine(rows).generate_all(iter(requests))}
    if sorted(answers) != list(range(len(requests))):
        yield f"{sorted(answers)} were answered"
    for place, one in enumerate(expected):
        for name, value in one.items():
            same = abs(answers[place][name] - value) < 1e-3 if name == "overlap" else answers[place][name] == value
            if not same:
                yield f"prompt {place}: {name} is {answers[place][name]}, not {value}"


@pytest.mark.at_most(fast=2, slow=3)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("lab", slow_for(["toy", *FAMILIES], "gpt2", "qwen2", "mistral_window", "phi"), indirect=True)
def test_every_method_gives_together_what_it_gives_alone(lab: Lab, temperature: float) -> None:
    """Seven prompts on three rows: each row is used again while the others are half way."""
    ends: Counter[str] = Counter()
    for name, decoder in lab.decoders(temperature).items():
        requests = lab.requests(decoder, temperature, name)
        expected = alone(lab, requests)
        ends.update(one["finish_reason"] for one in expected)
        assert list(disagreements(lab, 3, requests, expected)) == [], name
    assert min(ends["stop"], ends["length"]) > 5


@pytest.mark.at_most(slow=2)
@pytest.mark.slow
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("lab", ["toy", "llama", "gpt2"], indirect=True)
def test_methods_may_be_mixed_on_any_number_of_rows(lab: Lab, temperature: float) -> None:
    requests = [
        request
        for name, decoder in lab.decoders(temperature).items()
        for request in random.Random(name).sample(lab.requests(decoder, temperature, name), 2)
    ]
    random.Random(1).shuffle(requests)
    expected = alone(lab, requests)
    for rows in (1, 2, 3, 4, 5, 40):
        assert list(disagreements(lab, rows, requests, expected)) == [], rows


@pytest.mark.parametrize("lab", ["toy", "llama"], indirect=True)
def test_a_prompt_that_leaves_no_room_ends_at_once(lab: Lab) -> None:
    decoder = lab.decoders(0.0)["gamma 4"]
    requests = lab.requests(decoder, 0.0)
    requests.insert(1, module("engine").Request(decoder, [5, 6], 0, requests[0].rng))
    outputs = dict(lab.engine(3).generate_all(requests))
    assert outputs[1].token_ids == []
    del requests[1]
    assert [told(outputs[i]) for i in (0, *range(2, len(outputs)))] == alone(lab, requests)


# That they share their forwards.


class Watched:
    """A model that notes how many sequences each of its forwards fed."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def feed(self, feeds: Sequence[Any]) -> Any:
        self.sizes.append(len(feeds))
        return self.model.feed(feeds)


@pytest.mark.parametrize("lab", ["toy", *FAMILIES], indirect=True)
@pytest.mark.parametrize("gamma", [1, 4])
def test_a_round_of_a_full_batch_takes_gamma_drafts_one_verification_and_one_read(lab: Lab, gamma: int) -> None:
    """All prompts are equally long and accept all: every row is in the same round from the first to the last."""
    same = {role: Watched(lab.models["target"]) for role in ("target", "draft")}
    chain, rules, rng = module("decoding.chain"), module("decoding.rules"), module("decoding.rng")
    decoder = chain.Chain(chain.DraftModel(gamma), chain.Lossless(), rules.Warp())
    engine = module("engine").Engine(same, (), max_batch_size=5)
    requests = [module("engine").Request(decoder, [i + 3, 4, 5], 3 * (gamma + 1), rng.CertainRng()) for i in range(5)]
    for _, out in engine.generate_all(requests):
        assert (out.num_rounds, out.num_full) == (3, 3)
        assert (out.num_target_calls, out.num_draft_calls) == (3, 3 * gamma)
    assert same["target"].sizes == [5] * 3
    assert same["draft"].sizes == [5] * 3 * gamma
    assert engine.num_host_reads == 3


@pytest.mark.parametrize("lab", ["llama", "qwen2", "mistral_window"], indirect=True)
def test_a_joint_forward_is_one_pass_over_the_weights(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    own = module("lm.native.native_forward").NativeForward
    passes, real = [], own.__call__

    def counted(self: Any, tokens: Any, *more: Any) -> Any:
        passes.append(tokens.shape[0])
        return real(self, tokens, *more)

    monkeypatch.setattr(own, "__call__", counted)
    decoder = lab.decoders(0.0)["baseline"]
    request, rng = module("engine").Request, module("decoding.rng").CertainRng()
    list(
        module("engine")
        .Engine(lab.models, (), max_batch_size=4)
        .generate_all(request(decoder, [i + 3], 10, rng) for i in range(4))
    )
    assert passes == [4] * 10


def test_methods_that_are_mixed_verify_together(pair: Callable[[str], dict[str, Any]]) -> None:
    lab = hf_lab({role: Watched(model) for role, model in pair("llama").items()})
    decoders = lab.decoders(0.0)
    rng, request = module("decoding.rng").CertainRng(), module("engine").Request
    names = ["baseline", "gamma 4", "lookup", "specexec"]
    lab.eos = ()
    done = dict(lab.engine(4).generate_all(request(decoders[name], [5, 6, 7], 12, rng) for name in names))
    assert len(done) == 4
    assert lab.models["target"].sizes[:2] == [4, 4]


# Feeding several sessions together, without an engine.


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral_window", "gpt2"])
def test_feeding_together_equals_feeding_alone(pair: Callable[[str], dict[str, Any]], family: str) -> None:
    """Rows that are fed nothing lie between those that are, and the buffer grows several times."""
    model = pair(family)["target"]
    for actual, expected in fed_both_ways(model, rounds=30):
        assert gap(actual, expected) < 2e-4
    if family != "gpt2":
        assert model.sessions(2, 8)[0].pool.capacity < 160


def test_a_buffer_grows_for_all_its_rows(pair: Callable[[str], dict[str, Any]]) -> None:
    model, feed = pair("llama")["target"], module("lm.model").Feed
    long, short = model.sessions(2, 8)
    start = long.pool.capacity
    short.feed(model.ids([7, 8, 9]), 1)
    long.feed(model.ids([5] * (start - 1)), 0)
    actual = model.feed([feed(long, model.ids([6, 7, 8]), 1), feed(short, model.ids([10]), 1)])
    assert long.pool.capacity > start
    expected = [model.session().feed(model.ids(ids), 1) for ids in ([5] * (start - 1) + [6, 7, 8], [7, 8, 9, 10])]
    assert gap(actual, expected) < 1e-4


def test_growing_makes_room_for_the_padding_of_a_short_row(pair: Callable[[str], dict[str, Any]]) -> None:
    """A row near the end of the buffer is padded to the longest of the others."""
    model, feed = pair("llama")["target"], module("lm.model").Feed
    long, short = model.sessions(2, 8)
    start = long.pool.capacity
    long.feed(model.ids([5] * (start - 1)), 0)
    actual = model.feed([feed(long, model.ids([6]), 1), feed(short, model.ids(list(range(3, 23))), 4)])
    expected = [
        model.session().feed(model.ids([5] * (start - 1) + [6]), 1),
        model.session().feed(model.ids(list(range(3, 23))), 4),
    ]
    assert gap(actual, expected) < 1e-4


# Procedures.


@pytest.mark.parametrize("lab", ["toy", "llama"], indirect=True)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_procedure_keeps_its_row_and_its_caches(lab: Lab, rows: int) -> None:
    """Each decodes, looks at what it decoded and goes on from there; it pays only for what its row does not
    hold."""
    engine_module, rng = module("engine"), module("decoding.rng").CertainRng()
    decoder = lab.decoders(0.0)["gamma 4"]

    def coroutine(number: int) -> Any:
        ids = [3 + (number + i) % 5 for i in range(3 + 7 * number)]
        before = yield engine_module.UsageQuery()
        out = yield engine_module.Request(decoder, ids, 12, rng)
        middle = yield engine_module.UsageQuery()
        logits, hidden = yield engine_module.ScoreRequest("target", ids, out.token_ids, hidden=True)
        after = yield engine_module.UsageQuery()
        again = yield engine_module.Request(decoder, [*ids, *out.token_ids[:3]], 8, rng)
        assert middle["target_calls"] - before["target_calls"] == out.num_target_calls + 1, "one prefill"
        assert after["target_positions"] - middle["target_positions"] <= len(out.token_ids) + len(ids)
        return ids, out.token_ids, again.token_ids, logits, hidden

    results = dict(lab.engine(rows, reuse=True).run_all(coroutine(i) for i in range(6)))
    assert sorted(results) == list(range(6))
    for ids, first, second, logits, hidden in results.values():
        assert lab.engine().generate(decoder, ids, 12, rng).token_ids == first
        assert lab.engine().generate(decoder, [*ids, *first[:3]], 8, rng).token_ids == second
        model = lab.models["target"]
        expected = model.session().feed(model.ids([*ids, *first]), len(first) + 1, True)
        assert gap([(logits, hidden)], [expected]) < 1e-4


def test_looks_of_several_procedures_are_answered_together(pair: Callable[[str], dict[str, Any]]) -> None:
    lab = hf_lab({role: Watched(model) for role, model in pair("llama").items()})
    look = module("engine").ScoreRequest

    def coroutine(number: int) -> Any:
        for role in ("draft", "target"):
            yield look(role, [3 + number], [5, 6])

    list(lab.engine(4, reuse=True).run_all(coroutine(i) for i in range(4)))
    assert [lab.models[role].sizes for role in ("draft", "target")] == [[4], [4]]


# Seeded bugs.


def caught_by(bug: Bug) -> str | None:
    """The first check that notices the bug, or None."""
    with mutated(bug), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bug may divide by zero; what comes out of it is the test
        try:
            return next(checks(), None)
        except (AssertionError, IndexError, KeyError, RuntimeError, ValueError) as error:
            if bug.name in str(error):  # it could not be seeded
                raise
            return f"{type(error).__name__}: {error}"[:120]


def checks() -> Iterator[str]:
    hf = module("lm.hf.hf_model")
    for family in ("llama", "mistral_window"):
        target = build(family)
        models = {"draft": hf.HFModel(disturbed(target, 0.06), "draft"), "target": hf.HFModel(target, "target")}
        for actual, expected in fed_both_ways(models["target"]):
            if not gap(actual, expected) < 2e-4:
                yield f"{family}: logits differ by {gap(actual, expected):.1e}"
        yield from engine_checks(calibrated(hf_lab(models)), family)
    yield from engine_checks(calibrated(toy_lab()), "toy")


def engine_checks(lab: Lab, what: str) -> Iterator[str]:
    for temperature in TEMPERATURES:
        for name in ("gamma 4", "judged", "judged, gamma 1", "specexec", "early stop"):
            requests = lab.requests(lab.decoders(temperature)[name], temperature, name)
            for disagreement in disagreements(lab, 3, requests, alone(lab, requests)):
                yield f"{what}, {name} at {temperature:g}: {disagreement}"[:160]


@pytest.mark.slow
def test_the_unchanged_package_passes_the_same_checks() -> None:
    assert caught_by(Bug("nothing", "specexp.lm.native.kv_cache", "LEAST = 64", "LEAST = 64")) is None


@pytest.mark.slow
@pytest.mark.parametrize("bug", BATCH_BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug, capsys: pytest.CaptureFixture[str]) -> None:
    how = caught_by(bug)
    with capsys.disabled():
        print(f"\n  seeded bug: {bug.name}: {'caught, ' + how if how else 'NOT CAUGHT'}", end="")
    assert how is not None
