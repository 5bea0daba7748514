"""An engine that is sent the target's ids must have the target's tokenizer; what else it names is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from helpers.cli_runner import evaluate
from helpers.other_tokenizers import save
from specexp import config
from specexp.errors import ModelError
from specexp.lm.hf.source import resolve
from specexp.pair.loading import load_pair

ENGINE = {"url": "http://127.0.0.1:9", "model": "m"}


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("other") / "permuted", "permuted")


def test_another_tokenizer_next_to_our_own_methods_is_refused_before_anything_is_loaded(
    workplace: Path, permuted: Path, unloaded: None
) -> None:
    given = {"engine": {**ENGINE, "tokenizer": str(permuted)}, "methods": ["engine:served", "baseline"]}
    (workplace / "mine.yaml").write_text(yaml.safe_dump(given))
    result = evaluate("--experiment", "arith_quick", "--config", "mine.yaml", "--output", "out")
    assert result.exit_code == 2, result.output
    assert f"engine:served: tokenizer '{permuted}' is not that of the target" in result.output
    assert "tokens differ ('!' is " in result.output
    assert "leave tokenizer out to send text" in result.output
    assert not (workplace / "out" / "records.jsonl").exists() or not (workplace / "out/records.jsonl").read_text()


def experiment(tokenizer: str, name: str = "arith_quick") -> config.Experiment:
    return config.resolve(name, {"engine": {**ENGINE, "tokenizer": tokenizer}, "methods": "engine:served,baseline"})


def test_the_targets_own_tokenizer_is_taken_by_its_name_and_by_its_folder() -> None:
    for name in ("zoo:target", str(resolve("zoo:target"))):
        assert load_pair(experiment(name), {"target"}).eos_ids


def test_the_toy_pair_has_no_tokenizer_of_an_engine() -> None:
    with pytest.raises(ModelError, match=r"'zoo:target', but our own methods decode the toy pair"):
        load_pair(experiment("zoo:target", "toy_quick"), {"target"})
