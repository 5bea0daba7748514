"""From timed probes, traces and costs to what each candidate is expected to gain: the bookkeeping round
`prediction.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from specexp.config import TREES
from specexp.engine.costs import Costs
from specexp.evaluation.candidates import Candidate
from specexp.evaluation.prediction import (
    Overhead,
    Trace,
    TreeRounds,
    chain_attainable,
    chain_calls,
    chain_rounds,
    fit_overhead,
    tree_attainable,
    tree_between,
    tree_calls,
)
from specexp.evaluation.records import Record
from specexp.evaluation.timing import Timings, decoding

# Where a mean length comes from: a chain's from plain decoding's outputs, greedy or sampled; a lossy one's from its own
# output; a tree's from runs.
SIMULATED, EXPECTED, WATCHED = "simulated", "expected", "watched"
COUNTED, INTERPOLATED = "counted", "interpolated"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What is expected of a candidate: `attainable` by its calls alone, `speedup` with its overhead."""

    lengths: str  # where the mean length comes from
    mean_length: float
    attainable: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """All that is predicted with: `costs` of calls, seconds of plain decoding's token, overheads by method; then what
    that comes to, by label."""

    costs: Costs
    plain_seconds: float
    overheads: Mapping[str, Overhead]
    predicted: Mapping[str, Predicted]


def forecast(
    candidates: Sequence[Candidate],
    probes: Sequence[Candidate],
    probed: Timings,
    plain: str,
    costs: Costs,
    traces: Mapping[str, Sequence[Trace]],
) -> Forecast:
    """`traces` are those of a lossless chain under "", and of each lossy kind; `probed` are timings of the probes and
    of plain decoding, which goes by the name `plain`."""
    plain_seconds = seconds_of(probed, plain) / sum(len(r["token_ids"]) for r in records_of(probed, plain))
    overheads = _overheads(probes, probed, costs)
    trees = {c.size: _counted(records_of(probed, c.label)) for c in probes if c.method in TREES}
    found = {}
    for candidate in candidates:
        overhead = overheads[candidate.method]
        if candidate.method in TREES:
            found[candidate.label] = _tree(candidate, trees, costs, overhead, plain_seconds)
        else:
            mine = traces["" if candidate.lossless else candidate.kind]
            found[candidate.label] = _chain(candidate, mine, costs, overhead, plain_seconds)
    return Forecast(costs, plain_seconds, overheads, found)


def seconds_of(timed: Timings, name: str) -> float:
    """Decode seconds of all prompts, each one's median over repeats."""
    return sum(median(row) for row in decoding(timed[name]).seconds)


def records_of(timed: Timings, name: str) -> list[Record]:
    """One for each prompt: counts are the same in every repeat."""
    return [row[0].record for row in timed[name] if row[0].record is not None]


def _overheads(probes: Sequence[Candidate], probed: Timings, costs: Costs) -> dict[str, Overhead]:
    """By method: what its rounds took beside their counted calls."""
    points: dict[str, list[tuple[float, float]]] = {}
    for candidate in probes:
        records = records_of(probed, candidate.label)
        counted = _counted(records)
        beside = seconds_of(probed, candidate.label) - _calls(candidate, counted, costs)
        points.setdefault(candidate.method, []).append((counted.nodes / counted.rounds, beside / counted.rounds))
    return {method: fit_overhead(found) for method, found in points.items()}


def _calls(candidate: Candidate, counted: TreeRounds, costs: Costs) -> float:
    """Seconds of calls as they were counted."""
    if candidate.method in TREES:
        return tree_calls(counted, costs)
    assert costs.draft_step is not None, "no draft was measured"
    verified = counted.rounds * costs.v(counted.nodes / counted.rounds + 1) * costs.target[1]
    return counted.draft_calls * costs.draft_step + verified


def _counted(records: Sequence[Record]) -> TreeRounds:
    """Of a chain, its drafted tokens are the nodes."""

    def total(key: str) -> int:
        return sum(record[key] for record in records)

    emitted = sum(len(record["token_ids"]) for record in records)
    counts = ("num_rounds", "num_drafted", "num_draft_calls", "num_draft_positions")
    return TreeRounds(emitted, *(total(key) for key in counts))


def _tree(
    candidate: Candidate, counted: Mapping[int, TreeRounds], costs: Costs, overhead: Overhead, plain_seconds: float
) -> Predicted:
    rounds = tree_between(counted, candidate.size)
    seconds = tree_calls(rounds, costs) + overhead.of(rounds.rounds, rounds.nodes)
    lengths = COUNTED if candidate.size in counted else INTERPOLATED
    speedup = plain_seconds * rounds.tokens / seconds
    return Predicted(lengths, rounds.mean_length, tree_attainable(rounds, costs), speedup)


def _chain(
    candidate: Candidate, traces: Sequence[Trace], costs: Costs, overhead: Overhead, plain_seconds: float
) -> Predicted:
    own, bonus = candidate.setting.own, candidate.setting.config.bonus
    rounds = chain_rounds(traces, candidate.size, bonus)
    seconds = chain_calls(rounds, costs, own) + overhead.of(rounds.rounds, rounds.drafted)
    attainable = chain_attainable(rounds, candidate.size, costs, own)
    certain = all(b in (0.0, 1.0) for trace in traces for b in trace.accepted)
    lengths = WATCHED if not candidate.lossless else SIMULATED if certain else EXPECTED
    return Predicted(lengths, rounds.mean_length, attainable, plain_seconds * rounds.tokens / seconds)
