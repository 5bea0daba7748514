"""Computes the metrics of an experiment's settings from the records and costs in its folder."""

from __future__ import annotations

from collections.abc import Sequence

from specexp.evaluation import served
from specexp.evaluation.measured_costs import costs_of
from specexp.evaluation.preparation import (
    Prepared,
)
from specexp.evaluation.speed_groups import timing_of
from specexp.metrics.summary import summarise
from specexp.profiling import call_costs
from specexp.storage import environment
from specexp.storage.records import Record
from specexp.storage.run_folder import OutputFolder

Summary = dict[tuple[str, int], dict[str, float]]


def summary(prepared: Prepared, output: OutputFolder, records: Sequence[Record]) -> Summary:
    """Return metrics by (label, repeat)."""
    result, claimed = costs_of(output.read_json("costs.json")), claims_attainable(output)
    repeats: dict[int, list[Record]] = {}
    for record in records:
        repeats.setdefault(record["repeat"], []).append(record)
    metrics = {repeat: pooled(prepared, result, group, claimed) for repeat, group in sorted(repeats.items())}
    timing = timing_of(output.read_json("environments.json"), records)
    return {(label, repeat): timing.kept(metrics[repeat][label]) for label in metrics[0] for repeat in metrics}


def claims_attainable(output: OutputFolder) -> bool:
    """True if calls cost the same while decoding as when timed alone, which cannot be assumed for a run on CUDA."""
    return not any(environment.on_cuda(each) for each in (output.read_json("environments.json") or {}).values())


def pooled(
    prepared: Prepared, measured: call_costs.Costs | None, records: Sequence[Record], claimed: bool = True
) -> dict[str, dict[str, float]]:
    """Return metrics by label over all these records: of one repeat, or of several together."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"], []).append(record)
    plain = next((group for group in groups.values() if group[0]["method"] == "baseline"), [])
    # Engines are compared with the first of them: their seconds are those of whole requests.
    engines = {
        each.config.label: summarise(groups[each.config.label], groups[prepared.served[0].config.label], None, 0)
        | served.metrics(groups[each.config.label])
        for each in prepared.served
    }
    ours = {
        setting.config.label: summarise(
            groups[setting.config.label],
            plain,
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
