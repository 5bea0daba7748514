"""`advise` on served engines: the fastest one, how sure that is, a run that goes on, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrypoints.advise import command
from helpers.cli_runner import invoke, records, runs
from helpers.fake_engine import FakeEngine, Reply, fake_engine, text_chunk, usage_chunk
from specexp import config
from specexp.advise.engines.engine_advice import EngineAdvice, advice_on, checked, table
from specexp.engines import client
from specexp.errors import ConfigError
from specexp.evaluation import preparation
from specexp.storage.records import Record

ANSWER = Reply((text_chunk("a", token_ids=[5]), text_chunk("bc", "length", token_ids=[6, 7]), usage_chunk(3)))
DIES = Reply((text_chunk("a"),), complete=False)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)


def given(folder: Path, plain: FakeEngine, spec: FakeEngine, **more: Any) -> list[str]:
    engine = {"model": "m", "methods": {"plain": {"url": plain.url}, "spec": {"url": spec.url}}}
    settings = {"engine": engine, "methods": ["engine:plain", "engine:spec"], "limit": 3, "max_new_tokens": 3}
    (folder / "mine.yaml").write_text(yaml.safe_dump({**settings, "repeats": 2, **more}))
    return ["--experiment", "toy_quick", "--config", "mine.yaml", "--output", "out"]


def advised(seconds: dict[str, list[float]]) -> EngineAdvice:
    """The advice on engines whose outputs of 10 tokens took these seconds, by label and prompt."""
    count = len(next(iter(seconds.values())))
    methods = {
        label.removeprefix("engine:"): {"url": f"http://127.0.0.1:{port}"} for port, label in enumerate(seconds, 1)
    }
    engine = {"model": "m", "methods": methods}
    prepared = preparation.prepare(
        config.resolve("toy_quick", {"engine": engine, "methods": ",".join(seconds), "limit": count})
    )
    made: list[Record] = []
    for label, each in seconds.items():
        for i, value in enumerate(each):
            record: Any = {
                "prompt_id": f"p{i}", "turn": 0, "repeat": 0, "label": label, "method": label, "paired": True,
                "correct": None, "token_ids": [1], "text": "a", "seconds": value, "prefill_seconds": 0.0,
                "time_to_first_token": value / 2, "num_tokens": 10, "num_rounds": 0, "num_target_calls": 0,
                "num_target_positions": 0, "num_draft_calls": 0, "num_draft_positions": 0, "num_drafted": 0,
                "num_accepted": 0, "num_judged": 0, "num_cut": 0, "num_full": 0, "num_tested": 0, "overlap": 0.0,
                "accepted_histogram": [], "trees": [], "category": "", "answer": None, "gold": None, "preset": label,
                "finish_reason": "length", "served": {"attempts": 1, "last_seconds": value, "drafts": None},
            }  # fmt: skip
            made.append(record)
    return advice_on(prepared, made, [])


def test_the_fastest_engine_is_named_if_it_is_sure() -> None:
    slow, fast = [2.0, 2.2, 2.1, 1.9, 2.0, 2.05, 1.95, 2.1], [1.0, 1.1, 1.05, 0.95, 1.0, 1.02, 0.98, 1.05]
    advice = advised({"engine:plain": slow, "engine:spec": fast})
    assert (advice.fastest, advice.other, advice.significant) == ("engine:spec", "engine:plain", True)
    assert advice.ratio.value == pytest.approx(2.0, rel=0.01)
    assert advice.sentence().startswith("Use engine:spec: it answers at 2.00x the speed of engine:plain (95 %: ")
    assert table(advice).splitlines()[1].startswith("engine:spec")
    # If the first engine is the fastest, it is compared with the next one.
    advice = advised({"engine:plain": fast, "engine:a": slow, "engine:b": [each / 1.5 for each in slow]})
    assert (advice.fastest, advice.other) == ("engine:plain", "engine:b")
    assert any("The fastest of 3 engines" in note for note in advice.notes)


def test_a_difference_by_chance_and_too_few_prompts_are_told() -> None:
    one, two = [1.0, 1.2, 0.9, 1.1, 1.0, 1.0, 0.95, 1.05], [1.05, 1.1, 1.0, 1.0, 1.05, 0.9, 1.0, 1.08]
    advice = advised({"engine:plain": one, "engine:spec": two})
    assert not advice.significant
    assert "not significant at n = 8. Measure more prompts." in advice.sentence()
    advice = advised({"engine:plain": [2.0, 2.1, 2.2], "engine:spec": [1.0, 1.1, 1.2]})
    assert not advice.significant
    assert "fewer than 6 prompts cannot show a significant difference" in advice.sentence()


def test_a_run_on_servers_is_written_and_goes_on_where_one_died(workplace: Path) -> None:
    with fake_engine(ANSWER) as plain, fake_engine(*[ANSWER] * 5, DIES) as spec:
        arguments = given(workplace, plain, spec)
        result = invoke(command, *arguments)
        assert result.exit_code == 2, result.output
        done = len(records(workplace / "out"))
        assert 0 < done < 12
        spec.replies = [ANSWER]
        result = invoke(command, *arguments, "--resume")
    assert result.exit_code == 0, result.output
    made = records(workplace / "out")
    assert len(made) == len({(each["prompt_id"], each["label"], each["repeat"]) for each in made}) == 12
    advice = json.loads((workplace / "out" / "advice.json").read_text())
    assert advice["fastest"] in ("engine:plain", "engine:spec")
    assert advice["sentence"] in result.output
    assert "Not predicted: how fast other drafts would be" in result.output
    (run,) = [run for run in runs() if run.data.tags.get("method") == "advise" and run.info.status == "FINISHED"]
    assert run.data.metrics["advice/candidates"] == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"methods": ["engine:plain", "engine:spec", "baseline"]}, "has baseline next to engines"),
        ({"engine": {"model": "m", "url": "http://127.0.0.1:9"}, "methods": ["engine:served"]}, "has one engine"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_asked(
    workplace: Path, more: dict[str, Any], said: str
) -> None:
    nobody = FakeEngine([], url="http://127.0.0.1:9"), FakeEngine([], url="http://127.0.0.1:8")
    result = invoke(command, *given(workplace, *nobody, **more))
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not (workplace / "out").exists()


def test_faults_of_engines_are_told_at_once() -> None:
    engine = {"url": "http://127.0.0.1:9", "model": "m"}
    experiment = config.resolve("toy_quick", {"engine": engine, "methods": "engine:served"})
    with pytest.raises(ConfigError) as caught:
        checked(replace(experiment, history="own"), sweep=True)
    assert len(caught.value.faults) == 3
    assert "history is own, but engines are compared on the same prompts" in str(caught.value)
    assert "sweep is given, but all engines are measured anyway" in str(caught.value)
