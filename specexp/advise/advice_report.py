"""The outputs of a finished advice: every number as JSON, the table in the terminal, metrics for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from specexp.advise.advice import Advice
from specexp.advise.advice_text import notes, recommendation, sweep, sweep_line
from specexp.advise.candidates import PLAIN, Candidate
from specexp.evaluation.divergence import NOT_LOSSLESS
from specexp.evaluation.measured_costs import CATCH_UP, SIZES
from specexp.evaluation.timing import decoding
from specexp.metrics.statistics import rate

SHOWN = 12  # rows of the table, besides those of candidates that ran
DEFINITIONS = {
    "predicted": "speed-up expected of decoding, overhead of rounds and drafted tokens included",
    "attainable": "mean_length / (gamma c + catch_up + v(gamma + 1)): what the calls alone would allow; where drafts"
    " differ in length, mean_length / (draft calls a round x c + catch_up + v(mean number of positions)); catch_up is"
    " what a chain's first draft call costs more because it takes in several committed tokens",
    "mean_length": "tokens emitted per verifying target call, as expected",
    "lengths": "where mean_length comes from: simulated or expected along plain decoding's outputs, watched along the"
    " lossy method's own, counted in runs (trees, drafts that write text), or interpolated between counts",
    "error": "predicted / measured speed-up - 1, of the candidates that ran",
    "measured.speedup": "tokens a decode second / plain decoding's, interleaved, with a 95 % bootstrap interval",
    "measured.end_to_end": "the same with both prefills",
    "plain_seconds": "of a token of plain decoding in the runs that predictions are made from",
    "alpha": "mean of sum_x min(p, q) along plain decoding's outputs, of a head as the first token of a chain; null"
    " without a draft model, as c",
    "overheads": "seconds of a round, and of each drafted token, outside its calls",
    "sweep.short_measured": "1 - the recommendation's speed / that of the best measured candidate",
    "sweep.short_predicted": "1 - the recommendation's predicted speed-up / the best predicted one",
}


def as_json(advice: Advice) -> dict[str, Any]:
    """Every number, with the recommendation at the top."""
    result, experiment = advice.forecast, advice.prepared.experiment
    swept = sweep(advice) if advice.swept else None
    ranked = sorted(advice.candidates, key=lambda c: -result.predicted[c.label].speedup)
    return {
        "recommended": advice.best or PLAIN,
        "speculate": advice.best is not None,
        "sentence": recommendation(advice),
        "notes": notes(advice),
        "alpha": advice.alpha,
        "c": result.costs.c if result.costs.draft_step is not None else None,
        "v": {str(n): result.costs.v(n) for n in sorted(result.costs.target)},
        "plain_tokens_per_second": asdict(rate(decoding(advice.timed[PLAIN]))),
        "best_three": list(advice.best_three),
        "candidates": [_candidate(advice, candidate) for candidate in ranked],
        "sweep": asdict(swept) if swept else None,
        "sweep_sentence": sweep_line(swept) if swept else None,
        "definitions": DEFINITIONS,
        "plain_seconds": result.plain_seconds,
        "overheads": {method: asdict(overhead) for method, overhead in result.overheads.items()},
        "costs": {
            "draft_step": result.costs.draft_step,
            **{name: _by_text(getattr(result.costs, name)) for name in (*SIZES, CATCH_UP)},
        },
        "setting": {
            **experiment.as_dict(),
            "settings_hash": experiment.hash,
            "prompts": len(advice.prepared.prompts),
        },
        "environment": dict(advice.environment),
    }


def _by_text(seconds: Mapping[int, float]) -> dict[str, float]:
    return {str(n): each for n, each in sorted(seconds.items())}


def _candidate(advice: Advice, candidate: Candidate) -> dict[str, Any]:
    method, checked = candidate.setting.config, advice.checked.get(candidate.label)
    predicted = advice.forecast.predicted[candidate.label]
    return {
        "label": candidate.label,
        "method": method.method,
        "kind": candidate.kind,
        "lossless": candidate.lossless,
        "size": candidate.size,
        "threshold": method.threshold,
        "max_ngram": method.max_ngram or None,
        "min_draft_probability": method.min_draft_probability,
        "adapts": candidate.adapts,
        "rule": method.rule,
        "draft_temperature": method.draft_temperature,
        "proposers": method.proposers or None,
        "min_match": method.min_match,
        **asdict(predicted),
        "measured": None if checked is None else asdict(checked),
        "error": None if checked is None else predicted.speedup / checked.speedup.value - 1,
    }


def table(result: Mapping[str, Any]) -> str:
    """Candidates ranked by prediction, with intervals for those that ran; then the recommendation in words."""
    rows = [each for i, each in enumerate(result["candidates"]) if i < SHOWN or each["measured"]]
    width = max(len(PLAIN), *(len(each["label"]) for each in rows))
    head = f"{'':<{width}}{'predicted':>11}{'attainable':>12}{'tokens/call':>13}{'measured':>10}  {'95 %':<11}  output"
    plain = result["plain_tokens_per_second"]
    lines = [
        head,
        f"{PLAIN:<{width}}{'1.00x':>11}{'1.00x':>12}{'1.00':>13}{'1.00x':>10}  {plain['value']:.0f} tokens/s",
    ]
    for each in rows:
        line = (
            f"{each['label']:<{width}}{each['speedup']:>10.2f}x{each['attainable']:>11.2f}x{each['mean_length']:>13.2f}"
        )
        line += _measured(each["measured"])
        lines.append(f"{line}  {_output(each)}".rstrip())
    if left := len(result["candidates"]) - len(rows):
        lines.append(f"and {left} more that are predicted to be slower")
    lines += ["", result["sentence"], *(f"- {note}" for note in result["notes"])]
    lines += [f"- {result['sweep_sentence']}"] if result["sweep"] else []
    return "\n".join(lines)


def _output(each: Mapping[str, Any]) -> str:
    """The word of a candidate's row about its output: lossless, not lossless, or lossy with its effect."""
    if not each["lossless"]:
        return _kept(each["measured"])
    return NOT_LOSSLESS if each["measured"] and each["measured"]["unexplained"] else "lossless"


def _measured(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return f"{'':>10}  {'':<11}"
    speedup = measured["speedup"]
    span = f"{speedup['low']:.2f}-{speedup['high']:.2f}"
    return f"{speedup['value']:>9.2f}x  {span:<11}"


def _kept(measured: Mapping[str, Any] | None) -> str:
    """How a lossy setting changed the answers."""
    if measured is None:
        return "lossy"
    if not measured["checked"]:
        return f"lossy: {measured['equal']:.0%} of outputs equal"
    return f"lossy: {measured['lost']} of {measured['checked']} answers lost, {measured['gained']} gained"


def metrics(advice: Advice) -> dict[str, float]:
    """The metrics for MLflow."""
    result = {
        "advice/speculate": float(advice.best is not None),
        "advice/plain_tokens_per_second": rate(decoding(advice.timed[PLAIN])).value,
        "advice/candidates": len(advice.candidates),
        "advice/prompts": len(advice.prepared.prompts),
    }
    if advice.alpha is not None:
        result |= {"advice/alpha": advice.alpha, "advice/c": advice.forecast.costs.c}
    label = advice.best or advice.best_three[0]
    predicted, checked = advice.forecast.predicted[label], advice.checked[label]
    result |= {
        "advice/predicted_speedup": predicted.speedup,
        "advice/attainable": predicted.attainable,
        "advice/mean_length": predicted.mean_length,
        "advice/measured_speedup": checked.speedup.value,
        "advice/measured_speedup_low": checked.speedup.low,
        "advice/measured_speedup_high": checked.speedup.high,
        "advice/measured_speedup_end_to_end": checked.end_to_end.value,
    }
    if advice.swept:
        swept = sweep(advice)
        result |= {"advice/short_measured": swept.short_measured, "advice/short_predicted": swept.short_predicted}
    return result
