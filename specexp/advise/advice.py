"""Recommends what to run: predicts the gain of every draft length, tree budget and threshold, and checks the best ones.

One process, in this order. It decodes each prompt plainly and passes over the outputs to see where target and draft
agree, and what other proposers would have drafted (`traces.py`): that gives the rounds of every chain. Then it runs a
few settings interleaved with plain decoding and measures the costs of single calls meanwhile: the time that decoding
takes beyond its calls is the overhead of a round and of a drafted token. These runs also count the rounds of trees,
which grow off the output, and of drafts that write text. `forecast.py` makes predictions from all this, `choice.py`
selects those worth a run, and these are timed, interleaved with plain decoding, on timings of their own: a choice among
noisy numbers flatters the chosen one. This module does not know MLflow; measurements go into the given journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from specexp.advise.candidates import PLAIN, Candidate, to_probe
from specexp.advise.choice import NUM_CHECKED, Checked, PredictedCandidate, best, worth_checking
from specexp.advise.forecast import Forecast, Traces, forecast, records_of
from specexp.advise.rounds import Trace
from specexp.advise.traces import looked_up, read_trace, recalled
from specexp.advise.untimed import (
    OUTPUTS,
    WATCHED,
    Untimed,
    candidates_of,
    draft_key,
    draft_temperatures,
    kinds_of,
)
from specexp.engine import Engine
from specexp.evaluation import divergence, measured_costs
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import SpecexpContender, TimingPhase, Timings, decoding, once, timings, whole
from specexp.metrics.statistics import rate, rate_ratio
from specexp.sequences.token_ids import longest_of
from specexp.storage import environment
from specexp.storage.journal import Journal, Key
from specexp.storage.records import Record
from specexp.tasks.example import place_of

PROBES = 2  # how often the probed settings run for overheads and counts


@dataclass(frozen=True, slots=True)
class Advice:
    """All results. `best_three` were chosen by prediction; `checked` holds them, or in a sweep every candidate; `best`
    is one of the three, or None: do not speculate. `timed` are the timings of the checked candidates and of plain
    decoding."""

    prepared: Prepared
    environment: Mapping[str, Any]
    candidates: Sequence[Candidate]
    alpha: float | None  # None without a draft model
    forecast: Forecast
    best_three: Sequence[str]
    timed: Timings
    checked: Mapping[str, Checked]
    best: str | None
    swept: bool


def num_runs(prepared: Prepared, sweep: bool) -> int:
    """The number of outputs that are decoded or examined in all, warm-up runs included."""
    return _num_noted(prepared, sweep) + _num_warm(prepared, sweep)


def num_left(prepared: Prepared, sweep: bool, journal: Journal) -> int:
    """The part of `num_runs` that the journal does not have."""
    left = _num_noted(prepared, sweep) - journal.count({"plain", "draft", "watched", "probe", "check"})
    return left + _num_warm(prepared, sweep) if left > 0 else 0


def _num_noted(prepared: Prepared, sweep: bool) -> int:
    candidates = candidates_of(prepared)
    num_checked = len(candidates) if sweep else min(len(candidates), NUM_CHECKED)
    timed = PROBES * (len(to_probe(candidates)) + 1) + prepared.experiment.repeats * (num_checked + 1)
    return len(prepared.prompts) * (len(kinds_of(candidates)) + timed)


def _num_warm(prepared: Prepared, sweep: bool) -> int:
    candidates = candidates_of(prepared)
    return len(to_probe(candidates)) + (len(candidates) if sweep else min(len(candidates), NUM_CHECKED)) + 2


def measure(
    prepared: Prepared,
    sweep: bool,
    clock: Callable[[], float] = time.perf_counter,
    journal: Journal | None = None,
) -> Advice:
    """Examine outputs, probe, predict, check. `sweep` checks every candidate in the same run. Nothing that the
    journal has is measured again. Raises ModelError when memory runs out."""
    journal = Journal() if journal is None else journal
    temperature = prepared.experiment.temperature
    owns = {
        s.config.label: SpecexpContender(s.config.label, prepared, s, temperature, clock) for s in prepared.settings
    }
    candidates = candidates_of(prepared)
    probes = to_probe(candidates)
    repeats = prepared.experiment.repeats
    with tqdm(total=num_runs(prepared, sweep), desc="advise", unit="run", dynamic_ncols=True) as bar:
        steps = _Steps(prepared, journal, bar)
        overlap, traces = _look(steps, Untimed(prepared, owns[PLAIN]))

        costs_now = _Costs(prepared, journal, clock)
        asked = [owns[PLAIN], *(owns[c.label] for c in probes)]
        probed = steps.timings("probe", asked, PROBES, costs_now)
        costs = measured_costs.costs_of(measured_costs.median_of(costs_now.measured))
        assert costs is not None, "candidates are verified"
        result = forecast(candidates, probes, probed, PLAIN, costs, traces)

        speedups = {label: predicted.speedup for label, predicted in result.predicted.items()}
        options = [PredictedCandidate(c.label, c.kind, c.size, c.lossless, speedups[c.label]) for c in candidates]
        three = [option.label for option in worth_checking(options)]
        labels = [c.label for c in candidates] if sweep else three
        timed = steps.timings("check", [owns[label] for label in (PLAIN, *labels)], repeats)
    checked = {c.label: _check(prepared, c, timed) for c in candidates if c.label in labels}
    chosen = best({c.label: c.lossless for c in candidates}, {label: checked[label] for label in three})
    where = environment.describe(prepared.pair.models, prepared.pair.text.facts())
    alpha = sum(overlap) / max(1, len(overlap)) if draft_temperatures(candidates) else None
    return Advice(prepared, where, candidates, alpha, result, three, timed, checked, chosen, sweep)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Measures step by step: the journal records each step, and each is one step of the bar."""

    prepared: Prepared
    journal: Journal
    bar: Any

    def step(self, key: Key, name: str, make: Callable[[], Any]) -> Any:
        """One unit of the journal, as JSON."""
        self.bar.set_postfix_str(name, refresh=False)
        result = self.journal.unit(key, make)
        self.bar.update()
        return result

    def timings(
        self, name: str, contenders: Sequence[SpecexpContender], repeats: int, before: Callable[[], None] = lambda: None
    ) -> Timings:
        """Timings. Each contender first runs once on the longest prompt, untimed, so that everything built at the
        first call is built then."""
        num_prompts, phase = len(self.prepared.prompts), TimingPhase(self.journal, name)
        left = not phase.is_done(contenders, num_prompts, repeats)
        longest = longest_of(self.prepared.prompts)
        for contender in contenders:
            self.bar.set_postfix_str(contender.name, refresh=False)
            if left and (contender.name != PLAIN or self.journal.resumed):
                once(contender, longest, 0)
            self.bar.update()
        return timings(contenders, num_prompts, repeats, self.bar, before, phase)


class _Costs:
    """Measures what calls cost, each time it is called."""

    def __init__(self, prepared: Prepared, journal: Journal, clock: Callable[[], float]) -> None:
        self._prepared, self._journal, self._clock = prepared, journal, clock
        self.measured: list[Any] = []

    def __call__(self) -> None:
        key = "costs", len(self.measured)
        self.measured.append(self._journal.unit(key, lambda: measured_costs.measure_costs(self._prepared, self._clock)))


def _look(steps: _Steps, untimed: Untimed) -> tuple[list[float], Traces]:
    """sum_x min(p, q) along plain decoding's outputs, and the traces of chains and of other proposers."""
    prepared, candidates = steps.prepared, untimed.candidates
    indices = range(len(prepared.prompts))
    outputs: list[list[int]] = []
    chains: dict[str, list[Trace]] = {}
    overlap: list[float] = []
    for kind in untimed.kinds:
        look = lambda i: untimed.measure(kind, i, outputs[i] if outputs else ())  # noqa: B023, E731
        seen = [steps.step((*kind, i), untimed.name_of(kind), partial(look, i)) for i in indices]
        if kind == OUTPUTS:
            outputs = seen
        elif kind[0] == WATCHED:
            chains[str(kind[1])] = [read_trace(one) for one in seen]
        else:
            chains[draft_key(kind)] = [read_trace(one["trace"], one["certainty"]) for one in seen]
            overlap = overlap or [each for one in seen for each in one["overlap"]]  # of the target's own temperature
    searches = [c for c in candidates if c.method == "lookup"]
    most = max((c.size for c in searches), default=0)
    lookups = {
        (ngram, shortest): [looked_up(prepared, i, outputs[i], ngram, most, shortest) for i in indices]
        for ngram, shortest in sorted({(c.setting.config.max_ngram, c.setting.config.min_match) for c in searches})
    }
    others = {c.label: c.setting.decoder for c in candidates if c.method in ("suffix", "chained") and not c.counted}
    found = [recalled(prepared, i, outputs[i], others) for i in indices] if others else []
    by_label = {label: [each[label] for each in found] for label in others}
    return overlap, Traces(chains, lookups, prepared.experiment.warp.one_hot, by_label)


def _check(prepared: Prepared, candidate: Candidate, timed: Timings) -> Checked:
    candidate_times, plain = timed[candidate.label], timed[PLAIN]
    records, plain_records = records_of(timed, candidate.label), records_of(timed, PLAIN)
    checked = [(a, b) for a, b in zip(records, plain_records, strict=True) if a["correct"] is not None]
    pairs = [(bool(a["correct"]), bool(b["correct"])) for a, b in checked]
    method = candidate.setting.config
    trusted = method.threshold is None or method.threshold <= prepared.judges[method.judge].facts.threshold
    return Checked(
        rate_ratio(decoding(candidate_times), decoding(plain)),
        rate_ratio(whole(candidate_times), whole(plain)),
        rate(decoding(candidate_times)),
        sum(len(r["token_ids"]) for r in records) / sum(r["num_rounds"] for r in records),
        sum(a["token_ids"] == b["token_ids"] for a, b in zip(records, plain_records, strict=True)) / len(records),
        len(pairs),
        sum(b and not a for a, b in pairs),
        sum(a and not b for a, b in pairs),
        trusted,
        _unexplained(prepared, candidate, records, plain_records),
    )


def _unexplained(prepared: Prepared, candidate: Candidate, records: Sequence[Record], plain: Sequence[Record]) -> int:
    """Prompts whose output differs from plain decoding's although it must not, where no near tie explains it."""
    if not divergence.comparable(candidate.setting, prepared.experiment):
        return 0
    engine = Engine(prepared.pair.models)
    differ: dict[str, tuple[Record, Record]] = {}
    for record, other in zip(records, plain, strict=True):
        if record["token_ids"] != other["token_ids"]:
            differ.setdefault(record["prompt_id"], (record, other))  # repeats emit the same
    reasons = [
        divergence.why(
            engine, prepared.experiment, prepared.prompts[place_of(prepared.examples, name)], record, other["token_ids"]
        )
        for name, (record, other) in differ.items()
    ]
    return reasons.count(divergence.UNEXPLAINED)


def _names(prepared: Prepared) -> list[str]:
    return [example.prompt_id for example in prepared.examples]
