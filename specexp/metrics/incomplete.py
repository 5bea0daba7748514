"""Outputs that a limit cut off, and outputs without an answer that could be read: how many, and what to raise.

Both count as they are, so that an accuracy says little where there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from specexp.storage.records import Record

WARNED = 0.1  # share of a setting's outputs from which a warning says so
LENGTH, CONTEXT = "length", "context"  # why an output ended that did not end by itself


def is_cut(record: Record) -> bool:
    """Whether an output ended at a limit, that of `max_new_tokens` or of the context, and not by itself."""
    return record.get("finish_reason") in (LENGTH, CONTEXT)


def is_unparsed(record: Record) -> bool:
    """Whether an output that is graded holds no answer that could be read; it counts as wrong."""
    return record["correct"] is not None and record.get("answer") is None


def metrics(records: Sequence[Record]) -> dict[str, float]:
    """The share that was cut, of all outputs, and the share without an answer, of those that are graded."""
    found = {"quality/cut_share": _share(records, is_cut)}
    if graded := [record for record in records if record["correct"] is not None]:
        found["quality/unparsed_share"] = _share(graded, is_unparsed)
    return found


def warnings(records: Mapping[str, Sequence[Record]], max_new_tokens: int, answer_rule: str = "") -> Iterator[str]:
    """A sentence for each thing that is wrong with a tenth of some setting's outputs or more; `records` by label.

    `answer_rule` is the setting by which answers are read, where the task has one.
    """
    if found := _many(records, lambda record: bool(record.get("finish_reason") == LENGTH)):
        yield f"{found} of the outputs were cut off at max_new_tokens ({max_new_tokens}); raise max_new_tokens."
    if found := _many(records, lambda record: bool(record.get("finish_reason") == CONTEXT)):
        yield (
            f"{found} of the outputs were cut off where the model's context ends; shorten the prompts, or take models"
            " with a longer context."
        )
    graded = {label: [record for record in each if record["correct"] is not None] for label, each in records.items()}
    if found := _many(graded, is_unparsed):
        unread = [record for each in graded.values() for record in each if is_unparsed(record)]
        why = "most of them were cut off" if _share(unread, is_cut) >= 0.5 else "look at some in the records"
        other = f" (answer_rule is {answer_rule}; answer_rule and answer_pattern say how else)" if answer_rule else ""
        yield f"{found} of the graded outputs hold no answer that could be read{other} and count as wrong; {why}."


def _many(records: Mapping[str, Sequence[Record]], what: Callable[[Record], bool]) -> str:
    """`a, b: up to 83 %` of the settings with so many that they are worth a warning; "" where there is none."""
    shares = {label: _share(each, what) for label, each in records.items()}
    over = [label for label, share in shares.items() if share >= WARNED]
    if not over:
        return ""
    most = "up to " if len({shares[label] for label in over}) > 1 else ""
    return f"{', '.join(over)}: {most}{max(shares.values()):.0%}".replace("%", " %")


def _share(records: Sequence[Record], what: Callable[[Record], bool]) -> float:
    return sum(what(record) for record in records) / len(records) if records else 0.0
