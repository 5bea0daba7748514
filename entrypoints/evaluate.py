"""evaluate: decode a task's prompts with several methods, interleaved, and record what each costs and gains."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from entrypoints.common import Flag, guarded
from specexp import config

SETTINGS = {
    "pair": "Model preset.",
    "target": "Target model: a folder or a hub id.",
    "draft": "Draft model: a folder or a hub id.",
    "task": "Where prompts and answers come from.",
    "data": "The task's rows: a file, a folder, an address or a hub id.",
    "shots": "Solved examples before a problem of gsm8k: 0 or 8.",
    "history": "What second turns go on behind: baseline (every method the same) or own.",
    "methods": "Presets, separated by commas.",
    "gamma": "Draft length, or several separated by commas.",
    "tree_budget": "Nodes of a tree, or several numbers separated by commas.",
    "temperature": "0 is greedy.",
    "top_k": "0 is off.",
    "top_p": "1 is off.",
    "max_new_tokens": "Most tokens to emit for a prompt.",
    "limit": "How many prompts.",
    "seed": "Of the dice.",
    "repeats": "How often, with seeds seed, seed + 1, ...",
    "judge": "A registered judge, for methods that take one.",
    "config": "A YAML file of settings, laid over the experiment's.",
}


def options(default: str) -> Callable[[Any], Any]:
    """The options of `evaluate`, in MLproject's order; `default` is the experiment."""

    def decorate(function: Any) -> Any:
        function = click.option(
            "--resume", type=Flag(), default=False, is_flag=False, flag_value=True, help="Go on in the output folder."
        )(function)
        function = click.option("--output", default="", help="Folder to write [runs/EXPERIMENT-HASH].")(function)
        for name, text in reversed(SETTINGS.items()):
            spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
            function = click.option(*spellings, name, default="", help=text)(function)
        return click.option("--experiment", default=default, show_default=True, help="Experiment preset.")(function)

    return decorate


def evaluate(experiment: str, output: str, resume: bool, flags: Mapping[str, str]) -> None:
    """Resolve, run and log one experiment. Raises SpecexpError."""
    resolved = config.resolve(experiment, flags)
    folder_path = Path(output) if output else Path("runs") / f"{resolved.name}-{resolved.hash}"
    # Imports that load torch and mlflow wait until the settings are known to be good.
    from specexp.evaluation.output import OutputFolder

    folder = OutputFolder(folder_path, resolved, resume)
    from specexp.evaluation import report, runner

    prepared = runner.prepare(resolved)
    with folder.open() as records:
        runner.note_data(prepared, folder)
        from specexp import tracking

        key = f"{_uid(folder)}/comparison"
        whole = not tracking.attached() and not runner.missing(prepared, records)
        run_id = tracking.find(key, finished=True) if whole else None
        if run_id:
            report.show(prepared, folder, runner.summary(prepared, folder, records.records))
        else:
            tags = {"method": "comparison", "group": resolved.name, "pair": resolved.pair, "task": resolved.task}
            with tracking.comparison(key, f"compare {resolved.name}", tags) as run_id:
                runner.run(prepared, folder, records)
                found = runner.summary(prepared, folder, records.records)
                report.show(prepared, folder, found)
                report.publish(prepared, folder, records.records, found, run_id, _uid(folder))
        address = tracking.chart_address(run_id)
    click.echo(f"records: {folder.path / 'records.jsonl'}")
    click.echo(f"charts (after `make ui`): {address}")


def _uid(folder: Any) -> str:
    """What tells this output folder's MLflow runs from any other's."""
    state = folder.read_json("mlflow.json")
    if state is None:
        state = {"uid": uuid.uuid4().hex}
        folder.write_json("mlflow.json", state)
    return str(state["uid"])


@click.command("evaluate", help=__doc__)
@options("arith_quick")
def command(experiment: str, output: str, resume: bool, **flags: str) -> None:
    guarded(lambda: evaluate(experiment, output, resume, flags))


if __name__ == "__main__":
    command(prog_name="python -m entrypoints.evaluate")
