"""How long a command says it takes, the bar of mining, and what the token view may take."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from entrypoints import certify
from helpers.cli_runner import comparison_runs, evaluate, invoke
from helpers.fake_clock import Clock, ClockedToy
from helpers.mining_runs import collect
from specexp.evaluation import runner
from specexp.evaluation.scheduling import MissingRecords
from specexp.evaluation.token_view import data, token_page
from specexp.evaluation.token_view.data import Budget
from specexp.judge import collection
from specexp.judge.mining_progress import SearchProgress
from specexp.profiling import time_estimate
from specexp.profiling.time_estimate import Pace, Progress, announce, pace, span

TOY = ["--experiment", "toy_quick", "--limit", "4", "--output", "out"]


def test_spans_are_read_by_people() -> None:
    seconds = (0.2, 42.4, 89, 95, 700, 5399, 5400, 11900, 36000, 90000)
    assert [span(each) for each in seconds] == [
        "1 s", "42 s", "89 s", "2 min", "12 min", "90 min", "1 h 30 min", "3 h 20 min", "10 h", "25 h",
    ]  # fmt: skip


def test_a_pace_is_that_of_calls_as_they_are() -> None:
    clock = Clock()
    models: Any = {"target": ClockedToy(clock, 2.0, 0.5, vocab_size=24, context=512)}
    result = pace(models, [[1] * 5, [1] * 9, [1] * 30], clock=clock)
    assert result.prefill == 2.0 + 0.5 * 8, "the prompt of middle length, all but its last token"
    assert result.token == 2.5
    assert result.seconds(10) == 6 + 25
    calls = clock.now
    slow: Any = {"target": ClockedToy(clock, 20.0, 0.5, vocab_size=24, context=512)}
    pace(slow, [[1] * 5], clock=clock)
    assert clock.now - calls == 22.0 + time_estimate.TOKENS * 20.5, "slow calls are not made twice"


def test_a_bound_says_what_to_lower_only_if_it_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    announce(12.0, "so many outputs", "limit")
    announce(7200.0, "so many outputs", "limit or max_new_tokens")
    assert capsys.readouterr().err.splitlines() == [
        "time: at most about 12 s, so many outputs.",
        "time: at most about 2 h, so many outputs. Lower limit or max_new_tokens for less.",
    ]


def test_what_is_expected_is_said_once_when_some_is_seen() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(80, 6, "outputs", said.append, clock)
    for done in range(1, 80):
        clock.now += 3.0
        progress.seen(done)
    assert said == ["time: about 4 min in all, judging by 6 of 80 outputs."]
    short = Progress(8, 2, "outputs", said.append, clock)
    short.seen(4)
    assert len(said) == 1, "what is soon over needs no line"


def test_an_evaluation_says_how_long_it_takes_and_again_when_lengths_are_seen(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_estimate, "LONG", 0.0)
    given = [*TOY, "--methods", "baseline,speculative", "--max-new-tokens", "20", "--show", "0"]
    first = evaluate(*given)
    assert first.exit_code == 0, first.output
    assert "12 outputs of up to 20 tokens, as fast as the first 24 were. Lower limit, max_new_tokens, " in first.stderr
    assert " in all, judging by 9 of 12 outputs." in first.stderr
    assert "warm-up: " in first.stderr
    assert "time: " not in first.stdout


def test_the_bound_of_an_evaluation_is_that_of_its_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = MissingRecords(Counter(a=3, b=2, an_engine=4), 5)
    prepared: Any = SimpleNamespace(experiment=SimpleNamespace(max_new_tokens=100, thinking_budget=0))
    runner._announce(prepared, lacking, {"a": Pace(1.0, 0.1), "b": Pace(2.0, 0.5)})
    assert f"at most about {span(3 * 11 + 2 * 52)}, 5 outputs" in capsys.readouterr().err


def test_a_certificate_says_how_long_it_takes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_estimate, "LONG", 0.0)
    small = ["--experiment", "toy_quick", "--limit", "2", "--max-new-tokens", "8", "--gamma", "2", "--output", "out"]
    result = invoke(certify.command, *small)
    assert "4 outputs of up to 8 tokens, each as slow as plain decoding one at a time. Lower limit or " in result.stderr


class Bar:
    def __init__(self) -> None:
        self.n, self.total = 0, 0

    def update(self, n: int) -> None:
        assert n >= 0
        self.n += n


def test_mining_is_as_far_as_the_tokens_it_has_tried() -> None:
    bar = Bar()
    search = SearchProgress(bar, 3)
    search.update(0, 0, 40)
    assert (bar.n, bar.total) == (0, 120), "the others are taken to be as long"
    search.update(1, 0, 20)
    assert bar.total == 90
    search.update(0, 12, 40)
    search.update(0, 30, 44)  # a swap made the response longer
    assert (bar.n, bar.total) == (30, 96)
    search.update(1, 20, 20)
    search.update(2, 50, 50)  # did not end: nothing is tried in it
    search.update(0, 44, 44)
    assert bar.n == bar.total == 114


def test_mining_tells_how_far_every_search_is_and_how_long_all_take(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, int]] = []
    real = SearchProgress.update

    def update(self: SearchProgress, *progress: int) -> None:
        told.append(progress)  # type: ignore[arg-type]
        real(self, *progress)

    monkeypatch.setattr(SearchProgress, "update", update)
    monkeypatch.setattr(time_estimate, "LONG", 0.0)
    monkeypatch.setattr(collection, "EARLY", 1)
    result = collect("--limit", "3", "--max-new-tokens", "120", "--output", "labels", "--batch", "2")
    assert result.exit_code == 0, result.output
    assert "3 responses of up to 120 tokens one after another; the search in them takes longer" in result.stderr
    assert " tokens to try." in result.stderr
    assert "token/s" in result.stderr
    for place in range(3):
        progress_of_search = [(tried, length) for who, tried, length in told if who == place]
        assert progress_of_search[0][0] == 0
        assert progress_of_search[-1][0] == progress_of_search[-1][1]
        assert [tried for tried, _ in progress_of_search] == sorted(tried for tried, _ in progress_of_search)
    turns = [who for who, _, _ in told if who < 2]
    assert turns != sorted(turns), "the first two are searched together"


def test_a_budget_is_kept_by_what_prompts_really_take() -> None:
    clock = Clock()
    budget = Budget(20.0, clock)
    assert not budget.allows(10.5), "twice what the records took, as a guess"
    assert budget.allows(4.0)
    begun = clock()
    clock.now += 12.0
    budget.note(4.0, begun)
    assert budget.ratio == 3.0
    assert budget.allows(2.6)
    assert not budget.allows(2.7)


def prompts(folder: Path) -> list[str]:
    return [prompt["prompt_id"] for prompt in json.loads((folder / "tokens.json").read_text())["prompts"]]


@pytest.mark.slow
def test_the_token_view_stays_in_a_share_of_the_time_and_goes_on_later(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = data._prompt

    def prompt(prepared: Any, records: Any, engine: Any, jobs: Any, *more: Any) -> Any:
        seen.append(prepared.examples[jobs[0].index].prompt_id)
        return real(prepared, records, engine, jobs, *more)

    monkeypatch.setattr(data, "_prompt", prompt)
    allowed: list[bool] = [True, True, False, False]
    monkeypatch.setattr(Budget, "allows", lambda self, recorded: allowed.pop(0))
    folder = workplace / "out"
    first = evaluate(*TOY, "--methods", "baseline,speculative", "--show", "4")
    assert first.exit_code == 0, first.output
    assert prompts(folder) == ["toy-0", "toy-1"]
    assert "the token view shows 2 of 4 prompts: more would take over 20% of the time" in first.stderr
    page = (folder / "tokens.html").read_text()
    assert "toy-2, toy-3" in page.partition("Left out")[2][:200]
    allowed[:] = [True, False]
    assert evaluate(*TOY, "--methods", "baseline,speculative", "--show", "4", "--resume").exit_code == 0
    assert prompts(folder) == ["toy-0", "toy-1", "toy-2"]
    assert seen == ["toy-0", "toy-1", "toy-2"], "what is shown already is not decoded again"
    allowed[:] = [True]
    assert evaluate(*TOY, "--methods", "baseline,speculative", "--show", "4", "--resume").exit_code == 0
    assert seen == ["toy-0", "toy-1", "toy-2", "toy-3"]
    assert "Left out" not in (folder / "tokens.html").read_text()
    assert not (folder / token_page.DECODED).exists()
    (run,) = comparison_runs()
    assert {"tokens.html", "tokens.json"} <= {f.path for f in MlflowClient().list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_a_short_run_is_shown_whole_and_prompts_that_are_named_always(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*TOY, "--methods", "baseline"]
    assert evaluate(*given, "--show", "3").exit_code == 0
    assert len(prompts(workplace / "out")) == 3
    monkeypatch.setattr(token_page, "LEAST", 0.0)
    monkeypatch.setattr(token_page, "SHARE", 1e-9)
    more = evaluate(*given, "--show", "4", "--resume")
    assert "shows 3 of 4 prompts" in more.stderr
    assert len(prompts(workplace / "out")) == 3
    assert evaluate(*given, "--show", "toy-3", "--resume").exit_code == 0
    assert prompts(workplace / "out") == ["toy-3"]


@pytest.mark.slow
def test_an_interruption_of_the_token_view_leaves_finished_runs_and_is_made_up_for(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = data._prompt, list[str]()

    def stops(prepared: Any, records: Any, engine: Any, jobs: Any, *more: Any) -> Any:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(prepared.examples[jobs[0].index].prompt_id)
        return real(prepared, records, engine, jobs, *more)

    given = [*TOY, "--methods", "baseline,speculative", "--show", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(data, "_prompt", stops)
        assert evaluate(*given).exit_code == 130
    folder = workplace / "out"
    (run,) = comparison_runs()
    assert run.info.status == "FINISHED", "results do not wait for what is only looked at"
    assert (folder / "report.html").is_file()
    assert "tokens.html" not in (folder / "report.html").read_text()
    assert not (folder / "tokens.html").exists()
    assert evaluate(*given, "--resume").exit_code == 0
    assert prompts(folder) == ["toy-0", "toy-1", "toy-2"]
    assert 'href="tokens.html"' in (folder / "report.html").read_text()
    (again,) = comparison_runs()
    own = MlflowClient().download_artifacts(again.info.run_id, "report.html", str(workplace))
    assert 'href="tokens.html"' in Path(own).read_text()
