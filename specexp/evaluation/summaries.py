"""Computes the metrics of an experiment's settings from the records and costs in its folder.

The records are added up in one pass, each with the record that it is compared with, and none of them is held: they may
be more than fit in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from specexp.evaluation import served
from specexp.evaluation.measured_costs import costs_of, timed_by_events
from specexp.evaluation.preparation import (
    Prepared,
)
from specexp.evaluation.speed_groups import timing_of
from specexp.metrics.per_prompt import PromptNumbers
from specexp.metrics.summary import metrics_of
from specexp.metrics.tally import Tally
from specexp.profiling import call_costs
from specexp.storage import environment
from specexp.storage.records import Record, finder
from specexp.storage.run_folder import OutputFolder
from specexp.storage.stored_lines import StoredLines

Summary = dict[tuple[str, int], dict[str, float]]


def summary(prepared: Prepared, output: OutputFolder, records: Sequence[Record]) -> Summary:
    """Return metrics by (label, repeat)."""
    result, claimed = costs_of(output.read_json("costs.json")), claims_attainable(output)
    by_repeat = tallies(prepared, records, lambda record: record["repeat"])
    metrics = {repeat: _metrics(prepared, result, by_repeat.pop(repeat), claimed) for repeat in sorted(by_repeat)}
    timing = timing_of(output.read_json("environments.json"), records)
    return {(label, repeat): timing.kept(metrics[repeat][label]) for label in metrics[0] for repeat in metrics}


def claims_attainable(output: OutputFolder) -> bool:
    """True if calls were timed as decoding makes them: on CUDA by events, which earlier versions did not."""
    facts = (output.read_json("environments.json") or {}).values()
    return not any(environment.on_cuda(each) for each in facts) or timed_by_events(output.read_json("costs.json"))


def pooled(
    prepared: Prepared, measured: call_costs.Costs | None, records: Sequence[Record], claimed: bool = True
) -> dict[str, dict[str, float]]:
    """Return metrics by label over all these records: of one repeat, or of several together."""
    return _metrics(prepared, measured, tallies(prepared, records, lambda record: 0)[0], claimed)


@dataclass(frozen=True, slots=True)
class SettingSums:
    """Sums over one setting's records; `served` is of an engine's records only."""

    tally: Tally
    served: served.ServedSums


def tallies(
    prepared: Prepared, records: Sequence[Record], group_of: Callable[[Record], int]
) -> dict[int, dict[str, SettingSums]]:
    """Add up the records of each group by label, each with the one of plain decoding, or of the first engine."""
    find, served_labels = finder(records), [each.config.label for each in prepared.served]
    plain = next((each.config.label for each in prepared.settings if each.config.method == "baseline"), None)
    result: dict[int, dict[str, SettingSums]] = {}
    known = records.prompts if isinstance(records, StoredLines) else None
    prompts: defaultdict[int, PromptNumbers] = defaultdict(partial(PromptNumbers, known))
    for record in records:
        group, label = group_of(record), record["label"]
        # Engines are compared with the first of them: their seconds are those of whole requests.
        other = served_labels[0] if label in served_labels else plain
        compared = find((record["prompt_id"], record["turn"], other, record["repeat"])) if other is not None else None
        by_label = result.setdefault(group, {})
        for each in (other, label):  # what others are compared with comes first
            if each is not None and each not in by_label:
                compares = by_label[other].tally if other is not None and each != other else None
                sums = Tally(prompts[group], compares)
                by_label[each] = SettingSums(sums, served.ServedSums())
        by_label[label].tally.add(record, compared)
        if label in served_labels:
            by_label[label].served.add(record)
    return result


def _metrics(
    prepared: Prepared, measured: call_costs.Costs | None, sums: dict[str, SettingSums], claimed: bool
) -> dict[str, dict[str, float]]:
    """The metrics by label. `sums` is empty then: of many prompts each takes megabytes."""
    engines = {}
    for label in (each.config.label for each in prepared.served):
        own = sums.pop(label)
        engines[label] = own.served.metrics(metrics_of(own.tally, None, 0))
    ours = {
        setting.config.label: metrics_of(
            sums.pop(setting.config.label).tally,
            measured,
            setting.config.gamma,
            setting.config.gamma + setting.feed_last_token,
            setting.varies,
            prepared.experiment.batch,
            claimed,
            setting.by_token,
        )
        for setting in prepared.settings
    }
    return {each.config.label: (engines | ours)[each.config.label] for each in prepared.everything}
