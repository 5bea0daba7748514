"""The content of an evaluation's MLflow runs: one for each setting and repeat, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specexp.addresses import mask
from specexp.answers.kinds import AUTO
from specexp.config import MethodConfig
from specexp.engines.served_methods import SERVED
from specexp.evaluation import divergence, time_split
from specexp.evaluation.large_runs import sample
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.report import chart_style, transfer
from specexp.evaluation.report.comparison import Comparison
from specexp.evaluation.report.figures import draw_trees
from specexp.evaluation.report.publish import FAILURES, PAGE, REFUTED, Report
from specexp.evaluation.report.run_facts import is_disturbed, run_name
from specexp.evaluation.token_view import token_page
from specexp.lm.runtime import FASTEST
from specexp.method_specs import spec
from specexp.profiling import memory
from specexp.storage.files import make_folder
from specexp.storage.numbered_files import existing
from specexp.storage.records import Record
from specexp.storage.run_folder import RECORDS, OutputFolder
from specexp.storage.run_plan import File, Input, RunSpec, logged, now
from specexp.tasks.defaults import NO_EXECUTION
from specexp.tasks.programs import execution_of
from specexp.tracking.outbox import Outbox

IN_PROCESS = "in-process"  # the tag `engine` of our own methods
OUTPUTS = "outputs.json"  # of a setting's run: prompts and outputs, for the UI's side-by-side view
MOST_OUTPUTS = 50
SHOWN_OF_SYSTEM = 500  # characters; config.json has all of them
_TABLE = json.dumps([{"path": OUTPUTS, "type": "table"}])


def method_runs(
    prepared: Prepared, output: OutputFolder, records: Sequence[Record], report: Report, uid: str
) -> list[RunSpec]:
    """Return the specs of the method runs, one per method and repeat; files of one run alone go below `upload`."""
    experiment = prepared.experiment
    methods = {setting.config.label: setting.config for setting in prepared.everything}
    shares = {entry.label: entry.shares for entry in report.comparison.entries}
    comparison = report.comparison
    refuted = {entry.label for entry in comparison.entries if entry.refuted}
    peaks = memory.peaks_of(output.read_json(memory.FILE))
    some, result = sample(prepared, records), []
    for (label, repeat), metrics in report.summary.items():
        method_records = [r for r in some if (r["label"], r["repeat"]) == (label, repeat)]
        name = run_name(label, repeat, experiment.repeats)
        own = Path("upload") / name / OUTPUTS
        make_folder((output.path / own).parent)
        output.write_json(str(own), _outputs(prepared, method_records))
        files = [
            *(File(each.name, only={"label": label, "repeat": repeat}) for each in existing(output.path / RECORDS)),
            *(File(each) for each in ("config.json", "environments.json", str(own))),
            *(File(path.name) for path in _figures(output, methods[label], name, method_records)),
        ]
        flaws = _flaws(metrics, label in refuted, comparison.claimed)
        run_spec = RunSpec(
            key=f"{uid}/{label}/{repeat}",
            name=name,
            # By this tag, MLflow's UI recognises the file as a table of outputs.
            tags={**_tags(prepared, methods[label], flaws), "mlflow.loggedArtifacts": _TABLE},
            params=logged(params_of(prepared, methods[label], method_records[0]["seed"])),
            metrics={
                **metrics,
                **{f"share/{part}": share for part, share in shares[label].items()},
                **memory.metrics(peaks.of(label)),
            },
            files=files,
            inputs=[Input.of(prepared.task.dataset(), "evaluation")],
            time=now(),
        )
        result.append(run_spec)
    return result


def main(prepared: Prepared, output: OutputFolder, report: Report, outbox: Outbox) -> RunSpec:
    """Return the spec of the comparison run: the verdict's first sentence is a tag, the whole verdict its description.

    Its parameters are those that `mlflow run` logs, unchanged.
    """
    names = ("config.json", "data.json", "environments.json", "summary.json", "costs.json")
    more = ("judges.json", divergence.FILE, time_split.FILE, memory.FILE, FAILURES)
    files = [*existing(output.path / RECORDS), *(output.path / name for name in (*names, PAGE))]
    files += [path for name in more if (path := output.path / name).exists()]
    files += [*token_page.files(output), *(chart.path for chart in report.charts)]
    tags = {"verdict": report.verdict[0], "mlflow.note.content": "\n\n".join(report.verdict)} if report.verdict else {}
    tags |= execution_of(prepared.task)
    peaks = memory.peaks_of(output.read_json(memory.FILE))
    metrics = {**_best(report.comparison), **memory.metrics(peaks.all)}
    return outbox.main(metrics, files, [Input.of(prepared.task.dataset(), "evaluation")], tags)


def _best(comparison: Comparison) -> dict[str, float]:
    exact = [e for e in comparison.entries if e.lossless and spec(e.config.method).drafts]
    gains = [e.metrics["speed/speedup"] for e in exact if "speed/speedup" in e.metrics]
    return {"speed/best_lossless_speedup": max(gains)} if gains else {}


def _outputs(prepared: Prepared, records: Sequence[Record]) -> dict[str, list[Any]]:
    """Return the first prompts and their outputs as text, in the form of an MLflow table."""
    names = {record["prompt_id"] for record in records}
    turns = {example.prompt_id: example.turns for example in prepared.examples if example.prompt_id in names}
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
    """Draw the figures that this method has, into the output folder."""
    if not spec(method.method).grows_tree:
        return []
    path = output.path / f"trees-{name}.png"
    draw_trees(path, name, records)
    return [path]


def _flaws(metrics: dict[str, float], refuted: bool, claimed: bool) -> list[str]:
    """Return reasons to doubt a run's numbers or outputs."""
    result = [REFUTED] if refuted else []
    if claimed and is_disturbed(metrics):
        result.append("faster than the measured calls allow: the clock was disturbed")
    return result


def _tags(prepared: Prepared, method: MethodConfig, flaws: Sequence[str]) -> dict[str, str]:
    experiment = prepared.experiment
    lossless = next(each.lossless for each in prepared.everything if each.config is method)
    tags = {
        "method": method.method,
        "preset": method.preset,
        "group": method.label,
        "pair": "" if method.method.startswith(SERVED) else experiment.pair,
        "engine": method.method.removeprefix(SERVED) if method.method.startswith(SERVED) else IN_PROCESS,
        "task": experiment.task,
        "lossless": str(lossless and REFUTED not in flaws).lower(),
        "batch": str(experiment.batch),
        "mlflow.runColor": _color(prepared, method),  # the UI's color of the run in every chart
    }
    tags |= execution_of(prepared.task)
    if experiment.history != "baseline":
        tags["paired"] = "false"  # from the second turn on, each method continues its own history
    if method.judge:
        tags |= transfer.tags(prepared.judges[method.judge].facts.task, prepared.task.name)
    return tags | ({"warning": "; ".join(flaws)} if flaws else {})


def _color(prepared: Prepared, method: MethodConfig) -> str:
    alike = [setting.config.label for setting in prepared.everything if setting.config.method == method.method]
    return chart_style.shade(method.method, alike.index(method.label), len(alike))


def _judge(prepared: Prepared, method: MethodConfig) -> dict[str, object]:
    """Return the judge, and the threshold it decoded with."""
    if not method.judge:
        return {}
    facts = prepared.judges[method.judge].facts
    threshold = facts.threshold if method.threshold is None else method.threshold
    return {"judge": method.judge, "threshold": threshold, "judge.features": facts.features, "judge.kind": facts.kind}


def params_of(prepared: Prepared, method: MethodConfig, seed: int) -> dict[str, object]:
    experiment = prepared.experiment
    return {
        "method": method.method,
        "preset": method.preset,
        "gamma": "auto" if method.auto_gamma else method.gamma or "",
        "max_gamma": method.max_gamma or "",
        "bonus": "" if method.bonus else False,
        "accept_k": method.accept_k or "",
        **{
            name: "" if (value := getattr(method, name)) is None else value
            for name in ("accept_margin", "accept_epsilon", "accept_delta", "accept_entropy", "accept_distance")
        },
        "accept_window": method.accept_window or "",
        "distance": method.distance,
        "max_ngram": method.max_ngram or "",
        "min_draft_probability": method.min_draft_probability or "",
        "proposers": method.proposers,
        "min_match": method.min_match if method.min_match > 1 else "",
        "suffix_factor": method.suffix_factor or "",
        "suffix_min_probability": method.suffix_min_probability if method.suffix_factor else "",
        "suffix_memory": "" if method.suffix_memory == "prompt" else method.suffix_memory,
        "draft_temperature": "" if method.draft_temperature is None else method.draft_temperature,
        "rule": "" if method.rule == "token" else method.rule,
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
        "min_new_tokens": experiment.min_new_tokens or "",
        "ignore_eos": experiment.ignore_eos or "",
        "thinking_budget": experiment.thinking_budget or "",
        "numerics": "" if experiment.numerics == FASTEST else experiment.numerics,
        "stop": json.dumps(experiment.stop) if experiment.stop else "",
        "data": mask(str(experiment.data or "")),
        "shots": experiment.shots or "",
        "shots_data": mask(str(experiment.shots_data or "")),
        "system": experiment.system[:SHOWN_OF_SYSTEM],
        "answer_rule": "" if experiment.answer_rule == "auto" else experiment.answer_rule,
        "answer_pattern": experiment.answer_pattern,
        "comparator": "" if experiment.comparator == AUTO else experiment.comparator,
        "min_similarity": f"{experiment.min_similarity:g}" if ":" in experiment.comparator else "",
        "prompt_tokens": experiment.prompt_tokens or "",
        "execute": "" if experiment.execute == NO_EXECUTION else experiment.execute,
        **execution_of(prepared.task),
        **(_served(prepared, method) or _models(prepared)),
    }


def _models(prepared: Prepared) -> dict[str, object]:
    experiment = prepared.experiment
    parts = {"toy": experiment.toy, "target": experiment.target, "draft": experiment.draft}
    return {
        f"{part}.{key}": value
        for part, each in parts.items()
        if each is not None
        for key, value in asdict(each).items()
    }


def _served(prepared: Prepared, method: MethodConfig) -> dict[str, object]:
    """Return where an engine is; the name of its key's variable is not among it."""
    engine = next((each for each in prepared.experiment.engine if each.method == method.method), None)
    if engine is None:
        return {}
    parts = {name: getattr(engine.endpoint, name) for name in ("url", "model", "api", "tokenizer")}
    more = {"request": json.dumps(dict(engine.switch)) if engine.request else ""}
    return {f"engine.{name}": mask(value) for name, value in (parts | more).items()}
