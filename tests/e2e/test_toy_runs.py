"""The toy pair runs through the same `evaluate`, where neither torch nor transformers is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.cli_runner import evaluate, flat_runs, records
from helpers.judges import judge_for
from specexp.judge import features
from specexp.method_specs import specs

ROOT = Path(__file__).resolve().parents[2]
# As in an environment without them: no module of these names can be found.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from entrypoints.evaluate import command
command(prog_name="evaluate")
"""


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments, "--output", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_every_method_runs_without_torch(workplace: Path) -> None:
    judge_for("toy_quick", features.mode("both")).save(workplace / "judge")
    untrained = ("typical", "entropy", "fly", "fuzzy")
    methods = ",".join(("compare_all_k4", "suffix", "chained", *untrained))
    done = without_torch("--experiment", "toy_quick", "--limit", "5", "--methods", methods, "--judge", "judge",
                         "--gamma", "8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = {(r["prompt_id"], r["label"]): r["token_ids"] for r in records(workplace / "out")}
    labels = {label for _, label in outputs}
    lossless, lossy = ("speculative", "lookup", "suffix", "chained", "specexec"), ("autojudge", "topk", *untrained)
    assert labels == {"baseline", "draft_only", *(f"{method}_k8" for method in lossless + lossy)}
    assert {method.split("_k")[0] for method in labels} == set(specs()) - {"autojudge_tree"}
    for (prompt, label), tokens in outputs.items():
        if label.removesuffix("_k8") in lossless:
            assert tokens == outputs[prompt, "baseline"]
    assert sorted(flat_runs()) == sorted(labels)


@pytest.mark.slow
def test_a_judged_tree_runs_without_torch(workplace: Path) -> None:
    judge_for("toy_quick", features.mode("target")).save(workplace / "judge")
    trees = ("--experiment", "toy_quick", "--limit", "5", "--methods", "baseline,autojudge_tree", "--judge", "judge")
    done = without_torch(*trees, "--threshold", "0,0.9", "--gamma", "4")
    assert done.returncode == 0, done.stderr
    outputs = {(r["prompt_id"], r["label"]): r["token_ids"] for r in records(workplace / "out")}
    assert {label for _, label in outputs} == {"baseline", "autojudge_tree_k4_t0", "autojudge_tree_k4_t0.9"}
    assert all(outputs[prompt, "autojudge_tree_k4_t0"] == outputs[prompt, "baseline"] for prompt, _ in outputs)


@pytest.mark.slow
def test_a_hugging_face_model_without_torch_names_what_is_missing(workplace: Path) -> None:
    done = without_torch("--experiment", "arith_quick")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: model 'zoo:target' needs the package 'torch', which is not installed; pip install torch, or try the"
        " numpy pair (experiment toy_quick)."
    )
    assert not (workplace / "out").exists()


@pytest.mark.slow
def test_the_pair_is_made_as_its_settings_say(workplace: Path) -> None:
    quick = ["--experiment", "toy_quick", "--limit", "3", "--gamma", "4"]
    (workplace / "same.yaml").write_text("toy: {draft_noise: 0}\n")
    assert evaluate(*quick, "--config", "same.yaml", "--output", "same").exit_code == 0
    chains = [r for r in records(workplace / "same") if r["label"] == "speculative_k4"]
    assert all(r["num_accepted"] == r["num_drafted"] for r in chains), "without noise the draft is the target"
    for name, text in (("wide", "{vocab_size: 300}"), ("other", "{seed: 1}"), ("plain", "{}")):
        (workplace / f"{name}.yaml").write_text(f"toy: {text}\n")
        assert evaluate(*quick, "--config", f"{name}.yaml", "--output", name).exit_code == 0

    def plainly(name: str) -> list[list[int]]:
        return [r["token_ids"] for r in records(workplace / name) if r["label"] == "baseline"]

    assert max(max(ids) for ids in plainly("wide")) >= 24
    assert plainly("other") != plainly("plain")


@pytest.mark.slow
def test_a_seed_of_any_length_is_that_seed(workplace: Path) -> None:
    """It is hashed, and kept as it was given: in records, and in what a resume compares."""
    settings = ["--experiment", "toy_quick", "--limit", "2", "--methods", "baseline", "--temperature", "1"]
    texts = {}
    for name, seed in (("long", 10**30), ("longer", 10**30 + 1), ("short", 10**30 % 2**64)):
        run = [*settings, "--seed", str(seed), "--output", name]
        assert evaluate(*run).exit_code == 0
        kept = records(workplace / name)
        assert {record["seed"] for record in kept} == {seed}
        texts[name] = tuple(tuple(record["token_ids"]) for record in kept)
        assert evaluate(*run, "--resume").exit_code == 0
        assert records(workplace / name) == kept
    assert len(set(texts.values())) == 3, "digits that do not fit in 64 bits count, too"
