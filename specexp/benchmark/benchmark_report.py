"""The results of a benchmark's timings: numbers as JSON, the table in the terminal, metrics for MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from specexp.benchmark.benchmark import FIRST_TOKEN, GENERATE, PLAIN, TEMPERATURE, Measured
from specexp.evaluation.measured_costs import costs_of, timed_by_events
from specexp.evaluation.timing import Timings, decoding, sampled, whole
from specexp.metrics.statistics import Interval, Timed, rate, rate_ratio
from specexp.metrics.summary import summarise
from specexp.profiling.time_breakdown import HOST, shares
from specexp.storage import environment

HEADLINES = {
    "plain_vs_generate": "plain decoding / generate(), end-to-end tokens a second",
    "chain_vs_assisted": "the chain / generate(assistant_model=...) at the same gamma, end-to-end tokens a second",
    "chain_vs_plain": "the chain / plain decoding, tokens a decode second (prefill apart)",
    "realised": "chain_vs_plain / what the chain's calls alone would allow",
    "overhead_share": "of the chain's decode time: what is neither forward, nor judge, nor sampling and accepting",
    "share_of_floor": "the bandwidth bound of a plain step / its decode seconds",
    "batch_speedup": "plain decoding, several prompts together / one at a time, prompts a second",
    "batch_speedup_chain": "the chain, several prompts together / one at a time, prompts a second",
    "outputs_equal": "greedy outputs of every method and peer equal generate()'s, and in a batch those of batch 1",
}
RATIOS = ("plain_vs_generate", "chain_vs_assisted", "chain_vs_plain")
KEPT = ("accept/alpha", "accept/mean_length", "speed/c", "speed/v", "speed/attainable", "speed/predicted_speedup")


def as_json(measured: Measured) -> dict[str, Any]:
    """Every number, with the headlines at the top."""
    timed, chain, assisted = measured.timed, f"chain_k{measured.gamma}", f"assisted_k{measured.gamma}"
    by_gamma = {c.gamma: _gamma(measured, measured.search, measured.search_costs, c.gamma) for c in _chains(measured)}
    best = _gamma(measured, timed, measured.costs, measured.gamma)
    parts = {name: shares(seconds) for name, seconds in measured.parts.items()}
    step = 1 / rate(decoding(timed[PLAIN])).value
    ratios = {
        "plain_vs_generate": rate_ratio(whole(timed[PLAIN]), whole(timed[GENERATE])),
        "plain_vs_generate_decode": rate_ratio(_behind_first(timed, PLAIN), _behind_first(timed, GENERATE)),
        **({"chain_vs_assisted": rate_ratio(whole(timed[chain]), whole(timed[assisted]))} if assisted in timed else {}),
        "chain_vs_plain": rate_ratio(decoding(timed[chain]), decoding(timed[PLAIN])),
        "chain_vs_generate": rate_ratio(whole(timed[chain]), whole(timed[GENERATE])),
    }
    batch = measured.batched.as_json() if measured.batched else None
    headlines = {
        **{
            name: ratios[name].value
            for name in ("plain_vs_generate", "chain_vs_assisted", "chain_vs_plain")
            if name in ratios
        },
        **({"realised": best["realised"]} if "realised" in best else {}),
        "overhead_share": parts[chain][HOST],
        "share_of_floor": measured.floor.seconds / step,
        **({} if batch is None else _batch_headlines(batch, chain)),
        "outputs_equal": not measured.differences,
    }
    return {
        **headlines,
        "best_gamma": measured.gamma,
        "definitions": HEADLINES,
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "differences": [asdict(difference) for difference in measured.differences],
        "methods": {name: _method(measured, name) for name in timed if name != FIRST_TOKEN},
        "skipped": dict(measured.skipped),
        "batch": batch,
        "gammas": {str(gamma): result for gamma, result in by_gamma.items()},
        "best": best,
        "shares": parts,
        "instrumented_seconds": {name: sum(seconds.values()) for name, seconds in measured.parts.items()},
        "costs": dict(measured.costs),
        "floor": {**asdict(measured.floor), "seconds": measured.floor.seconds, "plain_step_seconds": step},
        "setting": {
            **measured.prepared.experiment.as_dict(),
            "settings_hash": measured.prepared.experiment.hash,
            "prompts": len(measured.prepared.prompts),
        },
        "environment": dict(measured.environment),
    }


def _batch_headlines(batch: Mapping[str, Any], chain: str) -> dict[str, float]:
    names = {"batch_speedup": PLAIN, "batch_speedup_chain": chain}
    return {name: batch["methods"][method]["speedup"]["value"] for name, method in names.items()}


def _chains(measured: Measured) -> list[Any]:
    return [s.config for s in measured.prepared.settings if s.config.method == "speculative"]


def _method(measured: Measured, name: str) -> dict[str, Any]:
    """Rates of one contender, from the medians of its seconds, prompt by prompt."""
    runs = measured.timed[name]
    result: dict[str, Any] = {"end_to_end_tokens_per_second": asdict(rate(whole(runs))), "tokens": _emitted(runs)}
    if runs[0][0].record is not None:
        result["tokens_per_second"] = asdict(rate(decoding(runs)))
        rounds = sum(row[0].record["num_rounds"] for row in runs if row[0].record)
        result["tokens_per_call"] = _emitted(runs) / rounds
    # Compare sampled with sampled and greedy with greedy: they emit different texts.
    plain = sampled(PLAIN, TEMPERATURE) if name.endswith(sampled("", TEMPERATURE)) else PLAIN
    result["vs_plain_end_to_end"] = asdict(rate_ratio(whole(runs), whole(measured.timed[plain])))
    return result


def _emitted(timings: Sequence[Sequence[Any]]) -> int:
    return sum(len(row[0].token_ids) for row in timings)


def _behind_first(timed: Timings, name: str) -> Timed:
    """Tokens and seconds after the first token: decoding alone, even where a prefill cannot be timed from outside."""
    if name == PLAIN:
        seconds = [[t.seconds - t.record["time_to_first_token"] for t in row if t.record] for row in timed[name]]
    else:
        pairs = zip(timed[name], timed[FIRST_TOKEN], strict=True)
        seconds = [[t.seconds - first.seconds for t, first in zip(*rows, strict=True)] for rows in pairs]
    return Timed([len(row[0].token_ids) - 1 for row in timed[name]], seconds)


def _gamma(measured: Measured, timings: Timings, costs: Mapping[str, Any], gamma: int) -> dict[str, float]:
    """A chain's acceptance and costs, its speed-up compared with what these allow, and assisted generation's speed."""
    chain, assisted = timings[f"chain_k{gamma}"], timings.get(f"assisted_k{gamma}")
    records = [timing.record for row in chain for timing in row if timing.record]
    plain = [timing.record for row in timings[PLAIN] for timing in row if timing.record]
    claimed = not environment.on_cuda(measured.environment) or timed_by_events(costs)
    metrics = summarise(records, plain, costs_of(costs), gamma, claimed=claimed)
    result = {name.rpartition("/")[2]: metrics[name] for name in KEPT if name in metrics}
    speedup = rate_ratio(decoding(chain), decoding(timings[PLAIN])).value
    return {
        **result,
        "speedup": speedup,
        **({"realised": speedup / result["attainable"]} if "attainable" in result else {}),
        "tokens_per_second": rate(decoding(chain)).value,
        "end_to_end_tokens_per_second": rate(whole(chain)).value,
        **({"assisted_end_to_end_tokens_per_second": rate(whole(assisted)).value} if assisted is not None else {}),
    }


def table(result: Mapping[str, Any]) -> str:
    """The rates of all contenders, then the draft lengths, the time split and the headlines."""
    lines = [f"{'':<22}{'tok/s':>7}  {'95 %':<13}{'vs plain':>9}  {'tok/call':>8}   (end to end, prefill included)"]
    for name, method in result["methods"].items():
        speed, ratio = (Interval(**method[key]) for key in ("end_to_end_tokens_per_second", "vs_plain_end_to_end"))
        calls = f"{method['tokens_per_call']:.2f}" if "tokens_per_call" in method else ""
        span = f"{speed.low:.0f} - {speed.high:.0f}"
        lines.append(f"{name:<22}{speed.value:>7.0f}  {span:<13}{ratio.value:>8.2f}x  {calls:>8}".rstrip())
    lines += [f"{name:<22}left out: {why}" for name, why in result["skipped"].items()]
    lines += ["", f"{'gamma':>7}{'alpha':>8}{'c':>7}{'v':>7}{'attainable':>12}{'speed-up':>10}{'realised':>10}"]
    for gamma, row in result["gammas"].items():
        lines.append(
            f"{gamma:>7}{row['alpha']:>8.3f}{row['c']:>7.3f}{row['v']:>7.2f}{_cell(row, 'attainable', 'x'):>12}"
            f"{row['speedup']:>9.2f}x{_cell(row, 'realised'):>10}".rstrip()
        )
    lines += ["", *_batch_lines(result["batch"])] if result["batch"] else []
    lines.append("")
    for name, parts in result["shares"].items():
        lines.append(f"{name:<22}" + ", ".join(f"{part} {share:.1%}" for part, share in parts.items()))
    lines.append("")
    for name, text in ((name, text) for name, text in HEADLINES.items() if name in result):
        value = result[name]
        shown = str(value).lower() if isinstance(value, bool) else f"{value:.3f}"
        lines.append(f"{name:<20}{shown:>7}  {text}")
    if result["differences"]:
        lines.append(_warning(result["differences"]))
    return "\n".join(lines)


def _cell(values: Mapping[str, float], name: str, unit: str = "") -> str:
    """A number, or "" for one that may not be claimed: on CUDA, what calls alone would allow."""
    return f"{values[name]:.2f}{unit}" if name in values else ""


def _batch_lines(batch: Mapping[str, Any]) -> list[str]:
    lines = [f"{batch['prompts']} prompts, prompts/s{'one at a time':>18}{batch['size']:>9} together"]
    for name, result in batch["methods"].items():
        alone, together = (result[key]["value"] for key in ("prompts_per_second_alone", "prompts_per_second"))
        lines.append(f"{name:<22}{alone:>18.2f}{together:>18.2f}{result['speedup']['value']:>8.2f}x")
    return lines


def _warning(differences: Sequence[Mapping[str, Any]]) -> str:
    first = differences[0]
    ties = sum(difference["near_tie"] for difference in differences)
    gap = "one has ended" if first["gap"] is None else f"logit gap {first['gap']:.2g}"
    return (
        f"warning: {len(differences)} outputs differ from generate()'s, {ties} of them at near ties; first"
        f" {first['name']} on '{first['prompt_id']}' at token {first['position']} ({gap})."
    )


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics for MLflow: the headlines, every contender's speed, and the chain's metrics at the best gamma."""
    values = {f"bench/{name}": float(result[name]) for name in (*HEADLINES, "best_gamma") if name in result}
    for name, method in (result["batch"] or {"methods": {}})["methods"].items():
        values[f"batch/prompts_per_second_{name}"] = method["prompts_per_second"]["value"]
    for name, method in result["methods"].items():
        values[f"speed/end_to_end_{name}"] = method["end_to_end_tokens_per_second"]["value"]
    values |= {name: result["best"][key] for name in KEPT if (key := name.rpartition("/")[2]) in result["best"]}
    chain = f"chain_k{result['best_gamma']}"
    return values | {f"share/{part}": share for part, share in result["shares"][chain].items()}
