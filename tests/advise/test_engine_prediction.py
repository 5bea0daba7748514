"""What `advise` predicts of drafts in a served engine: our own server's counts, to the last one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import specexp
from entrypoints.advise import command
from helpers.cli_runner import invoke, runs
from helpers.fake_engine import FakeEngine, Reply, fake_engine, text_chunk, usage_chunk
from helpers.openai_process import in_thread
from specexp import config
from specexp.advise.engines import engine_advice, engine_outputs, engine_prediction
from specexp.advise.engines.engine_outputs import EngineOutput
from specexp.advise.engines.engine_prediction import EngineCosts, PredictedDrafts, measured_costs
from specexp.advise.engines.engine_prediction_report import NO_COST, EnginePrediction, for_engines, logged, table
from specexp.advise.rounds import chain_rounds
from specexp.advise.traces import agreement
from specexp.config import Experiment, single
from specexp.engines import client
from specexp.engines.acceptance import of_counters
from specexp.engines.body import Sampling, Wanted
from specexp.engines.client import EngineClient
from specexp.errors import ConfigError, EngineError
from specexp.evaluation import preparation
from specexp.serving.completion_service import CompletionService, ServiceLimits
from specexp.serving.openai_app import make_app
from specexp.storage.journal import Journal

LENGTHS = (1, 2, 4, 7)
DRAFTS = {"speculative": LENGTHS, "lookup": (1, 4), "suffix": (5,)}
TOY = "vocab_size=6"  # so few tokens that texts repeat themselves
NO_SERVER = {"url": "http://127.0.0.1:9", "model": "m"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)


def service(method: str, gamma: int) -> CompletionService:
    asked = single.resolve("toy_quick", method, {"gamma": str(gamma), "toy": TOY})
    return CompletionService(specexp.LoadedPair(asked), asked, ServiceLimits(4, 60, 200), "toy")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with in_thread(make_app(service("speculative", 3))) as url:
        yield url


def experiment_of(url: str, **more: Any) -> Experiment:
    settings = {"engine": {"url": url, "model": "toy"}, "methods": "engine:served,speculative", "limit": 6, "toy": TOY}
    return config.resolve("toy_quick", {**settings, "max_new_tokens": 40, "gamma": "1,2,4,7", **more})


def taken(experiment: Experiment) -> tuple[list[EngineOutput], list[PredictedDrafts]]:
    """The engine's outputs, and what is predicted along them."""
    prepared = preparation.prepare(engine_advice.engines_alone(experiment))
    pair = engine_prediction.load(experiment)
    assert "target" not in pair.models
    with_logprobs = engine_prediction.needs_probabilities(experiment)
    outputs = engine_outputs.take(prepared, pair.text, pair.eos_ids, with_logprobs, Journal())
    return outputs, engine_prediction.predict(experiment, pair, outputs)


@pytest.mark.parametrize("method", DRAFTS)
def test_greedy_drafts_do_what_our_own_server_counts_of_them(server: str, method: str) -> None:
    lengths = ",".join(map(str, DRAFTS[method]))
    experiment = experiment_of(server, methods=f"engine:served,{method}", gamma=lengths, max_new_tokens=60)
    outputs, predicted = taken(experiment)
    assert [each.config.gamma for each in predicted] == list(DRAFTS[method])
    seen = 0
    for each in predicted:
        usages = []
        with (
            in_thread(make_app(service(method, each.config.gamma))) as url,
            EngineClient(experiment_of(url).engine[0].endpoint) as connection,
        ):
            for out in outputs:
                answer = connection.ask(out.prompt_ids, Sampling(60), Wanted(meta_info=False))
                assert answer.token_ids == out.token_ids, "an engine's tokens do not depend on its drafts"
                usages.append(answer.server["usage"])
            counts = of_counters("", connection.counters())
        assert counts is not None
        assert each.tokens == sum(usage["completion_tokens"] for usage in usages)
        assert each.rounds == counts.num_rounds == sum(usage["rounds"] for usage in usages)
        assert each.calls == sum(usage["target_calls"] for usage in usages)
        accepted = counts.by_position
        assert each.by_position == (*accepted, *[0] * (each.config.gamma - len(accepted)))
        seen += sum(accepted)
    assert seen, "nothing was accepted"


@pytest.mark.parametrize(
    "more", [{}, {"rule": "block"}, {"draft_temperature": "0", "temperature": "0.7", "top_k": "5"}], ids=str
)
def test_sampled_drafts_are_predicted_as_with_the_targets_weights(server: str, more: dict[str, str]) -> None:
    experiment = experiment_of(server, **{"temperature": "1", "seed": "5", "ignore_eos": "true", **more})
    outputs, predicted = taken(experiment)
    own = config.resolve(
        "toy_quick",
        {"methods": "speculative", "limit": "6", "max_new_tokens": "40", "temperature": "1", "toy": TOY, **more},
    )
    with_weights = replace(preparation.prepare(own), prompts=[out.prompt_ids for out in outputs])
    method = own.methods[0]
    traces = [
        agreement(with_weights, index, out.token_ids, method.draft_temperature).trace
        for index, out in enumerate(outputs)
    ]
    assert len(predicted) == len(LENGTHS)
    for each in predicted:
        rounds = chain_rounds(traces, each.config.gamma, block=method.rule == "block")
        assert each.calls == pytest.approx(rounds.rounds)
        assert each.drafted == pytest.approx(rounds.drafted)
        assert sum(each.by_position) == pytest.approx(sum(n * weight for n, weight in rounds.by_accepted.items()))
        assert 1 < each.mean_length < each.config.gamma + 1


def test_the_chat_interface_and_text_alone_are_read_by_the_targets_tokenizer() -> None:
    """The embedded pair's: text alone, a template of the server's own, an EOS that the server does not name."""
    text = "the answer is 7"
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    with fake_engine(Reply((chunk, usage_chunk(9)))) as engine:
        experiment = config.resolve(
            "arith_quick", {"engine": {"url": engine.url, "model": "m", "api": "chat"}, "limit": "1",
                            "methods": "engine:served,lookup", "gamma": "2"},
        )  # fmt: skip
        pair = engine_prediction.load(experiment)
        assert pair.models == {}
        prepared = preparation.prepare(engine_advice.engines_alone(experiment))
        (out,) = engine_outputs.take(prepared, pair.text, pair.eos_ids, False, Journal())
    assert out.from_text
    assert pair.text.decode(out.token_ids[:-1]) == text
    assert out.token_ids[-1] == pair.eos_ids[0]
    assert out.prompt_ids == pair.text.encode(prepared.examples[0].messages())
    assert out.limit == experiment.max_new_tokens


def test_an_output_that_ended_at_a_limit_had_no_more_tokens() -> None:
    with fake_engine(Reply((text_chunk("a", "length", token_ids=[5, 4]), usage_chunk(2)))) as engine:
        outputs, _ = taken(experiment_of(engine.url, limit="1"))
    assert (outputs[0].token_ids, outputs[0].limit) == ([5, 4], 2)


@pytest.mark.parametrize(
    ("chunk", "more", "said"),
    [
        (text_chunk("a", "length"), {}, "gives no token ids, and there is no tokenizer"),
        (text_chunk("a", "length", token_ids=[5]), {"temperature": "1"}, "gives no log-probabilities"),
        (text_chunk("a", "length"), {"temperature": "1"}, "gives no token ids, by which log-probabilities"),
        (text_chunk("a", "length", token_ids=[5000]), {}, "has token id 5000, but the draft's ids are below 6;"),
    ],
)
def test_a_server_that_gives_too_little_is_refused(chunk: Any, more: dict[str, str], said: str) -> None:
    with fake_engine(Reply((chunk, usage_chunk(1)))) as engine, pytest.raises(EngineError, match=said):
        taken(experiment_of(engine.url, limit="1", **more))


def test_what_a_drafted_token_costs_by_two_engines() -> None:
    plain = {"speed/time_per_token": 0.010}
    spec = {"speed/time_per_token": 0.006, "accept/mean_length": 2.5, "accept/drafted_length": 4.0}
    costs = measured_costs("a", "b", {"a": plain, "b": spec})
    assert costs is not None
    assert costs.per_drafted == pytest.approx((0.006 * 2.5 / 0.010 - 1) / 4)
    assert costs.source == "measured on a and b, which drafts 4.0 tokens a round"
    for first, second in (
        (plain, {"speed/time_per_token": 0.006}),  # it counts no drafts
        (spec, spec),  # the first one drafts
        (plain, {**spec, "speed/time_per_token": 0.003}),  # a round would cost less than a step without a draft
        ({}, spec),
    ):
        assert measured_costs("a", "b", {"a": first, "b": second}) is None


def drafts_of(gamma: int, calls: float, drafted: float) -> PredictedDrafts:
    method = config.resolve("toy_quick", {"methods": "speculative", "gamma": str(gamma)}).methods[0]
    return PredictedDrafts(method, 100, calls, calls, drafted, (50.0,) * gamma)


def test_the_length_that_the_cost_makes_fastest_is_recommended() -> None:
    predicted = [drafts_of(1, 60, 60), drafts_of(4, 40, 160)]
    assert predicted[0].pays_below == pytest.approx(40 / 60)
    experiment = config.resolve("toy_quick", {"engine": NO_SERVER, "methods": "engine:served,speculative"})

    def advice(cost: float | None) -> EnginePrediction:
        return EnginePrediction(
            "engine:served", experiment, predicted, None if cost is None else EngineCosts(cost, "given"), []
        )  # fmt: skip

    assert advice(None).sentence() == NO_COST
    assert for_engines(advice(None), "same") is None
    for cost, best in ((0.1, "speculative_k4"), (0.5, "speculative_k1"), (0.7, None)):
        one = advice(cost)
        assert (one.best.config.label if one.best else None) == best
        recommended = for_engines(one, "same")
        assert recommended is not None
        assert recommended.method.label == (best or "baseline")
        assert logged(one)["advice/predicted_speedup"] == pytest.approx(
            100 / (40 + 16) if cost == 0.1 else 100 / 90 if cost == 0.5 else 1.0
        )
    assert "Do not speculate: no setting is predicted to be faster" in advice(0.7).sentence()
    assert "pays below" in table(advice(None))
    assert "1.79x" in table(advice(0.1))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"methods": "engine:served,topk"}, "methods has topk next to engines, whose drafts cannot be scored"),
        ({"gamma": "auto"}, "gamma is auto, but drafts of engines have one"),
        ({"min_draft_probability": "0.4"}, "min_draft_probability is given, but how long a draft goes on"),
        ({"methods": "engine:served,suffix", "suffix_memory": "run"}, "suffix_memory is run, but each output"),
        ({"temperature": "0.7"}, "temperature is 0.7, top_k 0 and top_p 1; an engine's log-probabilities tell"),
        ({"temperature": "1", "top_p": "0.9"}, "temperature is 1, top_k 0 and top_p 0.9"),
        ({"concurrency": "1,2"}, "concurrency is given, but only benchmark puts engines under load"),
        (
            {"methods": "engine:served", "gamma": None},
            "methods has one engine; name another one to compare it with, or",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_anything_is_asked(more: dict[str, Any], said: str) -> None:
    experiment = experiment_of("http://127.0.0.1:9", **more)
    with pytest.raises(ConfigError) as caught:
        engine_advice.checked(experiment, sweep=False)
    assert [line for line in caught.value.faults if line.startswith(said)], caught.value.faults


def test_drafts_that_need_the_target_are_refused() -> None:
    settings = {"engine": NO_SERVER, "methods": "engine:served,speculative", "gamma": "2"}
    for draft, said in (
        ({"layers": "0-1"}, "needs the target's weights or states"),
        ({"vocabulary": "intersection"}, "vocabulary is intersection, but a draft is scored"),
    ):
        experiment = config.resolve("arith_quick", settings)
        with_draft = replace(experiment, draft=replace(experiment.draft, **draft))
        with pytest.raises(ConfigError, match=said):
            engine_advice.checked(with_draft, sweep=False)


def written(folder: Path, engine: dict[str, Any], methods: list[str], **more: Any) -> list[str]:
    settings = {"engine": engine, "methods": methods, "limit": 3, "max_new_tokens": 20, **more}
    settings |= {"gamma": [1, 3]} if len(methods) > 1 else {}
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    return ["--experiment", "toy_quick", "--config", "mine.yaml", "--output", "out"]


def test_the_command_predicts_and_goes_on_where_the_server_died(workplace: Path, server: str) -> None:
    answer = Reply((text_chunk("a", "length", token_ids=[5, 6, 7]), usage_chunk(3)))
    engine: FakeEngine
    with fake_engine(answer, answer, Reply((text_chunk("a"),), complete=False)) as engine:
        arguments = written(workplace, {"model": "m", "url": engine.url}, ["engine:served", "speculative"])
        result = invoke(command, *arguments)
        assert result.exit_code == 2, result.output
        engine.replies = [answer]
        asked = len(engine.requests)
        result = invoke(command, *arguments, "--resume", "--draft-cost", "0.1")
        assert result.exit_code == 0, result.output
        assert len(engine.requests) - asked == 3, "what the server gives, and the two outputs that were missing"
    prediction = json.loads((workplace / "out" / "advice.json").read_text())["prediction"]
    assert prediction["sentence"] in result.output
    assert prediction["draft_cost"]["per_drafted"] == 0.1
    assert [each["gamma"] for each in prediction["candidates"]] == [1, 3]
    assert sum(each["tokens"] for each in prediction["candidates"]) == 2 * 9
    assert (workplace / "out" / "engines.json").exists()
    (run,) = [run for run in runs() if run.data.tags.get("method") == "advise" and run.info.status == "FINISHED"]
    assert run.data.metrics["advice/draft_cost"] == 0.1


def test_two_engines_are_compared_and_tell_what_a_drafted_token_costs(workplace: Path) -> None:
    tokens = [text_chunk("a", token_ids=[5]), text_chunk("b", "length", token_ids=[6, 7])]
    usage = {"drafted": 3, "accepted": 1, "rounds": 1, "target_calls": 2}
    plain, spec = Reply((*tokens, usage_chunk(3))), Reply((*tokens, {**usage_chunk(3)}))
    spec.chunks[-1]["usage"].update(usage)
    with fake_engine(plain) as one, fake_engine(spec) as other:
        engines = {"model": "m", "methods": {"plain": {"url": one.url}, "spec": {"url": other.url}}}
        methods = ["engine:plain", "engine:spec", "speculative"]
        result = invoke(command, *written(workplace, engines, methods, repeats=1))
    assert result.exit_code == 0, result.output
    advice = json.loads((workplace / "out" / "advice.json").read_text())
    assert {advice["fastest"], advice["other"]} == {"engine:plain", "engine:spec"}
    assert "Not predicted" not in result.output
    assert advice["prediction"]["outputs"] == 3
    source = advice["prediction"]["draft_cost"]
    assert source is None or source["source"].startswith("measured on engine:plain and engine:spec")


@pytest.mark.parametrize(
    ("arguments", "methods", "said"),
    [
        (["--draft-cost", "-1"], ["engine:served", "speculative"], "draft_cost is '-1'; it must be a number >= 0"),
        (["--draft-cost", "0.1"], ["engine:served"], "draft_cost is given, but methods has engines alone"),
        (["--draft", "none"], ["engine:served", "lookup"], "draft is none, but methods say what is weighed"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    workplace: Path, arguments: list[str], methods: list[str], said: str
) -> None:
    result = invoke(command, *written(workplace, NO_SERVER, methods), *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not (workplace / "out").exists()


def test_a_cost_is_for_engines_alone(workplace: Path) -> None:
    result = invoke(command, "--experiment", "toy_quick", "--draft-cost", "0.1", "--output", "out")
    assert result.exit_code == 2, result.output
    assert "draft_cost is given, but calls of models that are loaded are timed; leave it out." in result.output
