"""Tasks of lm-evaluation-harness in evaluate: its prompts, its answers, its accuracy; and which ones are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; make test-lm-eval runs this")

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from helpers.harness_tasks import folder_of_tasks, task
from specexp import config
from specexp.errors import ConfigError, TaskError
from specexp.evaluation import runner
from specexp.evaluation.preparation import prepare
from specexp.storage.run_folder import OutputFolder
from specexp.tasks.harness import FEWSHOT_SEED, HarnessTask
from specexp.tasks.source import DataConfig

pytestmark = pytest.mark.slow
TEXTS = ("#### 42", "It is 7.\n#### 1,234", "no number", "first 3, then 40.", "#### 40", "40")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        folder = folder_of_tasks(tmp_path_factory.mktemp("tasks"), 4)
        bleu = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
        task(folder, "worded", output_type="generate_until", metric_list=bleu)
        task(folder, "several", output_type="generate_until", doc_to_target="{{choices}}")
        choice = [{"name": "letter", "filter": [{"function": "multi_choice_regex"}, {"function": "take_first"}]}]
        task(folder, "lettered", output_type="generate_until", filter_list=choice)
        yield folder


def harness(folder: Path, name: str) -> Any:
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(name)["tasks"][name]
    loaded.set_fewshot_seed(FEWSHOT_SEED)
    return loaded


def own(folder: Path, name: str, shots: int = 0) -> HarnessTask:
    return HarnessTask(f"lm_eval:{name}", DataConfig(str(folder)), shots)


def test_prompts_are_the_harness_s(folder: Path) -> None:
    theirs = harness(folder, "stopped")
    theirs.build_all_requests(limit=3)
    examples = own(folder, "stopped").examples(3)
    assert [each.turns[0] for each in examples] == [each.args[0] for each in theirs.instances]
    assert [each.prompt_id for each in examples] == ["stopped-0", "stopped-1", "stopped-2"]
    assert "####" in examples[0].turns[0], "a solved example"
    assert own(folder, "stopped").stop == ("ives 1", "=6", "s. ", "\n")
    assert len(own(folder, "stopped", shots=2).examples(1)[0].turns[0]) > len(examples[0].turns[0])
    assert own(folder, "stopped").examples(2) == examples[:2]


@pytest.mark.parametrize("name", ["strict", "last"])
def test_two_answers_are_equal_where_the_metric_says_so(folder: Path, name: str) -> None:
    theirs, ours = harness(folder, "generated"), own(folder, f"generated@{name}")
    (example,), ((_, doc),) = ours.examples(1), list(theirs.doc_iterator(limit=1))
    texts = [*TEXTS, f"#### {example.answer}", doc["solution"]]
    theirs._instances = [Instance("generate_until", doc, ("", {}), 0, resps=[text]) for text in texts]
    theirs.apply_filters()
    scores = [theirs.process_results(doc, [each.filtered_resps[name]])["exact_match"] for each in theirs.instances]
    answers = [ours.extract(text, finished=False) for text in texts]
    assert [answer == example.answer for answer in answers] == [score == 1 for score in scores]
    assert scores[-2:] == [1, 1]
    assert answers[1] == ("1" if name == "strict" else "234")
    assert answers[2] is None
    assert ours.comparator.equal("x #### 1,234", "1234", example)


def test_evaluate_has_the_harness_s_accuracy_on_the_same_texts(folder: Path, tmp_path: Path) -> None:
    settings = {
        "task": "lm_eval:generated@last", "data": str(folder), "methods": "baseline,speculative", "limit": 3,
        "max_new_tokens": 64,
    }  # fmt: skip
    experiment = config.resolve("arith_quick", settings)
    assert experiment.name == "lm_eval-generated-last"
    prepared = prepare(experiment)
    assert prepared.stop is not None
    assert any("Question:" in note for note in prepared.notes)
    output = OutputFolder(tmp_path / "out", experiment, resume=False)
    with output.open() as records:
        runner.run(prepared, output, records)
    theirs = harness(folder, "generated")
    docs = dict(theirs.doc_iterator(limit=3))
    assert len(records.records) == 6
    for record in records.records:
        doc = docs[int(record["prompt_id"].rpartition("-")[2])]
        instance = Instance("generate_until", doc, ("", {}), 0, resps=[record["text"]])
        theirs._instances = [instance]
        theirs.apply_filters()
        score = theirs.process_results(doc, [instance.filtered_resps["last"]])["exact_match"]
        assert record["correct"] == (score == 1)
    assert sum(bool(record["correct"]) for record in records.records) >= 2
    again = prepare(config.resolve("arith_quick", {**settings, "stop": "plum"}))
    assert again.stop is not None
    assert (again.stop.strings, again.stop.in_prompt, prepared.stop.in_prompt) == (("plum",), True, False)


@pytest.mark.parametrize(
    "name, message",
    [
        ("chosen", "task 'lm_eval:chosen' asks for multiple_choice; evaluate takes tasks of generate_until"),
        ("worded", "task 'lm_eval:worded' is scored by bleu in its own way"),
        ("lettered", "its filter letter reads more than an output"),
        ("generated@wrong", "task 'lm_eval:generated@wrong': unknown filter 'wrong'"),
        ("generatedx", "unknown task 'lm_eval:generatedx', did you mean 'generated'? Name one that the folder"),
    ],
)
def test_other_tasks_are_refused_by_name(folder: Path, name: str, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        own(folder, name)
    assert message in str(caught.value)


def test_a_task_with_several_right_answers_is_refused(folder: Path) -> None:
    with pytest.raises(TaskError, match="several right answers"):
        own(folder, "several").examples(1)


def test_the_rows_and_settings_of_a_task_have_a_digest(folder: Path) -> None:
    first, other = own(folder, "generated").dataset(), own(folder, "generated@last").dataset()
    assert (first.num_rows, first.name) == (4, "lm_eval:generated")
    assert first.source.startswith("lm_eval:generated version")
    assert first.digest == own(folder, "generated").dataset().digest != other.digest


def test_other_commands_refuse_the_harness_s_tasks() -> None:
    with pytest.raises(ConfigError, match=r"task 'lm_eval:gsm8k' has no answers to check"):
        config.resolve_mining("arith_quick", {"task": "lm_eval:gsm8k"})
    with pytest.raises(ConfigError, match=r"unknown task 'lm_eval:'"):
        config.resolve("arith_quick", {"task": "lm_eval:"})
    with pytest.raises(ConfigError, match=r"shots_data is given, but task 'lm_eval:gsm8k' has its own"):
        config.resolve("arith_quick", {"task": "lm_eval:gsm8k", "shots": 2, "shots_data": "x.jsonl"})
    experiment = config.resolve("arith_quick", {"task": "lm_eval:gsm8k", "shots": 3})
    assert (experiment.shots, experiment.max_new_tokens, experiment.data) == (3, 256, None)
    assert json.loads(json.dumps(experiment.as_dict()))["task"] == "lm_eval:gsm8k"
