"""What an evaluation leaves to look at: the report beside its figures, in the folder and in MLflow's runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from helpers.cli_runner import comparison_runs, evaluate, flat_runs, records
from helpers.html_reading import read
from specexp.evaluation.report.chart_style import COLORS
from specexp.evaluation.report.run_specs import MOST_OUTPUTS

TOY = ["--experiment", "toy_quick", "--methods", "baseline,speculative", "--gamma", "3", "--max-new-tokens", "8"]
FIGURES = {"frontier", "accepted", "positions", "time", "predicted"}


def outputs(run: Run, workplace: Path) -> dict[str, list[Any]]:
    """The table of a method run, by column."""
    path = MlflowClient().download_artifacts(run.info.run_id, "outputs.json", str(workplace))
    table = json.loads(Path(path).read_text())
    return {name: [row[i] for row in table["data"]] for i, name in enumerate(table["columns"])}


def test_the_comparison_run_holds_report_figures_and_verdict(workplace: Path) -> None:
    result = evaluate(*TOY, "--limit", "3", "--output", "out")
    assert result.exit_code == 0, result.output
    (run,) = comparison_runs()
    client = MlflowClient()
    there = {file.path for name in ("", "figures") for file in client.list_artifacts(run.info.run_id, name)}
    assert there >= {"report.html", "shares.json", *(f"figures/{name}.png" for name in FIGURES)}
    assert {path.stem for path in (workplace / "out" / "figures").iterdir()} == FIGURES
    lines = result.output.splitlines()
    assert f"verdict: {run.data.tags['verdict']}" in lines
    assert "report: out/report.html" in lines
    assert run.data.tags["mlflow.note.content"].startswith(run.data.tags["verdict"])
    logged = Path(client.download_artifacts(run.info.run_id, "report.html", str(workplace))).read_text()
    assert logged == (workplace / "out" / "report.html").read_text()
    flat = flat_runs()["speculative_k3"].data.metrics
    assert {"speed/speedup_low", "speed/speedup_high", "speed/speedup_p", "accept/mean_length_low"} <= flat.keys()


def test_outputs_stand_side_by_side_in_the_ui(workplace: Path) -> None:
    (workplace / "mine.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Ünïcode <b>{i}</b>"}) + "\n" for i in range(MOST_OUTPUTS + 5))
    )
    (workplace / "mine.yaml").write_text("task: prompts\ndata: mine.jsonl\n")
    arguments = [*TOY, "--config", "mine.yaml", "--limit", str(MOST_OUTPUTS + 5), "--output", "out"]
    assert evaluate(*arguments).exit_code == 0
    texts = {(r["label"], r["prompt_id"]): r["text"] for r in records(workplace / "out")}
    for name, run in flat_runs().items():
        columns = outputs(run, workplace)
        assert columns["prompt"] == [f"Ünïcode <b>{i}</b>" for i in range(MOST_OUTPUTS)]
        assert columns["output"] == [texts[name, prompt_id] for prompt_id in columns["prompt_id"]]
        assert not any(value is None for column in columns.values() for value in column)
        assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "outputs.json", "type": "table"}]


@pytest.mark.slow
def test_every_setting_has_a_color_of_its_own_in_the_ui(workplace: Path) -> None:
    methods = ["--methods", "baseline,speculative,specexec,topk", "--gamma", "1,2,3,4", "--show", "0"]
    assert evaluate(*TOY, *methods, "--limit", "1", "--output", "out").exit_code == 0
    colors = {name: run.data.tags["mlflow.runColor"] for name, run in flat_runs().items()}
    assert len(set(colors.values())) == len(colors) == 13
    assert all(re.fullmatch(r"#[0-9a-f]{6}", color) for color in colors.values())
    assert colors["speculative_k4"] == COLORS["speculative"], "the figures'"


def test_dying_behind_the_outputs_does_not_double_them(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("the machine went away")

    arguments = [*TOY, "--limit", "2", "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", dies)
        assert evaluate(*arguments).exit_code == 70
    assert evaluate(*arguments, "--resume").exit_code == 0
    for run in flat_runs().values():
        assert len(outputs(run, workplace)["prompt"]) == 2


def test_going_on_in_a_finished_folder_renders_the_report_again(workplace: Path) -> None:
    arguments = [*TOY, "--limit", "2", "--output", "out"]
    assert evaluate(*arguments, "--show", "0").exit_code == 0
    report = workplace / "out" / "report.html"
    before = report.read_text()
    assert "tokens.html" not in read(before).addresses
    report.unlink()
    (workplace / "out" / "figures" / "frontier.png").unlink()
    assert evaluate(*arguments, "--resume").exit_code == 0
    again = report.read_text()
    assert "tokens.html" in read(again).addresses, "the token view, made this time, is linked"
    assert read(again).numbers == read(before).numbers
    assert (workplace / "out" / "figures" / "frontier.png").exists()
    assert len(comparison_runs()) == 1


def test_the_commands_of_a_report_do_what_they_say(workplace: Path) -> None:
    (workplace / "my settings.yaml").write_text("limit: 2\n")
    assert evaluate(*TOY, "--config", "my settings.yaml", "--seed", "3", "--output", "out").exit_code == 0
    text = read((workplace / "out" / "report.html").read_text()).text
    anew, show = (shlex.split(line) for line in text.splitlines() if line.startswith("python -m specexp evaluate"))
    assert evaluate(*anew[4:]).exit_code == 0
    hashes = {r["settings_hash"] for name in ("out", "out-again") for r in records(workplace / name)}
    assert len(hashes) == 1
    (workplace / "out" / "report.html").unlink()
    assert evaluate(*show[4:]).exit_code == 0
    assert (workplace / "out" / "report.html").exists()
