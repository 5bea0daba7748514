"""Compares a setting with plain decoding on the same prompts: speed from sums, answers and outputs pairwise.

The turns and repeats of a prompt are combined before anything is resampled or tested. For prompts decoded in a batch,
seconds are shares of common steps: their speeds have an interval over prompts and no p, because the test that swaps
prompts assumes that they were timed separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

from specexp.metrics.incomplete import is_unparsed
from specexp.metrics.statistics import Timed, paired_difference, prompts_needed, rate_ratio, sign_flip_p, swap_p, wilson
from specexp.storage.records import Record, Seconds, Summed, num_tokens, same_output

Pairs = Sequence[tuple[Record, Record]]


def paired(records: Sequence[Record], baseline: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Pair each record with plain decoding's record of the same prompt, turn and repeat."""
    by_key = {(r["prompt_id"], r["turn"], r["repeat"]): r for r in baseline}
    return [(r, by_key[r["prompt_id"], r["turn"], r["repeat"]]) for r in records]


def by_prompt(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by prompt, in the order of each prompt's first record."""
    result: dict[str, list[Record]] = {}
    for record in records:
        result.setdefault(record["prompt_id"], []).append(record)
    return result


def timed(records: Sequence[Record], *keys: Summed) -> Timed:
    """Return each prompt's tokens, and the sum of its `keys` (seconds, or rounds), with prompts ordered by id."""
    groups = sorted(by_prompt(records).items())
    tokens = [sum(num_tokens(record) for record in group) for _, group in groups]
    values = [[float(sum(record[key] for record in group for key in keys))] for _, group in groups]
    return Timed(tokens, values)


def speedup(pairs: Pairs, *keys: Seconds) -> float:
    """Return tokens per second of each pair's first record over that of its second; `keys` are the seconds to count."""

    def rate(side: int) -> float:
        return sum(num_tokens(p[side]) for p in pairs) / float(sum(p[side][k] for p in pairs for k in keys))

    return rate(0) / rate(1)


def against(records: Sequence[Record], baseline: Sequence[Record], batch: int) -> dict[str, float]:
    """Compare with plain decoding in the same batch; plain decoding is not tested against itself."""
    pairs = paired(records, baseline)
    itself = records[0]["method"] == baseline[0]["method"]
    metrics = {}
    if batch == 1:
        metrics["speed/speedup"] = speedup(pairs, "seconds")
        if not itself:
            metrics |= _faster(pairs, "speed/speedup")
        metrics["speed/speedup_end_to_end"] = speedup(pairs, "seconds", "prefill_seconds")
    else:
        metrics["batch/speedup"] = speedup(pairs, "seconds")
        if not itself:
            result = _faster(pairs, "batch/speedup")
            result.pop("batch/speedup_p", None)
            metrics |= result
    # With its own history, a method answers another prompt than the baseline does.
    same = [pair for pair in pairs if pair[0]["paired"]]
    metrics["quality/equal_to_baseline"] = sum(same_output(a, b) for a, b in same) / len(same)
    graded = [pair for pair in same if pair[0]["correct"] is not None]
    if graded:
        return metrics | _answers(graded, itself)
    return metrics if itself else metrics | _agreement(same)


def _faster(pairs: Pairs, key: str) -> dict[str, float]:
    candidate, baseline = (timed([pair[side] for pair in pairs], "seconds") for side in (0, 1))
    if len(candidate.tokens) < 2:
        return {}
    result = rate_ratio(candidate, baseline)
    return {f"{key}_low": result.low, f"{key}_high": result.high, f"{key}_p": swap_p(candidate, baseline)}


def _answers(graded: Pairs, itself: bool) -> dict[str, float]:
    """Return the paired difference in accuracy: per prompt, repeats that became right minus those that became wrong."""
    gains, repeats = _per_prompt(graded, lambda a, b: int(bool(a["correct"])) - int(bool(b["correct"])))
    means = [gain / n for gain, n in zip(gains, repeats, strict=True)]
    low, high = paired_difference(*_fourfold(graded))
    result = {
        "quality/accuracy_delta": sum(gains) / sum(repeats),
        "quality/accuracy_delta_low": low,
        "quality/accuracy_delta_high": high,
        "quality/mcnemar_p": sign_flip_p(gains),
    }
    if not itself:
        result["quality/prompts_for_one_point"] = prompts_needed(sum(mean * mean for mean in means) / len(means))
    return result


def _fourfold(graded: Pairs) -> tuple[float, ...]:
    """Count prompts on which both are right, the setting alone, plain decoding alone, neither; repeats as shares."""
    repeats = Counter(a["prompt_id"] for a, _ in graded)
    result = []
    for first, second in product((True, False), repeat=2):
        alike = [(a, b) for a, b in graded if (bool(a["correct"]), bool(b["correct"])) == (first, second)]
        counts = Counter(a["prompt_id"] for a, _ in alike)
        result.append(sum(counts[name] / n for name, n in repeats.items()))
    return tuple(result)


def _agreement(same: Pairs) -> dict[str, float]:
    """Return Wilson's interval of the share of equal outputs, for tasks without a checkable answer."""
    equal, outputs = _per_prompt(same, lambda a, b: int(same_output(a, b)))
    low, high = wilson(len(equal) * sum(equal) / sum(outputs), len(equal))
    return {"quality/equal_to_baseline_low": low, "quality/equal_to_baseline_high": high}


def _per_prompt(pairs: Pairs, value: Callable[[Record, Record], int]) -> tuple[list[int], list[int]]:
    """Return the sum of `value` over each prompt's pairs, and the number of these pairs."""
    sums: dict[str, list[int]] = {}
    for a, b in pairs:
        sums.setdefault(a["prompt_id"], []).append(value(a, b))
    return [sum(values) for values in sums.values()], [len(values) for values in sums.values()]


def accuracy(records: Sequence[Record]) -> dict[str, float]:
    """Return the share of right answers over `count/graded` prompts; the interval counts a prompt's repeats as one."""
    graded = [record for record in records if record["correct"] is not None]
    if not graded:
        return {}
    prompts = len(by_prompt(graded))
    share = sum(bool(record["correct"]) for record in graded) / len(graded)
    low, high = wilson(prompts * share, prompts)
    return {
        "count/graded": prompts,
        "count/without_answer": sum(is_unparsed(record) for record in graded),
        "quality/accuracy": share,
        "quality/accuracy_low": low,
        "quality/accuracy_high": high,
    }
