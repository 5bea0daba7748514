"""Compares a setting with plain decoding on the same prompts: speed from sums, answers and outputs pairwise.

Records are added one by one and are not held: what intervals and tests need is summed by prompt. The turns and repeats
of a prompt are combined before anything is resampled or tested. For prompts decoded in a batch, seconds are shares of
common steps: their speeds have an interval over prompts and no p, because the test that swaps prompts assumes that they
were timed separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from specexp.metrics.incomplete import is_unparsed
from specexp.metrics.per_prompt import COUNTS, SECONDS, PromptNumbers, PromptSums, PromptTimes
from specexp.metrics.statistics import Timed, paired_difference, prompts_needed, rate_ratio, sign_flip_p, swap_p, wilson
from specexp.storage.records import Record, Summed, num_tokens, same_output

# On which both are right, the setting alone, plain decoding alone, neither.
_FOURFOLD = ((True, True), (True, False), (False, True), (False, False))


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


def timed(records: Iterable[Record], *keys: Summed) -> Timed:
    """Return each prompt's tokens, and the sum of its `keys` (seconds, or rounds), with prompts ordered by id."""
    prompts = PromptNumbers()
    times = PromptTimes(prompts, SECONDS)
    for record in records:
        number = prompts.number(record["prompt_id"])
        times.add(number, num_tokens(record), [0])
        for key in keys:
            times.more(number, float(record[key]))
    return times.timed()


class Side:
    """Sums over the records of one side of a comparison."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self.whole_seconds = 0.0  # with prefill

    def add(self, record: Record) -> None:
        self.tokens += num_tokens(record)
        self.seconds += record["seconds"]
        self.whole_seconds += record["seconds"]
        self.whole_seconds += record["prefill_seconds"]


class SpeedUp:
    """Tokens per second of a setting over those of plain decoding on the same prompts: a ratio of sums."""

    def __init__(self) -> None:
        self.sides = Side(), Side()

    def add(self, record: Record, plain: Record) -> None:
        for side, each in zip(self.sides, (record, plain), strict=True):
            side.add(each)

    @property
    def decoding(self) -> float:
        first, second = ((side.tokens / side.seconds) for side in self.sides)
        return first / second

    @property
    def end_to_end(self) -> float:
        first, second = ((side.tokens / side.whole_seconds) for side in self.sides)
        return first / second


class Compared:
    """One setting's records, each with plain decoding's of the same prompt, turn and repeat.

    `times` has the tokens and decode seconds of the setting's records by prompt, and `plain_times` those of plain
    decoding's, where somebody adds them up anyway.
    """

    def __init__(
        self, prompts: PromptNumbers | None = None, times: PromptTimes | None = None,
        plain_times: PromptTimes | None = None,
    ) -> None:  # fmt: skip
        self._prompts = PromptNumbers() if prompts is None else prompts
        self._speed = SpeedUp()
        self._adds_times, self._times = times is None, times or PromptTimes(self._prompts, SECONDS)
        self._adds_plain, self._plain_times = plain_times is None, plain_times or PromptTimes(self._prompts, SECONDS)
        self._itself = False  # plain decoding, compared with itself
        self._num_same, self._num_equal = 0, 0
        self._same = PromptSums(COUNTS)  # by prompt: records whose outputs are compared
        self._fourfold = [PromptSums(COUNTS) for _ in _FOURFOLD]  # by prompt: graded records of each kind
        self._num_graded = 0

    @classmethod
    def of(cls, records: Sequence[Record], baseline: Sequence[Record]) -> Self:
        result = cls()
        for record, plain in paired(records, baseline):
            result.add(record, plain)
        return result

    def add(self, record: Record, plain: Record) -> None:
        """Add one record and plain decoding's."""
        prompt = self._prompts.number(record["prompt_id"])
        self._itself = record["method"] == plain["method"]
        self._speed.add(record, plain)
        if self._adds_times:
            self._times.add(prompt, num_tokens(record), [record["seconds"]])
        if self._adds_plain and not self._itself:
            self._plain_times.add(prompt, num_tokens(plain), [plain["seconds"]])
        if not record["paired"]:
            return  # with its own history, a method answers another prompt than plain decoding does
        self._num_same += 1
        self._num_equal += same_output(record, plain)
        self._same.add(prompt, 1)
        if record["correct"] is not None:
            self._num_graded += 1
            kind = _FOURFOLD.index((bool(record["correct"]), bool(plain["correct"])))
            self._fourfold[kind].add(prompt, 1)

    def metrics(self, batch: int) -> dict[str, float]:
        """Compare with plain decoding in the same batch; plain decoding is not tested against itself."""
        metrics = {}
        if batch == 1:
            metrics["speed/speedup"] = self._speed.decoding
            if not self._itself:
                metrics |= self._faster("speed/speedup", tested=True)
            metrics["speed/speedup_end_to_end"] = self._speed.end_to_end
        else:
            metrics["batch/speedup"] = self._speed.decoding
            if not self._itself:
                metrics |= self._faster("batch/speedup", tested=False)
        metrics["quality/equal_to_baseline"] = self._num_equal / self._num_same
        if self._num_graded:
            return metrics | self._answers()
        return metrics if self._itself else metrics | self._agreement()

    def _faster(self, key: str, tested: bool) -> dict[str, float]:
        candidate, baseline = self._times.timed(), self._plain_times.timed()
        assert len(candidate.tokens) == len(baseline.tokens), (
            "prompts without a record of plain decoding's, or the reverse"
        )
        if len(candidate.tokens) < 2:
            return {}
        result = rate_ratio(candidate, baseline)
        ends = {f"{key}_low": result.low, f"{key}_high": result.high}
        return ends | ({f"{key}_p": swap_p(candidate, baseline)} if tested else {})

    def _answers(self) -> dict[str, float]:
        """Return the paired difference in accuracy: per prompt, repeats that became right minus those that became
        wrong."""
        kinds = [column.values(len(self._prompts)).astype(np.int32) for column in self._fourfold]
        repeats = sum(kinds[1:], kinds[0])
        kinds, repeats = [kind[repeats > 0] for kind in kinds], repeats[repeats > 0]
        gains = kinds[1] - kinds[2]
        # Repeats of a prompt count as shares of it.
        low, high = paired_difference(*(float(_running_sum(kind / repeats)) for kind in kinds))
        result = {
            "quality/accuracy_delta": int(gains.sum()) / self._num_graded,
            "quality/accuracy_delta_low": low,
            "quality/accuracy_delta_high": high,
            "quality/mcnemar_p": sign_flip_p(gains[gains != 0].tolist()),
        }
        if not self._itself:
            means = gains / repeats
            discordance = float(_running_sum(means * means)) / len(means)
            result["quality/prompts_for_one_point"] = prompts_needed(discordance)
        return result

    def _agreement(self) -> dict[str, float]:
        """Return Wilson's interval of the share of equal outputs, for tasks without a checkable answer."""
        num_prompts = int((self._same.values(len(self._prompts)) > 0).sum())
        low, high = wilson(num_prompts * self._num_equal / self._num_same, num_prompts)
        return {"quality/equal_to_baseline_low": low, "quality/equal_to_baseline_high": high}


def _running_sum(values: np.ndarray) -> float:
    """Add one after another, as `sum` does: the same bits whatever the length."""
    return float(np.cumsum(values)[-1])


def against(records: Sequence[Record], baseline: Sequence[Record], batch: int) -> dict[str, float]:
    """Compare records with plain decoding's of the same prompts in the same batch."""
    return Compared.of(records, baseline).metrics(batch)


class Answers:
    """How many of a setting's outputs are right."""

    def __init__(self, prompts: PromptNumbers | None = None) -> None:
        self._prompts = PromptNumbers() if prompts is None else prompts
        self._graded = PromptSums(COUNTS)
        self._num_graded, self._num_right, self._num_unparsed = 0, 0, 0

    def add(self, record: Record) -> None:
        if record["correct"] is None:
            return
        self._graded.add(self._prompts.number(record["prompt_id"]), 1)
        self._num_graded += 1
        self._num_right += bool(record["correct"])
        self._num_unparsed += is_unparsed(record)

    def metrics(self) -> dict[str, float]:
        """Return the share of right answers over `count/graded` prompts; the interval counts a prompt's repeats as
        one."""
        if not self._num_graded:
            return {}
        prompts = int((self._graded.values(len(self._prompts)) > 0).sum())
        share = self._num_right / self._num_graded
        low, high = wilson(prompts * share, prompts)
        return {
            "count/graded": prompts,
            "count/without_answer": self._num_unparsed,
            "quality/accuracy": share,
            "quality/accuracy_low": low,
            "quality/accuracy_high": high,
        }


def accuracy(records: Iterable[Record]) -> dict[str, float]:
    """Return the share of right answers; nothing if none is graded."""
    result = Answers()
    for record in records:
        result.add(record)
    return result.metrics()
