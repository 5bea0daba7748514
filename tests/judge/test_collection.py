"""collect_labels: what it leaves, that a kill changes nothing of it, and what it refuses; then the whole story."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file

from entrypoints import main
from helpers.cli_runner import evaluate, flat_runs, invoke, records, runs, tiny
from helpers.mining_runs import collect
from specexp.engine import engine
from specexp.judge import collection, registry
from specexp.judge.features import SCALARS
from specexp.judge.labels import LabelSet
from specexp.tasks import arith

ROOT = Path(__file__).resolve().parents[2]
FILES = ("labels.parquet", "features.safetensors", "manifest.json")
SMALL = ["--limit", "5", "--max-new-tokens", "120"]


def test_labels_are_files_artifacts_and_a_dataset(workplace: Path) -> None:
    result = collect(*SMALL, "--output", "labels")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (workplace / "labels").iterdir() if not p.name.startswith(".")) == sorted(
        [*FILES, "config.json", "inputs.json", "mlflow.json", "upload.json"]
    ), "progress is gone once all is told"
    labels = LabelSet.read(workplace / "labels")
    assert labels.labels
    assert {label.prompt_id.rsplit("-", 1)[0] for label in labels.labels} == {"arith-mining"}, (
        "no evaluation asks these"
    )
    manifest = labels.manifest
    assert manifest["num_prompts"] == 5
    assert set(manifest["hidden_sizes"]) == {"target", "draft"}
    assert {"target", "draft", "tokenizer"} <= manifest["identity"].keys()
    for part, rows in labels.features.items():
        width = 1 if part in SCALARS else manifest["hidden_sizes"][part.split("_")[0]]
        assert rows.shape == (len(labels.labels), width)
        assert rows.dtype == np.float32
    (run,) = runs()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "labels arith")
    metrics = run.data.metrics
    assert metrics["labels/prompts"] == 5
    assert 0 < metrics["labels/important_share"] < 1
    assert metrics["labels/target_calls_of_slow_way"] <= 0.25
    assert metrics["labels/target_positions_of_slow_way"] <= 0.7
    assert {f.path for f in MlflowClient().list_artifacts(run.info.run_id, "labels")} == {f"labels/{n}" for n in FILES}
    inputs = {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert labels.hash.startswith(inputs["labels"])
    assert "arith" in inputs
    again = collect(*SMALL, "--output", "labels", "--resume")
    assert again.exit_code == 0
    assert len(runs()) == 1, "a finished set is shown, not mined again"


def test_features_may_be_kept_in_half_the_bytes(workplace: Path) -> None:
    for dtype in ("float32", "float16"):
        assert collect("--limit", "2", "--dtype", dtype, "--output", dtype).exit_code == 0
    full, half = (load_file(workplace / d / "features.safetensors") for d in ("float32", "float16"))
    for part, rows in half.items():
        assert rows.dtype == np.float16
        assert np.allclose(rows, full[part], atol=2e-2)
    assert (workplace / "float16" / FILES[0]).read_bytes() == (workplace / "float32" / FILES[0]).read_bytes()


def same_labels(one: Path, other: Path) -> None:
    assert (one / FILES[0]).read_bytes() == (other / FILES[0]).read_bytes()
    ones, others = load_file(one / FILES[1]), load_file(other / FILES[1])
    for part in ones:
        assert np.allclose(ones[part], others[part], atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_mining_goes_on_and_leaves_the_same_labels(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collect(*SMALL, "--output", "whole").exit_code == 0
    real, calls = collection._write, 0

    def dies(path: Path, mined: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            path.with_suffix(".partial").write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, mined)

    monkeypatch.setattr(collection, "_write", dies)
    for _ in range(2):
        stopped = collect(*SMALL, "--output", "out", "--resume")
        assert stopped.exit_code == 130
        assert "go on with --resume" in stopped.output.lower()
    assert collect(*SMALL, "--output", "out", "--resume").exit_code == 0
    same_labels(workplace / "out", workplace / "whole")
    states = sorted((run.info.status, "resumed_from" in run.data.tags) for run in runs())
    assert states == [("FAILED", False), ("FAILED", True), ("FINISHED", False), ("FINISHED", True)]


@pytest.mark.slow
def test_labels_and_counts_do_not_depend_on_the_batch_nor_on_a_change_of_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collect(*SMALL, "--batch", "1", "--output", "one").exit_code == 0
    assert collect(*SMALL, "--batch", "4", "--output", "four").exit_code == 0
    real, left = collection._write, iter(range(2))

    def dies(path: Path, mined: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(path, mined)

    with monkeypatch.context() as patch:
        patch.setattr(collection, "_write", dies)
        assert collect(*SMALL, "--batch", "3", "--output", "both").exit_code == 130
    assert len(list((workplace / "both" / "progress").glob("*.safetensors"))) == 2
    assert collect(*SMALL, "--output", "both", "--resume").exit_code == 0
    for other in ("four", "both"):
        same_labels(workplace / other, workplace / "one")
        manifests = [LabelSet.read(workplace / name).manifest for name in ("one", other)]
        assert manifests[0]["counts"] == manifests[1]["counts"]
        assert manifests[0]["settings_hash"] == manifests[1]["settings_hash"]


@pytest.mark.slow
def test_a_folder_begun_on_other_rows_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": arith.prompt(p)} for p in arith.distinct("mining", 4)]
    (workplace / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task", "prompts", "--data", "mine.jsonl", "--limit", "2", "--max-new-tokens", "120", "--output", "out"]

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collection, "_write", dies)
        assert collect(*flags).exit_code == 130
    text = (workplace / "mine.jsonl").read_text()
    (workplace / "mine.jsonl").write_text(text.replace('"prompt": "', '"prompt": "Now '))
    again = collect(*flags, "--resume")
    assert again.exit_code == 2
    assert "'out' was begun with another data; name another output folder." in again.output
    (workplace / "mine.jsonl").write_text(text)
    assert collect(*flags, "--resume").exit_code == 0
    assert collect(*flags[:-1], "rest", "--skip", "2").exit_code == 0
    seen = [{x.prompt_id for x in LabelSet.read(workplace / name).labels} for name in ("out", "rest")]
    assert seen[0] <= {"line-1", "line-2"}
    assert seen[1] <= {"line-3", "line-4"}
    assert "no prompt after it" in collect(*flags[:-1], "none", "--skip", "9").output


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--task", "mtbench"],
            "task 'mtbench' has no answers to check; mine one of arith, gsm8k, long_prompts, math, mmlu_pro, prompts,"
            " arith_code, humaneval, livecodebench, mbpp.",
        ),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--limit", "0"], "limit is '0'; it must be a whole number >= 1."),
        (["--batch", "0"], "batch is '0'; it must be a whole number >= 1."),
        (["--experiment", "arith"], "unknown experiment 'arith', did you mean 'arith_"),
        (["--target", "./nowhere"], "model folder './nowhere' does not exist"),
        (["--max-new-tokens", "9999"], "leaves "),
    ],
)
def test_what_cannot_be_mined_is_refused(workplace: Path, arguments: list[str], message: str) -> None:
    result = collect(*arguments, "--output", "out")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert message in result.output
    assert not (workplace / "out").exists()
    assert not runs()


def test_memory_that_runs_out_names_a_lower_batch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def out(*_: Any) -> Any:
        raise OutOfMemoryError("no 3 GiB left")

    monkeypatch.setattr(engine, "score", out)
    result = collect(*SMALL, "--output", "out")
    assert result.exit_code == 2
    assert "mining 16 prompts at a time: no 3 GiB left Lower batch or max_new_tokens" in result.output


def test_a_pair_without_answers_gives_no_labels_and_says_so(workplace: Path) -> None:
    path = tiny(workplace / "model")
    models = ["--target", str(path), "--draft", str(path)]
    result = collect(*models, "--limit", "2", "--max-new-tokens", "8", "--output", "out")
    assert result.exit_code == 2
    assert "no mismatch was found in 2 prompts (0 had no answer, 2 did not end)" in result.output


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_label(workplace: Path) -> None:
    mining = ["entrypoints.collect_labels", "--limit", "12", "--max-new-tokens", "120"]
    assert start(*mining, "--output", "whole").wait() == 0
    rng = random.Random(0)
    for _ in range(5):
        process = start(*mining, "--output", "out", "--resume", "true")
        deadline = time.monotonic() + 60
        while not (workplace / "out" / "progress").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.2))
        process.kill()
        process.wait()
    assert start(*mining, "--output", "out", "--resume", "true").wait() == 0
    same_labels(workplace / "out", workplace / "whole")


def post(port: int, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_the_whole_story_and_a_served_judge(workplace: Path) -> None:
    arguments = ["--mine", "60", "--limit", "6", "--methods", "baseline,speculative,autojudge", "--gamma", "8"]
    result = invoke(main.command, *arguments, "--output", "story")
    assert result.exit_code == 0, result.output
    names = {run.info.run_name for run in runs()}
    assert names == {
        "labels arith", "judge_mlp", "judge_logistic", "judge target", "compare arith_judge", "baseline",
        "speculative_k8", "autojudge_k8",
    }  # fmt: skip
    (trained,) = [run.data.metrics for run in runs() if run.data.tags["method"] == "judge_comparison"]
    assert trained["judge/roc_auc"] >= 0.9
    assert trained["judge/recall"] >= 0.99 - trained["judge/recall_margin"]
    lines = (workplace / "story" / "judge" / "token_classes.csv").read_text().splitlines()[1:]
    accepted = {line.split(",")[0]: float(line.split(",")[3]) for line in lines}
    assert accepted["digit"] < 0.1 < 0.9 < accepted["word"], "it catches mistakes, not words"
    lengths = {n: flat.data.metrics.get("accept/mean_length") for n, flat in flat_runs().items() if "_k8" in n}
    assert lengths["autojudge_k8"] > lengths["speculative_k8"]
    assert len(records(workplace / "story" / "evaluation")) == 18
    done = len(runs())
    again = invoke(main.command, *arguments, "--output", "story", "--resume")
    assert again.exit_code == 0
    assert len(runs()) == done, "nothing is mined, trained or decoded twice"
    alone = evaluate("--limit", "2", "--methods", "baseline,autojudge", "--output", "alone")
    assert alone.exit_code == 0, "the registered champion is found by the preset"

    judge = registry.load("models:/autojudge@champion")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(
        "mlflow", "models", "serve", "-m", "models:/autojudge@champion", "--env-manager", "local", "-p", str(port),
        "-h", "127.0.0.1",
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        x = np.random.default_rng(0).standard_normal((3, judge.network.num_features)).astype(np.float32)
        status, answer = post(port, {"inputs": x.tolist()})
        assert status == 200
        assert np.allclose(answer["predictions"], judge.network(x), atol=1e-5)
        status, reason = post(port, {"inputs": x[:, :7].tolist()})
        assert status == 400
        assert str(judge.network.num_features) in str(reason)
    finally:
        server.terminate()
        server.wait()
