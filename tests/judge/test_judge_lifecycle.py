"""A judge's life in MLflow: trained, compared, registered, loaded by every address, refused where it does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import Result
from mlflow.tracking import MlflowClient

from entrypoints import train_judge
from helpers.cli_runner import evaluate, flat_runs, invoke, records, refused, runs
from helpers.judges import judge_for, label_set
from specexp.errors import JudgeError
from specexp.judge import calibration, features, registry, trained_judge
from specexp.judge.judge import Judge
from specexp.judge.labels import LabelSet
from specexp.judge.splits import SPLITS, split_of
from specexp.judge.training import Splits, train_logistic, train_mlp


def train(*arguments: str) -> Result:
    return invoke(train_judge.command, *arguments)


def quiet(metrics: dict[str, float], step: int) -> None:
    """Where training logs to in tests that look at no run."""


def test_prompts_fall_into_splits_by_their_id_alone() -> None:
    drawn = [split_of(f"arith-mining-{i}") for i in range(4000)]
    assert drawn == [split_of(f"arith-mining-{i}") for i in range(4000)]
    for name, share in SPLITS.items():
        assert drawn.count(name) / 4000 == pytest.approx(share / sum(SPLITS.values()), abs=0.03)


def test_a_label_set_comes_back_as_it_was_written(tmp_path: Path) -> None:
    one = label_set(tmp_path / "one")
    two = label_set(tmp_path / "two")
    assert one.labels == two.labels
    assert (tmp_path / "one" / "labels.parquet").read_bytes() == (tmp_path / "two" / "labels.parquet").read_bytes()
    assert one.hash == two.hash != label_set(tmp_path / "three", seed=1).hash
    x, important, labels = one.select(features.mode("both"), "test")
    assert x.shape == (len(labels), 8)
    assert [bool(label.important) for label in labels] == important.tolist()
    assert {label.split for label in labels} == {"test"}


@pytest.mark.parametrize(
    "name,damage,message",
    [
        ("manifest.json", None, "is not a finished label set: manifest.json is missing; run collect_labels."),
        ("labels.parquet", b"", "does not have the hash in its manifest; mine the set again."),
        ("features.safetensors", b"x", "does not have the hash in its manifest; mine the set again."),
        ("manifest.json", b"{", "cannot be read"),
    ],
)
def test_a_broken_label_set_is_refused(tmp_path: Path, name: str, damage: bytes | None, message: str) -> None:
    label_set(tmp_path / "labels")
    path = tmp_path / "labels" / name
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(JudgeError, match=message.replace(".", r"\.")):
        LabelSet.read(tmp_path / "labels")


@pytest.mark.at_most(slow=6)
@pytest.mark.slow
@pytest.mark.parametrize("mode", features.MODES)
def test_both_kinds_learn_what_can_be_learnt_from_every_feature_mode(tmp_path: Path, mode: str) -> None:
    labels = label_set(tmp_path / "labels", noise=0.2)
    splits = Splits.of(labels, features.mode(mode))
    x, important, _ = labels.select(features.mode(mode), "test")
    for trained in (train_logistic(splits, quiet), train_mlp(splits, quiet)):
        report = calibration.report(0.5, np.asarray(trained.network(x)), important)
        assert report["roc_auc"] > 0.97
        assert trained.validation_auc > 0.97


def test_training_again_gives_the_same_judge(tmp_path: Path) -> None:
    splits = Splits.of(label_set(tmp_path / "labels"), features.mode("both"))
    one, two = (train_mlp(splits, quiet).network for _ in range(2))
    assert all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)


def test_a_split_without_both_kinds_is_refused(tmp_path: Path) -> None:
    labels = label_set(tmp_path / "labels", num_prompts=4)
    with pytest.raises(JudgeError, match=r"split .* has .* mismatches, .* of them important;"):
        Splits.of(labels, features.mode("both"))


def test_a_threshold_keeps_the_requested_recall_and_no_more() -> None:
    rng = np.random.default_rng(0)
    important = rng.random(2000) < 0.3
    p = np.clip(0.35 * important + 0.65 * rng.random(2000), 0, 1)
    for recall in (0.5, 0.9, 0.99, 1.0):
        threshold = calibration.threshold_for(recall, p, important)
        assert calibration.recall_at(threshold, p, important) >= recall
        caught = np.sort(p[important])
        assert calibration.recall_at(threshold, p, important) <= recall + 1 / len(caught) + 1e-9
        assert calibration.accepted_at(threshold, p) > 0
    apart = np.where(important, 0.9, 0.1)
    assert calibration.threshold_for(0.99, apart, important) == pytest.approx(0.5), "the middle of the gap"
    with pytest.raises(JudgeError, match="the calibration split has no important mismatch"):
        calibration.threshold_for(0.9, p, np.zeros(2000, bool))


def test_train_judge_compares_calibrates_logs_and_registers(workplace: Path) -> None:
    label_set(workplace / "labels")
    result = train("--labels", "labels", "--recall", "0.95", "--output", "judge")
    assert result.exit_code == 0, result.output
    assert "autojudge version 1 is champion: the first of this name" in result.output
    by_name = {run.info.run_name: run for run in runs()}
    assert set(by_name) == {"judge_mlp", "judge_logistic", "judge both"}
    for kind in ("mlp", "logistic"):
        run = by_name[f"judge_{kind}"]
        assert run.info.status == "FINISHED"
        wanted = {"judge/roc_auc", "judge/pr_auc", "judge/brier", "judge/recall", "judge/accepted", "judge/threshold"}
        assert wanted <= run.data.metrics.keys()
        assert run.data.params["features"] == "both"
        assert run.inputs.dataset_inputs[0].dataset.name == "labels"
    files = {f.path for f in MlflowClient().list_artifacts(by_name["judge both"].info.run_id)}
    figures = {"roc.png", "precision_recall.png", "reliability.png", "thresholds.png"}
    pages = {"comparison.html", "comparison.csv", "comparison.png"}
    assert files == figures | pages | {"token_classes.csv", "threshold_sweep.csv"}
    sweep = (workplace / "judge" / "threshold_sweep.csv").read_text().splitlines()
    assert sweep[0] == "recall,threshold,accepted,test_recall,test_accepted,test_important_accepted_per_prompt"
    assert any(line.startswith("0.9,") for line in sweep)
    facts = Judge.load(workplace / "judge").facts
    assert (facts.requested_recall, facts.target, facts.features) == (0.95, "t" * 16, "both")
    version = MlflowClient().get_model_version_by_alias("autojudge", "champion")
    wanted = {"features": "both", "target": "a", "draft": "b", "task": "arith", "verdict": "champion"}
    assert wanted.items() <= version.tags.items(), "the registry's page names what it fits"
    assert "judge=models:/autojudge@champion" in MlflowClient().get_registered_model("autojudge").description
    assert version.version in (1, "1")


@pytest.mark.slow
def test_a_judge_is_loaded_by_every_address_and_nothing_is_pickled(workplace: Path) -> None:
    label_set(workplace / "labels")
    assert train("--labels", "labels", "--output", "judge", "--kinds", "mlp").exit_code == 0
    (run,) = [run for run in runs() if run.info.run_name == "judge_mlp"]
    local = Path(mlflow.artifacts.download_artifacts("models:/autojudge/1", dst_path=str(workplace / "got")))
    expected = Judge.load(workplace / "judge")
    addresses = ["models:/autojudge@champion", "models:/autojudge/1", f"runs:/{run.info.run_id}/judge", "judge",
                 "judge/mlp", str(local)]  # fmt: skip
    for address in addresses:
        judge = registry.load(address)
        assert judge.facts == expected.facts
        assert judge.digest() == expected.digest()
    names = [path.name for path in local.rglob("*") if path.is_file()]
    assert "judge.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]
    metadata = mlflow.models.Model.load(str(local)).metadata
    assert {
        "target",
        "draft",
        "tokenizer",
        "features",
        "feature_version",
        "dtype",
        "threshold",
        "labels",
    } <= metadata.keys()
    x = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)
    served = mlflow.pyfunc.load_model(str(local))
    assert np.allclose(served.predict(x), expected.network(x))
    with pytest.raises(mlflow.MlflowException, match="8"):
        served.predict(x[:, :5])


@pytest.mark.parametrize(
    "address,message",
    [
        ("nowhere", "judge 'nowhere' does not exist; give a folder, models:/NAME@champion, or runs:/ID/judge."),
        ("models:/autojudge@champion", "judge 'models:/autojudge@champion' is not in the store at sqlite"),
        ("models:/autojudge/7", "Train one: collect_labels, then train_judge."),
        ("runs:/0123/judge", "judge 'runs:/0123/judge' is not in the store at sqlite"),
        ("empty", "'empty' holds no judge: it needs judge.json and judge.safetensors"),
    ],
)
def test_a_judge_that_is_not_there_is_refused(workplace: Path, address: str, message: str) -> None:
    (workplace / "empty").mkdir()
    result = evaluate("--methods", "baseline,autojudge", "--judge", address, "--output", "out")
    refused(result, message, workplace)


@pytest.mark.slow
def test_feature_sets_and_kinds_are_compared_as_children_of_one_run(workplace: Path) -> None:
    label_set(workplace / "labels", num_prompts=60)
    arguments = ["--features", "target,scalars", "--kinds", "logistic,trees"]
    result = train("--labels", "labels", *arguments, "--output", "judge")
    assert result.exit_code == 0, result.output
    names = {f"{mode}_{kind}" for mode in ("target", "scalars") for kind in ("logistic", "trees")}
    by_name = {run.info.run_name: run for run in runs()}
    parent = by_name.pop("judge of 2 feature sets")
    assert set(by_name) == {f"judge_{name}" for name in names}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_name.values()} == {parent.info.run_id}
    assert {run.info.status for run in by_name.values()} == {"FINISHED"}
    chosen = parent.data.tags["chosen"]
    assert f"{chosen} has the highest ROC-AUC on the validation split" in parent.data.tags["mlflow.note.content"]
    auc = {name: by_name[f"judge_{name}"].data.metrics["judge/best_validation_roc_auc"] for name in names}
    assert auc[chosen] == max(auc.values())
    for name, run in ((name, by_name[f"judge_{name}"]) for name in names):
        metrics = run.data.metrics
        assert metrics["judge/roc_auc_low"] <= metrics["judge/roc_auc"] <= metrics["judge/roc_auc_high"]
        assert metrics["judge/extra_draft_forwards"] == 0
        assert ("judge/p_against_chosen" in metrics) == (name != chosen)
        assert Judge.load(workplace / "judge" / name).facts.kind == run.data.params["kind"]
    (model,) = mlflow.search_logged_models(output_format="list")
    assert registry.load("models:/autojudge@champion").digest() == Judge.load(workplace / "judge").digest()
    assert model.source_run_id == by_name[f"judge_{chosen}"].info.run_id
    page = (workplace / "judge" / "comparison.html").read_text()
    assert f"{chosen} (chosen)" in page
    assert all(name in page for name in names)


def test_labels_without_scalars_are_told_to_be_mined_again(workplace: Path) -> None:
    whole = label_set(workplace / "labels")
    old = {part: rows for part, rows in whole.features.items() if part not in features.SCALARS}
    replace(whole, features=old).write(workplace / "labels")
    result = train("--labels", "labels", "--features", "target,target_scalars")
    assert result.exit_code == 2
    assert result.output.strip() == (
        "error: the labels were mined by an earlier version and do not store target_entropy, target_margin, target_p,"
        " which features 'target_scalars' need; mine them again with collect_labels."
    )
    assert not runs()
    read = LabelSet.read(workplace / "labels")
    assert [read.stores(mode) for mode in features.MODES.values()] == ["scalars" not in name for name in features.MODES]
    both = train("--compare", "--features", "target")
    assert "features is 'target', but compare takes every feature set; leave one of them out." in both.output


@pytest.mark.parametrize(
    "kind,mode", [("trees", "scalars"), pytest.param("mlp", "both_previous_scalars", marks=pytest.mark.slow)]
)
def test_every_kind_decodes_by_its_folder_and_is_lossless_at_zero(workplace: Path, kind: str, mode: str) -> None:
    """As a model of MLflow, as a folder, on a chain, and on a tree where the features allow."""
    judge = judge_for("toy_quick", features.mode(mode), kind)
    judge.save(workplace / "judge")
    assert Judge.load(workplace / "judge").digest() == judge.digest()
    (workplace / "mine.yaml").write_text("judge.threshold: [0, 1.1]\n")
    result = evaluate(
        "--experiment", "toy_quick", "--methods", "baseline,speculative,autojudge", "--gamma", "4",
        "--judge", "judge", "--config", "mine.yaml", "--output", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    by_key = {(r["prompt_id"], r["label"]): r for r in records(workplace / "out")}
    for prompt in {prompt for prompt, _ in by_key}:
        assert by_key[prompt, "autojudge_k4_t0"]["token_ids"] == by_key[prompt, "speculative_k4"]["token_ids"]
    assert sum(r["num_judged"] for r in records(workplace / "out") if r["label"] == "autojudge_k4_t1.1") > 0
    (workplace / "tree").mkdir()
    judge_for("toy_quick", features.mode("target_scalars"), kind).save(workplace / "tree")
    tree = ["--experiment", "toy_quick", "--methods", "baseline,autojudge_tree", "--threshold", "0.9"]
    result = evaluate(*tree, "--judge", "tree", "--output", "walked")
    assert result.exit_code == 0, result.output
    assert sum(r["num_judged"] for r in records(workplace / "walked") if r["method"] == "autojudge_tree") > 0


def test_a_judge_of_another_task_is_tagged_and_warned_of(workplace: Path) -> None:
    for task, warned in (("gsm8k", True), ("toy", False)):
        judge_for("toy_quick", features.mode("target"), task=task).save(workplace / task)
        arguments = ["--experiment", "toy_quick", "--methods", "baseline,autojudge", "--judge", task]
        result = evaluate(*arguments, "--output", f"out-{task}")
        assert result.exit_code == 0, result.output
        said = f"The judge '{task}' was mined on task 'gsm8k' and decodes task 'toy' (transfer); its threshold was"
        assert (f"warning: {said}" in result.output) == warned
        page = (workplace / f"out-{task}" / "report.html").read_text()
        assert ("(transfer)" in page) == warned
        tagged = [run.data.tags for run in runs() if run.data.tags.get("judge_task") == task]
        assert {tags["method"] for tags in tagged} == {"autojudge"}
        assert {tags["transfer"] for tags in tagged} == {str(warned).lower()}


def test_without_labels_train_judge_says_what_is_missing(workplace: Path) -> None:
    result = train()
    assert result.exit_code == 2
    assert result.output.strip() == (
        "error: labels is not given, and this store has no finished collect_labels run; run collect_labels first, or"
        " name a folder with labels."
    )
    assert not runs()
    assert not (workplace / "runs").exists()


def test_bad_settings_of_a_training_are_refused_all_at_once(workplace: Path) -> None:
    result = train("--recall", "1.5", "--features", "bth", "--kinds", "mlp,forest", "--seed", "x", "--name", "a/b")
    assert result.exit_code == 2
    assert [line.split(";")[0] for line in result.output.splitlines()] == [
        "error: unknown feature mode 'bth', did you mean 'both'? Known: both, both_previous, both_previous_scalars,"
        " both_scalars, draft, draft_previous, draft_previous_scalars, draft_scalars, scalars, target, target_previous,"
        " target_previous_scalars, target_scalars.",
        "error: recall is '1.5'",
        "error: unknown kind 'forest', did you mean 'trees'? Known: logistic, mlp, trees.",
        "error: name is 'a/b'",
        "error: seed is 'x'",
    ]


@pytest.mark.slow
def test_only_a_better_judge_becomes_champion(workplace: Path) -> None:
    label_set(workplace / "labels", noise=0.8)
    arguments = ["--labels", "labels", "--kinds", "logistic"]
    assert train(*arguments, "--features", "target", "--output", "one").exit_code == 0
    worse = train(*arguments, "--features", "draft", "--output", "two")
    better = train(*arguments, "--features", "both", "--output", "three")
    assert "version 2 is challenger: test ROC-AUC" in worse.output or "version 2 is champion" in worse.output
    auc = [Judge.load(workplace / name) for name in ("one", "two", "three")]
    labels = LabelSet.read(workplace / "labels")
    client = MlflowClient()
    for new, old, version in ((auc[1], auc[0], "2"), (auc[2], auc[0], "3")):
        wins, says = trained_judge.better(new, old, labels)
        description = client.get_model_version("autojudge", version).description
        if version == "2":
            assert description == f"{'champion' if wins else 'challenger'}: {says} (version 1)"
    assert "version 3 is champion: test ROC-AUC" in better.output, "two views see more than one"
    assert str(client.get_model_version_by_alias("autojudge", "champion").version) == "3"


@pytest.mark.slow
def test_a_champion_whose_files_are_gone_makes_room(workplace: Path) -> None:
    label_set(workplace / "labels")
    arguments = ["--labels", "labels", "--kinds", "logistic", "--output", "judge"]
    assert train(*arguments).exit_code == 0
    for model in mlflow.search_logged_models(output_format="list"):
        shutil.rmtree(model.artifact_location.removeprefix("file://"))
    again = train(*arguments)
    assert again.exit_code == 0, again.output
    assert "version 2 is champion: the files of version 1, the champion so far, no longer exist" in again.output


@pytest.mark.nightly
def test_a_judge_of_another_pair_does_not_dethrone_the_champion(workplace: Path) -> None:
    label_set(workplace / "labels")
    label_set(workplace / "others", target="x" * 16)
    assert train("--labels", "labels", "--output", "one").exit_code == 0
    other = train("--labels", "others", "--output", "two")
    said = "version 2 is challenger: the champion is for another target; register this one under its own name"
    assert said in other.output
    named = train("--labels", "others", "--output", "three", "--name", "other-pair")
    assert "other-pair version 1 is champion" in named.output


MISFITS = {
    "target": "its target is '",
    "draft": "its draft is '",
    "tokenizer": "its tokenizer is ",
    "feature_version": "its feature_version is 0, not 1",
    "features": "its features are 'all', not one of both, target",
}


@pytest.mark.at_most(fast=2)
@pytest.mark.parametrize("name", MISFITS)
def test_a_judge_made_for_something_else_is_refused_and_the_field_named(workplace: Path, name: str) -> None:
    judge = judge_for("toy_quick", features.mode("both"))
    wrong: Any = {"feature_version": 0, "features": "all"}.get(name, "0" * 16)
    Judge(judge.network, replace(judge.facts, **{name: wrong})).save(workplace / "judge")
    arguments = ["--experiment", "toy_quick", "--methods", "baseline,autojudge", "--judge", "judge"]
    result = evaluate(*arguments, "--output", "out")
    refused(result, "the judge was made for another pair: " + MISFITS[name], workplace)
    judge.save(workplace / "judge")
    assert evaluate(*arguments, "--output", "out").exit_code == 0


def test_broken_judges_are_refused(workplace: Path) -> None:
    judge = judge_for("toy_quick", features.mode("target"))
    arguments = ["--experiment", "toy_quick", "--methods", "baseline,autojudge", "--judge", "judge", "--output", "out"]
    for name, damage in (("judge.json", "{"), ("judge.safetensors", "x"), ("judge.json", '{"kind": "forest"}')):
        judge.save(workplace / "judge")
        (workplace / "judge" / name).write_text(damage)
        refused(evaluate(*arguments), "the judge in 'judge' cannot be read", workplace)
    judge.save(workplace / "judge")
    facts = json.loads((workplace / "judge" / "judge.json").read_text())
    (workplace / "judge" / "judge.json").write_text(json.dumps({**facts, "num_features": 99}))
    refused(evaluate(*arguments), "declares 99 features, but its weights have 6", workplace)


@pytest.mark.slow
def test_a_sweep_of_thresholds_is_a_flat_run_each_and_nothing_but_speed_at_zero(workplace: Path) -> None:
    judge_for("toy_quick", features.mode("both")).save(workplace / "judge")
    (workplace / "mine.yaml").write_text("judge.threshold: [0, 0.4, calibrated, 1.1]\n")
    result = evaluate(
        "--experiment", "toy_quick", "--methods", "baseline,speculative,autojudge", "--gamma", "4",
        "--judge", "judge", "--config", "mine.yaml", "--output", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    names = {"baseline", "speculative_k4"} | {f"autojudge_k4_{t}" for t in ("t0", "t0.4", "cal", "t1.1")}
    assert set(flat_runs()) == names
    by_key = {(r["prompt_id"], r["label"]): r for r in records(workplace / "out")}
    for prompt in {prompt for prompt, _ in by_key}:
        zero, lossless = by_key[prompt, "autojudge_k4_t0"], by_key[prompt, "speculative_k4"]
        assert zero["token_ids"] == lossless["token_ids"]
        assert zero["accepted_histogram"] == lossless["accepted_histogram"]
        assert zero["num_judged"] == 0
    rates = [flat_runs()[f"autojudge_k4_{t}"].data.metrics["accept/judged_rate"] for t in ("t0", "t0.4", "cal", "t1.1")]
    assert rates == sorted(rates)
    assert rates[0] == 0 < rates[-1]
    run = flat_runs()["autojudge_k4_cal"]
    assert run.data.tags["lossless"] == "false"
    assert (run.data.params["threshold"], run.data.params["judge"]) == ("0.5", "judge")
    assert flat_runs()["autojudge_k4_t0.4"].data.params["threshold"] == "0.4"


@pytest.mark.slow
def test_a_folder_begun_with_another_judge_is_refused(workplace: Path) -> None:
    judge = judge_for("toy_quick", features.mode("both"))
    judge.save(workplace / "judge")
    arguments = ["--experiment", "toy_quick", "--methods", "baseline,autojudge", "--judge", "judge", "--output", "out"]
    assert evaluate(*arguments).exit_code == 0
    assert evaluate(*arguments, "--resume").exit_code == 0
    Judge(judge.network, replace(judge.facts, threshold=0.9)).save(workplace / "judge")
    again = evaluate(*arguments, "--resume")
    assert again.exit_code == 2
    assert (
        "'out' was begun with judge files other than those of 'judge' now; name another output folder." in again.output
    )


def test_a_judge_and_its_dials_go_with_methods_that_take_them(workplace: Path) -> None:
    for flag, value, takers in (
        ("judge", "x", "autojudge or autojudge_tree"),
        ("threshold", "0.1", "autojudge or autojudge_tree"),
        ("accept-k", "2", "topk or topk_tree"),
    ):
        result = evaluate("--methods", "baseline,speculative", f"--{flag}", value, "--output", "out")
        name = flag.replace("-", "_")
        refused(result, f"{name} is given, but no selected method uses it; leave it out, or add {takers}.", workplace)
    refused(
        evaluate("--methods", "baseline,autojudge", "--threshold", "-1", "--output", "out"),
        "threshold is '-1'; it must be a number >= 0, or 'calibrated'",
        workplace,
    )
