"""Model folders and judges with a file that was changed by hand: refused by the field, before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save

from helpers.cli_runner import is_refused, run, tiny
from helpers.judges import judge_for
from specexp.errors import JudgeError
from specexp.judge import features, registry
from specexp.judge.judge import Judge

CONFIGS = {
    "no heads": ("config.json", {"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number >= 1"),
    "heads below none": ("config.json", {"num_attention_heads": -1}, "in its config.json, num_attention_heads is -1;"),
    "heads as text": ("config.json", {"num_attention_heads": "4"}, "num_attention_heads is '4'; it must be a whole"),
    "no key heads": ("config.json", {"num_key_value_heads": 0}, "num_key_value_heads is 0; it must be a whole number"),
    "no width": ("config.json", {"hidden_size": 0}, "hidden_size is 0; it must be a whole number >= 1"),
    "no layers": ("config.json", {"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a whole number >= 1"),
    "no inner width": ("config.json", {"intermediate_size": 0}, "intermediate_size is 0; it must be a whole number"),
    "no tokens": ("config.json", {"vocab_size": -1}, "vocab_size is -1; it must be a whole number >= 1"),
    "a window as text": ("config.json", {"sliding_window": "x"}, "sliding_window is 'x'; it must be a whole number >="),
    "an end as text": ("config.json", {"eos_token_id": "x"}, "model './model' has no config that can be loaded: Valid"),
    "an end below 0": ("config.json", {"eos_token_id": -1}, "eos_token_id is -1; it must be a token id in 0 to 591, o"),
    "an unknown kind": ("config.json", {"model_type": "nope"}, "model './model' has no config that can be loaded: The"),
    "a context of 1": ("config.json", {"max_position_embeddings": 1}, "context is 1, which holds no draft; name model"),
    "a small context": ("config.json", {"max_position_embeddings": 8}, "gamma is 8; with a context of 8 it must be at"),
    "no JSON": ("config.json", "{", "model './model' has no config that can be loaded: It looks like the config file"),
    "no object": ("config.json", "[]", "model './model' has no config that can be loaded: Unrecognized model"),
    "deep": ("config.json", "[" * 9000 + "]" * 9000, "model './model' has no config that can be loaded: maximum recur"),
    "another end as text": ("generation_config.json", {"eos_token_id": "x"}, "generation_config.json, eos_token_id is"),
    "ends in lists": ("generation_config.json", {"eos_token_id": [[1]]}, "in its generation_config.json, eos_token_id"),
    "no generation JSON": ("generation_config.json", "{", "model './model': its generation_config.json cannot be read"),
    "no generation object": ("generation_config.json", "[]", "model './model': its generation_config.json is invalid:"),
    "no tokenizer JSON": ("tokenizer.json", "{", "'./model' has no tokenizer that can be loaded: Expecting property"),
    "a tokenizer of null": ("tokenizer_config.json", "null", "'./model' has no tokenizer that can be loaded: 'NoneTyp"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers, on what is wrong
@pytest.mark.parametrize("what", CONFIGS)
def test_a_broken_model_folder_is_refused_before_weights_are_read(workplace: Path, unloaded: None, what: str) -> None:
    name, content, message = CONFIGS[what]
    path = tiny(workplace / "model") / name
    if isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content}))
    is_refused(run("evaluate", "--target", "./model", "--gamma", "8", "--output", "out"), message)
    assert not (workplace / "out").exists()


JUDGES: dict[str, tuple[dict[str, Any] | str, str]] = {
    "a threshold of NaN": ('{"threshold": NaN}', "cannot be read: judge.json is not JSON: NaN is not a JSON value."),
    "a threshold as text": ({"threshold": "0.5"}, "in judge.json, threshold is '0.5'; it must be a number >= 0."),
    "a threshold of null": ({"threshold": None}, "in judge.json, threshold is None; it must be a number >= 0."),
    "a threshold below 0": ({"threshold": -1}, "in judge.json, threshold is -1; it must be a number >= 0."),
    "a threshold without end": ('{"threshold": 1e999}', "is inf; it must be a number >= 0"),
    "no tokenizer": ({"tokenizer": None}, "in judge.json, tokenizer is None; it must be a string."),
    "a target of numbers": ({"target": 5}, "in judge.json, target is 5; it must be a string."),
    "other features": ({"features": "target"}, "it reads 12 features, but 'target' of this pair has 6"),
    "features as a list": ({"features": ["both"]}, "in judge.json, features is ['both']; it must be a string."),
    "a version as text": ({"feature_version": "1"}, "feature_version is '1'; it must be a whole number >= 0."),
    "a number of features as text": ({"num_features": "12"}, "num_features is '12'; it must be a whole number >= 0."),
    "a recall above 1": ({"recall": 2}, "in judge.json, recall is 2; it must be a number in [0, 1]."),
    "a switch": ({"requested_recall": True}, "requested_recall is True; it must be a number in [0, 1]."),
    "two at once": ({"kind": 1, "task": 2}, "task is 2; it must be a string, kind is 1; it must be a string."),
    "a list": ("[]", "cannot be read: judge.json must be an object, got list."),
    "a key twice": ('{"task": "a", "task": "b"}', "judge.json: 'task' is given twice; give it once."),
    "deep": ("[" * 9000, "judge.json is nested too deep. At most 100 levels are read."),
    "nothing": ("{}", "in judge.json, target is missing, draft is missing, tokenizer is missing, features is missing"),
}  # fmt: skip


@pytest.mark.parametrize("what", JUDGES)
def test_a_broken_judge_is_refused_and_every_field_named(workplace: Path, what: str) -> None:
    changed, message = JUDGES[what]
    judge_for("toy_quick", features.mode("both")).save(workplace / "judge")
    path = workplace / "judge" / "judge.json"
    if isinstance(changed, str):
        whole = path.read_text()  # numbers that only text can give stand in the place of the whole one's
        path.write_text(whole.replace('"threshold": 0.5', changed.strip("{}")) if "threshold" in what else changed)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    arguments = ["--experiment", "toy_quick", "--methods", "baseline,autojudge", "--judge", "judge", "--output", "out"]
    is_refused(run("evaluate", *arguments), message)
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("array,value", [("scale", 0.0), ("mean", float("nan")), ("bias_1", float("inf"))])
def test_a_judge_whose_weights_are_no_numbers_is_refused(workplace: Path, array: str, value: float) -> None:
    judge = judge_for("toy_quick", features.mode("both"), "logistic")
    broken = {**judge.network.arrays}
    broken[array] = broken[array].copy()
    broken[array][0] = value
    judge.save(workplace / "judge")
    (workplace / "judge" / "judge.safetensors").write_bytes(save(broken))
    with pytest.raises(JudgeError, match=f"the judge in 'judge' cannot be read: {array} holds values that are not"):
        Judge.load(Path("judge"))
    (workplace / "judge" / "judge.safetensors").write_bytes(save({**judge.network.arrays, "bias_1": np.zeros(2, "f4")}))
    with pytest.raises(JudgeError, match=r"bias_1 is float32\[2\]; it must be float32\[1\]"):
        Judge.load(Path("judge"))


def test_of_a_file_address_and_of_an_address_in_the_store_only_a_judges_files_are_read(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_for("toy_quick", features.mode("both"))
    judge.save(workplace / "good")
    (workplace / "good" / "big.bin").write_bytes(b"x" * 1000)
    with mlflow.start_run() as run_:
        mlflow.log_artifacts("good", "judge")
        mlflow.log_artifacts("good", "none")
        mlflow.log_text("x", "others/a.txt")
    got: list[str] = []
    download = mlflow.artifacts.download_artifacts

    def count(artifact_uri: str, **more: Any) -> str:
        got.append(artifact_uri.rsplit("/", 1)[-1])
        return str(download(artifact_uri=artifact_uri, **more))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", count)
    address = f"runs:/{run_.info.run_id}"
    assert registry.load(f"{address}/judge").digest() == judge.digest()
    assert got == ["judge.json", "judge.safetensors"]
    assert registry.load((workplace / "good").as_uri()).digest() == judge.digest()
    for bad in (f"{address}/others", Path("/etc").as_uri()):
        got.clear()
        with pytest.raises(JudgeError, match=f"'{bad}' holds no judge: it needs judge.json and judge.safetensors"):
            registry.load(bad)
        assert not got, "nothing is copied"
    monkeypatch.setattr(registry, "MOST_BYTES", 100)
    with pytest.raises(JudgeError, match=r"holds no judge: its judge\.json has more than 100 bytes"):
        registry.load(f"{address}/judge")
    assert not got


def test_an_mlflow_model_that_points_elsewhere_is_no_judge(workplace: Path) -> None:
    for place in ("..", "/etc", "a/../../b"):
        text = f"flavors: {{python_function: {{artifacts: {{judge: {{path: {place}}}}}}}}}"
        (workplace / "MLmodel").write_text(text)
        with pytest.raises(JudgeError, match=r"the MLflow model in '.*' is not a judge; make one with train_judge"):
            registry.load(str(workplace))
