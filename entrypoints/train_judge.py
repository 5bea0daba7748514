"""train_judge: train judges on mined labels, calibrate and compare them, and register the best one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specexp import reading
from specexp.command_line import guarded, output_path, own_options, print_notes
from specexp.errors import ConfigError, JudgeError, OutputError, unknown

if TYPE_CHECKING:
    from specexp.judge.features import Mode
    from specexp.judge.labels import LabelSet
    from specexp.judge.trained_judge import TrainedJudge

NEXT_STEP = "The labels are where they were; when the store answers, run the same command again."
KINDS = ("mlp", "logistic", "trees")
BOTH = "both"  # the default of `features`
MOST_CHARACTERS = 60  # of the feature sets in a folder's name
COLUMNS = (
    ("ROC-AUC", "judge/roc_auc", "{:.4f}"),
    ("PR-AUC", "judge/pr_auc", "{:.4f}"),
    ("Brier", "judge/brier", "{:.4f}"),
    ("threshold", "judge/threshold", "{:.4f}"),
    ("recall", "judge/recall", "{:.3f}"),
    ("accepted", "judge/accepted", "{:.1%}"),
)


@dataclass(frozen=True, slots=True)
class TrainJudgeConfig:
    """The checked settings."""

    labels: str
    features: tuple[str, ...]  # none: every feature set that the labels store
    recall: float
    kinds: tuple[str, ...]
    name: str
    output: str
    seed: int


def parse(
    labels: str, features: str, recall: str, kinds: str, name: str, output: str, seed: str, compare: bool
) -> TrainJudgeConfig:
    """Settings from text. Raises ConfigError with every fault."""
    from specexp.judge.features import MODES

    modes = _names(features)
    faults = [unknown("feature mode", mode, MODES) for mode in modes if mode not in MODES]
    if compare and features != BOTH:
        faults.append(f"features is {features!r}, but compare takes every feature set; leave one of them out.")
    try:
        share = float(recall)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        faults.append(f"recall is {recall!r}; it must be a number in (0, 1].")
    names = _names(kinds)
    faults += [unknown("kind", kind, KINDS) for kind in names if kind not in KINDS]
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        faults.append(f"name is {name!r}; it must be letters, digits, '-', '_' and '.'.")
    if not seed.isdigit():
        faults.append(f"seed is {seed!r}; it must be a whole number >= 0.")
    if faults:
        raise ConfigError(faults)
    asked = ((), KINDS) if compare else (modes, names)
    return TrainJudgeConfig(labels, asked[0], share, asked[1], name, output, int(seed))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def train_judge(asked: TrainJudgeConfig) -> str:
    """Train, calibrate, compare, log and register; returns the new version's address. Raises SpecexpError."""
    from specexp.tracking import backend

    with backend.require_store("a judge is registered there", NEXT_STEP):
        return _train(asked)


def _train(asked: TrainJudgeConfig) -> str:
    from specexp.answers.rules import version_note
    from specexp.judge import features, training
    from specexp.storage import files
    from specexp.storage.run_folder import locked

    labels, source = labels_at(asked.labels)
    if not asked.features:
        asked = replace(asked, features=tuple(name for name, mode in features.MODES.items() if labels.stores(mode)))
    folder = output_path(asked.output, _name(asked, labels))
    _check(folder)
    for name in asked.features:
        training.check(labels, features.mode(name), asked.kinds)
    if note := version_note(f"label set '{source}'", labels.answer_version):
        print_notes([note])
    files.make_folder(folder)
    with locked(folder):
        return _train_in(folder, asked, labels, source)


def _train_in(folder: Path, asked: TrainJudgeConfig, labels: LabelSet, source: str) -> str:
    from specexp.judge import registry, trained_judge
    from specexp.judge_comparison import comparison, comparison_page
    from specexp.storage.run_plan import Input
    from specexp.tracking import client
    from specexp.tracking.outbox import Outbox

    tags = {"group": "judge", "task": labels.manifest["task"], "pair": labels.manifest["settings"]["pair"]}
    candidates, run_ids, addresses = _candidates(folder, asked, labels, source, tags)
    chosen = comparison.chosen_of(candidates)
    files = trained_judge.write(folder, candidates, chosen, labels)
    _, important, rows = labels.select(_mode(candidates[chosen]), "test")
    prompts = [label.prompt_id for label in rows]
    judges = comparison.compared(candidates, chosen, important, prompts)
    said = comparison.sentences(judges, chosen, len(set(prompts)))
    files += comparison_page.write(folder, judges, chosen, said, labels)
    if chosen not in addresses:
        with client.reopened(run_ids[chosen]):
            addresses[chosen] = _log(candidates[chosen], labels)
    present = registry.champion(asked.name)
    verdict = _register(asked.name, addresses[chosen], candidates[chosen], present, labels)
    shown = {"method": "judge_comparison", **tags, "judge": f"{asked.name}/{verdict.version}", "verdict": verdict.alias}
    _show(candidates, chosen)
    for sentence in said:
        click.echo(sentence)
    click.echo(f"{asked.name} version {verdict.version} is {verdict.alias}: {verdict.reason}")
    title = f"judge {asked.features[0]}" if len(asked.features) == 1 else f"judge of {len(asked.features)} feature sets"
    outbox = Outbox(folder, verdict.version, title, shown, None, scope=f"judge/{labels.hash}")
    inputs = [Input.of(_dataset(labels, source), "evaluation")]
    note = {"mlflow.note.content": "\n\n".join(said), "chosen": chosen}
    sent = outbox.send(outbox.main(candidates[chosen].metrics, files, inputs, note))
    for each in judges:
        client.add(run_ids[each.name], each.metrics(), {client.PARENT: sent.run_id})
    click.echo(f"judge: {folder} (figures and {comparison_page.PAGE} there), models:/{asked.name}/{verdict.version}")
    return f"models:/{asked.name}/{verdict.version}"


def _candidates(
    folder: Path, asked: TrainJudgeConfig, labels: LabelSet, source: str, tags: Mapping[str, str]
) -> tuple[dict[str, TrainedJudge], dict[str, str], dict[str, str]]:
    """Train each kind on each feature set, in a run of its own: judges, run ids and models' addresses by name.

    Of several feature sets, only the judge that is chosen becomes a model.
    """
    from specexp.judge import features, trained_judge
    from specexp.storage.run_folder import uid_of
    from specexp.tracking import client

    several = len(asked.features) > 1
    candidates: dict[str, TrainedJudge] = {}
    run_ids: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for mode, kind in product(asked.features, asked.kinds):
        name = f"{mode}_{kind}" if several else kind
        params = {"kind": kind, "features": mode, "requested_recall": asked.recall, "labels": labels.hash}
        shown, key = {**tags, "method": "train_judge"}, f"{uid_of(folder)}/train/{name}"
        with client.training(f"judge_{name}", shown, params, key) as (run_id, log):
            candidate = trained_judge.train(kind, labels, features.mode(mode), asked.recall, asked.seed, log)
            client.log_settings(run_id, candidate.settings)
            client.log_dataset(run_id, _dataset(labels, source), "training")
            if several:
                client.add(run_id, candidate.metrics, {})
            else:
                addresses[name] = _log(candidate, labels)
            candidates[name], run_ids[name] = candidate, run_id
    return candidates, run_ids, addresses


def _log(candidate: TrainedJudge, labels: LabelSet) -> str:
    """Log a judge as a model of the active run."""
    from specexp.judge import registry

    example = labels.select(_mode(candidate), "test")[0]
    return registry.log(candidate.judge, "judge", candidate.metrics, example, ("labels", labels.hash[:32]))


def _mode(candidate: TrainedJudge) -> Mode:
    from specexp.judge import features

    return features.mode(candidate.judge.facts.features)


def _name(asked: TrainJudgeConfig, labels: LabelSet) -> str:
    sets = "+".join(asked.features)
    if len(sets) > MOST_CHARACTERS:
        sets = f"{len(asked.features)}-sets-{hashlib.sha256(sets.encode()).hexdigest()[:8]}"
    return f"judge-{labels.hash[:12]}-{sets}-r{asked.recall:g}-s{asked.seed}"


def _register(name: str, address: str, judge: TrainedJudge, present: Any, labels: LabelSet) -> Any:
    from specexp.judge import registry, trained_judge
    from specexp.tracking import registered

    version = registry.register(address, name, judge.judge.facts)
    return registered.contend(name, version, present, lambda old: trained_judge.better(judge.judge, old, labels))


def labels_at(address: str) -> tuple[LabelSet, str]:
    """A label set by folder or address; without either, that of the newest collect_labels run in the store."""
    from specexp.judge.labels import LabelSet
    from specexp.tracking import client, search

    if not address:
        run_id = search.newest({"method": "collect_labels"})
        if run_id is None:
            raise JudgeError(
                "labels is not given, and this store has no finished collect_labels run; run collect_labels first, or"
                " name a folder with labels."
            )
        address = f"runs:/{run_id}/labels"
    if not address.startswith("runs:"):
        return LabelSet.read(reading.folder_of(address, "labels", JudgeError, "or runs:/ID/labels")), address
    with tempfile.TemporaryDirectory() as scratch:
        return LabelSet.read(client.fetch(address, Path(scratch))), address


def _dataset(labels: LabelSet, source: str) -> Any:
    from specexp.tasks.example import Dataset

    return Dataset("labels", source, labels.hash, len(labels.labels))


def _check(folder: Path) -> None:
    from specexp.judge.judge import FACTS
    from specexp.storage.run_folder import LOCK, STATE

    begun = {LOCK, STATE, f"{STATE}.partial"}  # all that an interrupted training leaves
    taken = folder.is_dir() and any(path.name not in begun for path in folder.iterdir())
    if (folder.exists() and not folder.is_dir()) or (taken and not (folder / FACTS).is_file()):
        raise OutputError(f"'{folder}' was not made by train_judge; name another output folder.")


def _show(candidates: dict[str, TrainedJudge], chosen: str) -> None:
    click.echo("on the test split:")
    width = max(12, *(len(name) + 1 for name in candidates))
    click.echo(" " * width + "".join(f"{head:>11}" for head, _, _ in COLUMNS))
    for kind, candidate in candidates.items():
        cells = "".join(f"{form.format(candidate.metrics[key]):>11}" for _, key, form in COLUMNS)
        click.echo(f"{kind:<{width}}{cells}{'  (chosen by validation ROC-AUC)' if kind == chosen else ''}")


@click.command("train_judge", help=__doc__)
@own_options("train_judge")
def command(compare: bool, **settings: str) -> None:
    guarded(lambda: train_judge(parse(**settings, compare=compare)), "Run the same command again.")


if __name__ == "__main__":
    command()
