"""`evaluate` and `certify` with drafts of MTP layers and of a DFlash assistant, on tiny folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.chain_heads import dflash_folder, mtp_folder
from helpers.cli_runner import ZOO, evaluate, is_refused, records, run, tiny


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


@pytest.mark.parametrize("kind", ["mtp", "dflash"])
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


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("kind", ["mtp", "dflash"])
def test_sampled_tokens_have_the_targets_distribution(kind: str, rule: str, drafting: Any) -> None:
    target, draft, gamma = drafting[kind]
    method = ["--method", "speculative", "--rule", rule, "--gamma", str(gamma), "--temperature", "0.8"]
    result = run("certify", *arguments(target, draft, *method, "--samples", "200", "--output", "out"))
    assert result.exit_code == 0, result.output


@pytest.mark.slow
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
