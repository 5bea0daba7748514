"""The yield of mining: counts of the prompts that give labels and that give none, and what to change if many give none.

A prompt gives no label if its response does not end within `max_new_tokens` or holds no readable answer. A swap whose
continuation does not end is undecided and is not used.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, linear_regression
from typing import Any

from tqdm import tqdm

from specexp.judge.labels import Label, LabelSet, unpack
from specexp.judge.mining import MINED, NO_ANSWER, UNFINISHED
from specexp.judge.splits import SPLITS, kinds_of, lacking, more_prompts, num_fillable

FIRST = 10  # prompts after which mining checks what they yielded
WARNED = 0.1  # share of prompts or swaps without a result from which a warning is given at the end
EARLY = 0.5  # the same for the first prompts, while restarting is still cheap
ENDS = 0.95  # share of responses that should end within the suggested length
FEWEST_LENGTHS = 5  # with fewer finished responses, no length is estimated and the limit is doubled
MOST = 8  # times the limit: the most that is suggested, since the observed lengths say nothing about longer ones


@dataclass(slots=True)
class Yield:
    """Counts over prompts; `lengths` are the token counts of the responses that ended."""

    num_prompts: int = 0
    unfinished: int = 0
    no_answer: int = 0
    swaps: int = 0
    undecided: int = 0
    lengths: list[int] = field(default_factory=list)

    def add(self, labels: Sequence[Label], counts: Mapping[str, Any], status: str) -> None:
        """Add one prompt."""
        self.num_prompts += 1
        self.unfinished += status == UNFINISHED
        self.no_answer += status == NO_ANSWER
        self.swaps += len(labels)
        self.undecided += sum(label.important is None for label in labels)
        if status != UNFINISHED and "num_tokens" in counts:  # older results do not have it
            self.lengths.append(int(counts["num_tokens"]))

    def early_warning(self, limit: int) -> str:
        """Return a warning if most of the first prompts gave no labels, else ""."""
        lost = self.unfinished + self.no_answer
        if lost < EARLY * self.num_prompts and self.undecided < max(1, EARLY * self.swaps):
            return ""
        result = [
            (self.unfinished, f"{self.unfinished} did not end within max_new_tokens ({limit})"),
            (self.no_answer, f"{self.no_answer} had no answer that could be read"),
            (self.undecided, f"{self.undecided} of {self.swaps} swaps were left undecided"),
        ]
        said = ", ".join(words for number, words in result if number)
        way = f"raise max_new_tokens to about {self.enough_tokens(limit)}" if self.unfinished or self.undecided else ""
        ways = " and ".join(filter(None, (way, "look at what the model answers" if self.no_answer else "")))
        return f"of the first {self.num_prompts} prompts {said}; they give no labels. Stop, {ways}, and mine again."

    def enough_tokens(self, limit: int) -> int:
        """Estimate the tokens within which about 95 % of the responses would end, from the lengths of those that ended.

        Assumes that lengths are lognormal and cut off at `limit`: fits a line through their logarithms at their normal
        scores among all prompts.
        """
        least = 1.5 * limit if self.unfinished or self.undecided else 0
        lengths = sorted(self.lengths)
        if len(lengths) < FEWEST_LENGTHS or lengths[0] == lengths[-1]:
            return _rounded(max(2 * limit, least))
        normal = NormalDist()
        scores = [normal.inv_cdf((place + 0.5) / self.num_prompts) for place in range(len(lengths))]
        line = linear_regression(scores, [math.log(max(1, length)) for length in lengths])
        needed = math.exp(min(line.intercept + line.slope * normal.inv_cdf(ENDS), math.log(MOST * limit)))
        return _rounded(max(needed, least))


def warnings(labels: LabelSet) -> Iterator[str]:
    """Yield what the user should know before training on these labels, one sentence each."""
    counts, limit = labels.manifest["counts"], labels.manifest["settings"]["max_new_tokens"]
    prompts, swaps = labels.manifest["num_prompts"], len(labels.labels)
    unfinished, no_answer = counts[f"num_{UNFINISHED}"], counts[f"num_{NO_ANSWER}"]
    undecided = sum(label.important is None for label in labels.labels)
    enough = labels.manifest.get("enough_tokens") or _rounded(2 * limit)
    if unfinished >= WARNED * prompts:
        yield (
            f"{unfinished} of {prompts} prompts did not end within max_new_tokens ({limit}) and gave no labels; about"
            f" {enough} would let nearly all end."
        )
    if no_answer >= WARNED * prompts:
        yield (
            f"{no_answer} of {prompts} prompts had no answer that could be read and gave no labels; look at what the"
            " model answers, and whether the task reads it."
        )
    if undecided >= WARNED * swaps:
        yield (
            f"{undecided} of {swaps} swaps are undecided, since what followed did not end within max_new_tokens"
            f" ({limit}); they are left out of the important share and of training; about {enough} would decide nearly"
            " all."
        )
    if missing := what_is_missing(labels):
        yield f"train_judge will refuse these labels: {missing}"


def what_is_missing(labels: LabelSet) -> str:
    """Return why no judge can be trained and about how many more prompts are needed; "" if one can be trained."""
    result = list(lacking(labels.labels))
    if not result:
        return ""
    kinds = list(kinds_of(labels.labels).values())
    both, important, unimportant = (kinds.count(frozenset(k)) for k in ((True, False), (True,), (False,)))
    fillable, prompts = num_fillable(kinds_of(labels.labels)), int(labels.manifest["num_prompts"])
    unfinished = labels.manifest.get("counts", {}).get(f"num_{UNFINISHED}", 0)
    also = f", or raise max_new_tokens, at which {unfinished} of them did not end" if unfinished else ""
    return (
        f"{'; '.join(result)}; a judge needs both kinds in every split. Of {prompts} prompts {both} have both kinds,"
        f" {important} important mismatches alone and {unimportant} unimportant ones alone: enough for {fillable} of"
        f" {len(SPLITS)} splits. Mine about {more_prompts(fillable, prompts)} more prompts{also}."
    )


class EarlyWarning:
    """Warns once about a low yield of the first prompts, while restarting is still cheap."""

    def __init__(self, max_new_tokens: int) -> None:
        self._limit = max_new_tokens
        self._yield = Yield()

    def add(self, path: Path) -> None:
        """Add the results of one more prompt."""
        if self._yield.num_prompts == FIRST:
            return
        labels, _, counts = unpack(path)
        self._yield.add(labels, counts, status_of(counts))
        if self._yield.num_prompts == FIRST and (warning := self._yield.early_warning(self._limit)):
            tqdm.write(f"warning: {warning}", file=sys.stderr)


def status_of(counts: Mapping[str, Any]) -> str:
    """Return the status of a prompt from its stored counts."""
    return next(status for status in (MINED, NO_ANSWER, UNFINISHED) if counts.get(f"num_{status}"))


def _rounded(tokens: float) -> int:
    """Round up to a multiple of 32."""
    return 32 * math.ceil(tokens / 32)


def summarise(labels: LabelSet) -> dict[str, float]:
    """Return the metrics of a label set; the cost of mining is given relative to that of the literal procedure."""
    counts: Mapping[str, int] = labels.manifest["counts"]
    tested = len(labels.labels)
    decided = [label for label in labels.labels if label.important is not None]
    mined = counts[f"num_{MINED}"]
    return {
        "labels/prompts": labels.manifest["num_prompts"],
        "labels/prompts_mined": mined,
        "labels/prompts_without_answer": counts[f"num_{NO_ANSWER}"],
        "labels/prompts_unfinished": counts[f"num_{UNFINISHED}"],
        "labels/mismatches": tested,
        "labels/mismatches_per_prompt": tested / max(1, mined),
        "labels/unfinished_swaps": tested - len(decided),
        "labels/undecided_share": (tested - len(decided)) / tested,
        "labels/important_share": sum(bool(label.important) for label in decided) / max(1, len(decided)),
        "labels/target_calls_per_label": counts["mining_target_calls"] / tested,
        "labels/target_positions_per_label": counts["mining_target_positions"] / tested,
        "labels/draft_calls_per_label": counts["mining_draft_calls"] / tested,
        "labels/draft_positions_per_label": counts["mining_draft_positions"] / tested,
        "labels/target_calls_of_slow_way": counts["mining_target_calls"] / max(1, counts["slow_target_calls"]),
        "labels/target_positions_of_slow_way": counts["mining_target_positions"]
        / max(1, counts["slow_target_positions"]),
    }
