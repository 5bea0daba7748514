"""The harness's arguments of the model become settings, or are refused in one sentence each; without the harness."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from specexp.errors import ConfigError, TaskError
from specexp.lm_eval import __main__ as command
from specexp.lm_eval.generation import output_settings
from specexp.lm_eval.model_args import AUTO_BATCH, MAX_GEN_TOKS, model_args
from specexp.tasks.task import task

GREEDY: dict[str, Any] = {"until": [], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}


def test_arguments_are_settings_by_name() -> None:
    args = model_args({"method": "specexec", "tree_budget": 24, "gamma": 3, "seed": 5, "dtype": "bfloat16"})
    (method,) = args.experiment.methods
    assert method.tree is not None
    assert (method.tree.tree_budget, method.tree.max_depth, args.experiment.seed) == (24, 3, 5)
    assert {model.dtype for model in args.experiment.models.values()} == {"bfloat16"}
    assert (args.batch_size, args.max_gen_toks) == (1, MAX_GEN_TOKS)
    assert model_args({"max_new_tokens": 99}).max_gen_toks == 99


def test_settings_of_one_model_and_of_both() -> None:
    models = model_args({"target": "t", "draft": "d", "draft.dtype": "float16", "device": "cuda:0"}).experiment.models
    assert [(m.model, m.dtype, m.device) for m in models.values()] == [
        ("t", "float32", "cuda:0"),
        ("d", "float16", "cuda:0"),
    ]
    models = model_args({"target": "t", "draft": "layers:0-1", "device": "cuda:0"}).experiment.models
    assert (models["draft"].layers, models["draft"].device) == ("0-1", "cuda:0")


@pytest.mark.parametrize("given, size", [({"batch_size": 4}, 4), ({"batch_size": "auto:2"}, AUTO_BATCH)])
def test_a_batch_size_may_be_auto(given: dict[str, Any], size: int) -> None:
    assert model_args(given).batch_size == size
    assert model_args({"batch_size": "auto", "max_batch_size": 3}).batch_size == 3


@pytest.mark.parametrize(
    "given, message",
    [
        ({"pretrained": "gpt2"}, "unknown setting 'pretrained'"),
        ({"draft.kind": "x"}, "draft.kind: unknown setting 'kind'"),
        ({"temperature": 0.5}, "temperature is given in model_args, but the harness sets it; use --gen_kwargs."),
        ({"repeats": 2}, "repeats is given, but nothing uses it here; leave it out."),
        ({"method": "nothing"}, "unknown method 'nothing'"),
        ({"method": "baseline", "gamma": 3}, "gamma is given, but no selected method uses it"),
        ({"gamma": "2,3"}, "makes 2 settings here"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number >= 1."),
        ({"target": 3}, "target is 3; it must be a folder"),
    ],
)
def test_what_is_wrong_is_said_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_args(given)
    assert message in str(caught.value)
    assert len(caught.value.faults) == 1


def test_settings_of_an_output() -> None:
    asked = output_settings({**GREEDY, "top_p": 0.5, "num_beams": 1}, ["\n"])
    assert (asked.settings, asked.until) == ({"temperature": 0.0, "top_p": 0.5}, ("\n",))
    assert output_settings({**GREEDY, "do_sample": True, "temperature": 0.7}, []).settings == {"temperature": 0.7}
    with pytest.raises(ConfigError) as caught:
        output_settings({**GREEDY, "do_sample": True, "num_beams": 4, "penalty_alpha": 1}, [])
    assert caught.value.faults == [
        "generation setting num_beams is 4; specexp decodes with 1 only.",
        next(fault for fault in caught.value.faults if fault.startswith("unknown generation setting 'penalty_alpha'")),
        "do_sample is true, but temperature is 0, at which nothing is drawn; set temperature.",
    ]


def test_without_the_harness_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    said = "lm-evaluation-harness is not installed; pip install 'specexp[lm-eval]'."
    assert capsys.readouterr().err == f"error: {said}\n"
    with pytest.raises(TaskError) as caught:
        task("lm_eval:gsm8k")
    assert str(caught.value) == (
        "task 'lm_eval:gsm8k' needs lm-evaluation-harness, which is not installed; pip install 'specexp[lm-eval]'."
    )


def test_later_releases_find_the_model_by_its_entry_point() -> None:
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lm_eval.models"] == {"specexp": "specexp.lm_eval.model:SpecexpLM"}
    assert "class SpecexpLM(TemplateLM)" in (root / "specexp/lm_eval/model.py").read_text()
