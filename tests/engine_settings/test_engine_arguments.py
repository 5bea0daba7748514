"""Arguments of engines for what is recommended: golden files, refusals, and the engines' own parsers."""

from __future__ import annotations

import argparse
import ast
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from specexp.config import MethodConfig, TreeConfig
from specexp.engine_settings import llama_cpp, served, sglang, tensorrt_llm, transformers_generate, vllm
from specexp.engine_settings.engine_arguments import EngineArguments
from specexp.engine_settings.recommendation import Recommendation
from specexp.lm.runtime import ModelConfig

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "engines"
ENGINES = ("vLLM", "SGLang", "TensorRT-LLM", "llama.cpp", "transformers")
TARGET = ModelConfig("org/target", dtype="bfloat16")
DRAFT = ModelConfig("org/draft", dtype="bfloat16")
SAMPLED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 3}


def chain(method: str = "speculative", gamma: int = 4, **settings: Any) -> MethodConfig:
    return MethodConfig(method, method, f"{method}_k{gamma}", gamma, **settings)


def recommended(method: MethodConfig, draft: ModelConfig | None = DRAFT, **more: Any) -> Recommendation:
    given: dict[str, Any] = {"lossless": True, "max_new_tokens": 64, **more}
    return Recommendation(TARGET, draft, method, **given)


def head(**kind: Any) -> ModelConfig:
    return replace(TARGET, **kind)


TREE = MethodConfig("specexec", "specexec", "specexec_b32", tree=TreeConfig(32, 3, parallel_branches=4))
LOOKUP = chain("lookup", 8, max_ngram=3, min_match=2)
SUFFIX = chain("suffix", 16, suffix_factor=1.0, suffix_min_probability=0.1)
CASES = {
    "draft_model": recommended(chain(min_draft_probability=0.4, rule="block"), **SAMPLED),
    "eagle3": recommended(chain(gamma=5), head(eagle3="org/head@abc")),
    "lookup": recommended(LOOKUP, None),
    "suffix": recommended(SUFFIX, None),
    "tree": recommended(TREE),
}
OTHERS = {
    "plain": recommended(MethodConfig("baseline", "baseline", "baseline"), None),
    "argmax": recommended(chain(draft_temperature=0.0), **SAMPLED),
    "mtp": recommended(chain(gamma=1), head(mtp=True)),
    "dflash": recommended(chain(gamma=7), head(dflash="org/block")),
    "layers": recommended(chain(), head(layers="0-9")),
    "common_tokens": recommended(chain(), vocabulary="intersection", **SAMPLED),
    "text": recommended(chain(), vocabulary="text"),
    "auto": recommended(chain(gamma=16, max_gamma=16), fixed_gamma=6),
    "auto_mtp": recommended(chain(gamma=3, max_gamma=3), head(mtp=True)),
    "in_turn": recommended(chain("chained", max_ngram=3, proposers="lookup,draft")),
    "eagle3_tree": recommended(TREE, head(eagle3="org/head")),
}


def made(of: Recommendation) -> dict[str, EngineArguments]:
    return {each.engine: each for each in served.arguments(of)}


@pytest.mark.parametrize("name", CASES)
def test_arguments_are_those_of_the_golden_file(name: str) -> None:
    golden = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8"))
    got = {
        engine: {"command": each.command, "refusal": each.refusal, "differences": list(each.differences)}
        for engine, each in made(CASES[name]).items()
    }
    assert got == {engine: {"command": "", "refusal": "", "differences": [], **each} for engine, each in golden.items()}
    assert tuple(got) == ENGINES


@pytest.mark.parametrize(
    ("name", "refusing"),
    [
        ("plain", ()),
        ("argmax", ()),
        ("mtp", ()),
        ("dflash", ()),
        ("layers", ("vLLM", "SGLang", "TensorRT-LLM", "llama.cpp")),
        ("common_tokens", ("SGLang", "TensorRT-LLM", "llama.cpp")),
        ("text", ("vLLM", "SGLang", "TensorRT-LLM", "llama.cpp")),
        ("auto", ()),
        ("auto_mtp", ("vLLM", "TensorRT-LLM", "llama.cpp", "transformers")),
        ("in_turn", ()),
        ("eagle3_tree", ("vLLM", "llama.cpp", "transformers")),
    ],
)
def test_engines_refuse_what_they_cannot_do(name: str, refusing: tuple[str, ...]) -> None:
    result = made(OTHERS[name])
    assert tuple(engine for engine, each in result.items() if each.refusal) == refusing
    for engine, each in result.items():
        assert bool(each.command) == (engine not in refusing)
        assert each.refusal.startswith(f"{engine} ") or not each.refusal
        assert all(sentence.endswith(".") for sentence in each.differences)


@pytest.mark.parametrize(
    "of",
    [
        recommended(chain("autojudge", judge="j", threshold=0.3), lossless=False),
        recommended(chain(), toy=True),
        recommended(chain("near_best")),
        recommended(MethodConfig("draft_only", "draft_only", "draft_only"), lossless=False),
    ],
    ids=["autojudge", "toy", "installed method", "draft alone"],
)
def test_no_engine_is_told_to_do_something_else(of: Recommendation, monkeypatch: pytest.MonkeyPatch) -> None:
    if of.method.method == "near_best":  # a method of an installed package
        from specexp import method_specs

        facts = method_specs.spec("speculative")
        monkeypatch.setattr("specexp.engine_settings.recommendation.spec", lambda name: facts)
    result = made(of)
    assert len(result) == 5
    assert not [each for each in result.values() if each.command or each.settings]


def test_a_judge_that_passes_nothing_is_speculative_sampling() -> None:
    judged = made(recommended(chain("autojudge", judge="j", threshold=0.0)))
    assert {name: each.settings for name, each in judged.items()} == {
        name: each.settings for name, each in made(recommended(chain())).items()
    }


def test_what_drafts_sample_reaches_the_engines_that_choose() -> None:
    for temperature, wanted in ((None, True), (0.0, False)):
        result = made(recommended(chain(draft_temperature=temperature), **SAMPLED))
        assert (result["vLLM"].settings.get("draft_sample_method") == "probabilistic") == wanted
        assert (result["llama.cpp"].settings.get("--spec-draft-sampling") == "probabilistic") == wanted
    greedy = made(recommended(chain(rule="block")))
    assert "draft_sample_method" not in greedy["vLLM"].settings
    assert "rejection_sample_method" not in greedy["vLLM"].settings, "greedy verification is the same by block"
    assert not greedy["SGLang"].differences


def test_a_length_that_adapts_is_kept_or_named() -> None:
    result = made(OTHERS["auto"])
    told = "It does not adapt the length of drafts (gamma auto): they have 6 tokens"
    assert [engine for engine, each in result.items() if any(told in s for s in each.differences)] == list(ENGINES[:4])
    assert result["transformers"].settings["assistant"]["num_assistant_tokens_schedule"] == "heuristic_transient"
    mtp = made(OTHERS["auto_mtp"])["SGLang"].settings
    assert (mtp["--speculative-adaptive"], mtp["--speculative-num-steps"]) == (True, 3)


def test_requests_switch_off_what_engines_sample_by_default() -> None:
    result = made(recommended(chain(), **SAMPLED))
    assert [result[engine].request["top_k"] for engine in ENGINES] == [0, -1, 0, 0, 0]
    assert result["llama.cpp"].request["min_p"] == 0
    assert made(recommended(chain()))["transformers"].request == {"do_sample": False, "max_new_tokens": 64}


def test_the_text_has_every_command_and_sentence() -> None:
    text = served.text(CASES["draft_model"])
    words = " ".join(text.split())
    content = served.as_json(CASES["draft_model"])
    assert list(content["engines"]) == list(ENGINES)
    for each in made(CASES["draft_model"]).values():
        assert each.command in text
        assert f"{each.engine} (compared with {each.checked})" in text
        assert all(sentence in words for sentence in each.differences)
    assert served.text(recommended(chain(), toy=True)).count("\n") == 0


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_transformers_knows_every_argument(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    each = made({**CASES, **OTHERS}[name])["transformers"]
    if each.refusal:
        return
    given = {**each.settings["assistant"], **each.settings["generate"], **each.request}
    known = transformers.GenerationConfig()
    assert all(hasattr(known, argument) for argument in given)
    transformers.GenerationConfig(**given).validate(strict=True)
    call = ast.parse(each.command).body[-1]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    of_call = {keyword.arg for keyword in call.value.keywords} - {None}
    assert of_call - {"assistant_model", "tokenizer", "assistant_tokenizer"} == {
        *each.settings["generate"], *each.request
    }  # fmt: skip


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_vllm_takes_the_arguments(name: str) -> None:
    config = pytest.importorskip("vllm.config", reason="vLLM is not installed")
    utils = pytest.importorskip("vllm.utils.argparse_utils", reason="vLLM is not installed")
    args = pytest.importorskip("vllm.engine.arg_utils", reason="vLLM is not installed")
    each = vllm.arguments({**CASES, **OTHERS}[name])
    if not each.refusal:
        assert set(each.settings) <= set(config.SpeculativeConfig.__dataclass_fields__)
        parser = args.EngineArgs.add_cli_args(utils.FlexibleArgumentParser())
        parsed = parser.parse_args(["--model", *shlex.split(each.command)[2:]])
        assert (parsed.speculative_config or {}) == each.settings


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_sglang_takes_the_arguments(name: str) -> None:
    server = pytest.importorskip("sglang.srt.server_args", reason="SGLang is not installed")
    each = sglang.arguments({**CASES, **OTHERS}[name])
    if not each.refusal:
        parser = argparse.ArgumentParser()
        server.ServerArgs.add_cli_args(parser)
        parser.parse_args(shlex.split(each.command)[3:])


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_tensorrt_llm_takes_the_arguments(name: str) -> None:
    api = pytest.importorskip("tensorrt_llm.llmapi", reason="TensorRT-LLM is not installed")
    given = dict(tensorrt_llm.arguments({**CASES, **OTHERS}[name]).settings.get("speculative_config", {}))
    if given:
        getattr(api, f"{given.pop('decoding_type')}DecodingConfig")(**given)


@pytest.mark.skipif(shutil.which("llama-server") is None, reason="llama-server is not installed")
def test_llama_server_knows_every_option() -> None:
    told = subprocess.run(["llama-server", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    used = {option for of in (CASES | OTHERS).values() for option in llama_cpp.arguments(of).settings}
    assert len(used) >= 7
    assert not [option for option in used if option not in told]


@pytest.mark.slow
@pytest.mark.parametrize("method", [chain(gamma=3), chain("lookup", 4, max_ngram=3)], ids=["draft", "lookup"])
def test_the_python_for_transformers_runs_and_changes_no_greedy_token(method: MethodConfig) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    draft = ModelConfig("zoo:draft") if method.method == "speculative" else None
    of = Recommendation(ModelConfig("zoo:target"), draft, method, lossless=True, max_new_tokens=24)
    command = transformers_generate.arguments(of).command
    import torch

    inputs = {"input_ids": torch.tensor([[5, 9, 4, 9, 4, 7]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    scope: dict[str, Any] = {"AutoModelForCausalLM": transformers.AutoModelForCausalLM, "inputs": inputs}
    lines = command.splitlines()
    exec("\n".join([*lines[:-1], f"drafted = {lines[-1]}"]), scope)
    plain = scope["target"].generate(**inputs, do_sample=False, max_new_tokens=24)
    assert scope["drafted"].tolist() == plain.tolist()
    if draft is not None:
        assert scope["assistant"].generation_config.num_assistant_tokens == 3
