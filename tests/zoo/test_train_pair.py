"""How the embedded pair is made: the tokenizer it ships with, and a training that can be interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from entrypoints.train_pair import command
from helpers.sandboxes import sandbox_of
from specexp.errors import OutputError
from specexp.lm.hf.loading import load_model, load_tokenizer
from specexp.lm.hf.source import ZOO
from specexp.lm.runtime import ModelConfig
from specexp.sandbox.sandbox import Sandbox
from specexp.tasks import arith
from specexp.zoo import training
from specexp.zoo.training_tasks import TASKS, SmallFunctions, TrainingTask

TINY = replace(
    training.RECIPES["arith"]["draft"], layers=1, hidden=16, heads=1, steps=6, batch=2, warmup=2, checkpoint_every=2
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return training.build_tokenizer()


@pytest.mark.slow
def test_the_shipped_tokenizer_is_the_one_that_training_builds(tokenizer: Any) -> None:
    for name in ("target", "draft"):
        shipped = load_tokenizer(ModelConfig(f"zoo:{name}"))
        assert shipped.get_vocab() == tokenizer.get_vocab()
        text = "Zoë has 1234 stones, 5+67=72!\n#### 72"
        assert shipped(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert shipped.decode(shipped(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.slow
def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("it is 27+15=42.", add_special_tokens=False)["input_ids"])
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("271542")


def test_a_batch_asks_for_solutions_not_for_questions(tokenizer: Any) -> None:
    ids, labels = next(training.batches(TINY, tokenizer, 0))
    for row, wanted in zip(ids, labels, strict=True):
        answer = tokenizer.decode([int(t) for t in wanted if t != training.IGNORE], skip_special_tokens=True)
        assert arith.extract_answer(answer) is not None
        assert "How many" not in answer
        assert "How many" in tokenizer.decode(row)


def test_batches_are_a_function_of_the_step(tokenizer: Any) -> None:
    recipe = replace(TINY, steps=20)
    whole = [ids for ids, _ in training.batches(recipe, tokenizer, 0)]
    assert len(whole) == 20
    for start in (1, 15, 16, 19):
        rest = [ids for ids, _ in training.batches(recipe, tokenizer, start)]
        assert len(rest) == 20 - start
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_an_interrupted_training_ends_with_the_same_weights(tokenizer: Any, tmp_path: Path) -> None:
    whole = training.train(TINY, tokenizer, tmp_path / "whole", lambda metrics, step: None)

    class Stopped(Exception):
        pass

    real, calls = torch.nn.utils.clip_grad_norm_, 0

    def stop(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Stopped
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
        with pytest.raises(Stopped):
            training.train(TINY, tokenizer, tmp_path / "again", lambda metrics, step: None)
    again = training.train(TINY, tokenizer, tmp_path / "again", lambda metrics, step: None)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    training.train(TINY, tokenizer, tmp_path, lambda metrics, step: None)
    with pytest.raises(OutputError, match="made by another recipe"):
        training.train(replace(TINY, hidden=32), tokenizer, tmp_path, lambda metrics, step: None)


def test_another_recipe_leaves_a_finished_training_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    recipe = replace(training.RECIPES["arith"]["draft"], steps=1)
    training.train(recipe, tokenizer, tmp_path / "work" / "draft", lambda metrics, step: None)
    folders = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "zoo")]
    result = CliRunner().invoke(command, ["--models", "draft", *folders, "--steps", "2"])
    assert result.exit_code == 2
    assert "made by another recipe" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["work"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--models", "drafft"], "unknown model 'drafft', did you mean 'draft'?"),
        (["--steps", "-1"], "steps is '-1'"),
        (["--task", "arith_cod"], "unknown task 'arith_cod', did you mean 'arith_code'?"),
        (["--task", "arith_code"], "task 'arith_code' runs programs that a model wrote; set execute to sandbox"),
        (["--execute", "here"], "unknown execution 'here'"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.slow
def test_a_training_is_one_run_however_often_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(training, "RECIPES", {"arith": {"draft": replace(TINY, steps=40)}})
    monkeypatch.setattr(training, "solve_rate", lambda model, tokenizer, task: 0.25)
    for _ in range(2):
        result = CliRunner().invoke(command, ["--models", "draft", "--work", "work", "--output", "zoo"])
        assert result.exit_code == 0, result.output
        assert "draft: solves 25.0% of 200 unseen problems" in result.output
    (run,) = MlflowClient().search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["hidden"] == "16"
    for key, steps in (("train/loss", [20, 40]), ("quality/accuracy", [40])):
        assert [m.step for m in MlflowClient().get_metric_history(run.info.run_id, key)] == steps


def test_a_saved_model_is_a_folder_that_loads(tokenizer: Any, tmp_path: Path) -> None:
    model = training.build_model(TINY, tokenizer)
    training.save(model, tokenizer, tmp_path / "tiny")
    loaded = load_model(ModelConfig(str(tmp_path / "tiny")))
    assert loaded.eos_ids == (tokenizer.eos_token_id,)
    assert loaded.vocab_size == len(tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"], "nothing half-written is left"


@pytest.mark.parametrize("folder,most", [(ZOO, 16 * 2**20), (ZOO / "code", 4_000_000)])
def test_a_pair_is_small(folder: Path, most: int) -> None:
    assert 0 < sum(p.stat().st_size for name in ("target", "draft") for p in (folder / name).iterdir()) < most


@pytest.mark.parametrize("task,folder", [("arith", "zoo:"), ("arith_code", "zoo:code/")])
def test_a_shipped_model_has_the_size_of_its_recipe(task: str, folder: str) -> None:
    for name, recipe in training.RECIPES[task].items():
        config = load_model(ModelConfig(f"{folder}{name}")).module.config
        assert (config.num_hidden_layers, config.hidden_size) == (recipe.layers, recipe.hidden)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "task,folder,count", [(TASKS["arith"], "zoo:", 100), (SmallFunctions(Sandbox()), "zoo:code/", 60)]
)
def test_the_target_solves_what_the_draft_often_does_not(task: TrainingTask, folder: str, count: int) -> None:
    solved = {
        n: training.solve_rate(
            load_model(ModelConfig(f"{folder}{n}")), load_tokenizer(ModelConfig(f"{folder}{n}")), task, count
        )
        for n in ("target", "draft")
    }
    assert solved["target"] >= 0.90
    assert 0.20 <= solved["draft"] <= 0.70


def test_a_pair_is_trained_on_small_functions_by_the_same_trainer(tmp_path: Path) -> None:
    """A smoke test: two steps, a tokenizer of its own texts, and the share that the model solves, which is none."""
    recipe = replace(TINY, steps=2, task="arith_code")
    tokenizer = training.build_tokenizer(problems=300, vocab_size=400, task="arith_code")
    problem = next(TASKS["arith_code"].problems("test"))
    text = training.render(problem, TASKS["arith_code"])
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    ids, labels = next(training.batches(recipe, tokenizer, 0))
    for row, wanted in zip(ids, labels, strict=True):
        answer = tokenizer.decode([int(t) for t in wanted if t != training.IGNORE], skip_special_tokens=True)
        assert answer.startswith("def f(a")
        assert "def f(a" in tokenizer.decode(row)
    model = training.train(recipe, tokenizer, tmp_path / "work", lambda metrics, step: None)
    training.save(model, tokenizer, tmp_path / "tiny")
    loaded = load_model(ModelConfig(str(tmp_path / "tiny")))
    task = SmallFunctions(sandbox_of("subprocess"))
    assert training.solve_rate(loaded, tokenizer, task, count=2, max_new_tokens=4) == 0
    with pytest.raises(OutputError, match="made by another recipe"):
        training.train(replace(recipe, task="arith"), tokenizer, tmp_path / "work", lambda metrics, step: None)


def test_a_checkpoint_from_before_there_were_tasks_is_one_of_arith(tokenizer: Any, tmp_path: Path) -> None:
    training.train(TINY, tokenizer, tmp_path, lambda metrics, step: None)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["recipe"].pop("task") == "arith"
    torch.save(state, tmp_path / "checkpoint.pt")
    training.train(TINY, tokenizer, tmp_path, lambda metrics, step: None)
