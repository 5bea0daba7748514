"""A certificate's check of what logits depend on: judged with `numerics: invariant`, reported without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entrypoints import certify as entry
from helpers.cli_runner import invoke
from specexp.certify import own_models
from specexp.evaluation.equality import Difference
from specexp.lm.native.kv_cache import NativeSession

BFLOAT16 = "target: {model: zoo:target, dtype: bfloat16}\ndraft: {model: zoo:draft, dtype: bfloat16}\n"


def certified(numerics: str, method: str = "speculative", *more: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the checks by name, and what was said."""
    Path("mine.yaml").write_text(BFLOAT16)
    arguments = ["--config", "mine.yaml", "--limit", "2", "--max-new-tokens", "16", "--output", f"out-{numerics}"]
    result = invoke(entry.command, "--method", method, "--numerics", numerics, *arguments, *more)
    assert result.exit_code in (0, 1), result.output
    written = json.loads(Path(f"out-{numerics}", "certificate.json").read_text())
    return result.exit_code, {check["name"]: check for check in written["checks"]}, " ".join(result.output.split())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["speculative", "specexec"])
def test_invariant_numerics_pass_and_the_fastest_are_reported(workplace: Path, method: str) -> None:
    code, checks, said = certified("invariant", method)
    assert (code, checks["invariance"]["verdict"]) == (0, "passed")
    assert "logits of a token are the same bits among 2 to 16 rows, in trees of 24 to 160 nodes, in a piece" in said
    assert checks["invariance"]["numbers"]["differing"] == 0
    assert checks["equality"]["numbers"]["equal_share"] == 1
    assert {each["what"] for each in checks["invariance"]["details"]["target"]} >= {"rows", "neighbours in a batch"}
    code, checks, said = certified("fastest", method)
    assert (code, checks["invariance"]["verdict"]) == (0, "reported")
    assert checks["invariance"]["numbers"]["differing"] > 0
    assert "the target's logits depend on rows (" in said
    assert "invariance found divergences" not in said


@pytest.mark.slow
def test_a_difference_fails_with_invariant_numerics(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that only appears after the models were loaded, in few rows of a batch or of a chain."""
    feed = NativeSession.feed

    def several(self: NativeSession, tokens: Any, rows: int, *more: Any, **named: Any) -> Any:
        logits, hidden = feed(self, tokens, rows, *more, **named)
        return (logits * (1 + 1e-6) if rows == 7 else logits), hidden  # rows that loading does not try

    monkeypatch.setattr(NativeSession, "feed", several)
    code, checks, said = certified("invariant")
    assert (code, checks["invariance"]["verdict"]) == (1, "failed")
    assert "numerics is invariant, but the target's logits depend on rows (7 tokens; by up to" in said
    assert "; the draft's logits depend on rows (7 tokens" in said


@pytest.mark.slow
@pytest.mark.parametrize(("numerics", "verdict"), [("invariant", "failed"), ("fastest", "passed")])
def test_a_near_tie_is_a_failure_with_invariant_numerics(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, numerics: str, verdict: str
) -> None:
    real = own_models.difference

    def difference(engine: Any, dtype: Any, name: str, prompt: str, ids: Any, text: Any, other: Any, draws: Any) -> Any:
        if name == own_models.EQUAL:
            return Difference(name, prompt, 0, text[0], other[0], 0.0, True)
        return real(engine, dtype, name, prompt, ids, text, other, draws)

    monkeypatch.setattr(own_models, "difference", difference)
    code, checks, said = certified(numerics)
    assert (code, checks["equality"]["verdict"]) == (verdict == "failed", verdict)
    assert ("which no difference may be: numerics is invariant" in said) == (verdict == "failed")
