"""`evaluate`, `certify` and `advise` with drafts of MTP layers and of a DFlash assistant, on tiny folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrypoints.advise import resolve, with_fitting_chains
from helpers.advice import advise
from helpers.chain_heads import dflash_folder, mtp_folder
from helpers.cli_runner import ZOO, evaluate, is_refused, records, run, tiny
from specexp.method_specs import models_of
from specexp.pair.first_look import longest_chain


@pytest.fixture(scope="module")
def mellum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with one MTP layer, and the embedded pair's tokenizer."""
    folder = mtp_folder(tmp_path_factory.mktemp("mellum"), "mellum", vocab_size=592, max_position_embeddings=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ZOO / "target" / name, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("llama"), max_position_embeddings=512)


@pytest.fixture
def drafting(workplace: Path, mellum: Path, llama: Path) -> dict[str, tuple[Path, str, int]]:
    """By kind: a target, its draft, and how many tokens that drafts."""
    place = dflash_folder(workplace / "draft", [0, 1], mask_token_id=3)
    return {"mtp": (mellum, "mtp", 1), "dflash": (llama, f"dflash:{place}", 4)}


def arguments(target: Path, draft: str, *more: str) -> list[str]:
    return ["--target", str(target), "--draft", draft, "--limit", "2", "--max-new-tokens", "16", *more]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("mtp", marks=pytest.mark.slow), "dflash"])
def test_evaluate(kind: str, workplace: Path, drafting: Any) -> None:
    target, draft, gamma = drafting[kind]
    methods = ["--methods", "baseline,speculative,chained", "--gamma", str(gamma), "--output", "out"]
    result = evaluate(*arguments(target, draft, *methods))
    assert result.exit_code == 0, result.output
    rows = records(workplace / "out")
    texts: dict[str, set[str]] = {}
    for row in rows:
        texts.setdefault(row["prompt_id"], set()).add(str(row["token_ids"]))
    assert [len(each) for each in texts.values()] == [1, 1], "every method puts out plain decoding's tokens"
    (chained,) = {row["method"] for row in rows if row["method"].startswith("speculative")}
    for row in rows:
        if row["method"] == chained:
            assert 0 < row["num_draft_calls"] <= row["num_rounds"], "one forward a round"
            assert row["num_drafted"] > row["num_rounds"] * gamma * 0.5


def test_refusals(workplace: Path, mellum: Path, llama: Path) -> None:
    refused = evaluate(*arguments(mellum, "mtp", "--methods", "speculative", "--gamma", "3", "--output", "out"))
    is_refused(refused, "gamma of 'speculative_k3' is 3, but model")
    refused = evaluate(*arguments(llama, "mtp", "--methods", "speculative", "--gamma", "1", "--output", "out"))
    is_refused(refused, "(llama) has no MTP layers that transformers knows by its config;")
    refused = evaluate(*arguments(llama, f"dflash:{llama}", "--methods", "speculative", "--output", "out"))
    is_refused(refused, "has no block_size in its config, so it is no DFlash draft that transformers knows")


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("kind", ["mtp", "dflash"])
def test_sampled_tokens_have_the_targets_distribution(kind: str, rule: str, drafting: Any) -> None:
    target, draft, gamma = drafting[kind]
    method = ["--method", "speculative", "--rule", rule, "--gamma", str(gamma), "--temperature", "0.8"]
    result = run("certify", *arguments(target, draft, *method, "--samples", "200", "--output", "out"))
    assert result.exit_code == 0, result.output


@pytest.mark.at_most(slow=1)
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["mtp", "dflash"])
def test_benchmark_times_what_generate_drafts(
    kind: str, workplace: Path, drafting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specexp.profiling.bandwidth.LARGE", 1 << 20)
    monkeypatch.setattr("specexp.profiling.bandwidth.ONCE", 1 << 20)
    target, draft, gamma = drafting[kind]
    small = ["--quick", "true", "--repeats", "2", "--json", "report.json", "--output", "out"]
    result = run("benchmark", *arguments(target, draft, *small, "--gamma", str(gamma)))
    assert result.exit_code == 0, result.output
    report = (workplace / "report.json").read_text()
    assert f'"assisted_k{gamma}"' in report
    if kind == "dflash":
        wrong = run("benchmark", *arguments(target, draft, "--quick", "true", "--output", "other", "--gamma", "3"))
        assert wrong.exit_code == 2
        assert "gamma is 3, but transformers' generate() always drafts 4 with draft dflash:" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mtp", "dflash"])
def test_advise_weighs_the_lengths_that_the_draft_can_have(
    kind: str, workplace: Path, mellum: Path, llama: Path
) -> None:
    target, draft, most = mellum, {"mtp": True}, 1
    if kind == "dflash":
        target, most = llama, 4
        draft = {"dflash": str(dflash_folder(workplace / "draft", [0, 1], mask_token_id=3))}
    settings = {"target": {"model": str(target)}, "draft": draft, "methods": ["speculative", "chained"]}
    (workplace / "mine.yaml").write_text(yaml.safe_dump(settings))
    given = ["--experiment", "arith_quick", "--config", "mine.yaml", "--limit", "2", "--max-new-tokens", "16"]
    result = advise(*given, "--repeats", "1", "--sweep", "--output", "out")
    assert result.exit_code == 0, result.output
    advice = json.loads((workplace / "out/advice.json").read_text())
    names = [f"{method}_k{gamma}" for method in ("speculative", "chained") for gamma in range(1, most + 1)]
    assert {each["label"] for each in advice["candidates"]} == {f"{name}{p}" for name in names for p in ("", "_p0.4")}
    for each in advice["candidates"]:
        assert each["lengths"] == "simulated"
        assert each["mean_length"] == pytest.approx(each["measured"]["mean_length"])
    refused = advise(*given, "--gamma", "9", "--output", "other")
    is_refused(refused, "gamma of 'speculative_k9' is 9, but")


def test_what_advise_weighs_by_itself_goes_with_the_draft(workplace: Path, mellum: Path, llama: Path) -> None:
    folder = dflash_folder(workplace / "draft", [0, 1], mask_token_id=3)
    for target, draft, most in ((mellum, "mtp", 1), (llama, f"dflash:{folder}", 4)):
        resolved, *_ = resolve("arith_quick", {"target": str(target), "draft": draft, "temperature": "1"})
        assert longest_chain(resolved) == most
        methods = with_fitting_chains(resolved, most).methods
        with_draft = [method for method in methods if "draft" in models_of(method)]
        assert {method.gamma for method in with_draft} == set(range(1, most + 1))
        assert {method.method for method in with_draft} == {"speculative", "chained"}
        assert not any(method.auto_gamma for method in with_draft)
        assert max(method.gamma for method in methods) == 16, "lookup and suffix have no such limit"
    head, *_ = resolve("arith_quick", {"target": "zoo:target", "draft": "eagle3:zoo:drafter"})
    assert longest_chain(head) is None
    assert any(method.auto_gamma for method in head.methods)
    assert with_fitting_chains(head, 3).methods[-1].max_gamma == 3
