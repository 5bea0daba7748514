"""Counts outputs that a limit cut off and outputs without a readable answer, and says which setting to raise.

Both are graded as they are, so accuracy says little if there are many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from specexp.storage.records import Record

WARNED = 0.1  # share of a setting's outputs from which a warning is given
LENGTH, CONTEXT = "length", "context"  # finish reasons of outputs that did not end by themselves


def is_cut(record: Record) -> bool:
    """True if an output ended at the limit of `max_new_tokens` or of the context, and not by itself."""
    return record.get("finish_reason") in (LENGTH, CONTEXT)


def is_unparsed(record: Record) -> bool:
    """True if a graded output holds no readable answer; it counts as wrong."""
    return record["correct"] is not None and record.get("answer") is None


class Endings:
    """Counts outputs that were cut off, and graded ones without an answer."""

    def __init__(self) -> None:
        self._num, self._num_cut, self._num_graded, self._num_unparsed = 0, 0, 0, 0

    def add(self, record: Record) -> None:
        self._num += 1
        self._num_cut += is_cut(record)
        self._num_graded += record["correct"] is not None
        self._num_unparsed += is_unparsed(record)

    def metrics(self) -> dict[str, float]:
        """Return the share of all outputs that were cut off, and the share of graded outputs without an answer."""
        result = {"quality/cut_share": self._num_cut / max(1, self._num)}
        if self._num_graded:
            result["quality/unparsed_share"] = self._num_unparsed / self._num_graded
        return result


def metrics(records: Iterable[Record]) -> dict[str, float]:
    """Return the shares of these outputs."""
    result = Endings()
    for record in records:
        result.add(record)
    return result.metrics()


def warnings(records: Mapping[str, Sequence[Record]], max_new_tokens: int, answer_rule: str = "") -> Iterator[str]:
    """Yield a sentence for each problem that a tenth or more of some setting's outputs have; `records` are by label.

    `answer_rule` is the setting that decides how answers are read, if the task has one.
    """
    if result := _many(records, lambda record: bool(record.get("finish_reason") == LENGTH)):
        yield f"{result} of the outputs were cut off at max_new_tokens ({max_new_tokens}); raise max_new_tokens."
    if result := _many(records, lambda record: bool(record.get("num_forced"))):
        yield f"{result} of the outputs had their thinking cut at the budget; raise thinking_budget to let more end."
    if result := _many(records, lambda record: bool(record.get("finish_reason") == CONTEXT)):
        yield (
            f"{result} of the outputs were cut off at the end of the model's context; shorten the prompts, or use"
            " models with a longer context."
        )
    graded = {label: [record for record in each if record["correct"] is not None] for label, each in records.items()}
    if result := _many(graded, is_unparsed):
        unread = [record for each in graded.values() for record in each if is_unparsed(record)]
        why = "most of them were cut off" if _share(unread, is_cut) >= 0.5 else "look at some in the records"
        other = f" (answer_rule is {answer_rule}; change it, or set answer_pattern)" if answer_rule else ""
        yield f"{result} of the graded outputs hold no answer that could be read{other} and count as wrong; {why}."


def _many(records: Mapping[str, Sequence[Record]], what: Callable[[Record], bool]) -> str:
    """Return the settings with a share worth a warning, as `a, b: up to 83 %`; "" if there are none."""
    shares = {label: _share(each, what) for label, each in records.items()}
    over = [label for label, share in shares.items() if share >= WARNED]
    if not over:
        return ""
    most = "up to " if len({shares[label] for label in over}) > 1 else ""
    return f"{', '.join(over)}: {most}{max(shares.values()):.0%}".replace("%", " %")


def _share(records: Sequence[Record], what: Callable[[Record], bool]) -> float:
    return sum(what(record) for record in records) / len(records) if records else 0.0
