"""`evaluate` on servers of others: llama.cpp's own and llama-cpp-python's, and `transformers serve`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.cli_runner import evaluate, records
from helpers.llama_cpp_server import FILES, MODEL, llama_cpp_serving
from helpers.llama_server import MODEL as SERVED
from helpers.llama_server import llama_serving
from helpers.transformers_serve import TARGET, transformers_serving

WHOLE = Path(__file__).resolve().parents[2] / ".real" / "whole"
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="openai is not installed; make test-served runs this"
)
needs_llama_server = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not FILES,
    reason="xllamacpp or SmolLM2 is missing; make test-served runs this",
)
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None or not FILES,
    reason="llama-cpp-python or SmolLM2 is missing; make test-llama-cpp builds both",
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def evaluated(folder: Path, engine: dict[str, Any], *methods: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """The output and the summary of an evaluation with these engines and methods."""
    given = {"engine": engine, "methods": list(methods), "limit": 3, "max_new_tokens": 24, **more}
    (folder / "mine.yaml").write_text(yaml.safe_dump(given))
    result = evaluate("--experiment", "arith_quick", "--config", "mine.yaml", "--output", "out")
    assert result.exit_code == 0, result.output
    return result.output, json.loads((folder / "out" / "summary.json").read_text())


@needs_llama_server
@pytest.mark.slow
def test_llama_cpps_prompt_lookup_is_measured_with_its_own_counts(workplace: Path) -> None:
    places = [workplace / name for name in ("plain", "lookup")]
    for place in places:
        place.mkdir()
    with llama_serving(places[0], FILES[0]) as plain, llama_serving(places[1], FILES[0], lookup=True) as drafting:
        methods = {"plain": {"url": plain}, "lookup": {"url": drafting}}
        output, summary = evaluated(
            workplace, {"model": SERVED, "methods": methods}, "engine:plain", "engine:lookup", max_new_tokens=40
        )
    for name in methods:
        assert f"engine:{name}: the server gives text and token ids" in output
    made = records(workplace / "out")
    assert len(made) == 6
    assert all(0 < len(each["token_ids"]) == each["num_tokens"] <= 40 for each in made)
    drafts = [each["served"]["drafts"] for each in made if each["label"] == "engine:lookup"]
    assert sum(each["num_accepted"] for each in drafts) > 0
    assert summary["engine:lookup"]["accept/draft_rate"] > 0
    assert "accept/draft_rate" not in summary["engine:plain"]
    assert "cannot be true" not in output


@needs_llama_cpp
@pytest.mark.nightly
def test_llama_cpp_pythons_prompt_lookup_is_measured_next_to_its_plain_decoding(workplace: Path) -> None:
    lookup = ("--draft_model", "prompt-lookup-decoding", "--draft_model_num_pred_tokens", "4")
    places = [workplace / name for name in ("plain", "lookup")]
    for place in places:
        place.mkdir()
    with llama_cpp_serving(places[0]) as plain, llama_cpp_serving(places[1], *lookup) as drafting:
        engine = {
            "model": MODEL, "request": {"repeat_penalty": 1.0},
            "methods": {"plain": {"url": plain}, "lookup": {"url": drafting}},
        }  # fmt: skip
        output, summary = evaluated(workplace, engine, "engine:plain", "engine:lookup")
    said = "the server gives text and log-probabilities, but no token ids; outputs are compared by text; its tokens are"
    for name in ("plain", "lookup"):
        assert f"engine:{name}: {said} counted by log-probabilities" in output
    made = records(workplace / "out")
    assert len(made) == 6
    assert all(0 < each["num_tokens"] <= 24 and each["served"]["drafts"] is None for each in made)
    assert "accept/draft_rate" not in summary["engine:lookup"]  # it says nothing of its drafts
    print(f"equal outputs: {summary['engine:lookup']['quality/equal_to_baseline']:.0%}")
    texts = {name: [each["text"] for each in made if each["label"] == f"engine:{name}"] for name in ("plain", "lookup")}
    assert sorted(texts["plain"]) == sorted(texts["lookup"])


def transformers_outputs(workplace: Path, model: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    with transformers_serving(workplace, model) as server:
        engine = {"model": server.model, "url": server.url}
        output, summary = evaluated(workplace, engine, "engine:served", "baseline", target={"model": str(model)})
    return output, summary, records(workplace / "out")


@needs_openai
@pytest.mark.slow
def test_transformers_serve_gives_what_our_plain_decoding_gives(workplace: Path) -> None:
    output, _, made = transformers_outputs(workplace, TARGET)
    assert "engine:served: the server gives text, but no token ids and no log-probabilities" in output
    assert_equal(made)


@needs_openai
@pytest.mark.nightly
@pytest.mark.skipif(not WHOLE.exists(), reason="SmolLM2's folder is missing; make real writes it")
def test_transformers_serve_of_a_real_model_is_measured(workplace: Path) -> None:
    _, summary, made = transformers_outputs(workplace, WHOLE)
    assert len(made) == 6
    assert summary["engine:served"]["speed/tokens_per_second"] > 0


def assert_equal(made: list[dict[str, Any]]) -> None:
    def by_prompt(label: str) -> dict[str, tuple[str, int]]:
        return {
            each["prompt_id"]: (each["text"], each.get("num_tokens") or len(each["token_ids"]))
            for each in made
            if each["label"] == label
        }

    assert len(by_prompt("baseline")) == 3
    assert by_prompt("engine:served") == by_prompt("baseline")
