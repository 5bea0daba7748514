"""calibrate_rule: set acceptance rules without training for a wanted loss, beside a judge on its own labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specexp.command_line import guarded, output_path, own_options, print_notes
from specexp.config.parsers import MOST_TOGETHER, real, whole
from specexp.errors import ConfigError, JudgeError, OutputError, unknown

from .train_judge import labels_at

if TYPE_CHECKING:
    from specexp.judge.labels import LabelSet
    from specexp.rule_calibration.choice import Calibrated, Scores

CHAMPION = "models:/autojudge@champion"
NO_JUDGE = "none"
COLUMNS = (
    ("dial", "judge/threshold", "{:.4g}"),
    ("recall", "judge/recall", "{:.3f}"),
    ("accepted", "judge/accepted", "{:.1%}"),
    ("loss", "judge/loss", "{:.1%}"),
    ("at most", "judge/loss_high", "{:.1%}"),
    ("ROC-AUC", "judge/roc_auc", "{:.4f}"),
)
TABLE, CHOSEN, SCORED = "rules.csv", "rules.json", "scores.jsonl"


@dataclass(frozen=True, slots=True)
class CalibrateRuleConfig:
    """The checked settings."""

    labels: str
    rules: tuple[str, ...]
    loss: float
    window: int
    accept_k: int
    judge: str
    batch: int
    output: str


def parse(
    labels: str, rules: str, loss: str, window: str, accept_k: str, judge: str, batch: str, output: str
) -> CalibrateRuleConfig:
    """Settings from text. Raises ConfigError with every fault."""
    from specexp.rule_calibration.dials import DIALS

    faults, numbers = [], {}
    names = tuple(dict.fromkeys(part.strip() for part in rules.split(","))) if rules else tuple(DIALS)
    faults += [unknown("rule", name, DIALS) for name in names if name not in DIALS]
    parsers: Mapping[str, tuple[str, Any]] = {
        "loss": (loss, real(lambda x: 0 <= x < 1, "in [0, 1)")),
        "window": (window, whole(1, ">= 1")),
        "accept_k": (accept_k, whole(1, ">= 1")),
        "batch": (batch, whole(1, ">= 1", MOST_TOGETHER)),
    }
    for name, (value, parser) in parsers.items():
        try:
            numbers[name] = parser(value)
        except ValueError as error:
            faults.append(f"{name} is {value!r}; {error}")
    if faults:
        raise ConfigError(faults)
    return CalibrateRuleConfig(labels, names, judge=judge, output=output, **numbers)


def calibrate_rule(asked: CalibrateRuleConfig) -> Path:
    """Score the labels' mismatches, choose each dial, write and log; returns the folder. Raises SpecexpError."""
    from specexp.rule_calibration import replay
    from specexp.storage import files
    from specexp.storage.run_folder import locked
    from specexp.tracking import backend
    from specexp.tracking.outbox import Outbox

    labels, source = labels_at(asked.labels)
    folder = output_path(asked.output, f"rules-{labels.hash[:12]}-l{asked.loss:g}-w{asked.window}-k{asked.accept_k}")
    _check(folder)
    tags = {
        "method": "calibrate_rule", "group": "judge", "task": labels.manifest["task"],
        "pair": labels.manifest["settings"]["pair"],
    }  # fmt: skip
    outbox = Outbox(folder, "rules", f"rules {labels.manifest['task']}", tags, backend.unreachable_reason())
    judge, note = _judge(asked.judge, labels)
    mining = replay.prepared(labels, asked.batch)
    print_notes([*mining.notes, *note])
    files.make_folder(folder)
    with locked(folder):
        rules = _calibrated(asked, labels, mining, judge, folder / SCORED)
        _send(outbox, asked, labels, source, rules)
    _show(rules)
    click.echo(f"rules: {folder} ({TABLE}, {CHOSEN}, rules.png)")
    return folder


def _calibrated(
    asked: CalibrateRuleConfig, labels: LabelSet, mining: Any, judge: Any, journal: Path
) -> list[Calibrated]:
    import numpy as np

    from specexp.judge import features
    from specexp.rule_calibration import choice, replay
    from specexp.rule_calibration.dials import DIALS, JUDGE, OF_JUDGE

    dials = {name: DIALS[name] for name in asked.rules}
    splits = _scored(asked, labels, mining, dials, journal)
    result = [choice.calibrated(name, dial, asked.loss, *(splits[split][name] for split in replay.SPLITS))
              for name, dial in dials.items()]  # fmt: skip
    if judge is not None:
        of_splits = []
        for split in replay.SPLITS:
            x, important, rows = labels.select(features.mode(judge.facts.features), split)
            scores = np.asarray(judge.network(x), dtype=np.float64)
            of_splits.append(choice.Scores(scores, important, [label.prompt_id for label in rows]))
        result.insert(0, choice.calibrated(JUDGE, OF_JUDGE, asked.loss, *of_splits))
    return result


def _scored(
    asked: CalibrateRuleConfig, labels: LabelSet, mining: Any, dials: Any, path: Path
) -> dict[str, dict[str, Scores]]:
    """The scores of each split's mismatches by each rule. The file at `path` has those of prompts that are done."""
    import numpy as np
    from tqdm import tqdm

    from specexp.lm import out_of_memory
    from specexp.rule_calibration import choice, replay
    from specexp.storage.journal import Journal

    runs = replay.MismatchReplay(mining, dials, asked.window, asked.accept_k)
    num = len({label.prompt_id for label in labels.labels if label.split in replay.SPLITS})
    found: dict[str, list[replay.Scored]] = {split: [] for split in replay.SPLITS}
    models = mining.config.experiment.models
    with (
        tqdm(total=num, desc="scoring", unit="prompt", dynamic_ncols=True) as bar,
        out_of_memory.translate_oom("scoring labels", "batch", models),
        Journal.open(path, {"labels": labels.hash, "window": asked.window, "accept_k": asked.accept_k}) as journal,
    ):
        for label, scores in runs.run(mining.examples, labels.labels, bar.update, journal):
            found[label.split].append((label, scores))
    return {
        split: {
            name: choice.Scores(
                np.array([scores[name] for _, scores in rows]),
                np.array([bool(label.important) for label, _ in rows], dtype=bool),
                [label.prompt_id for label, _ in rows],
            )
            for name in dials
        }
        for split, rows in found.items()
    }


def _send(outbox: Any, asked: CalibrateRuleConfig, labels: LabelSet, source: str, rules: list[Calibrated]) -> None:
    """Write table, figure and dials, and send one run for each rule beside the main one."""
    from specexp.judge.trained_judge import write_table
    from specexp.rule_calibration import choice, curves
    from specexp.storage import run_plan
    from specexp.storage.files import write_json
    from specexp.storage.run_folder import uid_of
    from specexp.storage.run_plan import Input, RunSpec
    from specexp.tasks.example import Dataset

    folder = outbox.path
    write_table(folder / TABLE, [choice.row(each) for each in rules])
    chosen = {
        each.name: {"methods": each.dial.method, each.dial.setting: each.value, **each.dial.more} for each in rules
    }
    write_json(folder / CHOSEN, {"loss": asked.loss, "labels": labels.hash, "rules": chosen})
    paths = [curves.draw(folder, rules), folder / TABLE, folder / CHOSEN]
    inputs = [Input.of(Dataset("labels", source, labels.hash, len(labels.labels)), "evaluation")]
    params = {"loss": asked.loss, "labels": labels.hash, "window": asked.window, "accept_k": asked.accept_k}
    main = outbox.main({}, paths, inputs, params=params)
    flat = [
        RunSpec(
            f"{uid_of(folder)}/rules/{each.name}", f"rule_{each.name}",
            {**main.tags, "method": "calibrate_rule", "rule": each.name},
            run_plan.logged({**params, "rule": each.name, "dial": each.dial.setting, "value": each.value}),
            each.metrics(), [], inputs, run_plan.now(),
        )
        for each in rules
    ]  # fmt: skip
    outbox.send(main, flat)


def _judge(address: str, labels: LabelSet) -> tuple[Any, list[str]]:
    """The judge to compare with, and notes. Raises JudgeError for one that was named and does not fit."""
    from specexp.judge import features, registry

    if address == NO_JUDGE:
        return None, []
    try:
        judge = registry.load(address or CHAMPION)
        who = labels.manifest["identity"]
        other = [key for key in ("target", "draft", "tokenizer") if getattr(judge.facts, key) != who[key]]
        if other:
            raise JudgeError(f"judge '{address or CHAMPION}' is for another {' and '.join(other)} than the labels.")
        labels.check(features.mode(judge.facts.features))
    except JudgeError as error:
        if address:
            raise
        return None, [f"no judge is compared: {error}"]
    if judge.facts.labels != labels.hash:
        return judge, ["the judge was trained on other labels: it may have seen prompts of these labels' test split."]
    return judge, []


def _check(folder: Path) -> None:
    from specexp.storage.run_folder import LOCK, PLAN, STATE

    own = {LOCK, STATE, f"{STATE}.partial", PLAN, TABLE, CHOSEN, SCORED, "rules.png"}
    if folder.exists() and (not folder.is_dir() or any(path.name not in own for path in folder.iterdir())):
        raise OutputError(f"'{folder}' was not made by calibrate_rule; name another output folder.")


def _show(rules: list[Calibrated]) -> None:
    click.echo("on the test split, each at its calibrated dial:")
    click.echo(" " * 12 + "".join(f"{head:>11}" for head, _, _ in COLUMNS) + "  setting")
    for each in rules:
        metrics = each.metrics()
        cells = "".join(f"{form.format(metrics[key]):>11}" for _, key, form in COLUMNS)
        click.echo(f"{each.name:<12}{cells}  {each.dial.setting}")


@click.command("calibrate_rule", help=__doc__)
@own_options("calibrate_rule")
def command(**settings: str) -> None:
    guarded(lambda: calibrate_rule(parse(**settings)), "Run the same command again.")


if __name__ == "__main__":
    command()
