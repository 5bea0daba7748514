"""evaluate, end to end on the embedded pair: records, metrics, MLflow runs, interruptions and bad input."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from helpers.cli_runner import (
    SMALL,
    comparison_runs,
    evaluate,
    flat_runs,
    records,
    refused,
    runs,
    tiny,
    with_models,
    without_clocks,
)
from helpers.processes import ROOT, finish, start, wait_for_lines
from specexp.answers.comparators import CANONICAL
from specexp.evaluation import runner
from specexp.metrics.summary import check_identities
from specexp.tasks import arith
from specexp.tasks.task import TASKS, Example
from specexp.tracking import client

RECORD_KEYS = {
    "prompt_id", "turn", "method", "preset", "label", "repeat", "seed", "token_ids", "text", "finish_reason",
    "num_rounds",
    "num_drafted", "num_accepted", "num_judged", "num_cut", "num_full", "num_target_calls", "num_target_positions",
    "num_draft_calls", "accepted_histogram", "seconds", "prefill_seconds", "time_to_first_token", "answer", "gold",
    "correct", "settings_hash", "environment",
}  # fmt: skip


def test_it_records_every_prompt_and_setting_and_logs_a_flat_run_for_each(workplace: Path) -> None:
    result = evaluate(*SMALL, "--gamma", "2,4", "--output", "out")
    assert result.exit_code == 0, result.output
    written = records(workplace / "out")
    labels = ["baseline", "draft_only", "speculative_k2", "speculative_k4"]
    assert sorted((r["prompt_id"], r["label"]) for r in written) == sorted(
        (f"arith-test-{i}", label) for i in {r["prompt_id"].rsplit("-", 1)[1] for r in written} for label in labels
    )
    assert len(written) == 8
    for record in written:
        assert record.keys() >= RECORD_KEYS
        check_identities(record)
    by = {(r["prompt_id"], r["label"]): r for r in written}
    for (prompt, label), record in by.items():
        if label != "draft_only":
            assert record["token_ids"] == by[prompt, "baseline"]["token_ids"], "greedy outputs differ"
        assert "<|eos|>" not in record["text"]

    facts = json.loads((workplace / "out" / "environments.json").read_text())
    assert {r["environment"] for r in written} == facts.keys()
    (where,) = facts.values()
    assert where["models"]["target"]["dtype"] == "float32"
    assert where["models"]["target"]["parameters"] > 10 * where["models"]["draft"]["parameters"]
    assert where["packages"]["torch"] == importlib.metadata.version("torch")

    flat = flat_runs()
    assert sorted(flat) == labels
    for name, run in flat.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["method"] == name.split("_k")[0]
        assert {"group", "pair", "task"} <= run.data.tags.keys()
        assert "mlflow.parentRunId" not in run.data.tags, "nested runs are hidden from the charts"
        assert all("/" in metric for metric in run.data.metrics)
        assert {"speed/tokens_per_second", "speed/speedup", "quality/accuracy"} <= run.data.metrics.keys()
        own = MlflowClient().download_artifacts(run.info.run_id, "records.jsonl", str(workplace))
        assert {json.loads(line)["label"] for line in Path(own).read_text().splitlines()} == {name}
    chain = flat["speculative_k4"].data
    assert {
        "accept/alpha",
        "accept/position_4",
        "speed/attainable",
        "speed/realised",
        "speed/predicted_speedup",
    } <= chain.metrics.keys()
    assert chain.params["gamma"] == "4"
    assert not any(metric.startswith("accept/") for metric in flat["draft_only"].data.metrics)
    assert flat["draft_only"].data.metrics["calls/target_per_token"] == 0

    (comparison,) = comparison_runs()
    assert comparison.info.status == "FINISHED"
    assert {f.path for f in MlflowClient().list_artifacts(comparison.info.run_id)} >= {"records.jsonl", "config.json"}
    last = result.output.strip().splitlines()[-1]
    assert last.endswith("/#/experiments/0/runs?workflowType=machine_learning&compareRunsMode=CHART")


def test_under_mlflow_run_the_comparison_is_the_run_that_mlflow_made(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MlflowClient().create_run("0", run_name="merry-mole-12")
    MlflowClient().log_param(made.info.run_id, "gamma", "'2'")  # MLflow logs the raw, quoted value
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    result = evaluate(*SMALL, "--methods", "baseline,speculative", "--gamma", "2", "--output", "out")
    assert result.exit_code == 0, result.output
    (comparison,) = comparison_runs()
    assert comparison.info.run_id == made.info.run_id
    assert comparison.info.run_name == "compare arith_quick"
    assert sorted(flat_runs()) == ["baseline", "speculative_k2"]


@pytest.mark.slow
def test_repeats_are_runs_of_one_group_with_seeds_of_their_own(workplace: Path) -> None:
    result = evaluate(
        *SMALL,
        "--methods",
        "baseline,speculative",
        "--repeats",
        "2",
        "--temperature",
        "1",
        "--seed",
        "5",
        "--output",
        "out",
    )
    assert result.exit_code == 0, result.output
    assert {(r["repeat"], r["seed"]) for r in records(workplace / "out")} == {(0, 5), (1, 6)}
    flat = flat_runs()
    assert sorted(flat) == ["baseline_r0", "baseline_r1", "speculative_r0", "speculative_r1"]
    assert flat["speculative_r0"].data.tags["group"] == flat["speculative_r1"].data.tags["group"] == "speculative"
    texts = {(r["prompt_id"], r["repeat"]): r["text"] for r in records(workplace / "out") if r["label"] == "baseline"}
    assert any(texts[p, 0] != texts[p, 1] for p, _ in texts), "another seed samples another text"


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, "--methods", "baseline,speculative"]
    assert evaluate(*arguments, "--output", "whole").exit_code == 0
    calls = 0

    def interrupted(record: Any, *more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "check_identities", interrupted)
    first = evaluate(*arguments, "--output", "out")
    assert first.exit_code == 130
    assert "go on with --resume" in first.output.lower()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/mlflow.db")
    assert len(records(workplace / "out")) == 2
    assert evaluate(*arguments, "--output", "out", "--resume", "true").exit_code == 0
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))
    statuses = sorted((run.info.status, "resumed_from" in run.data.tags) for run in comparison_runs())
    assert statuses == [("FAILED", False), ("FINISHED", False), ("FINISHED", True)]


@pytest.mark.slow
def test_dying_while_logging_repeats_no_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = client.fill, 0

    def dies(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the machine went away")
        real(*arguments, **more)

    arguments = [*SMALL, "--methods", "baseline,speculative", "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(client, "fill", dies)
        assert evaluate(*arguments).exit_code == 70
    assert evaluate(*arguments, "--resume").exit_code == 0
    for run in flat_runs().values():
        assert run.info.status == "FINISHED"
        history = MlflowClient().get_metric_history(run.info.run_id, "speed/tokens_per_second")
        assert len(history) == 1
    # Going on with a finished one changes nothing.
    before = (workplace / "out" / "records.jsonl").read_bytes()
    assert evaluate(*arguments, "--resume").exit_code == 0
    assert (workplace / "out" / "records.jsonl").read_bytes() == before
    assert len(flat_runs()) == 2
    assert sorted(run.info.status for run in comparison_runs()) == ["FAILED", "FINISHED"]


@pytest.mark.slow
def test_a_run_that_was_deleted_meanwhile_is_no_obstacle(workplace: Path) -> None:
    arguments = [*SMALL, "--methods", "baseline", "--output", "out"]
    assert evaluate(*arguments).exit_code == 0
    for run in runs():
        MlflowClient().delete_run(run.info.run_id)
    assert evaluate(*arguments, "--resume").exit_code == 0
    assert len(flat_runs()) == 1


def test_a_folder_in_use_is_left_alone(workplace: Path) -> None:
    arguments = [*SMALL, "--methods", "baseline", "--output", "out"]
    assert evaluate(*arguments).exit_code == 0
    path = workplace / "out" / "records.jsonl"
    path.write_bytes(path.read_bytes() + b'{"half a rec')  # somebody is writing
    before = path.read_bytes()
    with (workplace / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = evaluate(*arguments, "--resume")
    assert result.exit_code == 2
    assert "is in use by another run" in result.output
    assert path.read_bytes() == before


@pytest.mark.nightly
def test_kill_9_loses_and_repeats_nothing(workplace: Path) -> None:
    """Five times, each at a random moment after some further record; six prompts and two methods make twelve."""
    finish(start("whole"))
    rng = random.Random(0)
    for count in (1, 2, 4, 5, 6):  # a record takes some hundredths of a second
        process = start("out", "--resume")
        wait_for_lines(workplace / "out" / "records.jsonl", count, process)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start("out", "--resume"))
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))
    started = [run for run in comparison_runs() if run.info.start_time]
    assert sorted(run.info.status for run in started) == ["FINISHED"] * 2 + ["KILLED"] * 5
    assert sum("resumed_from" in run.data.tags for run in started) == 5
    flat = [run for run in runs() if run.data.tags["method"] != "comparison"]
    assert sorted(run.info.run_name for run in flat) == ["baseline", "baseline", "speculative", "speculative"]


@pytest.mark.slow
def test_sigterm_ends_the_run_as_failed_and_leaves_it_resumable(workplace: Path) -> None:
    process = start("out")
    wait_for_lines(workplace / "out" / "records.jsonl", 2, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 143
    assert "Traceback" not in output
    assert "--resume" in output
    assert [run.info.status for run in comparison_runs()] == ["FAILED"]
    finish(start("out", "--resume"))
    assert len(records(workplace / "out")) == 12


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--experiment", "arith_quik"], "unknown experiment 'arith_quik', did you mean 'arith_quick'?"),
        (["--gamma", "0"], "gamma is '0'; it must be a whole number >= 1"),
        (["--gamma", "-2"], "gamma is '-2'; it must be a whole number >= 1"),
        (["--temperature", "-0.5"], "temperature is '-0.5'; it must be a number >= 0"),
        (["--resume", "perhaps"], "'perhaps' is neither true nor false"),
    ],
)
def test_bad_settings_are_refused(workplace: Path, arguments: list[str], message: str) -> None:
    result = evaluate(*arguments, "--output", "out")
    if arguments[0] == "--resume":  # click's own usage error takes three lines
        assert result.exit_code == 2
        assert message in result.output
    else:
        refused(result, message, workplace)


def test_a_missing_model_folder_is_refused(workplace: Path) -> None:
    refused(
        evaluate(*with_models(workplace, "./nowhere", "zoo:draft")),
        "model folder './nowhere' does not exist",
        workplace,
    )
    refused(
        evaluate(*with_models(workplace, "zoo:targt", "zoo:draft")),
        "model folder 'zoo:targt' does not exist",
        workplace,
    )


def test_a_folder_without_a_tokenizer_is_refused(workplace: Path, folder: Callable[..., Path]) -> None:
    bare = folder("llama")
    refused(evaluate(*with_models(workplace, bare, "zoo:draft")), "has no tokenizer that can be loaded", workplace)


def test_a_folder_without_weights_is_refused(workplace: Path) -> None:
    path = tiny(workplace / "tiny")
    (path / "model.safetensors").unlink()
    refused(evaluate(*with_models(workplace, path, "zoo:draft")), "cannot be loaded (float32 on cpu)", workplace)


def test_broken_weights_are_refused(workplace: Path) -> None:
    path = tiny(workplace / "tiny")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:1000], b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(broken)
        refused(evaluate(*with_models(workplace, path, "zoo:draft")), "cannot be loaded (float32 on cpu)", workplace)


def test_weights_that_lack_a_layer_are_refused(workplace: Path) -> None:
    path = tiny(workplace / "tiny")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused(evaluate(*with_models(workplace, path, "zoo:draft")), "of its weights (model.layers.2.", workplace)


def test_an_unusable_device_is_refused(workplace: Path) -> None:
    for device in ("cuda:7", "meta", "toaster"):
        (workplace / "mine.yaml").write_text(f"target: {{model: 'zoo:target', device: '{device}'}}\n")
        result = evaluate("--config", "mine.yaml", "--output", "out")
        refused(result, f"cannot be loaded (float32 on {device})", workplace)


def test_a_gamma_beyond_the_context_is_refused(workplace: Path) -> None:
    message = "gamma is 600; with a context of 512 it must be at most 256."
    refused(evaluate("--gamma", "600", "--output", "out"), message, workplace)


def test_an_output_that_cannot_be_made_is_refused(workplace: Path) -> None:
    (workplace / "file").write_text("")
    for output in ("file", "file/out", "x" * 300, "/proc/nowhere/out"):
        result = evaluate("--output", output)
        assert result.exit_code == 2, result.output
        assert result.output.startswith("error: output")
        assert len(result.output.splitlines()) == 1
        assert not runs()


def test_a_draft_with_another_tokenizer_is_refused(workplace: Path) -> None:
    path = tiny(workplace / "tiny")
    text = (path / "tokenizer.json").read_text()
    spec = json.loads(text)
    vocab = spec["model"]["vocab"]
    vocab["Ġhas"], vocab["Ġit"] = vocab["Ġit"], vocab["Ġhas"]
    (path / "tokenizer.json").write_text(json.dumps(spec))
    Path("own.yaml").write_text(f"draft: {{model: {path}, vocabulary: same}}\n")
    refused(
        evaluate("--experiment", "arith_quick", "--config", "own.yaml"), "do not share a tokenizer: 2 tokens differ",
        workplace,
    )  # fmt: skip


def test_a_prompt_beyond_the_context_is_refused_before_weights_are_read(workplace: Path, unloaded: None) -> None:
    path = tiny(workplace / "tiny", max_position_embeddings=30)
    refused(
        evaluate(*with_models(workplace, path, path)),
        "but the target model's context is 30; shorten it to at most 29",
        workplace,
    )


def test_an_empty_prompt_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        name = "silent"
        comparator = CANONICAL

        def examples(self, limit: int) -> list[Example]:
            return [Example("silent-0", (" ",))]

        def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
            return None

    monkeypatch.setitem(TASKS, "arith", lambda data, shots, split: Silent())
    refused(evaluate("--output", "out"), "prompt 'silent-0': it is empty", workplace)


def test_an_existing_folder_is_refused_without_resume(workplace: Path) -> None:
    assert evaluate(*SMALL, "--methods", "baseline", "--output", "out").exit_code == 0
    before = (workplace / "out" / "records.jsonl").read_bytes()
    again = evaluate(*SMALL, "--methods", "baseline", "--output", "out")
    assert again.exit_code == 2
    assert "output folder 'out' exists; give resume=true to go on there" in again.output
    other = evaluate(*SMALL, "--methods", "baseline", "--output", "out", "--resume", "--seed", "4")
    assert other.exit_code == 2
    assert "belongs to configuration" in other.output
    (workplace / "other").mkdir()
    (workplace / "other" / "records.jsonl").write_bytes(before)
    moved = evaluate(*SMALL, "--methods", "baseline", "--output", "other", "--resume", "--seed", "4")
    assert moved.exit_code == 2
    assert "records.jsonl, line 1 belongs to configuration" in moved.output
    (workplace / "mine").mkdir()
    (workplace / "mine" / "thesis.tex").write_text("dear to somebody")
    foreign = evaluate(*SMALL, "--methods", "baseline", "--output", "mine", "--resume")
    assert foreign.exit_code == 2
    assert "was not made by evaluate" in foreign.output
    assert len(comparison_runs()) == 1
    assert (workplace / "out" / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_truncated_last_line_is_dropped_and_computed_again(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "--methods", "baseline", "--output", "out"]
    assert evaluate(*arguments).exit_code == 0
    path = workplace / "out" / "records.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for torn in (lines[0] + lines[1][:40], lines[0] + lines[1][:-1]):
        path.write_bytes(torn)
        result = evaluate(*arguments, "--resume")
        assert result.exit_code == 0, result.output
        assert "line 2 is cut off; it is dropped and computed again" in result.output + capfd.readouterr().err
        assert without_clocks(records(workplace / "out")) == without_clocks([json.loads(x) for x in whole.splitlines()])
    for line in (lines[0][:30] + b"\n", b'{"prompt_id": "a", "turn": 0, "label": "b", "repeat": 0}\n', b"7\n"):
        path.write_bytes(line + lines[1])
        broken = evaluate(*arguments, "--resume")
        assert broken.exit_code == 2
        assert "line 1 is not a record" in broken.output


def test_mlflow_reads_the_project_file() -> None:
    from mlflow.projects.utils import load_project

    project = load_project(str(ROOT))
    line = project.get_entry_point("evaluate").compute_command({"experiment": "arith_quick"}, None)
    assert line.startswith("python -m entrypoints.evaluate --experiment arith_quick --pair '' --target ''")
    assert mlflow.__version__ == "3.17.2"


def own_prompts(workplace: Path, *rows: Any) -> list[str]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (workplace / "mine.jsonl").write_text("\n".join(lines) + "\n")
    (workplace / "mine.yaml").write_text("task: prompts\ndata: mine.jsonl\nmax_new_tokens: 120\n")
    return ["--config", "mine.yaml", "--output", "out"]


def test_prompts_of_ones_own_are_decoded_and_checked_where_they_have_an_answer(workplace: Path) -> None:
    (problem,) = arith.distinct("test", 1)
    rows = [{"prompt": arith.prompt(problem), "answer": problem.answer, "id": "mia"}, {"prompt": "Ünïcode <b>?</b>"}]
    result = evaluate(*own_prompts(workplace, *rows), "--methods", "baseline,speculative")
    assert result.exit_code == 0, result.output
    by_key = {(r["prompt_id"], r["label"]): r for r in records(workplace / "out")}
    assert by_key.keys() == {(p, label) for p in ("mia", "line-2") for label in ("baseline", "speculative")}
    for label in ("baseline", "speculative"):
        assert by_key["mia", label]["correct"] is True
        assert by_key["line-2", label]["correct"] is None
    assert flat_runs()["baseline"].data.metrics["quality/accuracy"] == 1.0


@pytest.mark.parametrize(
    "rows,message",
    [
        (["{"], "mine.jsonl, line 1: not JSON"),
        ([{"prompt": "a"}, {"prompt": " "}], "mine.jsonl, line 2: 'prompt' must be a text that is not empty, got ' '."),
        (
            [{"question": "a"}],
            "mine.jsonl, line 1: has no 'prompt', but 'question'. Used are: prompt, messages, answer, id.",
        ),
        ([[1]], "mine.jsonl, line 1: must be an object, got list."),
        ([{"prompt": "a", "answer": [1]}], "line 1: 'answer' is [1]; it must be a text or a number"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "id 'x' is given twice"),
        ([""], "holds no rows"),
    ],
)
def test_a_broken_prompt_file_is_refused(workplace: Path, rows: list[Any], message: str) -> None:
    refused(evaluate(*own_prompts(workplace, *rows)), message, workplace)


def test_a_missing_prompt_file_is_refused(workplace: Path) -> None:
    arguments = own_prompts(workplace, {"prompt": "a"})
    (workplace / "mine.jsonl").unlink()
    refused(evaluate(*arguments), "data file 'mine.jsonl' cannot be read: No such file", workplace)


def test_a_chat_template_is_used_or_its_absence_refused(workplace: Path) -> None:
    arguments = own_prompts(workplace, {"prompt": "hello"})
    path = tiny(workplace / "tiny")
    (workplace / "mine.yaml").write_text(
        f"task: prompts\ndata: mine.jsonl\nmax_new_tokens: 4\ntarget: {{model: '{path}', chat_template: own}}\n"
    )
    refused(evaluate(*arguments), f"chat_template is own, but the tokenizer of '{path}' has none", workplace)
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    (path / "chat_template.jinja").write_text(template)
    result = evaluate(*arguments, "--methods", "baseline")
    assert result.exit_code == 0, result.output
    from specexp import config
    from specexp.pair.loading import load_pair

    pair = load_pair(config.resolve("arith_quick", {"config": "mine.yaml"}), {"target"})
    assert pair.text.tokenizer.decode(pair.text.encode([{"role": "user", "content": "hello"}])) == "<user>hello<bot>"
