"""Whether an evaluation's speeds may be reported, and pooled: what environments.json says of where records were made.

Workers that share a device time nothing: then no speed is reported. Workers with different devices, drivers or
libraries are groups; all settings of a prompt ran in one of them, so that each prompt has speed-ups of its own. Groups
are pooled only if no setting's log speed-ups differ between one group's prompts and the others', by a permutation test
of the difference of their means at 5 %, corrected for the number of settings and groups. Else each is reported by
itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specexp.metrics.paired import SpeedUp, paired
from specexp.metrics.per_prompt import LARGE, PromptNumbers
from specexp.metrics.statistics import SIGNIFICANT, rows_at_once
from specexp.storage.records import Record

SHUFFLES = 10_000
SAMPLE = 2_000  # prompts that groups are compared by, where there are more than `LARGE`
FEWEST = 2  # prompts of a group: fewer have no spread
SPEEDS = ("speed/", "batch/", "category/speedup")  # metrics of time begin with these
SHARED = "several workers shared a device, so nothing was timed"


@dataclass(frozen=True, slots=True)
class SpeedGroup:
    """Workers that are alike. `speedups` are by setting and prompt, compared with plain decoding."""

    name: str
    device: str
    num_prompts: int
    speedups: Mapping[str, Mapping[str, float]]

    @property
    def sentence(self) -> str:
        means = {label: math.exp(np.mean(np.log(list(each.values())))) for label, each in self.speedups.items()}
        said = ", ".join(f"{label} {mean:.2f}x" for label, mean in means.items()) or "no speed-ups"
        return f"Group {self.name} ({self.device}; {self.num_prompts} prompts), mean speed-ups: {said}."


@dataclass(frozen=True, slots=True)
class ReportedSpeeds:
    """`untimed` says why no speed is reported over all records, "" if one is; `notes` are for the reader."""

    untimed: str = ""
    notes: Sequence[str] = ()

    def kept(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics that may be reported."""
        return {key: value for key, value in metrics.items() if not (self.untimed and key.startswith(SPEEDS))}


def timing_of(environments: Mapping[str, Any] | None, records: Sequence[Record]) -> ReportedSpeeds:
    """What may be said of the speeds of these records."""
    used = {record["environment"] for record in records if "environment" in record}
    facts = {name: each for name, each in (environments or {}).items() if name in used}
    if not any("worker" in each for each in facts.values()):
        return ReportedSpeeds()
    if any(each.get("worker", {}).get("shares_device") for each in facts.values()):
        return ReportedSpeeds(SHARED)
    groups = _groups(facts, records)
    if len(groups) < 2:
        return ReportedSpeeds()
    p = pooling_p(groups)
    if p is not None and p >= SIGNIFICANT:
        return ReportedSpeeds(
            "", [f"Workers of {len(groups)} kinds are pooled: their speed-ups do not differ (p = {p:.2g})."]
        )
    why = "too few prompts to tell if they are alike" if p is None else f"their speed-ups differ (p = {p:.2g})"
    said = [group.sentence for group in groups]
    return ReportedSpeeds(f"workers are of {len(groups)} kinds and {why}, so they are not pooled", said)


def pooling_p(groups: Sequence[SpeedGroup]) -> float | None:
    """The least p of all settings and groups, corrected for their number; None if a group has too few prompts."""
    if any(group.num_prompts < FEWEST for group in groups):
        return None
    labels = sorted(set().union(*(group.speedups for group in groups)))
    ps = []
    for label in labels:
        logs = [np.log(list(group.speedups.get(label, {}).values())) for group in groups]
        if any(len(each) < FEWEST for each in logs):
            return None
        ps += [_shuffled_p(each, np.concatenate(logs[:i] + logs[i + 1 :])) for i, each in enumerate(logs)]
        if len(groups) == 2:
            ps.pop()  # the other group's test is the same
    return min(1.0, min(ps) * len(ps)) if ps else None


def _shuffled_p(one: Any, rest: Any) -> float:
    """Two-sided permutation p of the difference of two means."""
    both, size = np.concatenate([one, rest]), len(one)
    observed = abs(one.mean() - rest.mean())
    rng, as_far = np.random.default_rng(0), 0
    for rows in rows_at_once(SHUFFLES, len(both)):
        shuffled = rng.permuted(np.tile(both, (rows, 1)), axis=1)
        differences = abs(shuffled[:, :size].mean(axis=1) - shuffled[:, size:].mean(axis=1))
        as_far += int((differences >= observed - 1e-12).sum())
    return (1 + as_far) / (1 + SHUFFLES)


def _groups(facts: Mapping[str, Any], records: Sequence[Record]) -> list[SpeedGroup]:
    """Groups by what environments say, without what is no reason for another speed: the nodes' names."""
    names: dict[str, list[str]] = {}
    for name, each in facts.items():
        driver = each.get("worker", {}).get("driver", "")
        alike = {key: value for key, value in each.items() if key != "worker"} | {"driver": driver}
        names.setdefault(json.dumps(alike, sort_keys=True), []).append(name)
    result, records = [], _sampled(records)
    for members in names.values():
        kept = [record for record in records if record.get("environment") in members]
        prompts = {record["prompt_id"] for record in kept}
        result.append(SpeedGroup(members[0], _device(facts[members[0]]), len(prompts), _speedups(kept)))
    return result


def _sampled(records: Sequence[Record]) -> Sequence[Record]:
    """All records of up to `LARGE` prompts; of more, those of every k-th prompt, in the order in which they came."""
    numbers = PromptNumbers()
    for record in records:
        numbers.number(record["prompt_id"])
    if len(numbers) <= LARGE:
        return records
    step = len(numbers) // SAMPLE
    return [record for record in records if numbers.number(record["prompt_id"]) % step == 0]


def _device(facts: Mapping[str, Any]) -> str:
    devices = {str(model.get("device_name") or facts["processor"]) for model in facts["models"].values()}
    return " and ".join(sorted(devices))


def _speedups(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Speed-ups by setting and prompt."""
    plain = [record for record in records if record["method"] == "baseline"]
    labels = dict.fromkeys(record["label"] for record in records if record["method"] != "baseline")
    result: dict[str, dict[str, float]] = {label: {} for label in labels}
    for label in labels:
        own = [record for record in records if record["label"] == label]
        by_prompt: dict[str, list[tuple[Record, Record]]] = {}
        for pair in paired(own, plain):
            by_prompt.setdefault(pair[0]["prompt_id"], []).append(pair)
        result[label] = {name: _speedup(pairs) for name, pairs in by_prompt.items()}
    return {label: each for label, each in result.items() if each}


def _speedup(pairs: Sequence[tuple[Record, Record]]) -> float:
    """Tokens per second of each pair's first record over that of its second."""
    result = SpeedUp()
    for record, plain in pairs:
        result.add(record, plain)
    return result.decoding
