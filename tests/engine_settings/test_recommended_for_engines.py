"""What advise and certify recommend reaches the arguments of engines, the terminal, the folder and the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from entrypoints import certify
from helpers.advice import SMALL, advise, advised
from helpers.cli_runner import invoke, runs
from specexp.advise.recommended import recommended_for_engines

FILES = {"engines.json", "engines.txt"}


def test_advice_that_adapts_tells_other_engines_the_best_fixed_length() -> None:
    advice = advised(gamma="2,4,8,auto", sweep=False, limit="2", max_new_tokens="20", repeats="1")
    [adapting] = [each for each in advice.candidates if each.adapts and each.method == "speculative"]
    fixed = {each.size: advice.forecast.predicted[each.label].speedup for each in advice.candidates if not each.adapts}
    assert len(fixed) == 3
    result = recommended_for_engines(replace(advice, best=adapting.label))
    assert result.method == adapting.setting.config
    assert result.fixed_gamma == result.gamma == max(fixed, key=fixed.__getitem__)


def test_advice_not_to_speculate_is_an_engine_without_drafts() -> None:
    advice = advised(draft_step=1.0, noise=0.0, gamma="1,2", sweep=False, limit="1", max_new_tokens="12", repeats="1")
    result = recommended_for_engines(replace(advice, best=None))
    assert (result.drafter, result.gamma, result.draft) == ("plain", 0, None)


def test_advise_leaves_the_arguments_in_the_folder_and_the_run(workplace: Path) -> None:
    result = advise(*SMALL, "--limit", "2", "--draft", "none", "--tree-budget", "none", "--output", "out")
    assert result.exit_code == 0, result.output
    assert "Arguments of engines: none, since no engine can load the toy pair." in result.output
    assert list(json.loads(Path("out/engines.json").read_text())["engines"]) == [
        "vLLM", "SGLang", "TensorRT-LLM", "llama.cpp", "transformers",
    ]  # fmt: skip
    [made] = runs()
    assert {file.path for file in MlflowClient().list_artifacts(made.info.run_id)} >= FILES


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "lossless"), [("0", True), ("0.7", False)])
def test_certify_gives_arguments_for_a_lossless_verdict_alone(
    workplace: Path, temperature: str, lossless: bool
) -> None:
    """Top-K accepts what is not the target's choice; at K = 1 and temperature 0 it is speculative decoding."""
    arguments = ["--method", "topk", "--accept-k", "1", "--gamma", "3", "--temperature", temperature]
    arguments += ["--samples", "400"] if temperature != "0" else []
    arguments += ["--limit", "2", "--max-new-tokens", "24"]
    result = invoke(certify.command, *arguments, "--output", "out")
    assert result.exit_code == (0 if lossless else 1), result.output
    left = {file.name for file in Path("out").iterdir()} & FILES
    assert left == (FILES if lossless else set())
    if lossless:
        content = json.loads(Path("out/engines.json").read_text())
        command = content["engines"]["SGLang"]["command"]
        assert command in result.output
        assert "--speculative-algorithm STANDALONE" in command
        assert "--speculative-num-steps 3" in command
        assert {file.path for file in MlflowClient().list_artifacts(runs()[0].info.run_id)} >= FILES
