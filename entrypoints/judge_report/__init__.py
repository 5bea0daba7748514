"""judge_report: show how reliable a judge is, which tokens pass it, and passes and refusals in their context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specexp.command_line import guarded, output_path, own_options, print_notes
from specexp.config.parsers import MOST_TOGETHER, whole
from specexp.errors import ConfigError, JudgeError, OutputError

from ..train_judge import labels_at

if TYPE_CHECKING:
    import numpy as np

    from specexp.judge.judge import Judge
    from specexp.judge.labels import LabelSet
    from specexp.judge_report.judge_page import JudgeReport

CHAMPION = "models:/autojudge@champion"


@dataclass(frozen=True, slots=True)
class JudgeReportConfig:
    """The checked settings."""

    judge: str
    labels: str
    batch: int
    output: str


def parse(judge: str, labels: str, batch: str, output: str) -> JudgeReportConfig:
    """Settings from text. Raises ConfigError."""
    try:
        together = whole(1, ">= 1", MOST_TOGETHER)(batch)
    except ValueError as error:
        raise ConfigError(f"batch is {batch!r}; {error}") from None
    return JudgeReportConfig(judge, labels, together, output)


def judge_report(asked: JudgeReportConfig) -> Path:
    """Score the test labels, decode their contexts again, write and log; returns the folder. Raises SpecexpError."""
    from specexp.judge import registry
    from specexp.judge_report import judge_page
    from specexp.rule_calibration import replay
    from specexp.storage import files
    from specexp.storage.run_folder import locked
    from specexp.storage.run_plan import Input
    from specexp.tasks.example import Dataset
    from specexp.tracking import backend
    from specexp.tracking.outbox import Outbox

    labels, source = labels_at(asked.labels)
    unreachable = backend.unreachable_reason()
    judge = registry.load(asked.judge)
    notes = _notes(asked.judge, judge, labels)
    folder = output_path(asked.output, f"judge-report-{judge.digest()[:12]}-{labels.hash[:12]}")
    _check(folder)
    tags = {
        "method": "judge_report", "group": "judge", "task": labels.manifest["task"],
        "pair": labels.manifest["settings"]["pair"], "judge": asked.judge, "judge_task": judge.facts.task,
    }  # fmt: skip
    outbox = Outbox(folder, "judge_report", f"report of {asked.judge}", tags, unreachable)
    mining = replay.prepared(labels, asked.batch)
    print_notes([*mining.notes, *notes])
    files.make_folder(folder)
    with locked(folder):
        report = _report(asked, judge, labels, mining, notes)
        paths = judge_page.write(folder, report)
        inputs = [Input.of(Dataset("labels", source, labels.hash, len(labels.labels)), "evaluation")]
        facts = judge.facts
        params = {"features": facts.features, "kind": facts.kind, "threshold": facts.threshold, "labels": labels.hash}
        outbox.send(outbox.main(report.metrics, paths, inputs, params=params))
    _show(report)
    click.echo(f"report: {folder / judge_page.PAGE}")
    return folder


def _report(asked: JudgeReportConfig, judge: Judge, labels: LabelSet, mining: Any, notes: list[str]) -> JudgeReport:
    import numpy as np
    from tqdm import tqdm

    from specexp.judge import calibration, features
    from specexp.judge_comparison.paired_auc import PromptResampling
    from specexp.judge_report import cases, judge_page, reliability, token_kinds
    from specexp.lm import out_of_memory

    x, important, rows = labels.select(features.mode(judge.facts.features), "test")
    p = np.asarray(judge.network(x))
    metrics = calibration.report(judge.facts.threshold, p, important)
    passes = _passes(p, judge.facts.threshold, np.array([label.draft_token for label in rows]), mining.pair.eos_ids)
    resampling = PromptResampling.of(important, [label.prompt_id for label in rows])
    result = reliability.reliability(p, resampling)
    chosen = cases.selected(rows, passes)
    shown = [rows[i] for i in chosen]
    num = len({label.prompt_id for label in shown})
    with (
        tqdm(total=num, desc="contexts", unit="prompt", dynamic_ncols=True) as bar,
        out_of_memory.translate_oom("decoding contexts", "batch", mining.config.experiment.models),
    ):
        found = cases.cases(
            mining, labels.labels, shown, p[chosen].tolist(), passes[chosen].tolist(), lambda: bar.update()
        )
    named = {f"judge/{key}": value for key, value in metrics.items()}
    return judge_page.JudgeReport(
        asked.judge, judge.facts, labels.hash, len({label.prompt_id for label in rows}), {**named, **result.metrics()},
        result, token_kinds.shares([label.draft_text for label in rows], important, passes), found, notes,
    )  # fmt: skip


def _passes(p: np.ndarray, threshold: float, tokens: np.ndarray, eos_ids: tuple[int, ...]) -> np.ndarray:
    """passes[N] of bools, as when decoding: a draft's EOS never does."""
    import numpy as np

    result: np.ndarray = (p < threshold) & ~np.isin(tokens, eos_ids)
    return result


def _notes(address: str, judge: Judge, labels: LabelSet) -> list[str]:
    """What to know before the numbers. Raises JudgeError if the judge does not fit the labels."""
    from specexp.judge import features

    who = labels.manifest["identity"]
    other = [key for key in ("target", "draft", "tokenizer") if getattr(judge.facts, key) != who[key]]
    if other:
        raise JudgeError(
            f"judge '{address}' is for another {' and '.join(other)} than the labels; give labels that were mined with"
            " its pair."
        )
    labels.check(features.mode(judge.facts.features))
    notes = []
    if judge.facts.labels != labels.hash:
        notes.append("The judge was trained on other labels: it may have seen prompts of these labels' test split.")
    task = labels.manifest["task"]
    if judge.facts.task and judge.facts.task != task:
        notes.append(f"The judge was mined on task '{judge.facts.task}', and these labels are of '{task}' (transfer).")
    return notes


def _check(folder: Path) -> None:
    from specexp.judge_report.judge_page import FIGURE, PAGE, TABLE
    from specexp.storage.run_folder import LOCK, PLAN, STATE

    own = {LOCK, STATE, f"{STATE}.partial", PLAN, PAGE, FIGURE, TABLE}
    if folder.exists() and (not folder.is_dir() or any(path.name not in own for path in folder.iterdir())):
        raise OutputError(f"'{folder}' was not made by judge_report; name another output folder.")


def _show(report: JudgeReport) -> None:
    result = report.reliability
    for name, value, (low, high) in (
        ("Brier score", result.brier, result.brier_interval),
        ("ECE", result.ece, result.ece_interval),
    ):
        click.echo(f"{name:<12}{value:.4f} (95 %: {low:.4f} to {high:.4f})")
    click.echo(f"{'draft token':<12}{'mismatches':>11}{'important':>11}{'accepted':>11}")
    for each in report.kinds:
        click.echo(f"{each.kind:<12}{each.mismatches:>11}{each.important:>11.1%}{each.accepted:>11.1%}")


@click.command("judge_report", help=__doc__)
@own_options("judge_report")
def command(**settings: str) -> None:
    guarded(lambda: judge_report(parse(**settings)), "Run the same command again.")
