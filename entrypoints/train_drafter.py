"""train_drafter: train an EAGLE-3 head for a target on its own outputs, evaluate it, and register it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specexp import config
from specexp.command_line import guarded, output_path, own_options, print_notes, settings_options, tags_of
from specexp.config.schema import help_texts
from specexp.errors import ConfigError
from specexp.pair import first_look

from .evaluate import CONFIG, evaluate

if TYPE_CHECKING:
    from specexp.drafter.making import DrafterReport
    from specexp.drafter.preparation import PreparedDrafter
    from specexp.storage.run_folder import OutputFolder
    from specexp.tracking.registered import Promotion

GAMMAS = "4,6,8"  # draft lengths that are timed
OF_EVALUATION = (
    "pair", "target", "draft", "chat_template", "task", "data", "system", "shots", "shots_data", "max_new_tokens",
    "config",
)  # fmt: skip
NEXT_STEP = "Outputs and checkpoints stay. When the store answers, go on with --resume (-P resume=true)."
SETTINGS = {
    **help_texts(("pair", "target", "draft", "chat_template")),
    "task": f"Choose where training prompts come from: {', '.join(config.TRAINABLE)}.",
    **help_texts(("data", "system", "shots", "shots_data")),
    "max_new_tokens": "Set the most tokens of an output that the head is trained on.",
    "limit": f"Set how many prompts the target decodes for the training. Default: {config.DRAFTER_PROMPTS}.",
    "seed": "Set the seed of the sampled outputs, of the first weights and of the batches.",
    "batch": f"Set how many prompts are decoded together. Default: {config.OUTPUTS_TOGETHER}.",
    "config": CONFIG,
}


def train_drafter(experiment: str, output: str, resume: bool, name: str, timed: str, flags: Mapping[str, str]) -> Path:
    """Train, evaluate, log and register a drafter; returns the head's folder. Raises SpecexpError."""
    if not timed.isdigit():
        raise ConfigError(f"timed is {timed!r}; it must be a whole number >= 0.")
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(f"name is {name!r}; it must be letters, digits, '-', '_' and '.'.")
    resolved = config.resolve_drafter(experiment, flags)
    path = output_path(output, f"drafter-{resolved.experiment.task}-{resolved.hash}")
    from specexp.storage.run_folder import OutputFolder

    folder = OutputFolder(path, resolved, resume, "train_drafter")
    first_look.check(resolved.experiment, {"target", "draft"})
    from specexp.drafter import preparation
    from specexp.tracking import backend

    with backend.require_store("a training is logged there as it goes", NEXT_STEP):
        prepared = preparation.prepare(resolved)
        print_notes(prepared.notes)
        with folder.hold():
            given = {key: value for key, value in flags.items() if key in OF_EVALUATION}
            return _in_run(folder, prepared, name, partial(_speeds, experiment, path, given, int(timed)))


def _speeds(experiment: str, path: Path, given: Mapping[str, str], timed: int, head: Path) -> dict[str, float]:
    """Decode with the head, and with the draft model: the best speed-up of each, c, v and acceptance by position."""
    from specexp.storage.files import read_json
    from specexp.tracking import client

    result: dict[str, float] = {}
    for start, draft in (("head", f"eagle3:{head}"), ("model", given.get("draft", ""))) if timed else ():
        folder = path / f"speed_{start}"
        flags = {**given, "draft": draft, "limit": str(timed), "methods": "baseline,speculative", "gamma": GAMMAS}
        with client.detached():
            evaluate(experiment, str(folder), folder.exists(), flags, "0", with_notes=False)
        summary, costs = read_json(folder / "summary.json"), read_json(folder / "costs.json")
        best = max((each for each in summary.values() if "accept/alpha" in each), key=lambda m: m["speed/speedup"])
        shown = {key: value for key, value in best.items() if key.startswith(("accept/", "speed/speedup"))}
        result |= {f"drafter/{start}_{key.partition('/')[2]}": value for key, value in shown.items()}
        result[f"drafter/{start}_c"] = costs["draft"] / costs["target"]["1"]
        result |= {f"drafter/{start}_v_{n}": cost / costs["target"]["1"] for n, cost in costs["target"].items()}
    return result


def _in_run(
    folder: OutputFolder, prepared: PreparedDrafter, name: str, speeds: Callable[[Path], dict[str, float]]
) -> Path:
    from specexp.drafter import making, registry
    from specexp.storage.run_folder import STATE, read_json, uid_of
    from specexp.storage.run_plan import Input
    from specexp.tracking import client
    from specexp.tracking.outbox import Outbox

    experiment, path = prepared.config.experiment, folder.path
    tags = {**tags_of("train_drafter", experiment), "group": "drafter"}
    params = prepared.params()
    uid, key = uid_of(path), f"{uid_of(path)}/train"
    before = ((read_json(path / STATE) or {}).get("runs") or {}).get(key)
    with client.training("train drafter", tags, params, key, before) as (run_id, log):
        state = read_json(path / STATE) or {}
        folder.write_json(STATE, {**state, "uid": uid, "runs": {**state.get("runs", {}), key: run_id}})
        client.log_dataset(run_id, prepared.task.dataset(), "training")
        report = making.make(prepared, path, log)
        address = registry.log(report.folder, "drafter", report.metrics, report.facts)
    metrics = {**report.metrics, **speeds(report.folder)}
    verdict = _register(report, prepared, name, address)
    shown = {**tags, "drafter": f"{name}/{verdict.version}", "verdict": verdict.alias}
    _show(report)
    click.echo(f"{name} version {verdict.version} is {verdict.alias}: {verdict.reason}")
    outbox = Outbox(path, "drafter", f"drafter {experiment.task}", shown, None)
    outbox.send(outbox.main(metrics, report.files, [Input.of(prepared.task.dataset(), "training")], params=params))
    click.echo(f"drafter: {report.folder} (figures in {path}), models:/{name}/{verdict.version}")
    return report.folder


def _register(report: DrafterReport, prepared: PreparedDrafter, name: str, address: str) -> Promotion:
    from specexp.drafter import making, registry
    from specexp.tracking import registered

    facts = report.facts
    tags = {key: facts[key] for key in ("target_name", "target", "task")}
    with tempfile.TemporaryDirectory() as scratch:
        present = registry.champion(name, Path(scratch))
        version = registry.register(address, name, {**tags, "score": f"{making.score(report.by_draft):.4g}"})
        return registered.contend(name, version, present, lambda old: making.better(prepared, report, old))


def _show(report: DrafterReport) -> None:
    """Print acceptance by position of the head and of the draft model."""
    click.echo("accepted at each position, if all before it are (held-out outputs):")
    for (draft, kind), each in report.by_draft.items():
        shares = each.greedy if kind == "greedy" else each.overlap
        click.echo(f"{draft:>12} {kind:<8}" + "".join(f"{share:>7.3f}" for share in shares))


@click.command("train_drafter", help=__doc__)
@settings_options("arith_quick", SETTINGS)
@own_options("train_drafter")
def command(experiment: str, output: str, resume: bool, name: str, timed: str, **flags: str) -> None:
    guarded(lambda: train_drafter(experiment, output, resume, name, timed, flags))


if __name__ == "__main__":
    command()
