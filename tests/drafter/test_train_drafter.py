"""A drafter's life: outputs, training, interruption, evaluation, registration, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import Result
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from entrypoints import train_drafter
from helpers.cli_runner import invoke, refused, runs
from specexp import checkpoints, config
from specexp.drafter import acceptance, head_folder, making, registry, target_outputs, training
from specexp.drafter.preparation import PreparedDrafter, layers_of, make_head, prepare
from specexp.drafter.target_states import TargetStates, num_layers
from specexp.errors import ConfigError, ModelError, OutputError

# The embedded draft model in the place of a target: it has two layers.
SMALL = [
    "--target", "zoo:draft", "--draft", "zoo:draft", "--limit", "64", "--max-new-tokens", "12", "--passes", "2",
    "--train-batch", "12", "--depth", "2",
]  # fmt: skip


def train(*arguments: str) -> Result:
    return invoke(train_drafter.command, *SMALL, "--timed", "2", *arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "head" / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
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
    assert {made[name].info.status for name in ("train drafter", "drafter arith")} == {"FINISHED"}
    assert {"drafter/greedy_1", "drafter/model_sampled_8"} <= made["drafter arith"].data.metrics.keys()
    assert {"drafter/head_speedup", "drafter/head_c", "drafter/model_position_1"} <= made[
        "drafter arith"
    ].data.metrics.keys()
    curve = [m for run in runs() for m in MlflowClient().get_metric_history(run.info.run_id, "train/loss_2")]
    assert curve[-1].step == 10  # 60 outputs to train on, 12 a step, 2 passes
    (version,) = MlflowClient().search_model_versions("name='drafter'")
    assert version.tags["target"] == content["specexp"]["target"]
    assert version.tags["verdict"] == "champion"
    addresses = ("models:/drafter@champion", "models:/drafter/1", f"runs:/{version.run_id}/drafter", str(out / "head"))
    for place, address in enumerate(addresses):
        scratch = workplace / f"fetched{place}"
        scratch.mkdir()
        fetched = registry.fetch(address, scratch)
        for name in ("config.json", "model.safetensors"):
            assert (fetched / name).read_bytes() == (out / "head" / name).read_bytes(), address
    model = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/drafter@champion"))
    assert registry.fetch(str(model), workplace) == model / "head"
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert files - {"registered_model_meta"} == {"MLmodel", "head/config.json", "head/model.safetensors"}, (
        "no code, nothing pickled"
    )
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


@pytest.fixture(scope="module")
def prepared() -> PreparedDrafter:
    flags = {name[2:].replace("-", "_"): value for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    return prepare(config.resolve_drafter("arith_quick", flags))


def collect(prepared: PreparedDrafter, folder: Path, done: Callable[[int], object] = lambda num: None) -> list[str]:
    """Decode what is missing; the lines of the file."""
    target_outputs.collect(prepared.pair, prepared.plan(), folder, prepared.facts(), done)
    return (folder / "outputs.jsonl").read_text().splitlines()


def test_outputs_of_a_killed_run_are_kept_and_the_others_are_those_of_a_whole_one(
    prepared: PreparedDrafter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    lines, seen = collect(prepared, whole), []

    def stop(num: int) -> None:
        seen.append(num)
        if len(seen) == 21:  # the first counts what is there
            raise Killed

    with pytest.raises(Killed):
        collect(prepared, killed, stop)
    kept = (killed / "outputs.jsonl").read_text()
    assert len(kept.splitlines()) == 1 + 20
    with (killed / "outputs.jsonl").open("a") as file:
        file.write('{"key": ["output"')  # a line that is cut off
    made: list[int] = []
    after = collect(prepared, killed, made.append)
    assert made == [20, *[1] * 44]
    assert "\n".join(after).startswith(kept.rstrip())
    assert sorted(after) == sorted(lines)
    assert len(lines) == 65
    assert "is cut off; it is dropped" in capsys.readouterr().err
    assert collect(prepared, whole, made.append) == lines
    with pytest.raises(OutputError, match="was begun with another target"):
        target_outputs.collect(prepared.pair, prepared.plan(), whole, {**prepared.facts(), "target": "another"})


def test_every_second_output_is_greedy_and_equals_generate(prepared: PreparedDrafter, tmp_path: Path) -> None:
    outputs = target_outputs.collect(prepared.pair, prepared.plan(), tmp_path, prepared.facts())
    assert [out.sampled for out in outputs] == [False, True] * 32
    for out in outputs[:8:2]:
        ids = torch.tensor([out.prompt])
        wanted = prepared.target.module.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()
        assert out.ids == wanted
    train_part, held_out = target_outputs.split(outputs)
    assert (len(train_part), len(held_out)) == (60, 4)
    assert {out.sampled for out in held_out} == {False, True}


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint_and_gives_the_same_head(
    prepared: PreparedDrafter, tmp_path: Path
) -> None:
    outputs = target_outputs.collect(prepared.pair, prepared.plan(), tmp_path, prepared.facts())
    states = TargetStates(prepared.target, prepared.layers)
    recipe = replace(prepared.recipe(60), log_every=1, checkpoint_every=4)
    assert recipe.steps == 10
    heads = []
    for name, kill_at in (("whole", 99), ("killed", 6)):
        steps: list[int] = []

        def log(metrics: Mapping[str, float], step: int, seen: list[int] = steps, last: int = kill_at) -> None:
            seen.append(step)
            if step == last:
                raise Killed

        if kill_at < 99:
            with pytest.raises(Killed):
                training.train(make_head(prepared, range(592)), outputs, states, recipe, tmp_path / name, log)
            assert steps == [1, 2, 3, 4, 5, 6]
            steps.clear()
        head = make_head(prepared, range(592))
        training.train(head, outputs, states, recipe, tmp_path / name, partial(log, last=99))
        heads.append(head.state_dict())
        assert steps == list(range(1 if kill_at == 99 else 5, 11))
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    with pytest.raises(OutputError, match="was made by another recipe"):
        checkpoints.load_checkpoint(replace(recipe, depth=3), tmp_path / "whole")


def test_training_lowers_the_loss_at_every_depth(prepared: PreparedDrafter, tmp_path: Path) -> None:
    outputs = target_outputs.collect(prepared.pair, prepared.plan(), tmp_path, prepared.facts())
    states = TargetStates(prepared.target, prepared.layers)
    head, recipe = make_head(prepared, range(592)), replace(prepared.recipe(60), low=False)
    before = training.losses(head, outputs, states, recipe, 2)
    training.train(head, outputs, states, recipe, tmp_path / "work", lambda metrics, step: None)
    after = training.losses(head, outputs, states, recipe, 2)
    assert (after < 0.9 * before).all()


@pytest.mark.nightly
def test_a_finished_run_resumed_makes_the_same_head(workplace: Path) -> None:
    assert train("--output", "out").exit_code == 0
    shutil.copytree("out", "before")
    (workplace / "out" / "checkpoint.pt").unlink()  # the training runs again, on the outputs that are there
    result = train("--output", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert same(workplace / "before", workplace / "out")
    assert (workplace / "before/outputs.jsonl").read_bytes() == (workplace / "out/outputs.jsonl").read_bytes()


def test_the_states_are_those_that_leave_the_layers_before_the_last_norm(prepared: PreparedDrafter) -> None:
    ids, total = torch.tensor([[0, 5, 9, 30]]), num_layers(prepared.target)
    states, logits = TargetStates(prepared.target, [0, total - 1, total - 1])(ids)
    with torch.no_grad():
        out = prepared.target.module(input_ids=ids, output_hidden_states=True, use_cache=False)
        normed = prepared.target.module.model.norm(states[..., 160:])
    assert torch.equal(states[..., :80], out.hidden_states[1])
    assert torch.equal(states[..., 80:160], states[..., 160:])
    torch.testing.assert_close(normed, out.hidden_states[-1])  # transformers' last ones are after the norm
    assert torch.equal(logits, out.logits.float())


def test_acceptance_of_a_draft_model_is_that_of_its_own_logits(prepared: PreparedDrafter, tmp_path: Path) -> None:
    """The target as its own draft: every token is accepted; a disturbed one: by hand, at one place."""
    outputs = target_outputs.collect(prepared.pair, prepared.plan(), tmp_path, prepared.facts())[:6]
    states = TargetStates(prepared.target, prepared.layers)
    own = acceptance.of_draft(prepared.target, outputs, states, 3)
    assert own.greedy == (1.0, 1.0, 1.0)
    assert own.overlap == pytest.approx((1, 1, 1), abs=1e-5)
    assert own.num_places == sum(len(out.tokens) for out in outputs)
    assert own.tokens_per_call() == [1, 2, 3, 4]
    assert acceptance.Acceptance((0.5, 0.5), (0.8, 0.5), 1).tokens_per_call(False) == pytest.approx([1, 1.8, 2.2])


def test_a_head_of_fewer_ids_scores_the_most_frequent_ones(prepared: PreparedDrafter) -> None:
    outputs = [target_outputs.TargetOutput([1], [7, 7, 3, 3, 3, 9], False)]
    assert target_outputs.draft_ids(outputs, 2, 592) == [3, 7]
    assert target_outputs.draft_ids(outputs, 5, 592) == [0, 1, 3, 7, 9]
    assert target_outputs.draft_ids(outputs, 592, 592) == list(range(592))
    head = make_head(prepared, [3, 7])
    assert head.logits(torch.zeros(1, 80)).shape == (1, 2)


def test_a_folder_is_written_whole_or_not_at_all(
    prepared: PreparedDrafter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, folder = make_head(prepared, range(592)), tmp_path / "head"
    embedding = prepared.target.module.get_input_embeddings().weight
    head_folder.write(head, {"target": "a"}, folder, torch.float32)
    read = head_folder.read(folder, embedding)
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in head.state_dict().items())
    before = (folder / "config.json").read_bytes()

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head_folder, "write_json", full)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        head_folder.write(head, {"target": "b"}, folder)
    assert (folder / "config.json").read_bytes() == before
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot be read"):
        head_folder.read(folder, embedding)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is not that of an EAGLE-3 head"):
        head_folder.read(folder, embedding)


def test_a_drafter_that_is_not_there_is_told_by_its_address(workplace: Path) -> None:
    with pytest.raises(ModelError, match=r"head 'models:/drafter@champion' is not in the store .* train_drafter"):
        registry.fetch("models:/drafter@champion", workplace)
    (workplace / "empty").mkdir()
    with pytest.raises(ModelError, match=r"'empty' holds no drafter: it needs config\.json and model\.safetensors"):
        registry.fetch("empty", workplace)
    (workplace / "empty" / "MLmodel").write_text("flavors: {python_function: {}}")
    with pytest.raises(ModelError, match="the MLflow model in 'empty' is not a head"):
        registry.fetch("empty", workplace)


WRONG = {
    "--depth 0": "depth is '0'; it must be a whole number >= 1",
    "--depth 17": "it must be a whole number >= 1 and at most 16",
    "--layers 1,2": "layers is '1,2'; it must be 3 layers of the target, counted from 0",
    "--task mtbench": "task 'mtbench' has no training prompts",
    "--limit 63": "limit is 63; a drafter needs at least 64 prompts",
    "--name a/b": "name is 'a/b'; it must be letters, digits",
}


@pytest.mark.parametrize("given", WRONG)
def test_wrong_settings_are_refused_before_anything_is_loaded(workplace: Path, unloaded: None, given: str) -> None:
    refused(invoke(train_drafter.command, *given.split(), "--output", "out"), WRONG[given], workplace)


def test_the_toy_pair_has_no_states() -> None:
    with pytest.raises(ConfigError, match="pair 'toy' has no hidden states"):
        config.resolve_drafter("toy_quick", {})


def test_a_target_in_several_processes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("target: {device: cpu, tensor_parallel: 2}\n")
    with pytest.raises(ConfigError, match="tensor_parallel is 2, but a drafter is trained on layers of one process"):
        config.resolve_drafter("arith_quick", {"config": str(tmp_path / "shared.yaml")})


def test_layers_are_early_middle_and_last_unless_given() -> None:
    assert layers_of((), 8, "x") == (1, 4, 7)
    assert layers_of((), 1, "x") == (0, 0, 0)
    assert layers_of((0, 2, 7), 8, "x") == (0, 2, 7)
    with pytest.raises(ModelError, match="layers has 8, but model 'x' has 8 layers, 0 to 7"):
        layers_of((0, 2, 8), 8, "x")


def test_the_depth_rises_to_the_settings() -> None:
    recipe = training.DrafterRecipe(100, depth=7)
    assert [training.depth_at(step, recipe) for step in (0, 5, 10, 25, 49, 50, 99)] == [2, 2, 3, 4, 7, 7, 7]
    assert {training.depth_at(step, training.DrafterRecipe(100, depth=1)) for step in range(100)} == {1}


def test_batches_are_a_function_of_the_step_and_use_every_output_once_a_pass() -> None:
    outputs = [target_outputs.TargetOutput([1] * (i % 5 + 1), [i, 1], False) for i in range(40)]
    recipe = training.DrafterRecipe(20, batch=4)
    whole = [[out.tokens[0] for out in rows] for rows in training.batches(outputs, recipe, 0)]
    assert len(whole) == 20
    for start in (1, 10, 13):
        rest = [[out.tokens[0] for out in rows] for rows in training.batches(outputs, recipe, start)]
        assert rest == whole[start:]
    for first in (0, 10):
        assert sorted(i for rows in whole[first : first + 10] for i in rows) == list(range(40))
