"""Turns timed probes, traces and costs into the expected gain of each candidate: the bookkeeping around
`prediction.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from specexp.advise.adaptive import adapted_rounds
from specexp.advise.candidates import Candidate
from specexp.advise.prediction import (
    Overhead,
    TreeRounds,
    catch_up,
    chain_attainable,
    chain_calls,
    draft_calls,
    fit_overhead,
    tree_between,
    tree_calls,
    varying_attainable,
    verifying_calls,
)
from specexp.advise.rounds import NEVER, LookupTrace, Rounds, Stop, Trace, chain_rounds, fit_stop, lookup_rounds
from specexp.evaluation.timing import Timings, decoding
from specexp.profiling.call_costs import Costs
from specexp.storage.records import Count, Record

# The source of a mean length: for a chain or looked-up drafts plain decoding's outputs, greedy or sampled; for a lossy
# method its own output; for a tree, or a draft that writes text, its runs.
SIMULATED, EXPECTED, WATCHED = "simulated", "expected", "watched"
COUNTED, INTERPOLATED = "counted", "interpolated"


@dataclass(frozen=True, slots=True)
class Predicted:
    """The expected values of a candidate: `attainable` by its calls alone, `speedup` with its overhead."""

    lengths: str  # the source of the mean length
    mean_length: float
    attainable: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Traces:
    """What outputs show: `chains` by what they accept alike, lossless ones under ""; `lookups` by n-gram and shortest
    match; `recalled` by label, of other proposers that need no draft model. `greedy` is True if decoding emits these
    same outputs again; otherwise they are samples among many."""

    chains: Mapping[str, Sequence[Trace]]
    lookups: Mapping[tuple[int, int], Sequence[LookupTrace]]
    greedy: bool
    recalled: Mapping[str, Sequence[LookupTrace]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The inputs of the predictions: `costs` of calls, seconds of plain decoding's token, overheads by `rounds_like`;
    then the predictions, by label."""

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
    traces: Traces,
) -> Forecast:
    """Predict all candidates. `probed` has timings of the probes and of plain decoding, under the name `plain`."""
    plain_seconds = seconds_of(probed, plain) / sum(len(r["token_ids"]) for r in records_of(probed, plain))
    stops = _stops(probes, probed, traces)
    overheads = _overheads(probes, probed, costs, traces, stops)
    runs: dict[str, dict[int, TreeRounds]] = {}
    for probe in probes:
        if probe.counted:
            runs.setdefault(probe.kind, {})[probe.size] = _counted(records_of(probed, probe.label))
    result = {}
    for candidate in candidates:
        overhead = overheads[candidate.rounds_like]
        if candidate.counted:
            result[candidate.label] = _interpolated(candidate, runs[candidate.kind], costs, overhead, plain_seconds)
        else:
            rounds = _rounds(candidate, traces, stops.get(candidate.kind, NEVER))
            result[candidate.label] = _chain(candidate, rounds, traces.greedy, costs, overhead, plain_seconds)
    return Forecast(costs, plain_seconds, overheads, result)


def seconds_of(timed: Timings, name: str) -> float:
    """Decode seconds of all prompts, each prompt's median over repeats."""
    return float(sum(median(row) for row in decoding(timed[name]).seconds))


def records_of(timed: Timings, name: str) -> list[Record]:
    """One record for each prompt: counts are the same in every repeat."""
    return [row[0].record for row in timed[name] if row[0].record is not None]


def _rounds(candidate: Candidate, traces: Traces, stop: Stop) -> Rounds:
    """The expected rounds of a chain."""
    config, size = candidate.setting.config, candidate.size
    if candidate.method == "lookup":
        return lookup_rounds(traces.lookups[config.max_ngram, config.min_match], size, config.bonus)
    recalled = traces.recalled.get(candidate.label, ())
    if not candidate.drafts:
        return lookup_rounds(recalled, size, config.bonus)
    chains, block = traces.chains[candidate.accepts_like], config.rule == "block"
    if candidate.adapts:
        feed_last_token = candidate.setting.feed_last_token
        return adapted_rounds(chains, candidate.draft, config.bonus, block, recalled, feed_last_token)
    return chain_rounds(chains, size, config.bonus, stop, block, recalled, candidate.setting.feed_last_token)


def _stops(probes: Sequence[Candidate], probed: Timings, traces: Traces) -> dict[str, Stop]:
    """By kind, for drafts that stop early: how far they go off the output, from the longest one that ran."""
    result = {}
    for candidate in sorted(probes, key=lambda c: c.size):
        if candidate.stops:
            least = candidate.setting.config.min_draft_probability
            rounds = _rounds(candidate, traces, Stop(least, 0.0))
            counted = _counted(records_of(probed, candidate.label))
            result[candidate.kind] = fit_stop(least, rounds, counted.nodes / counted.rounds * rounds.rounds)
    return result


def _overheads(
    probes: Sequence[Candidate], probed: Timings, costs: Costs, traces: Traces, stops: Mapping[str, Stop]
) -> dict[str, Overhead]:
    """By `rounds_like`: the time of rounds beyond their counted calls."""
    points: dict[str, list[tuple[float, float]]] = {}
    for candidate in probes:
        counted = _counted(records_of(probed, candidate.label))
        rounds = None if candidate.counted else _rounds(candidate, traces, stops.get(candidate.kind, NEVER))
        outside = seconds_of(probed, candidate.label) - _calls(candidate, counted, rounds, costs)
        points.setdefault(candidate.rounds_like, []).append((counted.nodes / counted.rounds, outside / counted.rounds))
    return {like: fit_overhead(result) for like, result in points.items()}


def _calls(candidate: Candidate, counted: TreeRounds, rounds: Rounds | None, costs: Costs) -> float:
    """Seconds of the counted calls; verifying calls have the sizes that `rounds` has where these vary."""
    if rounds is None and candidate.setting.facts.grows_tree:
        return tree_calls(counted, costs)
    if rounds is not None and candidate.setting.varies:
        verified = verifying_calls(rounds, costs) / rounds.rounds * counted.rounds
    else:
        verified = counted.rounds * costs.v(counted.nodes / counted.rounds + 1) * costs.target[1]
    caught_up = catch_up(counted if rounds is None else rounds, costs) * counted.rounds * costs.target[1]
    return counted.draft_calls * (costs.draft_step or 0.0) + caught_up + verified


def _counted(records: Sequence[Record]) -> TreeRounds:
    """The counts of a method's records; for a chain the drafted tokens are the nodes."""

    def total(key: Count) -> int:
        return sum(record[key] for record in records)

    emitted = sum(len(record["token_ids"]) for record in records)
    counts: tuple[Count, ...] = ("num_rounds", "num_drafted", "num_draft_calls", "num_draft_positions")
    return TreeRounds(emitted, *(total(key) for key in counts))


def _interpolated(
    candidate: Candidate, counted: Mapping[int, TreeRounds], costs: Costs, overhead: Overhead, plain_seconds: float
) -> Predicted:
    """From counted rounds: of trees, or of chains whose drafts write text."""
    rounds = tree_between(counted, candidate.size)
    calls = _calls(candidate, rounds, None, costs)
    seconds = calls + overhead.of(rounds.rounds, rounds.nodes)
    lengths = COUNTED if candidate.size in counted else INTERPOLATED
    attainable = rounds.tokens * costs.target[1] / calls
    return Predicted(lengths, rounds.mean_length, attainable, plain_seconds * rounds.tokens / seconds)


def _chain(
    candidate: Candidate, rounds: Rounds, greedy: bool, costs: Costs, overhead: Overhead, plain_seconds: float
) -> Predicted:
    feed_last_token = candidate.setting.feed_last_token
    calls = chain_calls(rounds, costs, feed_last_token) if candidate.drafts else verifying_calls(rounds, costs)
    seconds = calls + overhead.of(rounds.rounds, rounds.drafted)
    if candidate.setting.varies:
        steps = draft_calls(rounds, costs, feed_last_token) if candidate.drafts else 0.0
        attainable = varying_attainable(rounds, costs, steps)
    else:
        attainable = chain_attainable(rounds, candidate.size, costs, feed_last_token)
    lengths = WATCHED if not candidate.lossless else SIMULATED if greedy else EXPECTED
    return Predicted(lengths, rounds.mean_length, attainable, plain_seconds * rounds.tokens / seconds)
