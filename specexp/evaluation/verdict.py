"""What an evaluation says, in words: which method to use, what it gains, and how sure one can be.

The choice is by speed alone among lossless settings; lossy ones stand beside it with what they add and what they cost.
Drafting alone is no candidate: it is there to show what the draft can do.
"""

from __future__ import annotations

from collections.abc import Sequence

from specexp.evaluation.comparison import Comparison, Entry
from specexp.evaluation.paired import timed
from specexp.evaluation.statistics import SIGNIFICANT, swap_p
from specexp.evaluation.words import Number, Sentence, count, of, p_equals, percent, points, span, times

ROUGH = 20  # prompts below which a bootstrap interval is a rough guide
FEWEST = 6  # prompts below which no paired two-sided test can reach 5 %
NEAR = 0.01  # accuracy that a lossy setting may lose before others are preferred
NAMED = 3  # that are listed by name


def verdict(comparison: Comparison) -> list[Sentence]:
    """The headline first, then what stands behind it."""
    plain = comparison.baseline
    if plain is None:
        return [_without_baseline(comparison)]
    key = comparison.speed
    mine = [entry for entry in comparison.entries if key in entry.metrics and entry is not plain]
    exact = sorted((e for e in mine if e.lossless), key=lambda e: -e.metrics[key])
    lossy = [e for e in mine if not e.lossless and e.config.method != "draft_only"]
    if not exact and not lossy:
        rate = of(plain, comparison.speed.replace("speedup", "tokens_per_second"), count)
        return [["Nothing speculates here. Plain decoding emits ", rate, " tokens a second; add methods that draft."]]
    best = exact[0] if exact and exact[0].metrics[key] > 1 else None
    other = _best_lossy(lossy, key)
    found: list[Sentence] = [_headline(comparison, exact, other)]
    if best is not None:
        found += [s for s in (_equal(comparison, best), _told_apart(comparison, best, exact[1:])) if s]
    if other is not None:
        found.append(_lossy(comparison, other, best))
    return found + _how_sure(comparison, len(mine), other)


def _without_baseline(comparison: Comparison) -> Sentence:
    fastest = max(comparison.entries, key=lambda e: e.metrics[comparison.speed])
    rate = of(fastest, comparison.speed, count)
    together = "" if comparison.experiment.batch == 1 else f" in batches of {comparison.experiment.batch}"
    return [
        "Plain decoding was not run, so that no gain can be told: add baseline to the methods. ",
        f"The fastest setting is {fastest.label} at ", rate, f" tokens a second{together}.",
    ]  # fmt: skip


def _headline(comparison: Comparison, exact: Sequence[Entry], other: Entry | None) -> Sentence:
    key = comparison.speed
    best = exact[0] if exact else None
    gains = other is not None and other.metrics[key] > 1
    if best is None:
        assert other is not None
        word = "Only lossy settings were run; " if gains else "Do not speculate: only lossy settings were run, and "
        return [word, f"the best of them, {other.label}, decodes at ", *speed(comparison, other), "."]
    if best.metrics[key] <= 1:
        start = "Do not speculate" if not gains else "Do not speculate, unless other words will do"
        return [f"{start}: the fastest lossless setting, {best.label}, decodes at ", *speed(comparison, best), "."]
    if _unsure(best, key):
        return [f"Perhaps {best.label}, which is lossless: it decodes at ", *speed(comparison, best),
                ". Run more prompts to be sure."]  # fmt: skip
    return [f"Use {best.label}, which is lossless: it decodes at ", *speed(comparison, best), "."]


def _unsure(entry: Entry, key: str) -> bool:
    """Whether a gain was tested and not found significant."""
    return entry.metrics.get(f"{key}_p", 0.0) >= SIGNIFICANT


def speed(comparison: Comparison, entry: Entry) -> list[str | Number]:
    """`1.92x plain decoding (95 %: 1.80x to 2.05x, p < 0.001)`, and whether that is significant."""
    key = comparison.speed
    found: list[str | Number] = [of(entry, key, times), " the speed of plain decoding"]
    if comparison.experiment.batch > 1:
        together = comparison.experiment.batch
        return [*found, f" in batches of {together} (no interval: prompts share the steps that were timed)"]
    if entry.interval(key) is None:
        return [*found, " (one prompt: no interval)"]
    if _unsure(entry, key):
        found.append(f", not significant at n = {comparison.num_prompts}")
    return [*found, " (95 %: ", *span(entry, key, times), ", ", of(entry, f"{key}_p", p_equals), ")"]


def answers(comparison: Comparison, entry: Entry) -> list[str | Number]:
    """`accuracy -0.5 points, not significant at n = 40 (McNemar p = 0.62)`, or agreement where nothing is graded."""
    delta = "quality/accuracy_delta"
    if delta not in entry.metrics:
        return _agreement(comparison, entry)
    ends, test = entry.interval(delta), "McNemar" if comparison.experiment.repeats == 1 else "paired"
    graded = f"{entry.metrics['count/graded']:.0f}"
    if entry.metrics[delta] == 0 and ends is not None and not any(ends):
        return ["accuracy ", of(entry, "quality/accuracy", percent), f" like plain decoding's, on each of {graded}"]
    sure = entry.metrics["quality/mcnemar_p"] < SIGNIFICANT
    return [
        "accuracy ", of(entry, delta, points), " points (95 %: ", *span(entry, delta, points),
        f"), {'' if sure else 'not '}significant at n = {graded} ({test} ", of(entry, "quality/mcnemar_p", p_equals),
        ")",
    ]  # fmt: skip


def _agreement(comparison: Comparison, entry: Entry) -> list[str | Number]:
    key = "quality/equal_to_baseline"
    if comparison.experiment.temperature > 0:
        if entry.lossless:
            return ["nothing is graded; sampled outputs need not be equal, their distribution is"]
        return ["nothing is graded, and sampled outputs cannot be compared one by one: what it costs is not known"]
    return ["no answers to grade; ", of(entry, key, percent), " of the outputs equal plain decoding's"]


def _equal(comparison: Comparison, best: Entry) -> Sentence:
    """Whether greedy lossless outputs are the very same."""
    share = of(best, "quality/equal_to_baseline", percent)
    if comparison.experiment.temperature > 0 or share.value == 1:
        return []
    return [
        "Yet only ", share, f" of {best.label}'s outputs equal plain decoding's, token for token: near ties of the"
        " arithmetic, or a mistake. `python -m entrypoints certify` tells which.",
    ]  # fmt: skip


def _told_apart(comparison: Comparison, best: Entry, rest: Sequence[Entry]) -> Sentence:
    """Lossless settings that are as fast, as far as these prompts tell."""
    if comparison.experiment.batch > 1 or comparison.num_prompts < 2:
        return []
    mine = timed(best.records, "seconds")
    same = [(e, p) for e in rest if (p := swap_p(mine, timed(e.records, "seconds"))) >= SIGNIFICANT]
    if not same:
        return [f"Every other lossless setting is slower (p < {SIGNIFICANT} each)."] if rest else []
    found: list[str | Number] = ["Not told apart from it in speed: "]
    for place, (entry, p) in enumerate(same[:NAMED]):
        number = Number("verdict/same_speed_p", f"{best.label}|{entry.label}", p, p_equals(p))
        found += [", " if place else "", f"{entry.label} (", of(entry, comparison.speed, times), ", ", number, ")"]
    return [*found, f" and {len(same) - NAMED} more." if len(same) > NAMED else "."]


def _best_lossy(lossy: Sequence[Entry], key: str) -> Entry | None:
    """The fastest that loses no more than a point, nor significantly; then that loses nothing significantly; then the
    one that loses least. Where nothing is graded, the fastest."""
    kept = [e for e in lossy if not _loses(e)]
    near = [e for e in kept if e.metrics.get("quality/accuracy_delta", 0.0) >= -NEAR]
    if near or kept:
        return max(near or kept, key=lambda e: e.metrics[key])
    return max(lossy, key=lambda e: (e.metrics["quality/accuracy"], e.metrics[key]), default=None)


def _loses(entry: Entry) -> bool:
    delta, p = (entry.metrics.get(f"quality/{name}") for name in ("accuracy_delta", "mcnemar_p"))
    return delta is not None and p is not None and delta < 0 and p < SIGNIFICANT


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
    found: list[Sentence] = []
    if n < FEWEST:
        found.append([f"n = {n}: with fewer than {FEWEST} prompts no paired test can reach 5 %, and an interval means"
                      " little."])  # fmt: skip
    elif n < ROUGH:
        found.append([f"n = {n}: with fewer than {ROUGH} prompts intervals are a rough guide, and rather too narrow."])
    if num_settings > 1:
        found.append([f"The best of {num_settings} settings is named by the numbers that made it the best: expect a"
                      " little less of it on other prompts."])  # fmt: skip
    if lossy is not None and "quality/prompts_for_one_point" in lossy.metrics:
        found.append([
            "To see a difference of one point in accuracy takes about ",
            of(lossy, "quality/prompts_for_one_point", count),
            f" prompts (5 % level, 80 % power, as many changed answers as {lossy.label}'s).",
        ])  # fmt: skip
    return found
