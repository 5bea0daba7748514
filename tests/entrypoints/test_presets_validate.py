"""presets and validate: what ships, by name, and whether it is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from entrypoints import presets, validate
from specexp import config


def test_presets_lists_everything_with_what_it_is_for() -> None:
    result = CliRunner().invoke(presets.command, [])
    assert result.exit_code == 0
    for kind in config.KINDS:
        assert f"{kind}:" in result.output.splitlines()
        for name in config.preset_names(kind):
            line = next(line for line in result.output.splitlines() if line.split()[0] == name)
            assert len(line.split()) > 4


def test_presets_shows_one_with_its_header() -> None:
    result = CliRunner().invoke(presets.command, ["speculative"])
    assert result.output.startswith("# methods/speculative.yaml\n# Speculative sampling")
    assert "gamma: 8" in result.output


def test_an_unknown_preset_comes_with_a_suggestion() -> None:
    result = CliRunner().invoke(presets.command, ["speculativ"])
    assert result.exit_code == 2
    assert "unknown preset 'speculativ', did you mean 'speculative'?" in result.output


@pytest.mark.slow
def test_everything_that_ships_is_valid() -> None:
    result = CliRunner().invoke(validate.command, [])
    assert result.exit_code == 0, result.output
    for name in config.preset_names("experiments"):
        assert f"experiment {name}: good" in result.output
    for pair in ("embedded", "llama_8b_eagle3", "glm45_air_mtp", "qwen3_8b_dflash", "gemma3_27b_qwen3_06b"):
        assert f"method speculative with pair {pair}: good" in result.output
        trees = f"method specexec with pair {pair}: good" in result.output
        assert trees == (pair in ("embedded", "llama_8b_eagle3")), pair


def test_all_faults_of_all_files_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text("limit: 3\n")
    Path("bad.yaml").write_text("limt: 3\ntemperature: warm\n")
    Path("worse.yaml").write_text("{")
    result = CliRunner().invoke(validate.command, ["good.yaml", "bad.yaml", "worse.yaml"])
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[0].startswith("file good.yaml: good, 3 settings")
    assert lines[1].startswith("error: bad.yaml: unknown setting 'limt', did you mean 'limit'?")
    assert lines[2].startswith("error: bad.yaml: temperature is 'warm'")
    assert lines[3].startswith("error: worse.yaml: not valid YAML")
    assert len(lines) == 4
