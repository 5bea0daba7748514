"""What should I run? Predicts what every draft length, tree budget and threshold would gain, and checks the best.

One process, in this order. Plain decoding of each prompt, and passes over its outputs that say where target and draft
agree, and what prompt lookup would have proposed (`traces.py`): that tells the rounds of every chain. Then a few
settings are run beside plain decoding, with the costs of single calls measured meanwhile: what decoding takes beyond
its calls is the overhead of a round and of a drafted token, and the rounds of trees, which grow off the output, are
counted. `forecast.py` makes predictions of all this, `choice.py` says which are worth a run, and these are timed,
interleaved with plain decoding, on timings of their own: choosing among noisy numbers flatters the chosen one. Nothing
here knows MLflow, or writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from tqdm import tqdm

from specexp import config
from specexp.config import Experiment
from specexp.decoding.chain import Chain
from specexp.errors import ConfigError
from specexp.evaluation import environment, runner
from specexp.evaluation.candidates import Candidate, to_probe
from specexp.evaluation.choice import NUM_CHECKED, Checked, Option, best, worth_checking
from specexp.evaluation.forecast import Forecast, Traces, forecast, records_of, trace_of
from specexp.evaluation.methods import roles_of
from specexp.evaluation.prediction import Trace
from specexp.evaluation.runner import Prepared
from specexp.evaluation.statistics import rate, rate_ratio
from specexp.evaluation.timing import Own, Timings, decoding, once, timings, whole
from specexp.evaluation.traces import Agreement, agreement, looked_up, watched_output

PLAIN = "baseline"
WEIGHED = ("speculative", "lookup", "specexec", "autojudge")  # methods that advice knows to predict
PROBES = 2  # how often settings are run for overheads and counts

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Advice:
    """All that was found. `best_three` were chosen by prediction; `checked` holds them, or in a sweep every candidate;
    `best` is one of the three, or None: do not speculate. `timed` are the timings of those checked and of plain
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


def settled(experiment: Experiment, with_trees: bool, with_draft: bool = True) -> Experiment:
    """The experiment with plain decoding and what advice weighs; raises ConfigError for what it cannot predict.

    Without a draft model prompt lookup alone is left.
    """
    faults = []
    known = (PLAIN, *WEIGHED)
    if others := sorted({m.method for m in experiment.methods} - set(known)):
        faults.append(f"methods has {', '.join(others)}; advice weighs {', '.join(WEIGHED)}: leave out the others.")
    if experiment.batch > 1:
        faults.append(f"batch is {experiment.batch}, but advice is for one prompt at a time; leave it out.")
    methods = [m for m in experiment.methods if m.method in WEIGHED and (with_trees or not m.tree)]
    if not with_draft:
        methods = [m for m in methods if "draft" not in roles_of(m)]
    if not methods and not faults:
        left = "give gamma or tree_budget" if with_draft else "without a draft model only lookup is weighed: add it"
        faults.append(f"no candidate is left; {left}.")
    if faults:
        raise ConfigError(faults)
    plain = config.adjusted(experiment, {"methods": PLAIN}).methods
    return replace(experiment, methods=(*plain, *methods))


def measure(prepared: Prepared, sweep: bool, clock: Callable[[], float] = time.perf_counter) -> Advice:
    """Look, probe, predict, check. `sweep` checks every candidate in the same run. Raises ModelError when memory runs
    out."""
    temperature = prepared.experiment.temperature
    owns = {s.config.label: Own(s.config.label, prepared, s, temperature, clock) for s in prepared.settings}
    candidates = [Candidate(setting) for setting in prepared.settings if setting.config.label != PLAIN]
    longest = _longest(candidates)
    probes = to_probe(candidates)
    num_prompts, repeats = len(prepared.prompts), prepared.experiment.repeats
    num_checked = len(candidates) if sweep else min(len(candidates), NUM_CHECKED)
    total = num_prompts * (2 + len(longest) + PROBES * (len(probes) + 1) + repeats * (num_checked + 1))
    with tqdm(total=total + len(probes) + num_checked, desc="advise", unit="run", dynamic_ncols=True) as bar:
        overlap, traces = _look(prepared, owns[PLAIN], candidates, bar)
        watched = {key: _watch(prepared, candidate, bar) for key, candidate in longest.items()}
        traces = replace(traces, chains={**traces.chains, **watched})

        measured: list[Any] = []
        _warm([owns[c.label] for c in probes], bar)
        asked = [owns[PLAIN], *(owns[c.label] for c in probes)]
        costs_now = lambda: measured.append(runner.measure_costs(prepared, clock))  # noqa: E731
        probed = timings(asked, num_prompts, PROBES, bar, costs_now)
        costs = runner.costs_of(runner.median_of(measured))
        assert costs is not None, "candidates are verified"
        found = forecast(candidates, probes, probed, PLAIN, costs, traces)

        speedups = {label: predicted.speedup for label, predicted in found.predicted.items()}
        options = [Option(c.label, c.kind, c.size, c.lossless, speedups[c.label]) for c in candidates]
        three = [option.label for option in worth_checking(options)]
        labels = [c.label for c in candidates] if sweep else three
        _warm([owns[label] for label in labels], bar)
        timed = timings([owns[label] for label in (PLAIN, *labels)], num_prompts, repeats, bar)
    checked = {c.label: _check(prepared, c, timed) for c in candidates if c.label in labels}
    chosen = best({c.label: c.lossless for c in candidates}, {label: checked[label] for label in three})
    where = environment.describe(prepared.pair.models, prepared.pair.text.facts())
    alpha = sum(overlap) / max(1, len(overlap)) if "draft" in prepared.pair.models else None
    return Advice(prepared, where, candidates, alpha, found, three, timed, checked, chosen, sweep)


def _shown(bar: Any, name: str, work: Callable[P, R], *arguments: P.args, **more: P.kwargs) -> R:
    """Do some work, as one step of the bar."""
    bar.set_postfix_str(name, refresh=False)
    found = work(*arguments, **more)
    bar.update()
    return found


def _longest(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Of the lossy chains that accept alike, the longest, by their traces' key."""
    return {trace_of(c): c for c in sorted(candidates, key=lambda c: c.size) if not c.lossless}


def _look(prepared: Prepared, plain: Own, candidates: Sequence[Candidate], bar: Any) -> tuple[list[float], Traces]:
    """sum_x min(p, q) along plain decoding's outputs, and the traces of lossless chains and of lookups."""
    experiment, indices = prepared.experiment, range(len(prepared.prompts))
    outputs = [_shown(bar, PLAIN, once, plain, index, 0).token_ids for index in indices]
    seen: list[Agreement] = []
    if "draft" in prepared.pair.models:
        seen = [_shown(bar, "draft", agreement, prepared, index, outputs[index]) for index in indices]
    mine = [c for c in candidates if c.method == "lookup"]
    most = max((c.size for c in mine), default=0)
    lookups = {
        ngram: [looked_up(prepared, index, outputs[index], ngram, most) for index in indices]
        for ngram in sorted({c.setting.config.max_ngram for c in mine})
    }
    chains = {"": [replace(one.trace, certainty=one.certainty) for one in seen]}
    certain = experiment.temperature == 0 or experiment.top_k == 1
    return [each for one in seen for each in one.overlap], Traces(chains, lookups, certain)


def _watch(prepared: Prepared, longest: Candidate, bar: Any) -> list[Trace]:
    """The traces of a lossy kind, from its longest chain."""
    decoder = longest.setting.decoder
    assert isinstance(decoder, Chain), f"{longest.label} is no chain"

    def watch(index: int) -> Trace:
        trace, output = watched_output(prepared, index, decoder)
        return replace(trace, certainty=agreement(prepared, index, output).certainty)

    return [_shown(bar, longest.kind, watch, index) for index in range(len(prepared.prompts))]


def _warm(owns: Sequence[Own], bar: Any) -> None:
    """Each once on the longest prompt, untimed: what is made at the first call is made."""
    for own in owns:
        lengths = [len(ids) for ids in own.prepared.prompts]
        _shown(bar, own.name, once, own, lengths.index(max(lengths)), 0)


def _check(prepared: Prepared, candidate: Candidate, timed: Timings) -> Checked:
    mine, plain = timed[candidate.label], timed[PLAIN]
    records, theirs = records_of(timed, candidate.label), records_of(timed, PLAIN)
    pairs = [(a["correct"], b["correct"]) for a, b in zip(records, theirs, strict=True) if a["correct"] is not None]
    method = candidate.setting.config
    trusted = method.threshold is None or method.threshold <= prepared.judges[method.judge].facts.threshold
    return Checked(
        rate_ratio(decoding(mine), decoding(plain)),
        rate_ratio(whole(mine), whole(plain)),
        rate(decoding(mine)),
        sum(len(r["token_ids"]) for r in records) / sum(r["num_rounds"] for r in records),
        sum(a["token_ids"] == b["token_ids"] for a, b in zip(records, theirs, strict=True)) / len(records),
        len(pairs),
        sum(b and not a for a, b in pairs),
        sum(a and not b for a, b in pairs),
        trusted,
    )
