"""Sums over one setting's records, from which all its metrics are computed: records are added one by one, none is held.

What is summed is of integers, and of seconds in the order of the records, so that the sums are those of a list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, get_args

from specexp.method_specs import MethodSpec, spec
from specexp.metrics.incomplete import Endings
from specexp.metrics.paired import Answers, Compared, SpeedUp, paired
from specexp.metrics.per_prompt import COUNTS, SECONDS, PromptNumbers, PromptTimes
from specexp.metrics.statistics import Timed
from specexp.metrics.trees import TreeSums
from specexp.storage.records import Count, Record, Seconds, Summed, num_tokens

OF_PROPOSER = ("num_rounds", "num_drafted", "num_accepted")
_SUMMED: tuple[Summed, ...] = (*get_args(Count), *get_args(Seconds), "overlap")
_SECONDS, _ROUNDS = 0, 1  # columns by prompt


def has_ends(records: Sequence[Record]) -> bool:
    """True if the records say which drafts lie after the end of an output; records of earlier versions do not."""
    return all("drafted_before_end" in record for record in records)


def total(histogram: Sequence[int]) -> int:
    """Return the sum of all values that a histogram counts."""
    return sum(value * times for value, times in enumerate(histogram))


class Histogram:
    """How often each value was counted, over several histograms."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def add(self, counts: Sequence[int]) -> None:
        if len(counts) > len(self.counts):
            self.counts += [0] * (len(counts) - len(self.counts))
        for value, times in enumerate(counts):
            self.counts[value] += times


@dataclass(slots=True)
class CategorySums:
    """Sums over the records of one category of prompts."""

    tokens: int = 0
    rounds: int = 0
    speed: SpeedUp = field(default_factory=SpeedUp)


class Tally:
    """Sums over the records of one setting, of one repeat or of several together; intervals count each prompt once.

    `plain` has the very records that these are compared with, no more and no fewer: their times are not added up again.
    """

    def __init__(self, prompts: PromptNumbers | None = None, plain: Tally | None = None) -> None:
        self._prompts = PromptNumbers() if prompts is None else prompts
        self.method: MethodSpec | None = None
        self.num_records, self.tokens = 0, 0
        self._sums: dict[Summed, float] = dict.fromkeys(_SUMMED, 0)
        self.has_ends, self.num_chains, self.judged_before_end = True, 0, 0
        self.drafted, self.accepted = Histogram(), Histogram()  # before the end of an output
        self.proposers: dict[str, Counter[str]] = {}
        self.categories: dict[str, CategorySums] = {}
        self.trees, self.answers, self.endings = TreeSums(), Answers(self._prompts), Endings()
        self.compared: Compared | None = None
        self._times = PromptTimes(self._prompts, SECONDS, COUNTS)
        self._plain = plain

    @classmethod
    def of(cls, records: Sequence[Record], baseline: Sequence[Record]) -> Self:
        """Add up records, with plain decoding's of the same prompts if there are any."""
        result = cls()
        for record, plain in paired(records, baseline) if baseline else ((record, None) for record in records):
            result.add(record, plain)
        return result

    def add(self, record: Record, plain: Record | None = None) -> None:
        """Add one record, and plain decoding's of the same prompt, turn and repeat, unless nothing is compared."""
        self.method = self.method or spec(record["method"])
        emitted = num_tokens(record)
        self.num_records += 1
        self.tokens += emitted
        for key in _SUMMED:
            self._sums[key] += record[key]
        self.num_chains += _num_chains(record)
        self._add_drafts(record)
        if self.method.grows_tree:
            self.trees.add(record)
        self.answers.add(record)
        self.endings.add(record)
        prompt = self._prompts.number(record["prompt_id"])
        self._times.add(prompt, emitted, [record["seconds"], record["num_rounds"]])
        # MLflow allows only letters, digits and a few other characters in a metric's name.
        name = re.sub(r"[^A-Za-z0-9_.\- ]", "_", record["category"] or "none")
        category = self.categories.setdefault(name, CategorySums())
        category.tokens += emitted
        category.rounds += record["num_rounds"]
        assert self.compared is None or plain is not None, "all records are compared, or none"
        if plain is not None:
            assert self.compared is not None or self.num_records == 1, "all records are compared, or none"
            self.compared = self.compared or self._comparison()
            self.compared.add(record, plain)
            category.speed.add(record, plain)

    def _comparison(self) -> Compared:
        return Compared(self._prompts, self._times, None if self._plain is None else self._plain._times)

    def _add_drafts(self, record: Record) -> None:
        if "drafted_before_end" in record:
            self.drafted.add(record["drafted_before_end"])
            self.accepted.add(record["accepted_before_end"])
            self.judged_before_end += record["num_judged_before_end"]
        else:
            self.has_ends = False
        for name, counts in record.get("proposers", {}).items():
            own = self.proposers.setdefault(name, Counter())
            for key in OF_PROPOSER:
                own[key] += counts[key]

    def sum(self, key: Summed) -> float:
        """Return the sum of one of the records' numbers."""
        return float(self._sums[key])

    def count(self, key: Count) -> int:
        """Return the sum of one of the records' counts."""
        return int(self._sums[key])

    def timed(self) -> Timed:
        """Return each prompt's tokens and decode seconds."""
        return self._times.timed(_SECONDS)

    def in_rounds(self) -> Timed:
        """Return each prompt's tokens, and its rounds in place of seconds."""
        return self._times.timed(_ROUNDS)


def _num_chains(record: Record) -> int:
    """Return the number of rounds in which the draft model drafted."""
    if record.get("proposers"):
        return record["proposers"].get("draft", {}).get("num_rounds", 0)
    return sum(record["drafted_before_end"][1:]) if has_ends([record]) else record["num_rounds"]
