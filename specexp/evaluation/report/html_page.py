"""`report.html`: one self-contained page on a comparison, rendered again whenever its folder is shown.

Texts come from users' files and models, and are escaped; figures are embedded. Every number that was computed from
records, costs or shares names its metric and run (`data-metric`, `data-run`, `data-value`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from specexp.addresses import mask
from specexp.config.experiment import LATER
from specexp.evaluation.report.charts import Chart, accepted_shares, shares_by_depth
from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.evaluation.report.divergence_text import equality, mark
from specexp.evaluation.report.formatting import Form, Number, Sentence, of, percent, span
from specexp.evaluation.report.table import columns
from specexp.evaluation.report.verdict import answers, speed, verdict
from specexp.metrics.paired import paired
from specexp.profiling.time_breakdown import PARTS
from specexp.storage.records import Record

CHANGED = 12  # most answers that are listed
CLIP = 80  # most characters of an answer


@dataclass(frozen=True, slots=True)
class Folder:
    """The content of an output folder except its records: JSON by file name, without the extension."""

    files: Mapping[str, Any]
    links: Sequence[tuple[str, str]]  # file in the page's folder, and its description
    commands: Sequence[str]
    warnings: Sequence[str]


def render(comparison: Comparison, folder: Folder, charts: Sequence[Chart]) -> str:
    """Render the whole page."""
    # The style that all pages share is in judge_comparison.
    loader = ChoiceLoader([PackageLoader("specexp.evaluation.report"), PackageLoader("specexp.judge_comparison")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    said = verdict(comparison)
    environment.globals["mark"] = mark
    return environment.get_template("report.html").render(
        experiment=comparison.experiment,
        num_prompts=comparison.num_prompts,
        headline=said[0],
        said=said[1:],
        tables=[_table(comparison, calls) for calls in (False, True)],
        words=[(entry, list(_in_words(comparison, entry))) for entry in comparison.entries],
        charts=[(chart, _embedded(chart), _numbers(comparison, chart.name)) for chart in charts],
        changed=list(_changed(comparison)),
        most_changed=CHANGED,
        settings=list(_settings(comparison)),
        methods=[(entry, _method(entry)) for entry in comparison.entries],
        environments=_environments(folder.files.get("environments") or {}),
        costs=list(_costs(folder.files.get("costs"))),
        context=(folder.files.get("costs") or {}).get("context"),
        split=folder.files.get("shares"),
        folder=folder,
        data=folder.files.get("data"),
        judges=folder.files.get("judges") or {},
    )


_BY_PROPOSER: Mapping[str, Form] = {"rate": percent, "length": "{:.2f}".format}
Cell = tuple[Number | None, Sentence]  # a value and its interval


def _table(comparison: Comparison, calls: bool) -> tuple[list[str], list[tuple[Entry, list[Cell]]]]:
    """Return heads, and each entry's cells: of the columns about calls, or of the others, each with its interval."""
    experiment = comparison.experiment
    metrics = {entry.label: entry.metrics for entry in comparison.entries}
    known = columns(metrics, experiment.temperature == 0, experiment.batch, experiment.repeats)
    chosen = [column for column in known if column.calls == calls]
    rows = []
    for entry in comparison.entries:
        cells: list[Cell] = []
        for column in chosen:
            value = of(entry, column.key, column.form) if column.key in entry.metrics else None
            ends = span(entry, column.key, column.end or column.form) if entry.interval(column.key) else []
            cells.append((value, ends))
        rows.append((entry, cells))
    return [column.head for column in chosen], rows


def _in_words(comparison: Comparison, entry: Entry) -> Iterator[Sentence]:
    """Yield sentences on an entry's numbers."""
    plain = comparison.reference(entry)
    if entry is plain or plain is None:
        return
    if not comparison.timing.untimed:
        yield speed(comparison, entry)
    if not entry.lossless or comparison.experiment.temperature > 0 or "quality/accuracy_delta" in entry.metrics:
        yield answers(comparison, entry)
    if words := equality(comparison, entry):
        *words, last = words
        yield [*words, str(last).removesuffix(".")]
    for name in entry.config.proposers.split(",") if entry.config.proposers else ():
        if (share := f"proposer/{name}_rounds") in entry.metrics:
            rate, length = (of(entry, f"proposer/{name}_{key}", form) for key, form in _BY_PROPOSER.items())
            said = f"{name} drafted in ", of(entry, share, percent), " of the rounds: ", rate, " of its tokens"
            yield [*said, " were accepted, ", length, " a round"]


def _numbers(comparison: Comparison, chart: str) -> tuple[list[str], list[tuple[str, list[Number | None]]]] | None:
    """Return heads and rows of the numbers that a chart draws, unless the main table has them; None if it does."""
    rows: list[tuple[Entry, list[Number]]] = []
    for entry in comparison.entries:
        result: dict[str, float] = {}
        if chart == "accepted":
            result = {f"accept/histogram_{i}": share for i, share in enumerate(accepted_shares(entry))}
        elif chart == "positions":
            name = "tree/depth" if entry.config.tree else "accept/position"
            result = {f"{name}_{i}": share for i, share in enumerate(shares_by_depth(entry), 1)}
        elif chart == "time":
            result = {f"share/{part}": entry.shares[part] for part in PARTS if part in entry.shares}
        if result:
            rows.append((entry, [Number(name, entry.label, value, percent(value)) for name, value in result.items()]))
    if not rows:
        return None
    heads = max((cells for _, cells in rows), key=len)
    names = [cell.metric.rpartition("/")[2].rpartition("_")[2] for cell in heads]
    padded = [(entry.label, [*cells, *[None] * (len(heads) - len(cells))]) for entry, cells in rows]
    return names, padded


@dataclass(frozen=True, slots=True)
class Changed:
    """A graded answer that is right with plain decoding and wrong with a setting, or the other way round."""

    label: str
    record: Record
    plain: Record

    @property
    def texts(self) -> list[str]:
        """The gold answer, plain decoding's, and this setting's."""
        return [_clipped(text) for text in (self.record["gold"], self.plain["answer"], self.record["answer"])]


def _changed(comparison: Comparison) -> Iterator[Changed]:
    """Yield changed answers, those of the draft alone last."""
    for entry in sorted(comparison.entries, key=lambda e: e.config.method == "draft_only"):
        if (reference := comparison.reference(entry)) is None:
            continue
        for record, plain in paired(entry.records, reference.records):
            if record["correct"] is not None and record["paired"] and record["correct"] != plain["correct"]:
                yield Changed(entry.label, record, plain)


def _clipped(text: object) -> str:
    shown = "no answer" if text is None else str(text)
    return shown if len(shown) <= CLIP else shown[: CLIP - 1] + "…"


def _embedded(chart: Chart) -> str:
    return "data:image/png;base64," + base64.b64encode(chart.path.read_bytes()).decode()


def _settings(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield the experiment's own settings, without those of models and methods."""
    experiment = comparison.experiment
    result = {key: value for key, value in asdict(experiment).items() if key not in ("target", "draft", "methods")}
    yield "settings_hash", experiment.hash
    for key, value in result.items():
        if value is not None:
            yield key, mask(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _method(entry: Entry) -> str:
    """Return a setting's own settings, without those that are empty, 0 or True."""
    config = {**asdict(entry.config), **(asdict(entry.config.tree) if entry.config.tree else {})}
    dull = ("method", "preset", "label", "tree")
    said = {key: value for key, value in config.items() if key not in dull and not _is_usual(key, value)}
    if entry.config.judge:
        said["threshold"] = "calibrated" if entry.config.threshold is None else entry.config.threshold
    return ", ".join(f"{key} {value}" for key, value in said.items())


def _is_usual(key: str, value: Any) -> bool:
    """True for what goes without saying: a default, or a setting that the method does not have."""
    if key in LATER:
        return bool(value == LATER[key])
    return value is True or value in (None, "", 0)


def _environments(environments: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Describe where records were made: the machine and the code, then what was loaded."""
    shown = []
    for name, facts in environments.items():
        rows = [
            ("processor", str(facts["processor"])),
            ("platform", str(facts["platform"])),
            ("python", str(facts["python"])),
            ("packages", ", ".join(f"{package} {version}" for package, version in facts["packages"].items())),
            ("commit", f"{facts['commit'] or 'none'}{', with changes' if facts['dirty'] else ''}"),
            ("tokenizer", _flat(facts["tokenizer"])),
        ]
        rows += [(str(role), _flat(model)) for role, model in facts["models"].items()]
        if worker := facts.get("worker"):
            rows.append(("workers on", ", ".join(worker.get("nodes", ()))))
        shown.append((name, rows))
    return shown


def _flat(facts: Mapping[str, Any]) -> str:
    """Return the known facts in one line."""
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value not in (None, "", {}, []))


KINDS = {
    "target": "target call on", "catch_up": "first draft call of a round on", "tree_draft": "draft call in a tree on",
    "tree_target": "target call on a tree of",
}  # fmt: skip


def _costs(costs: Mapping[str, Any] | None) -> Iterator[tuple[str, Number]]:
    """Yield the costs per call, in milliseconds."""
    if not costs:
        return
    if costs["draft"] is not None:
        yield "draft step", _milliseconds("costs/draft", costs["draft"])
    for kind, words in KINDS.items():
        for size, seconds in sorted(costs.get(kind, {}).items(), key=lambda item: int(item[0])):
            positions = "1 position" if int(size) == 1 else f"{size} positions"
            yield f"{words} {positions}", _milliseconds(f"costs/{kind}/{size}", seconds)


def _milliseconds(metric: str, seconds: float) -> Number:
    return Number(metric, "costs.json", seconds, f"{1000 * seconds:.2f} ms")
