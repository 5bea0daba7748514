"""train_pair: train the embedded pair again, with checkpoints to resume from, and report what it solves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specexp.command_line import guarded, own_options
from specexp.config.command_options import TRAINABLE
from specexp.config.parsers import EXECUTIONS
from specexp.errors import ConfigError, unknown
from specexp.tasks.defaults import NO_EXECUTION, PROGRAMS, execution_fault

if TYPE_CHECKING:
    from specexp.zoo.training import Recipe
    from specexp.zoo.training_tasks import TrainingTask

NEXT_STEP = "Run the same command to go on."


@click.command("train_pair", help=__doc__)
@own_options("train_pair")
def command(models: str, work: str, output: str, steps: str, task: str, execute: str) -> None:
    guarded(lambda: train_pair(models.split(","), Path(work), Path(output), steps, task, execute), NEXT_STEP)


def train_pair(
    names: list[str], work: Path, output: Path, steps: str = "", task: str = "arith", execute: str = NO_EXECUTION
) -> None:
    """Train each named model, save it under `output`, and log its own run. Raises SpecexpError."""
    faults = [unknown("model", name, ("draft", "target")) for name in names if name not in ("draft", "target")]
    if steps and not (steps.isdigit() and int(steps) > 0):
        faults.append(f"steps is {steps!r}; it must be a whole number >= 1.")
    if task not in TRAINABLE:
        faults.append(unknown("task", task, TRAINABLE))
    if execute not in EXECUTIONS:
        faults.append(unknown("execution", execute, EXECUTIONS))
    elif fault := execution_fault(task, execute, True):
        faults.append(fault)
    if faults:
        raise ConfigError(faults)

    from specexp import checkpoints
    from specexp.sandbox.sandbox import Sandbox
    from specexp.storage import files
    from specexp.storage.run_folder import STATE, locked, read_json
    from specexp.tracking import backend
    from specexp.zoo import training, training_tasks

    recipes = {name: training.RECIPES[task][name] for name in names}
    if steps:
        recipes = {name: replace(recipe, steps=int(steps)) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        checkpoints.load_checkpoint(recipe, work / name)  # refused before anything is written
        read_json(work / name / STATE)
    solved_by = training_tasks.TASKS[task]
    if task in PROGRAMS:
        sandbox = Sandbox()
        click.echo(f"note: {sandbox.protection.note()}", err=True)
        solved_by = training_tasks.SmallFunctions(sandbox)
    next_step = f"Checkpoints stay. When it answers: {NEXT_STEP}"
    with backend.require_store("a training is logged there as it goes", next_step):
        files.make_folder(output)
        tokenizer = training.build_tokenizer(task=task)
        for name, recipe in recipes.items():
            files.make_folder(work / name)
            with locked(work / name):
                solved = _train(name, recipe, tokenizer, solved_by, work / name, output / name)
            click.echo(f"{name}: solves {solved:.1%} of 200 unseen problems; saved in {output / name}")


def _train(name: str, recipe: Recipe, tokenizer: Any, task: TrainingTask, folder: Path, output: Path) -> float:
    """Train one model in its own run, and save it; returns the share of the problems that it solves."""
    from specexp.lm.hf.loading import load_model
    from specexp.lm.runtime import ModelConfig
    from specexp.storage import files
    from specexp.storage.run_folder import STATE, read_json, uid_of
    from specexp.tracking import client
    from specexp.zoo import training

    note = folder / STATE
    uid, before = uid_of(folder), (read_json(note) or {}).get("run_id")
    tags = {"method": "train_pair", "group": name, "task": recipe.task}
    with client.training(f"train {name}", tags, asdict(recipe), f"{uid}/train", before) as (run_id, log):
        files.write_json(note, {"uid": uid, "run_id": run_id})
        model = training.train(recipe, tokenizer, folder, log)
        training.save(model, tokenizer, output)
        solved = training.solve_rate(load_model(ModelConfig(str(output))), tokenizer, task)
        log({"quality/accuracy": solved}, recipe.steps)
    return solved


if __name__ == "__main__":
    command()
