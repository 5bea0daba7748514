"""train_pair: train the embedded pair again (checkpoints; goes on after an interruption), and say what it solves."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import click

from entrypoints.common import guarded
from specexp.errors import ConfigError, unknown


@click.command("train_pair", help=__doc__)
@click.option("--models", default="draft,target", show_default=True, help="Which of the two, separated by commas.")
@click.option("--work", default="runs/train_pair", show_default=True, help="Folder of checkpoints.")
@click.option("--output", default="runs/train_pair/zoo", show_default=True, help="Folder for the finished models.")
@click.option("--steps", default="", help="Training steps, instead of the recipe's.")
def command(models: str, work: str, output: str, steps: str) -> None:
    guarded(lambda: train_pair(models.split(","), Path(work), Path(output), steps), "Run the same command to go on.")


def train_pair(names: list[str], work: Path, output: Path, steps: str = "") -> None:
    """Train each named model, save it under `output`, and log a run of its own. Raises SpecexpError."""
    faults = [unknown("model", name, ("draft", "target")) for name in names if name not in ("draft", "target")]
    if steps and not (steps.isdigit() and int(steps) > 0):
        faults.append(f"steps is {steps!r}; it must be a whole number >= 1.")
    if faults:
        raise ConfigError(faults)

    from specexp import tracking
    from specexp.evaluation.records import write_whole
    from specexp.lm.hf import load_model
    from specexp.lm.runtime import ModelConfig
    from specexp.zoo import training

    recipes = {name: training.RECIPES[name] for name in names}
    if steps:
        recipes = {name: replace(recipe, steps=int(steps)) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        training.load_checkpoint(recipe, work / name)  # refused before anything is written
    tokenizer = training.build_tokenizer()
    output.mkdir(parents=True, exist_ok=True)
    for name, recipe in recipes.items():
        folder, note = work / name, work / name / "mlflow.json"
        before = json.loads(note.read_text())["run_id"] if note.exists() else None
        folder.mkdir(parents=True, exist_ok=True)
        tags = {"method": "train_pair", "group": name, "task": "arith"}
        with tracking.training(f"train {name}", tags, asdict(recipe), before) as (run_id, log):
            write_whole(note, json.dumps({"run_id": run_id}))
            model = training.train(recipe, tokenizer, folder, log)
            training.save(model, tokenizer, output / name)
            solved = training.solve_rate(load_model(ModelConfig(str(output / name))), tokenizer)
            log({"quality/accuracy": solved}, recipe.steps)
        click.echo(f"{name}: solves {solved:.1%} of 200 unseen problems; saved in {output / name}")


if __name__ == "__main__":
    command(prog_name="python -m entrypoints.train_pair")
