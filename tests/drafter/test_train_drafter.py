"""A drafter's life: outputs, training, interruption, evaluation, registration, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import Result
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from entrypoints import train_drafter
from helpers.cli_runner import invoke, refused, runs
from specexp import config
from specexp.drafter import acceptance, head_folder, making, registry, target_outputs, training
from specexp.drafter.preparation import layers_of, prepare
from specexp.errors import ConfigError, ModelError, OutputError

# The embedded draft model in the place of a target: it has two layers.
SMALL = [
    "--target", "zoo:draft", "--draft", "zoo:draft", "--limit", "64", "--max-new-tokens", "12", "--passes", "2",
    "--train-batch", "12", "--depth", "2",
]  # fmt: skip


def train(*arguments: str) -> Result:
    return invoke(train_drafter.command, *SMALL, *arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "head" / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_trained_drafter_is_evaluated_registered_and_fetched_by_every_address(workplace: Path) -> None:
    result = train("--output", "out")
    assert result.exit_code == 0, result.output
    out = workplace / "out"
    lines = (out / "outputs.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 64  # the facts, and an output for each prompt
    content = json.loads((out / "head" / "config.json").read_text())
    assert content["architectures"] == ["LlamaForCausalLMEagle3"]
    assert content["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 1, 1]
    assert (content["hidden_size"], content["target_hidden_size"], content["draft_vocab_size"]) == (80, 80, 592)
    assert weights(out)["fc.weight"].dtype == torch.bfloat16
    made = {run.data.tags["mlflow.runName"]: run for run in runs()}
    assert made["drafter arith"].info.status == "FINISHED"
    curve = [m for run in runs() for m in MlflowClient().get_metric_history(run.info.run_id, "train/loss_2")]
    assert curve[-1].step == 10  # 60 outputs to train on, 12 a step, 2 passes
    (version,) = MlflowClient().search_model_versions("name='drafter'")
    assert version.tags["target"] == content["specexp"]["target"]
    assert version.tags["verdict"] == "champion"
    addresses = ("models:/drafter@champion", "models:/drafter/1", f"runs:/{version.run_id}/drafter", str(out / "head"))
    for address in addresses:
        fetched = registry.fetch(address)
        for name in ("config.json", "model.safetensors"):
            assert (fetched / name).read_bytes() == (out / "head" / name).read_bytes(), address
    model = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/drafter@champion"))
    assert registry.fetch(str(model)) == model / "head"
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert files == {"MLmodel", "head/config.json", "head/model.safetensors"}, "no code, nothing pickled"
    again = train("--output", "again", "--seed", "1")
    assert again.exit_code == 0, again.output
    first, second = (making.score(_acceptance(workplace / name)) for name in ("out", "again"))
    assert ("is champion" in again.output) == (second > first)
    assert f"against the champion's {first:.3f}" in again.output or second > first


def _acceptance(folder: Path) -> dict[tuple[str, str], acceptance.Acceptance]:
    content = json.loads((folder / "acceptance.json").read_text())
    return {
        (name.rpartition(" ")[0], name.rpartition(" ")[2]): acceptance.Acceptance(
            tuple(each["greedy"]), tuple(each["overlap"]), each["num_places"]
        )
        for name, each in content.items()
    }


class Killed(BaseException):
    """Stands for a kill."""


def test_a_killed_run_goes_on_with_nothing_lost_or_doubled(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("--output", "whole")
    assert whole.exit_code == 0, whole.output
    made = config.resolve_drafter("arith_quick", dict(zip((a[2:].replace("-", "_") for a in SMALL[::2]), SMALL[1::2])))
    prepared = prepare(made)
    folder = workplace / "killed"
    folder.mkdir()

    def stop(num: int) -> None:
        seen.append(num)
        if len(seen) == 20:
            raise Killed

    seen: list[int] = []
    with pytest.raises(Killed):
        target_outputs.collect(prepared.pair, prepared.plan(), folder, prepared.facts(), stop)
    num_before = len((folder / "outputs.jsonl").read_text().splitlines())
    assert 1 < num_before < 65
    with (folder / "outputs.jsonl").open("a") as file:
        file.write('{"key": ["output"')  # a line that is cut off
    monkeypatch.setattr(training.DrafterRecipe, "checkpoint_every", 4, raising=False)
    original = prepared.recipe(60)
    recipe = training.DrafterRecipe(**{**_asdict(original), "checkpoint_every": 4})
    outputs = target_outputs.collect(prepared.pair, prepared.plan(), folder, prepared.facts())
    lines = (folder / "outputs.jsonl").read_text().splitlines()
    assert len(lines) == 65
    assert sorted(lines) == sorted((workplace / "whole" / "outputs.jsonl").read_text().splitlines())
    parts, _ = target_outputs.split(outputs)
    from specexp.drafter.preparation import make_head
    from specexp.drafter.target_states import TargetStates

    states = TargetStates(prepared.target, prepared.layers)

    def kill_at(step: int) -> Any:
        def log(metrics: Any, now: int) -> None:
            if now >= step:
                raise Killed

        return log

    heads = []
    for work, when in (("one", 99), ("two", 6)):
        steps = training.DrafterRecipe(**{**_asdict(recipe), "log_every": 1})
        head = make_head(prepared, range(592))
        if when < 99:
            with pytest.raises(Killed):
                training.train(head, parts, states, steps, workplace / work, kill_at(when))
            head = make_head(prepared, range(592))
            state = training.load_checkpoint(steps, workplace / work)
            assert state is not None
            assert state["step"] == 4
        numbers: list[int] = []
        training.train(head, parts, states, steps, workplace / work, lambda m, now: numbers.append(now))
        assert numbers[-1] == 10
        heads.append(head.state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def _asdict(recipe: training.DrafterRecipe) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(recipe)


def test_a_finished_run_resumed_makes_the_same_head(workplace: Path) -> None:
    assert train("--output", "out").exit_code == 0
    shutil.copytree("out", "before")
    (workplace / "out" / "checkpoint.pt").unlink()  # the training runs again, on the outputs that are there
    result = train("--output", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert same(workplace / "before", workplace / "out")
    assert (workplace / "before/outputs.jsonl").read_bytes() == (workplace / "out/outputs.jsonl").read_bytes()
