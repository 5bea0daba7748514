"""Publishes a finished evaluation: table and verdict in the terminal, report.html, and content for MLflow runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specexp.evaluation import divergence, served, time_split
from specexp.evaluation.divergence import NOT_LOSSLESS
from specexp.evaluation.large_runs import is_large, words
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.report import charts, html_page, table, transfer
from specexp.evaluation.report.comparison import Comparison, compare
from specexp.evaluation.report.divergence_text import marks
from specexp.evaluation.report.formatting import plain
from specexp.evaluation.report.run_facts import is_disturbed, run_name
from specexp.evaluation.report.verdict import verdict
from specexp.evaluation.summaries import Summary, summary
from specexp.evaluation.token_view import token_page
from specexp.metrics import incomplete
from specexp.metrics.tally import has_ends
from specexp.storage.files import write_whole
from specexp.storage.records import Record
from specexp.storage.run_folder import OutputFolder

PAGE = "report.html"
FAILURES = "failures.json"
MOST_NAMED = 5
REFUTED = f"{NOT_LOSSLESS}: outputs differ from plain decoding's, and no near tie explains it"


@dataclass(frozen=True, slots=True)
class Report:
    """What was shown, for the MLflow runs: metrics by label and repeat, and the comparison of all settings."""

    summary: Summary
    comparison: Comparison
    charts: Sequence[charts.Chart]
    verdict: Sequence[str]
    commands: Sequence[str]
    warnings: Sequence[str]


def show(prepared: Prepared, output: OutputFolder, records: Sequence[Record], commands: Sequence[str]) -> Report:
    """Print table and verdict; write summary.json, figures and report.html, from the content of the folder.

    `commands` are those that run the evaluation again, and that show it again.
    """
    experiment = prepared.experiment
    known = summary(prepared, output, records)
    result = _with_differences(prepared, output, records, known)
    named = {run_name(label, repeat, experiment.repeats): metrics for (label, repeat), metrics in result.items()}
    output.write_json("summary.json", named)
    comparison = compare(prepared, output, records, known)
    drawn = charts.draw(comparison, output.path / "figures")
    warnings = _warnings(comparison, output, named)
    warnings += transfer.warnings(comparison, output.read_json("judges.json") or {}, prepared.task.name)
    said = [plain(sentence) for sentence in verdict(comparison)]
    report = Report(result, comparison, drawn, said, commands, warnings)
    write_page(output, report)
    together = {entry.label: entry.metrics for entry in comparison.entries}
    outputs = marks(comparison)
    print(table.terminal(together, experiment.temperature == 0, experiment.batch, experiment.repeats, outputs))
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"verdict: {said[0]}")
    print(f"report: {output.path / PAGE}")
    return report


def write_page(output: OutputFolder, report: Report) -> Path:
    """Write report.html, with a link to the token view if that exists."""
    files = ("environments", "costs", "shares", "data", "judges")
    links = [
        (path.name, "Token by token: where each token came from")
        for path in token_page.files(output)
        if path.suffix == ".html"
    ]
    read = {name: output.read_json(f"{name}.json") for name in files}
    folder = html_page.Folder(read, links, report.commands, report.warnings)
    write_whole(output.path / PAGE, html_page.render(report.comparison, folder, report.charts))
    return output.path / PAGE


def failed_prompts(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on the prompts that no worker survived, which no result has."""
    if not failures:
        return []
    names = list(dict.fromkeys(str(each["prompt_id"]) for each in failures))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return [
        f"{len(names)} failed: workers died at {', '.join(names[:MOST_NAMED])}{more} ({FAILURES}); no result has them."
    ]


def _with_differences(prepared: Prepared, output: OutputFolder, records: Sequence[Record], results: Summary) -> Summary:
    """Return the summary with the metrics of each repeat's outputs that differ from plain decoding's."""
    entries = output.read_json(divergence.FILE)
    more: Summary = {}
    for repeat in {repeat for _, repeat in results}:
        for label, each in divergence.by_label(prepared, entries, records, repeat).items():
            more[label, repeat] = each.metrics()
    return {key: metrics | more.get(key, {}) for key, metrics in results.items()}


def _warnings(comparison: Comparison, output: OutputFolder, named: dict[str, dict[str, float]]) -> list[str]:
    """Return what a reader should know before the numbers."""
    experiment = comparison.experiment
    result = []
    disturbed = [name for name, metrics in named.items() if is_disturbed(metrics)]
    if disturbed and comparison.claimed:
        result.append(
            f"{', '.join(disturbed)}: faster than the measured calls allow; something else was running."
            " Measure again on a quiet machine."
        )
    if not comparison.claimed:
        result.append(
            "Attainable and predicted speed-ups are not shown: on CUDA a call timed alone, as in this folder's"
            " costs.json, costs up to 1.5 times what it costs while decoding."
        )
    if experiment.temperature == 0:
        key = "quality/equal_to_baseline"
        unknown = [e for e in comparison.entries if e.lossless and e.divergence is None]
        unequal = [e.label for e in unknown if e.metrics.get(key, 1.0) < 1]
        if unequal and experiment.history == "baseline":
            result.append(f"{', '.join(unequal)}: lossless, but not every greedy output equals plain decoding's.")
    if wrong := [e.label for e in comparison.entries if e.refuted]:
        result.append(f"{', '.join(wrong)}: {REFUTED} ({divergence.FILE}).")
    if old := [e.label for e in comparison.entries if not e.served and not has_ends(e.records)]:
        result.append(
            f"{', '.join(old)}: records of an earlier version do not say which drafts lie after the end of an output;"
            " accept/draft_rate, accept/position_i and accept/judged_rate are left out."
        )
    outputs = {entry.label: entry.records for entry in comparison.entries}
    answer_rule = experiment.answer_rule if experiment.task == "prompts" else ""
    result += incomplete.warnings(outputs, experiment.max_new_tokens, answer_rule)
    result += served.warnings(outputs, list((output.read_json("environments.json") or {}).values()))
    if is_large(comparison.num_prompts):
        result.append(words(comparison.num_prompts))
    environments = output.read_json("environments.json") or {}
    by_workers = any("worker" in each for each in environments.values())
    result += [*comparison.timing.notes, *failed_prompts(output.read_json(FAILURES) or [])]
    if len(environments) > 1 and not by_workers:
        result.append("The records come from several environments (below): their speeds may not be comparable.")
    if experiment.batch > 1:
        result.append(
            f"Prompts were decoded {experiment.batch} together: speeds are of the batch, not the latency of a prompt."
        )
    elif by_workers:
        result.append("Workers decoded: attainable speed-ups and the time split are left out.")
    elif output.read_json(time_split.FILE) is None and any(not each.served for each in comparison.entries):
        result.append(f"The time split was left out: it would have taken more than {time_split.SECONDS:.0f} seconds.")
    if experiment.history != "baseline":
        result.append("From the second turn on each method continues its own history: only first turns are paired.")
    return result
