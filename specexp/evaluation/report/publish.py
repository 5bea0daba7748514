"""What an evaluation shows when it is done: table and verdict in the terminal, report.html, and the MLflow runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specexp.addresses import mask
from specexp.config import TREES, MethodConfig
from specexp.evaluation import divergence, time_split
from specexp.evaluation.divergence import NOT_LOSSLESS
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.report import chart_style, charts, html_page, table
from specexp.evaluation.report.comparison import Comparison, compare
from specexp.evaluation.report.divergence_text import marks
from specexp.evaluation.report.figures import draw_trees
from specexp.evaluation.report.formatting import plain
from specexp.evaluation.report.verdict import verdict
from specexp.evaluation.summaries import Summary, summary
from specexp.evaluation.token_view import token_page
from specexp.lm import out_of_memory
from specexp.methods import is_lossless
from specexp.metrics import incomplete
from specexp.metrics.summary import has_ends
from specexp.storage.files import make_folder
from specexp.storage.records import Record, write_whole
from specexp.storage.run_folder import OutputFolder
from specexp.storage.run_plan import File, Input, Sheet, logged, now
from specexp.tracking.outbox import Outbox

PAGE = "report.html"
OUTPUTS = "outputs.json"  # of a flat run: prompts and outputs, for the UI's side-by-side view
MOST_OUTPUTS = 50
REFUTED = f"{NOT_LOSSLESS}: outputs differ from plain decoding's, and no near tie explains it"
_TABLE = json.dumps([{"path": OUTPUTS, "type": "table"}])


@dataclass(frozen=True, slots=True)
class Report:
    """What was shown, for the runs to hold: metrics by label and repeat, and everything together."""

    summary: Summary
    comparison: Comparison
    charts: Sequence[charts.Chart]
    verdict: Sequence[str]
    commands: Sequence[str]
    warnings: Sequence[str]


def show(prepared: Prepared, output: OutputFolder, records: Sequence[Record], commands: Sequence[str]) -> Report:
    """Print table and verdict; write summary.json, figures and report.html, from what the folder holds.

    `commands` run the whole again, and show it again.
    """
    experiment = prepared.experiment
    found = _with_differences(prepared, output, records, summary(prepared, output, records))
    named = {_name(label, repeat, experiment.repeats): metrics for (label, repeat), metrics in found.items()}
    output.write_json("summary.json", named)
    comparison = compare(prepared, output, records)
    drawn = charts.draw(comparison, output.path / "figures")
    warnings = _warnings(comparison, output, named)
    said = [plain(sentence) for sentence in verdict(comparison)]
    report = Report(found, comparison, drawn, said, commands, warnings)
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
    """report.html, with a link to the token view where there is one by now."""
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


def _with_differences(prepared: Prepared, output: OutputFolder, records: Sequence[Record], found: Summary) -> Summary:
    """A summary with what each repeat's outputs that differ from plain decoding's come to."""
    entries = output.read_json(divergence.FILE)
    more: Summary = {}
    for repeat in {repeat for _, repeat in found}:
        mine = [record for record in records if record["repeat"] == repeat]
        for label, each in divergence.by_label(prepared.experiment, entries, mine).items():
            more[label, repeat] = each.metrics()
    return {key: metrics | more.get(key, {}) for key, metrics in found.items()}


def _warnings(comparison: Comparison, output: OutputFolder, named: dict[str, dict[str, float]]) -> list[str]:
    """What a reader should know before the numbers."""
    experiment = comparison.experiment
    found = []
    disturbed = [name for name, metrics in named.items() if _disturbed(metrics)]
    if disturbed and comparison.claimed:
        found.append(
            f"{', '.join(disturbed)}: faster than the measured calls allow; something else was running."
            " Measure again on a quiet machine."
        )
    if not comparison.claimed:
        found.append(
            "Attainable and predicted speed-ups are not shown on CUDA: a call that is timed by itself costs up to 1.5"
            " times what it costs among others."
        )
    if experiment.temperature == 0:
        key = "quality/equal_to_baseline"
        unknown = [e for e in comparison.entries if e.lossless and e.divergence is None]
        unequal = [e.label for e in unknown if e.metrics.get(key, 1.0) < 1]
        if unequal and experiment.history == "baseline":
            found.append(f"{', '.join(unequal)}: lossless, but not every greedy output equals plain decoding's.")
    if wrong := [e.label for e in comparison.entries if e.refuted]:
        found.append(f"{', '.join(wrong)}: {REFUTED} ({divergence.FILE}).")
    if old := [e.label for e in comparison.entries if not has_ends(e.records)]:
        found.append(
            f"{', '.join(old)}: records of an earlier version do not say which drafts lie after the end of an output;"
            " accept/draft_rate, accept/position_i and accept/judged_rate are left out."
        )
    outputs = {entry.label: entry.records for entry in comparison.entries}
    answer_rule = experiment.answer_rule if experiment.task == "prompts" else ""
    found += incomplete.warnings(outputs, experiment.max_new_tokens, answer_rule)
    if len(output.read_json("environments.json") or {}) > 1:
        found.append("The records come from several environments (below): speeds of one may not be those of another.")
    if experiment.batch > 1:
        found.append(
            f"Prompts were decoded {experiment.batch} together: speeds are of the batch, and no latency of a prompt."
        )
    elif output.read_json(time_split.FILE) is None:
        found.append(f"The time split was left out: it would have taken more than {time_split.SECONDS:.0f} seconds.")
    if experiment.history != "baseline":
        found.append("From the second turn on each method answers behind its own history: only first turns are paired.")
    return found


def sheets(
    prepared: Prepared, output: OutputFolder, records: Sequence[Record], report: Report, uid: str
) -> list[Sheet]:
    """What the flat runs are to hold, one for each method and repeat; files of theirs alone are made below `upload`."""
    experiment = prepared.experiment
    methods = {setting.config.label: setting.config for setting in prepared.settings}
    shares = {entry.label: entry.shares for entry in report.comparison.entries}
    comparison = report.comparison
    refuted = {entry.label for entry in comparison.entries if entry.refuted}
    peaks = out_of_memory.peaks_of(output.read_json(out_of_memory.FILE))
    found = []
    for (label, repeat), metrics in report.summary.items():
        mine = [r for r in records if (r["label"], r["repeat"]) == (label, repeat)]
        name = _name(label, repeat, experiment.repeats)
        own = Path("upload") / name / OUTPUTS
        make_folder((output.path / own).parent)
        output.write_json(str(own), _outputs(prepared, mine))
        files = [
            File("records.jsonl", only={"label": label, "repeat": repeat}),
            *(File(each) for each in ("config.json", "environments.json", str(own))),
            *(File(path.name) for path in _figures(output, methods[label], name, mine)),
        ]
        flaws = _flaws(metrics, label in refuted, comparison.claimed)
        sheet = Sheet(
            key=f"{uid}/{label}/{repeat}",
            name=name,
            # By the tag, MLflow's UI knows the file for a table of outputs.
            tags={**_tags(prepared, methods[label], flaws), "mlflow.loggedArtifacts": _TABLE},
            params=logged(_params(prepared, methods[label], mine[0]["seed"])),
            metrics={
                **metrics,
                **{f"share/{part}": share for part, share in shares[label].items()},
                **out_of_memory.metrics(peaks.of(label)),
            },
            files=files,
            inputs=[Input.of(prepared.task.dataset(), "evaluation")],
            time=now(),
        )
        found.append(sheet)
    return found


def main(prepared: Prepared, output: OutputFolder, report: Report, outbox: Outbox) -> Sheet:
    """What the comparison run is to hold; the first sentence of the verdict is a tag, all are its description.

    Its parameters are those that `mlflow run` logs, raw.
    """
    names = ("records.jsonl", "config.json", "data.json", "environments.json", "summary.json", "costs.json")
    more = ("judges.json", divergence.FILE, time_split.FILE, out_of_memory.FILE)
    files = [output.path / name for name in (*names, PAGE)]
    files += [path for name in more if (path := output.path / name).exists()]
    files += [*token_page.files(output), *(chart.path for chart in report.charts)]
    tags = {"verdict": report.verdict[0], "mlflow.note.content": "\n\n".join(report.verdict)} if report.verdict else {}
    peaks = out_of_memory.peaks_of(output.read_json(out_of_memory.FILE))
    metrics = {**_best(report.comparison), **out_of_memory.metrics(peaks.all)}
    return outbox.main(metrics, files, [Input.of(prepared.task.dataset(), "evaluation")], tags)


def _best(comparison: Comparison) -> dict[str, float]:
    exact = [e for e in comparison.entries if e.lossless and e.config.method != "baseline"]
    gains = [e.metrics["speed/speedup"] for e in exact if "speed/speedup" in e.metrics]
    return {"speed/best_lossless_speedup": max(gains)} if gains else {}


def _outputs(prepared: Prepared, records: Sequence[Record]) -> dict[str, list[Any]]:
    """The first prompts and what came of them, in text, as MLflow has tables."""
    turns = {example.prompt_id: example.turns for example in prepared.examples}
    order = {prompt_id: place for place, prompt_id in enumerate(turns)}
    some = sorted(records, key=lambda r: (order[r["prompt_id"]], r["turn"]))[:MOST_OUTPUTS]
    known = {name: ["" if r[name] is None else str(r[name]) for r in some] for name in ("answer", "gold", "correct")}
    columns = {
        "prompt": [turns[r["prompt_id"]][r["turn"]] for r in some],
        "output": [r["text"] for r in some],
        **known,
        "prompt_id": [r["prompt_id"] for r in some],
    }
    return {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}


def _figures(output: OutputFolder, method: MethodConfig, name: str, records: Sequence[Record]) -> list[Path]:
    """Draw what this method has figures of, into the output folder."""
    if method.method not in TREES:
        return []
    path = output.path / f"trees-{name}.png"
    draw_trees(path, name, records)
    return [path]


def _name(label: str, repeat: int, repeats: int) -> str:
    return label if repeats == 1 else f"{label}_r{repeat}"


def _flaws(metrics: dict[str, float], refuted: bool, claimed: bool) -> list[str]:
    """What a run's numbers or outputs give to doubt."""
    found = [REFUTED] if refuted else []
    if claimed and _disturbed(metrics):
        found.append("faster than the measured calls allow: the clock was disturbed")
    return found


def _tags(prepared: Prepared, method: MethodConfig, flaws: Sequence[str]) -> dict[str, str]:
    experiment = prepared.experiment
    tags = {
        "method": method.method,
        "preset": method.preset,
        "group": method.label,
        "pair": experiment.pair,
        "task": experiment.task,
        "lossless": str(is_lossless(method, experiment.temperature) and REFUTED not in flaws).lower(),
        "batch": str(experiment.batch),
        "mlflow.runColor": _color(prepared, method),  # by which the UI draws a run in every chart
    }
    if experiment.history != "baseline":
        tags["paired"] = "false"  # from the second turn on, each method answers behind its own history
    return tags | ({"warning": "; ".join(flaws)} if flaws else {})


def _color(prepared: Prepared, method: MethodConfig) -> str:
    alike = [setting.config.label for setting in prepared.settings if setting.config.method == method.method]
    return chart_style.shade(method.method, alike.index(method.label), len(alike))


def _judge(prepared: Prepared, method: MethodConfig) -> dict[str, object]:
    """Which judge, and the threshold it decoded with."""
    if not method.judge:
        return {}
    facts = prepared.judges[method.judge].facts
    threshold = facts.threshold if method.threshold is None else method.threshold
    return {"judge": method.judge, "threshold": threshold, "judge.features": facts.features, "judge.kind": facts.kind}


def _disturbed(metrics: dict[str, float]) -> bool:
    """Whether a speed-up is above what its own calls would allow, beyond noise: the clock measured something else."""
    length = metrics.get("accept/mean_length", float("inf"))
    return metrics.get("speed/speedup", 0.0) > 1.05 * length or metrics.get("speed/realised", 0.0) > 1.2


def _params(prepared: Prepared, method: MethodConfig, seed: int) -> dict[str, object]:
    experiment = prepared.experiment
    return {
        "method": method.method,
        "preset": method.preset,
        "gamma": method.gamma or "",
        "bonus": "" if method.bonus else False,
        "accept_k": method.accept_k or "",
        "max_ngram": method.max_ngram or "",
        "min_draft_probability": method.min_draft_probability or "",
        **_judge(prepared, method),
        **(asdict(method.tree) if method.tree else {}),
        "seed": seed,
        "task": experiment.task,
        "experiment": experiment.name,
        "settings_hash": experiment.hash,
        **{
            name: getattr(experiment, name)
            for name in ("limit", "max_new_tokens", "temperature", "top_k", "top_p", "batch")
        },
        "data": mask(str(experiment.data or "")),
        "shots": experiment.shots or "",
        "answer_rule": "" if experiment.answer_rule == "auto" else experiment.answer_rule,
        "answer_pattern": experiment.answer_pattern,
        **{f"toy.{key}": value for key, value in (asdict(experiment.toy) if experiment.toy else {}).items()},
        **{f"target.{key}": value for key, value in asdict(experiment.target).items()},
        **{f"draft.{key}": value for key, value in asdict(experiment.draft).items()},
    }
