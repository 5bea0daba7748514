"""Says whether a judge beats the rules without training that were run beside it, by a test that chose nothing itself.

Each side enters with one setting: the one that is best on every other prompt of the run. The two are compared on the
prompts in between, which had no part in that choice, so that their p needs no correction for the number of settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.evaluation.report.formatting import Form, Number, Sentence, p_equals, points, times
from specexp.method_specs import spec
from specexp.metrics.paired import accuracy, against, by_prompt, paired, timed
from specexp.metrics.statistics import SIGNIFICANT, rate_ratio, sign_flip_p, swap_p
from specexp.storage.records import Record

FEWEST = 12  # prompts: half of them are compared, and below 6 no paired test can reach 5 %
NEAR = 0.01  # loss of accuracy up to which a setting is preferred by speed


@dataclass(frozen=True, slots=True)
class Duel:
    """A judge's setting against a rule's on the same prompts: speeds as a ratio, accuracies as a difference."""

    judge: Entry
    rule: Entry
    num_prompts: int
    ratio: float  # tokens a second of the judge's setting / of the rule's
    low: float
    high: float
    speed_p: float
    calls: float  # tokens a target call of the judge's setting / of the rule's
    calls_p: float
    delta: float  # accuracy of the judge's setting minus the rule's
    accuracy_p: float

    @property
    def outcome(self) -> int:
        """1 if the judge is better: significantly so in speed or accuracy, and not significantly worse in the other;
        -1 if the rule is; else 0. Speed counts where the calls that are saved are significant, too: two settings that
        emit as many tokens a call differ by their arithmetic and by what else the machine was doing."""
        both = self._faster + self._more_accurate
        return (both > 0) - (both < 0)

    @property
    def divided(self) -> bool:
        """True if one is significantly faster, and the other significantly more accurate."""
        return self._faster * self._more_accurate < 0

    @property
    def _faster(self) -> int:
        if max(self.speed_p, self.calls_p) >= SIGNIFICANT or (self.ratio > 1) != (self.calls > 1):
            return 0
        return 1 if self.ratio > 1 else -1

    @property
    def _more_accurate(self) -> int:
        return (self.accuracy_p < SIGNIFICANT) * (1 if self.delta > 0 else -1)


def judge_against_rules(comparison: Comparison) -> Sentence:
    """Return the sentence, or nothing where a run has only one of the two, grades nothing or cannot tell."""
    found = duel(comparison)
    return [] if found is None else _said(found)


def duel(comparison: Comparison) -> Duel | None:
    """Choose each side's setting on one half of the prompts, and compare them on the other half."""
    plain = comparison.baseline
    experiment = comparison.experiment
    if plain is None or comparison.num_prompts < FEWEST or (experiment.batch, experiment.repeats) != (1, 1):
        return None
    lossy = [entry for entry in comparison.entries if not entry.lossless and spec(entry.config.method).verifies]
    lossy = [entry for entry in lossy if not entry.refuted and "quality/accuracy" in entry.metrics]
    first, second = _halves(plain.records)
    best = [
        _best([entry for entry in lossy if bool(entry.config.judge) == judged], plain, first)
        for judged in (True, False)
    ]
    return None if best[0] is None or best[1] is None else _compared(best[0], best[1], second)


def _halves(records: Sequence[Record]) -> tuple[frozenset[str], frozenset[str]]:
    names = list(by_prompt(records))
    return frozenset(names[::2]), frozenset(names[1::2])


def _of(entry: Entry, prompts: frozenset[str]) -> list[Record]:
    return [record for record in entry.records if record["prompt_id"] in prompts]


def _best(entries: Sequence[Entry], plain: Entry, prompts: frozenset[str]) -> Entry | None:
    """The setting that is best on these prompts."""
    numbers: dict[str, Mapping[str, float]] = {}
    for entry in entries:
        records = _of(entry, prompts)
        numbers[entry.label] = against(records, _of(plain, prompts), 1) | accuracy(records)
    usable = [entry for entry in entries if "quality/accuracy_delta" in numbers[entry.label]]
    return max(usable, key=lambda entry: lossy_rank(numbers[entry.label], "speed/speedup"), default=None)


def lossy_rank(metrics: Mapping[str, float], speed: str) -> tuple[int, float, float]:
    """The order of lossy settings: best is the fastest that loses at most a point of accuracy, and not significantly;
    then the fastest without a significant loss; then the one that loses least. If nothing is graded, the fastest."""
    delta = metrics.get("quality/accuracy_delta", 0.0)
    if delta < 0 and metrics["quality/mcnemar_p"] < SIGNIFICANT:
        return 0, delta, metrics[speed]
    return 1 + (delta >= -NEAR), metrics[speed], delta


def _compared(judge: Entry, rule: Entry, prompts: frozenset[str]) -> Duel | None:
    pairs = [
        (a, b) for a, b in paired(_of(judge, prompts), _of(rule, prompts))
        if a["correct"] is not None and b["correct"] is not None
    ]  # fmt: skip
    changes: dict[str, int] = {}
    for a, b in pairs:
        changes[a["prompt_id"]] = changes.get(a["prompt_id"], 0) + bool(a["correct"]) - bool(b["correct"])
    if len(changes) < FEWEST // 2:
        return None
    sides = [a for a, _ in pairs], [b for _, b in pairs]
    seconds, rounds = ([timed(side, key) for side in sides] for key in ("seconds", "num_rounds"))
    ratio, calls = rate_ratio(*seconds), rate_ratio(*rounds)
    return Duel(judge, rule, len(changes), ratio.value, ratio.low, ratio.high, swap_p(*seconds), calls.value,
                swap_p(*rounds), sum(changes.values()) / len(pairs), sign_flip_p(list(changes.values())))  # fmt: skip


NOT_BETTER = "A judge is not better than rules without training on this task"
STARTS = {
    1: "A judge is better than rules without training on this task",
    0: f"{NOT_BETTER}, as far as these prompts tell",
    -1: f"{NOT_BETTER}, but worse",
}
DIVIDED = f"{NOT_BETTER}, nor are they: one is faster, the other more accurate"


def _said(found: Duel) -> Sentence:
    judge, rule = found.judge.label, found.rule.label

    def number(name: str, value: float, form: Form) -> Number:
        return Number(f"judge_and_rules/{name}", f"{judge}|{rule}", value, form(value))

    return [
        f"{DIVIDED if found.divided else STARTS[found.outcome]}: chosen on every other prompt and compared on the"
        f" {found.num_prompts} in between, {judge} decodes at ", number("ratio", found.ratio, times),
        f" {rule}'s speed (95 %: ", number("low", found.low, times), " to ", number("high", found.high, times), ", ",
        number("speed_p", found.speed_p, p_equals), "), with ", number("calls", found.calls, times),
        " its tokens a call (", number("calls_p", found.calls_p, p_equals), ") and ",
        number("delta", found.delta, points),
        " points of accuracy (McNemar ", number("accuracy_p", found.accuracy_p, p_equals), ").",
    ]  # fmt: skip
