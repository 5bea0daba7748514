"""train_judge: train judges on mined labels, calibrate and compare them, and register the better one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specexp import reading
from specexp.command_line import guarded, output_path, own_options, print_notes
from specexp.errors import ConfigError, JudgeError, OutputError, unknown

if TYPE_CHECKING:
    from specexp.judge.labels import LabelSet
    from specexp.judge.trained_judge import TrainedJudge

NEXT_STEP = "The labels are where they were; when the store answers, run the same command again."
KINDS = ("mlp", "logistic")
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
    features: str
    recall: float
    kinds: tuple[str, ...]
    name: str
    output: str
    seed: int


def parse(labels: str, features: str, recall: str, kinds: str, name: str, output: str, seed: str) -> TrainJudgeConfig:
    """Settings from text. Raises ConfigError with every fault."""
    from specexp.judge.features import MODES

    faults = []
    if features not in MODES:
        faults.append(unknown("feature mode", features, MODES))
    try:
        share = float(recall)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        faults.append(f"recall is {recall!r}; it must be a number in (0, 1].")
    names = tuple(part.strip() for part in kinds.split(","))
    faults += [unknown("kind", kind, KINDS) for kind in names if kind not in KINDS]
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        faults.append(f"name is {name!r}; it must be letters, digits, '-', '_' and '.'.")
    if not seed.isdigit():
        faults.append(f"seed is {seed!r}; it must be a whole number >= 0.")
    if faults:
        raise ConfigError(faults)
    return TrainJudgeConfig(labels, features, share, tuple(dict.fromkeys(names)), name, output, int(seed))


def train_judge(asked: TrainJudgeConfig) -> str:
    """Train, calibrate, compare, log and register; returns the new version's address. Raises SpecexpError."""
    from specexp.tracking import backend

    with backend.require_store("a judge is registered there", NEXT_STEP):
        return _train(asked)


def _train(asked: TrainJudgeConfig) -> str:
    from specexp.answers.rules import version_note
    from specexp.judge import features, trained_judge
    from specexp.storage import files
    from specexp.storage.run_folder import locked

    labels, source = labels_at(asked.labels)
    folder = output_path(asked.output, _name(asked, labels))
    _check(folder)
    trained_judge.check(labels, features.mode(asked.features))
    if note := version_note(f"label set '{source}'", labels.answer_version):
        print_notes([note])
    files.make_folder(folder)
    with locked(folder):
        return _train_in(folder, asked, labels, source)


def _train_in(folder: Path, asked: TrainJudgeConfig, labels: LabelSet, source: str) -> str:
    from specexp.judge import features, registry, trained_judge
    from specexp.storage.run_folder import uid_of
    from specexp.storage.run_plan import Input
    from specexp.tracking import client
    from specexp.tracking.outbox import Outbox

    mode = features.mode(asked.features)
    tags = {"group": "judge", "task": labels.manifest["task"], "pair": labels.manifest["settings"]["pair"]}
    example = labels.select(mode, "test")[0]
    candidates: dict[str, TrainedJudge] = {}
    addresses: dict[str, str] = {}
    for kind in asked.kinds:
        params = {"kind": kind, "features": asked.features, "requested_recall": asked.recall, "labels": labels.hash}
        shown, key = {**tags, "method": "train_judge"}, f"{uid_of(folder)}/train/{kind}"
        with client.training(f"judge_{kind}", shown, params, key) as (run_id, log):
            candidate = trained_judge.train(kind, labels, mode, asked.recall, asked.seed, log)
            client.log_settings(run_id, candidate.settings)
            client.log_dataset(run_id, _dataset(labels, source), "training")
            addresses[kind] = registry.log(
                candidate.judge, "judge", candidate.metrics, example, ("labels", labels.hash[:32])
            )
            candidates[kind] = candidate
    chosen = max(candidates, key=lambda kind: candidates[kind].validation_auc)
    files = trained_judge.write(folder, candidates, chosen, labels, mode)
    present = registry.champion(asked.name)
    verdict = _register(asked.name, addresses[chosen], candidates[chosen], present, labels)
    shown = {"method": "judge_comparison", **tags, "judge": f"{asked.name}/{verdict.version}", "verdict": verdict.alias}
    _show(candidates, chosen)
    click.echo(f"{asked.name} version {verdict.version} is {verdict.alias}: {verdict.reason}")
    outbox = Outbox(folder, verdict.version, f"judge {asked.features}", shown, None, scope=f"judge/{labels.hash}")
    outbox.send(outbox.main(candidates[chosen].metrics, files, [Input.of(_dataset(labels, source), "evaluation")]))
    click.echo(f"judge: {folder} (figures there), models:/{asked.name}/{verdict.version}")
    return f"models:/{asked.name}/{verdict.version}"


def _name(asked: TrainJudgeConfig, labels: LabelSet) -> str:
    return f"judge-{labels.hash[:12]}-{asked.features}-r{asked.recall:g}-s{asked.seed}"


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
    click.echo(" " * 12 + "".join(f"{head:>11}" for head, _, _ in COLUMNS))
    for kind, candidate in candidates.items():
        cells = "".join(f"{form.format(candidate.metrics[key]):>11}" for _, key, form in COLUMNS)
        click.echo(f"{kind:<12}{cells}{'  (chosen by validation ROC-AUC)' if kind == chosen else ''}")


@click.command("train_judge", help=__doc__)
@own_options("train_judge")
def command(**settings: str) -> None:
    guarded(lambda: train_judge(parse(**settings)), "Run the same command again.")


if __name__ == "__main__":
    command()
