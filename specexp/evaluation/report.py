"""What an evaluation shows when it is done: the table in the terminal, summary.json, and the MLflow runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from specexp import tracking
from specexp.config import TREES, MethodConfig
from specexp.evaluation import token_view
from specexp.evaluation.figures import draw_trees
from specexp.evaluation.methods import LOSSLESS
from specexp.evaluation.output import OutputFolder
from specexp.evaluation.records import Record
from specexp.evaluation.runner import Prepared, Summary

COLUMNS = (
    ("tok/s", "speed/tokens_per_second", "{:.0f}"),
    ("speed-up", "speed/speedup", "{:.2f}x"),
    ("attainable", "speed/attainable", "{:.2f}x"),
    ("prompts/s", "batch/prompts_per_second", "{:.2f}"),
    ("tok/s", "batch/tokens_per_second", "{:.0f}"),
    ("vs baseline", "batch/speedup", "{:.2f}x"),
    ("tokens/call", "accept/mean_length", "{:.2f}"),
    ("alpha", "accept/alpha", "{:.3f}"),
    ("accuracy", "quality/accuracy", "{:.1%}"),
    ("= baseline", "quality/equal_to_baseline", "{:.0%}"),
)


def table(metrics: dict[str, dict[str, float]], greedy: bool, batch: int = 1) -> str:
    """Metrics by run name, as aligned text; an empty cell is a metric the method does not have.

    Sampled outputs differ from the baseline's even where their distribution is the same: no column compares them.
    Speeds of prompts that were decoded in a `batch` say so in their heads, and have no column of batch 1 beside them.
    """
    other = "batch/" if batch == 1 else "speed/"
    columns = [
        (f"{head}, batch {batch}" if key.startswith("batch/") else head, key, form)
        for head, key, form in COLUMNS
        if not key.startswith(other) and (greedy or key != "quality/equal_to_baseline")
    ]
    rows = [["", *(head for head, _, _ in columns)]]
    for name, found in metrics.items():
        rows.append([name, *(form.format(found[key]) if key in found else "" for _, key, form in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return "\n".join(line.rstrip() for line in lines)


def show(prepared: Prepared, output: OutputFolder, found: Summary) -> None:
    """Print the table, and write summary.json."""
    repeats = prepared.experiment.repeats
    named = {_name(label, repeat, repeats): metrics for (label, repeat), metrics in found.items()}
    output.write_json("summary.json", named)
    print(table(named, prepared.experiment.temperature == 0, prepared.experiment.batch))
    disturbed = [name for name, metrics in named.items() if _disturbed(metrics)]
    if disturbed:
        print(
            f"warning: {', '.join(disturbed)}: faster than the measured calls allow; something else was running."
            " Measure again on a quiet machine."
        )


def publish(
    prepared: Prepared, output: OutputFolder, records: Sequence[Record], found: Summary, run_id: str, uid: str
) -> None:
    """Log all runs. Called again after a kill, it completes what is missing and repeats nothing."""
    experiment = prepared.experiment
    methods = {setting.config.label: setting.config for setting in prepared.settings}
    for (label, repeat), metrics in found.items():
        mine = [r for r in records if (r["label"], r["repeat"]) == (label, repeat)]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "records.jsonl"
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in mine), encoding="utf-8")
            content = tracking.RunContent(
                name=_name(label, repeat, experiment.repeats),
                tags=_tags(prepared, methods[label], metrics),
                params=_params(prepared, methods[label], mine[0]["seed"]),
                metrics=metrics,
                files=[
                    path,
                    output.path / "config.json",
                    output.path / "environments.json",
                    *_figures(output, methods[label], _name(label, repeat, experiment.repeats), mine),
                ],
                dataset=prepared.task.dataset(),
            )
            tracking.log_flat(f"{uid}/{label}/{repeat}", content, run_id)
    exact = [label for label, method in methods.items() if method.method in LOSSLESS - {"baseline"}]
    gains = [m["speed/speedup"] for (label, _), m in found.items() if label in exact and "speed/speedup" in m]
    files = [
        output.path / name
        for name in ("records.jsonl", "config.json", "data.json", "environments.json", "summary.json", "costs.json")
    ]
    if prepared.judges:
        files.append(output.path / "judges.json")
    files += token_view.files(output)
    best = {"speed/best_lossless_speedup": max(gains)} if gains else {}
    tracking.log_comparison(run_id, best, files, prepared.task.dataset())


def _figures(output: OutputFolder, method: MethodConfig, name: str, records: Sequence[Record]) -> list[Path]:
    """Draw what this method has figures of, into the output folder."""
    if method.method not in TREES:
        return []
    path = output.path / f"trees-{name}.png"
    draw_trees(path, name, records)
    return [path]


def _name(label: str, repeat: int, repeats: int) -> str:
    return label if repeats == 1 else f"{label}_r{repeat}"


def _tags(prepared: Prepared, method: MethodConfig, metrics: dict[str, float]) -> dict[str, str]:
    experiment = prepared.experiment
    tags = {
        "method": method.method,
        "preset": method.preset,
        "group": method.label,
        "pair": experiment.pair,
        "task": experiment.task,
        "lossless": str(method.method in LOSSLESS).lower(),
        "batch": str(experiment.batch),
    }
    if experiment.history != "baseline":
        tags["paired"] = "false"  # from the second turn on, each method answers behind its own history
    if _disturbed(metrics):
        tags["warning"] = "faster than the measured calls allow: the clock was disturbed"
    return tags


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
        "data": experiment.data or "",
        "shots": experiment.shots or "",
        **{f"toy.{key}": value for key, value in (asdict(experiment.toy) if experiment.toy else {}).items()},
        **{f"target.{key}": value for key, value in asdict(experiment.target).items()},
        **{f"draft.{key}": value for key, value in asdict(experiment.draft).items()},
    }
