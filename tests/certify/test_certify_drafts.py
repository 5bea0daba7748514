"""Certificates of every kind of draft on the embedded models: the target's own layers, and other tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrypoints import certify as entry
from helpers import other_tokenizers
from helpers.cli_runner import invoke

KINDS = ("own layers", "intersection", "text")
SAMPLED = [pytest.param(kind, "0.7", marks=pytest.mark.nightly) for kind in (*KINDS, "draft_temperature")]
CASES = [*(pytest.param(kind, "0", marks=pytest.mark.slow) for kind in KINDS), *SAMPLED]


@pytest.mark.parametrize(("kind", "temperature"), CASES)
def test_every_kind_of_draft_is_certified(workplace: Path, kind: str, temperature: str) -> None:
    settings: dict[str, Any] = {"draft_temperature": 0} if kind == "draft_temperature" else {"draft": {"layers": "0-5"}}
    if kind in ("intersection", "text"):
        path = other_tokenizers.save(workplace / "draft", "fewer")
        settings = {"draft": {"model": str(path), "dtype": "float32", "vocabulary": kind}}
    (workplace / "mine.yaml").write_text(yaml.safe_dump(settings))
    result = invoke(
        entry.command, "--experiment", "arith_quick", "--config", "mine.yaml", "--method", "speculative",
        "--limit", "2", "--max-new-tokens", "24", "--temperature", temperature, "--output", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    checks = {each["name"]: each for each in json.loads((workplace / "out/certificate.json").read_text())["checks"]}
    assert checks["oracle"]["verdict"] == "passed"
    assert checks["oracle"]["numbers"]["gap"] < 1e-12
    sampled = float(temperature) > 0
    assert [each["verdict"] for each in checks.values()].count("does not apply") == 1, "equality or samples"
    assert sampled == (checks["chi-square"]["verdict"] == "passed")
