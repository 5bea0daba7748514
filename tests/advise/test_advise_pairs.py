"""`advise` on the embedded models, with drafts of other kinds: predicted tokens a call are those measured, or near."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import other_tokenizers
from helpers.advice import advise
from helpers.cli_runner import evaluate, records

pytestmark = pytest.mark.slow

FEW = ["--limit", "3", "--max-new-tokens", "48", "--repeats", "1", "--sweep", "--output", "out"]


def lengths(workplace: Path, settings: dict[str, Any]) -> dict[str, tuple[str, float, float]]:
    """By label: the source of the mean length, the predicted one and the measured one."""
    (workplace / "mine.yaml").write_text(yaml.safe_dump({"task": "arith", **settings}))
    result = advise("--experiment", "arith_quick", "--config", "mine.yaml", *FEW)
    assert result.exit_code == 0, result.output
    candidates = json.loads((workplace / "out/advice.json").read_text())["candidates"]
    for each in candidates:
        assert each["error"] == pytest.approx(each["speedup"] / each["measured"]["speedup"]["value"] - 1)
        assert not each["measured"]["unexplained"]
    return {
        each["label"]: (each["lengths"], each["mean_length"], each["measured"]["mean_length"]) for each in candidates
    }


@pytest.mark.at_most(slow=1)
@pytest.mark.parametrize("draft", [{"model": "zoo:draft", "dtype": "float32"}, {"layers": "0-5"}], ids=["draft", "own"])
def test_drafts_of_the_targets_tokens_are_predicted_to_the_round(workplace: Path, draft: dict[str, str]) -> None:
    target = {"model": "zoo:target", "dtype": "float32"}
    methods = ["speculative", "lookup", "suffix", "chained"]
    found = lengths(workplace, {"target": target, "draft": draft, "methods": methods, "gamma": [2, 6]})
    assert len(found) == 12
    for source, predicted, measured in found.values():
        assert source == "simulated"
        assert predicted == pytest.approx(measured)


def test_a_draft_that_adapts_is_predicted_nearly(workplace: Path) -> None:
    ((source, predicted, measured),) = lengths(workplace, {"methods": ["speculative_auto"], "min_draft_probability": 0,
                                                           "gamma": "auto"}).values()  # fmt: skip
    assert source == "simulated"
    assert predicted == pytest.approx(measured, rel=0.1)
    assert (workplace / "out/draft_costs.json").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["fewer", "permuted"])
def test_a_draft_over_common_tokens_is_predicted_nearly(workplace: Path, kind: str) -> None:
    path = other_tokenizers.save(workplace / "draft", kind)
    draft = {"model": str(path), "dtype": "float32", "vocabulary": "intersection"}
    found = lengths(workplace, {"draft": draft, "methods": ["speculative", "chained"], "gamma": [2, 6]})
    assert len(found) == 8
    for source, predicted, measured in found.values():
        assert source == "simulated"
        assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.nightly
def test_a_draft_that_writes_text_is_counted(workplace: Path) -> None:
    path = other_tokenizers.save(workplace / "draft", "fewer")
    draft = {"model": str(path), "dtype": "float32", "vocabulary": "text"}
    settings = {"draft": draft, "methods": ["speculative", "chained"], "gamma": [1, 2, 3, 4, 5, 6, 7],
                "min_draft_probability": 0}  # fmt: skip
    found = lengths(workplace, settings)
    assert sorted(source for source, _, _ in found.values()) == ["counted"] * 10 + ["interpolated"] * 4
    for source, predicted, measured in found.values():
        assert predicted == pytest.approx(measured, rel=1e-9 if source == "counted" else 0.1)


@pytest.mark.nightly
def test_chains_and_trees_of_a_head_are_predicted_to_the_round(workplace: Path) -> None:
    settings = {"target": {"model": "zoo:target", "dtype": "float32"}, "draft": {"eagle3": "zoo:drafter"},
                "methods": ["speculative", "chained", "specexec"], "gamma": [2, 8], "tree_budget": [8, 32]}  # fmt: skip
    found = lengths(workplace, settings)
    assert len(found) == 10
    for label, (source, predicted, measured) in found.items():
        assert source == ("counted" if label.startswith("specexec") else "simulated")
        assert predicted == pytest.approx(measured)
    # The counts are those of an evaluation of the same prompts.
    methods = ["--methods", "baseline,speculative", "--gamma", "2,8", *FEW[:4], "--output", "evaluated"]
    result = evaluate("--experiment", "arith_drafter", *methods)
    assert result.exit_code == 0, result.output
    rows = records(workplace / "evaluated")
    for gamma in (2, 8):
        counted = [row for row in rows if row["label"] == f"speculative_k{gamma}"]
        tokens = sum(len(row["token_ids"]) for row in counted)
        assert found[f"speculative_k{gamma}"][1] == pytest.approx(tokens / sum(row["num_rounds"] for row in counted))
