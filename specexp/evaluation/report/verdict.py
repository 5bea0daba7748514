"""Says in words what an evaluation shows: which method to use, what it gains, and how certain that is.

Lossless settings are chosen by speed alone; of lossy ones, the verdict adds what they gain and what they cost. Drafting
alone is not a candidate: it only shows what the draft can do.
"""

from __future__ import annotations

from collections.abc import Sequence

from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.evaluation.report.divergence_text import equality, refuted
from specexp.evaluation.report.formatting import Number, Sentence, count, of, p_equals, percent, points, span, times
from specexp.evaluation.report.judge_and_rules import judge_against_rules, lossy_rank
from specexp.method_specs import spec
from specexp.metrics.paired import paired, timed
from specexp.metrics.statistics import SIGNIFICANT, rate_ratio, swap_p

ROUGH = 20  # with fewer prompts, a bootstrap interval is a rough guide
FEWEST = 6  # with fewer prompts, no paired two-sided test can reach 5 %
NAMED = 3  # most settings that are listed by name


def verdict(comparison: Comparison) -> list[Sentence]:
    """Return the headline, then the sentences that support it."""
    plain = comparison.baseline
    if comparison.timing.untimed:
        return _untimed(comparison)
    if plain is None:
        return _without_baseline(comparison)
    if plain.served:
        return _engines(comparison)
    key = comparison.speed
    wrong = refuted(comparison.entries)
    known = [e for e in comparison.entries if key in e.metrics and e is not plain and not e.served]
    candidates = [e for e in known if not e.refuted]
    exact = sorted((e for e in candidates if e.lossless), key=lambda e: -e.metrics[key])
    lossy = [e for e in candidates if not e.lossless and spec(e.config.method).verifies]
    if not exact and not lossy:
        rate = of(plain, comparison.speed.replace("speedup", "tokens_per_second"), count)
        start = "No other setting here speculates." if wrong else "No setting here speculates."
        return [[*wrong, f"{start} Plain decoding emits ", rate, " tokens a second; add methods that draft."]]
    best = exact[0] if exact and exact[0].metrics[key] > 1 else None
    other = max(lossy, key=lambda entry: lossy_rank(entry.metrics, key), default=None)
    result: list[Sentence] = [[*wrong, *_headline(comparison, exact, other)]]
    result += [sentence for entry in exact if (sentence := equality(comparison, entry))]
    if best is not None:
        result += [s for s in (_told_apart(comparison, best, exact[1:]),) if s]
    if other is not None:
        result.append(_lossy(comparison, other, best))
    if duel := judge_against_rules(comparison):
        result.append(duel)
    if sum(each.served for each in comparison.entries) > 1:
        result.append(_engines(comparison)[0])
    return result + _how_sure(comparison, len(candidates), other)


def _untimed(comparison: Comparison) -> list[Sentence]:
    """Say what tokens alone tell: how many a target call gives, and what outputs are."""
    key = "accept/mean_length"
    exact = [e for e in comparison.entries if e.lossless and key in e.metrics and spec(e.config.method).drafts]
    headline: list[str | Number] = [f"No speed is reported: {comparison.timing.untimed}."]
    if exact:
        most = max(exact, key=lambda entry: entry.metrics[key])
        rate = of(most, key, "{:.2f}".format)
        headline += [f" Of the lossless settings, {most.label} emits the most tokens a target call: ", rate, "."]
    equal = [sentence for entry in exact if (sentence := equality(comparison, entry))]
    return [[*refuted(comparison.entries), *headline], *equal]


def _without_baseline(comparison: Comparison) -> list[Sentence]:
    """Say how fast the engines are, if there are any, and of all other settings which is the fastest."""
    fastest = max((e for e in comparison.entries if not e.served), key=lambda e: e.metrics[comparison.speed])
    rate = of(fastest, comparison.speed, count)
    together = "" if comparison.experiment.batch == 1 else f" in batches of {comparison.experiment.batch}"
    engines = _engines(comparison) if any(entry.served for entry in comparison.entries) else []
    whose, which = (" in this process", " of those in it") if engines else ("", "")
    own: Sentence = [
        f"Plain decoding was not run{whose}, so the gain is unknown: add baseline to the methods. ",
        f"The fastest setting{which} is {fastest.label} at ", rate, f" tokens a second{together}.",
    ]  # fmt: skip
    return [*engines[:1], own, *engines[1:]]


def _engines(comparison: Comparison) -> list[Sentence]:
    """Say how fast engines are, compared with the first of them; only `certify` can say if one is lossless."""
    first, *others = (entry for entry in comparison.entries if entry.served)
    key = comparison.speed_of(first)
    if not others:
        rate = of(first, "speed/tokens_per_second", count)
        return [[f"{first.label} emits ", rate, " tokens a second; add an engine to compare it with."]]
    best = max(others, key=lambda entry: entry.metrics[key])
    words: list[str | Number] = [f"{best.label} answers at ", of(best, key, times), f" the speed of {first.label}"]
    if best.interval(key) is not None:
        words += [" (95 %: ", *span(best, key, times), ")"]
    equal = of(best, "quality/equal_to_baseline", percent)
    if comparison.experiment.temperature == 0:
        words += ["; ", equal, " of its outputs are equal"]
    return [[*words, "."], *_how_sure(comparison, len(others), None)]


def _headline(comparison: Comparison, exact: Sequence[Entry], other: Entry | None) -> Sentence:
    key = comparison.speed
    best = exact[0] if exact else None
    gains = other is not None and other.metrics[key] > 1
    if best is None:
        assert other is not None
        word = "Only lossy settings were run; " if gains else "Do not speculate: only lossy settings were run, and "
        return [word, f"the best of them, {other.label}, decodes at ", *speed(comparison, other), "."]
    if best.metrics[key] <= 1:
        start = "Do not speculate" if not gains else "Do not speculate, unless other outputs are acceptable"
        return [f"{start}: the fastest lossless setting, {best.label}, decodes at ", *speed(comparison, best), "."]
    if _unsure(best, key):
        return [f"Perhaps {best.label}, which is lossless: it decodes at ", *speed(comparison, best),
                ". Run more prompts to be sure."]  # fmt: skip
    return [f"Use {best.label}, which is lossless: it decodes at ", *speed(comparison, best), "."]


def _unsure(entry: Entry, key: str) -> bool:
    """True if a gain is not significant: by its test, or by its interval if there is no test."""
    if f"{key}_p" in entry.metrics:
        return entry.metrics[f"{key}_p"] >= SIGNIFICANT
    return not _excludes_one(entry, key)


def _excludes_one(entry: Entry, key: str) -> bool:
    ends = entry.interval(key)
    return ends is not None and not ends[0] <= 1 <= ends[1]


def speed(comparison: Comparison, entry: Entry) -> list[str | Number]:
    """Return `1.92x plain decoding (95 %: 1.80x to 2.05x, p < 0.001)`, with a remark if that is not significant."""
    key = comparison.speed_of(entry)
    result: list[str | Number] = [of(entry, key, times), f" the speed of {comparison.reference_words(entry)}"]
    batch, n = comparison.experiment.batch, comparison.num_prompts
    result += [f" in batches of {batch}"] if batch > 1 else []
    if entry.interval(key) is None:
        return [*result, " (one prompt: no interval)"]
    if _unsure(entry, key):
        result.append(f", not significant at n = {n}")
    result += [" (95 %: ", *span(entry, key, times)]
    if batch > 1:
        return [*result, ", over prompts, which share the steps that were timed)"]
    few = f"; fewer than {FEWEST} prompts cannot give less than {SIGNIFICANT}, but the interval excludes 1"
    return [
        *result,
        ", ",
        of(entry, f"{key}_p", p_equals),
        few if n < FEWEST and _excludes_one(entry, key) else "",
        ")",
    ]


def answers(comparison: Comparison, entry: Entry) -> list[str | Number]:
    """Return `accuracy -0.5 points, not significant at n = 40 (McNemar p = 0.62)`; agreement if nothing is graded."""
    delta = "quality/accuracy_delta"
    if delta not in entry.metrics:
        return _agreement(comparison, entry)
    test = "McNemar" if comparison.experiment.repeats == 1 else "paired"
    graded = f"{entry.metrics['count/graded']:.0f}"
    if not _changes(comparison, entry):
        return [
            "no answer changes from right to wrong or back (95 %: ", *span(entry, delta, points), " points): accuracy ",
            of(entry, "quality/accuracy", percent),
            f", as with {comparison.reference_words(entry)}, on {graded} graded prompts",
        ]  # fmt: skip
    sure = entry.metrics["quality/mcnemar_p"] < SIGNIFICANT
    return [
        "accuracy ", of(entry, delta, points), " points (95 %: ", *span(entry, delta, points),
        f"), {'' if sure else 'not '}significant at n = {graded} ({test} ", of(entry, "quality/mcnemar_p", p_equals),
        ")",
    ]  # fmt: skip


def _changes(comparison: Comparison, entry: Entry) -> bool:
    """True if any answer is right with this setting alone, or with what it is compared with alone."""
    plain = comparison.reference(entry)
    return plain is not None and any(a["correct"] != b["correct"] for a, b in paired(entry.records, plain.records))


def _agreement(comparison: Comparison, entry: Entry) -> list[str | Number]:
    key = "quality/equal_to_baseline"
    if comparison.experiment.temperature > 0:
        if entry.lossless:
            return ["nothing is graded; sampled outputs need not be equal, their distribution is"]
        return ["nothing is graded, and sampled outputs cannot be compared one by one: what it costs is not known"]
    equal = f" of the outputs equal {comparison.reference_words(entry)}'s"
    return ["no answers to grade; ", of(entry, key, percent), equal]


def _told_apart(comparison: Comparison, best: Entry, rest: Sequence[Entry]) -> Sentence:
    """Name the lossless settings that may be as fast as the best, given these prompts."""
    n, batch = comparison.num_prompts, comparison.experiment.batch
    if n < 2 or not rest:
        return []
    tested = batch == 1 and n >= FEWEST
    same = [(entry, words) for entry in rest if (words := _as_fast(best, entry, tested))]
    if not same:
        by_intervals = "95 % intervals exclude 1" + ("" if batch > 1 else f"; n = {n} is too few for the test")
        return [f"Every other lossless setting is slower ({f'p < {SIGNIFICANT} each' if tested else by_intervals})."]
    result: list[str | Number] = ["Not significantly slower: "]
    for place, (entry, words) in enumerate(same[:NAMED]):
        result += [", " if place else "", f"{entry.label} (", of(entry, comparison.speed, times), ", ", *words, ")"]
    return [*result, f" and {len(same) - NAMED} more." if len(same) > NAMED else "."]


def _as_fast(best: Entry, entry: Entry, tested: bool) -> Sentence:
    """Return why a setting may be as fast as the best: a p, or an interval if it is not tested; else nothing."""
    best_times, entry_times = (timed(each.records, "seconds") for each in (best, entry))
    both = f"{best.label}|{entry.label}"
    if tested:
        p = swap_p(best_times, entry_times)
        return [Number("verdict/same_speed_p", both, p, p_equals(p))] if p >= SIGNIFICANT else []
    ratio = rate_ratio(best_times, entry_times)
    if not ratio.low <= 1 <= ratio.high:
        return []
    ends = {"low": ratio.low, "high": ratio.high}
    low, high = (Number(f"verdict/ratio_{end}", both, value, times(value)) for end, value in ends.items())
    return ["ratio ", low, " to ", high]


def _lossy(comparison: Comparison, entry: Entry, best: Entry | None) -> Sentence:
    key = comparison.speed
    if best is not None and entry.metrics[key] <= best.metrics[key]:
        return [f"The best lossy setting, {entry.label}, is no faster: ", of(entry, key, times), "; ",
                *answers(comparison, entry), "."]  # fmt: skip
    start: list[str | Number] = [f"Lossy, {entry.label} decodes at ", *speed(comparison, entry)]
    if best is not None:
        ratio = entry.metrics[key] / best.metrics[key]
        start += [", ", Number("verdict/over", f"{entry.label}|{best.label}", ratio, times(ratio)), f" {best.label}'s"]
    return [*start, "; ", *answers(comparison, entry), "."]


def _how_sure(comparison: Comparison, num_settings: int, lossy: Entry | None) -> list[Sentence]:
    n = comparison.num_prompts
    result: list[Sentence] = []
    if n < FEWEST:
        result.append([f"n = {n}: with fewer than {FEWEST} prompts no paired test can reach 5 %, and an interval means"
                      " little."])  # fmt: skip
    elif n < ROUGH:
        result.append([f"n = {n}: with fewer than {ROUGH} prompts intervals are a rough guide, and rather too narrow."])
    if num_settings > 1:
        result.append([f"The best of {num_settings} settings was chosen by the numbers reported here: expect a little"
                      " less of it on other prompts."])  # fmt: skip
    if lossy is not None and "quality/prompts_for_one_point" in lossy.metrics:
        result.append([
            "To see a difference of one point in accuracy takes about ",
            of(lossy, "quality/prompts_for_one_point", count),
            f" prompts (5 % level, 80 % power, as many changed answers as {lossy.label}'s).",
        ])  # fmt: skip
    return result
