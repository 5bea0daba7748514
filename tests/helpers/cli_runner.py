"""Runs entry points in a test, and reads their outputs."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from entrypoints.evaluate import command
from helpers.model_folders import build
from specexp.lm.hf.source import ZOO
from specexp.metrics import catalogue

# Fields that may differ between two runs of one configuration; a commit may be made during a test run.
CLOCKS = ("checksum", "seconds", "prefill_seconds", "time_to_first_token", "environment")
SMALL = ["--limit", "2", "--max-new-tokens", "30"]


def invoke(command: click.Command, *arguments: str, stdin: bytes | None = None) -> Result:
    """Run an entry point; then restore the SIGTERM handler."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(command, list(arguments), input=stdin)
    finally:
        signal.signal(signal.SIGTERM, before)


def evaluate(*arguments: str) -> Result:
    return invoke(command, *arguments)


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "records.jsonl").read_text().splitlines()]


def interrupts(count: int) -> Callable[..., None]:
    """A function that can be called `count` times, and is then interrupted as by Ctrl-C."""
    left = iter(range(count))

    def dies(*_: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return dies


def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({k: v for k, v in r.items() if k not in CLOCKS} for r in rows),
        key=lambda r: (r["prompt_id"], r["turn"], r["label"], r["repeat"]),
    )


def runs() -> list[Run]:
    """All runs of the store, whose metrics must be in the catalogue; `system/` is MLflow's own."""
    result = list(MlflowClient().search_runs(["0"]))
    keys = {key for run in result for key in run.data.metrics if not key.startswith("system/")}
    assert not catalogue.unknown(keys)
    return result


def flat_runs() -> dict[str, Run]:
    result = [run for run in runs() if run.data.tags["method"] != "comparison"]
    names = {run.info.run_name: run for run in result}
    assert len(names) == len(result), "a run was made twice"
    return names


def comparison_runs() -> list[Run]:
    return [run for run in runs() if run.data.tags.get("method") == "comparison"]


def refused(result: Result, message: str, workplace: Path) -> None:
    """Check for one clear line, exit code 2, no traceback, nothing written, no run made."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert len(result.output.strip().splitlines()) == 1
    assert message in result.output
    assert not (workplace / "out").exists()
    assert not (workplace / "runs").exists()
    assert not runs()


def with_models(workplace: Path, target: Path | str, draft: Path | str) -> list[str]:
    (workplace / "mine.yaml").write_text(f"target: {{model: '{target}'}}\ndraft: {{model: '{draft}'}}\nlimit: 2\n")
    return ["--config", "mine.yaml", "--output", "out"]


def tiny(folder: Path, **more: Any) -> Path:
    """A random model folder with the embedded pair's tokenizer."""
    build("llama", vocab_size=592, **more).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ZOO / "target" / name, folder)
    return folder


def run(name: str, *arguments: str, stdin: bytes | None = None) -> Result:
    """Run an entry point by its name."""
    return invoke(importlib.import_module(f"entrypoints.{name}").command, *arguments, stdin=stdin)


def is_refused(result: Result, message: str) -> None:
    """Check for one line that contains `message`, and exit code 2; neither output nor a traceback."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in line
    assert len(line) < 1200
